//! An incrementally compiled table equals one compiled from scratch, for any sequence of changes.

use std::fmt::Write as _;

use nomagic_core::services::Action;
use nomagic_core::tuple::{Proto, splitmix64};

use super::tests::settings;
use super::*;
use crate::objects::{Kind, Object, Service, Slice};
use crate::problem::Origin;
use crate::settings::ExternalIps;

/// Random numbers below a limit.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        splitmix64(&mut self.0) % n
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// One of a few Services that often conflict: same addresses, node ports, health check ports and ages.
fn service(dice: &mut Dice) -> Object {
    let name = dice.one(&["a", "b", "c", "d", "e"]);
    let kind = dice.one(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]);
    let ips = dice.one(&["[172.30.0.1]", "[172.30.0.2]", "[172.30.0.3, 'fd00:10::3']", "['fd00:10::4']", "[None]"]);
    let outer = dice.one(&["[]", "[198.51.100.1]", "[198.51.100.1, 172.30.0.1, 192.168.0.2]"]);
    let policy = dice.one(&["Cluster", "Local"]);
    let (inner, affinity) = (dice.one(&["Cluster", "Local"]), dice.one(&["None", "ClientIP"]));
    let port = |dice: &mut Dice, name: &str| {
        let (proto, node_port) = (dice.one(&["TCP", "UDP"]), dice.one(&["0", "30080", "30081", "80"]));
        format!("{{name: '{name}', port: {}, protocol: {proto}, nodePort: {node_port}}}", 80 + dice.below(2))
    };
    let ports = (0..dice.below(3)).map(|i| port(dice, ["x", "y"][i as usize])).collect::<Vec<_>>().join(", ");
    let ingress = dice.one(&["[]", "[{ip: 198.51.100.1}]", "[{ip: 198.51.100.2}]"]);
    let check = dice.one(&["0", "30500", "30501"]);
    let ranges = dice.one(&["[]", "[203.0.113.0/24]", "[what]"]);
    let limits = dice.one(&["{}", "{nomagic.io/connections-per-second: '9'}", "{nomagic.io/max-connections-per-client: '5'}"]);
    let labels = dice.one(&["{}", "{}", "{}", "{service.kubernetes.io/service-proxy-name: other}"]);
    let yaml = format!(
        "metadata: {{name: {name}, namespace: n, creationTimestamp: '202{}-01-01T00:00:00Z', annotations: {limits}, labels: {labels}}}\nspec: {{type: {kind}, clusterIPs: {ips}, externalIPs: {outer}, \
         externalTrafficPolicy: {policy}, internalTrafficPolicy: {inner}, sessionAffinity: {affinity}, ports: [{ports}], healthCheckNodePort: {check}, \
         loadBalancerSourceRanges: {ranges}}}\nstatus: {{loadBalancer: {{ingress: {ingress}}}}}",
        dice.below(2)
    );
    Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

fn slice(dice: &mut Dice) -> Object {
    let (name, of) = (dice.one(&["s1", "s2", "s3", "s4", "s5", "s6"]), dice.one(&["a", "b", "c", "d", "e"]));
    let v6 = dice.below(4) == 0;
    let prefix = if v6 { "fd00:2::" } else { "10.1.0." };
    let endpoints = (0..dice.below(4)).map(|_| {
        let (last, ready) =
            (1 + dice.below(5), dice.one(&["{ready: true}", "{ready: false}", "{ready: false, serving: true, terminating: true}"]));
        format!("{{addresses: ['{prefix}{last}'], nodeName: {}, conditions: {ready}}}", dice.one(&["here", "there"]))
    });
    let endpoints = endpoints.collect::<Vec<_>>().join(", ");
    let port = dice.one(&["{name: x, port: 8080}", "{name: y, port: 8081}, {name: x, port: 1, protocol: UDP}", "{name: x}"]);
    let yaml = format!(
        "metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: {}\nports: [{port}]\nendpoints: [{endpoints}]",
        if v6 { "IPv6" } else { "IPv4" }
    );
    Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

/// The contents of a table as text, without its generation and counter indices.
fn page(c: &Compiled) -> String {
    let s = &c.services;
    let action = |action: &Action| match action {
        Action::Forward { pool, snat } => {
            format!("{:?} {snat}", pool.backends.iter().map(|b| addr::socket(b.addr, b.port)).collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    };
    let mut lines: Vec<String> = Vec::new();
    for (ip, port, proto, f) in s.frontends() {
        let actions = f.actions().map(action);
        lines.push(format!("{proto} {} {:?} {:?} {:?} {actions:?}", addr::socket(ip, port), f.port, f.kind, f.source_ranges));
    }
    lines.extend(s.cluster_ips.iter().map(|entry| format!("{entry:?}")));
    lines.extend(c.problems.iter().map(ToString::to_string));
    lines.sort();
    let mut out = lines.join("\n");
    let _ = write!(out, "\n{} {:?} {:?} {:?} {:?}", s.ports, c.health_checks, c.no_local_endpoints, s.snat, s.pod_cidrs);
    let [nodes, pods] = [&s.node_ips, &s.pod_ips].map(|ips| ips.iter().collect::<BTreeSet<&IpAddr>>());
    let kernel: BTreeSet<&IpAddr> = s.kernel_ips.iter().collect();
    let _ = write!(out, "\n{nodes:?} {pods:?} {kernel:?}");
    out
}

/// Applies a table's changes to the filter's rules: adds the opened ones, and removes unneeded ones if any were closed.
fn follow(rules: &mut BTreeSet<String>, c: &Compiled) {
    let text = |rules: &FilterRules| -> BTreeSet<String> {
        let services = rules.services.iter().map(|r| format!("{r:?}"));
        services.chain(rules.addresses.iter().map(|r| format!("{r:?}"))).collect()
    };
    let all = text(&FilterRules::of(&c.services));
    rules.extend(text(&c.opened));
    if c.closed {
        rules.retain(|r| all.contains(r));
    }
    assert_eq!(*rules, all);
}

#[test]
fn an_incremental_table_equals_one_from_scratch() {
    for (seed, capacity) in [(3, CAPACITY), (9, TIGHT)] {
        follow_changes(&mut Dice(seed), capacity);
    }
}

/// Hardly enough for two Services.
const TIGHT: Demand = Demand { rules: 8, frontends: 20, cluster_ips: 4, pool_bytes: 60_000 };

fn follow_changes(dice: &mut Dice, capacity: Demand) {
    let everywhere = ExternalIps::Allowed(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    let plain = Settings { external_ips: everywhere, ..settings() };
    let guarded = settings();
    let pods = Settings { cluster_cidrs: vec!["192.168.0.0/24".parse().unwrap(), "192.168.1.7".parse().unwrap()], ..plain.clone() };
    let (mut index, mut compiler, mut rules) = (Index::default(), Compiler::with_capacity(TARGETS_MAX, capacity), BTreeSet::new());
    let (mut contested, mut waiting, mut refused) = (0, 0, 0);
    for round in 0..5_000 {
        for _ in 0..=dice.below(3) {
            let object = if dice.below(3) == 0 { service(dice) } else { slice(dice) };
            if dice.below(6) == 0 {
                index.delete(object.kind(), &object.key().clone());
            } else if dice.below(200) == 0 {
                index.replace(Kind::EndpointSlice, [object], &BTreeSet::new());
            } else {
                index.apply(object);
            }
        }
        let settings = match round % 500 {
            480.. => &guarded,
            300..320 => &pods,
            _ => &plain,
        };
        let touched = index.take_touched();
        let followed = compiler.recompile(&index, settings, &touched);
        let anew = Compiler::with_capacity(TARGETS_MAX, capacity).compile(&index, settings);
        assert_eq!(page(&followed), page(&anew), "round {round}");
        follow(&mut rules, &followed);
        let most = capacity.rules + capacity.frontends;
        assert!(followed.services.frontend_count() as u64 <= most, "round {round}: beyond the stated capacity");
        contested += usize::from(followed.problems.iter().any(|p| p.to_string().contains("is taken by Service")));
        waiting += usize::from(followed.problems.iter().any(|p| p.to_string().contains("is already Service")));
        refused += usize::from(followed.problems.iter().any(|p| p.to_string().contains("it is the largest")));
        let places: Vec<u32> = compiler.targets().map(|t| t.0).collect();
        assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "the indices are unique");
    }
    assert!(contested > 100 && waiting > 20 && (refused > 500) == (capacity == TIGHT), "{contested} {waiting} {refused}");
}

#[test]
fn a_change_shares_the_rest_of_the_table() {
    let mut dice = Dice(5);
    let mut index = Index::default();
    for i in 0..500 {
        let yaml = format!(
            "metadata: {{name: s{i}, namespace: n}}\nspec: {{clusterIP: 172.30.{}.{}, ports: [{{port: 80, name: x}}]}}",
            i / 250,
            i % 250
        );
        index.apply(Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap())));
    }
    let (mut compiler, settings) = (Compiler::new(TARGETS_MAX), settings());
    let before = compiler.recompile(&index, &settings, &Touched::default());
    let Object::Slice(mut changed) = slice(&mut dice) else { panic!("a slice") };
    Arc::make_mut(&mut changed).service = Some(NamespacedName { namespace: "n".into(), name: "s77".into() });
    index.take_touched();
    index.apply(Object::Slice(changed));
    let touched = index.take_touched();
    assert_eq!(touched.services_concerned(&index).len(), 1);
    let after = compiler.recompile(&index, &settings, &touched);
    assert!(after.opened == FilterRules::default() && !after.closed, "the filter need not change");
    let (ip, tcp): (IpAddr, Proto) = ("172.30.0.76".parse().unwrap(), Proto::Tcp);
    let of = |c: &Compiled| Arc::as_ptr(&c.services.frontend(ip, 80, tcp).unwrap().port);
    assert_eq!(of(&before), of(&after), "another Service's");
    assert_eq!(after.services.generation, before.services.generation + 1);
}
