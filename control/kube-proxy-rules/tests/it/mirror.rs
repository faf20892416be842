//! A table that does what undamaged rules do: the rules are asked for each sender, and the answers become the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nomagic_api::explain::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::services::{Action, AddressKind, Affinity, Backend, Frontend, Limits, Pool, Refused, ServicePort, Services};
use nomagic_core::tuple::{HashSeed, PrefixSet, Tuple};
use nomagic_kube_proxy_rules::parity::{Objects, Report, Standing, Table, check};
use nomagic_kube_proxy_rules::{Destination, Node, Origin, Packet, Ruleset};

/// Endpoints of the recorded cases that run on the node are in this range.
const LOCAL: &str = "10.180.0.";

pub struct Mirror {
    services: Services,
    node: Node,
    primary: Vec<IpAddr>,
    known: BTreeMap<String, BTreeSet<SocketAddr>>,
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

impl Mirror {
    /// `ranges`: the source ranges of the load balancer IP 1.2.3.4:80.
    pub fn of(rules: &Ruleset, ranges: Option<&str>) -> Mirror {
        let node = Node { addresses: addresses(&["192.168.0.2", "192.168.1.2", "192.168.99.11", "2001:db8::1", "2001:db8:1::2"]) };
        let primary = addresses(&["192.168.0.2", "2001:db8::1"]);
        let mut services = Services::empty(HashSeed::new(0));
        services.pod_cidrs = ["10.0.0.0/8", "fd00:10::/64"].map(|text| text.parse().unwrap()).into();
        services.service_cidrs = ["172.30.0.0/16", "fd00:172:30::/108"].map(|text| text.parse().unwrap()).into();
        services.node_ips = node.addresses.iter().copied().collect();
        services.kernel_ips = node.addresses.iter().copied().collect();
        let mut mirror = Mirror { services, node, primary, known: BTreeMap::new() };
        for destination in rules.destinations() {
            let own: Vec<IpAddr> = mirror.node.addresses.iter().filter(|a| a.is_ipv6() == destination.v6).copied().collect();
            for address in destination.address.map_or(own, |address| vec![address]) {
                mirror.add(rules, &destination, address, ranges);
            }
        }
        mirror
    }

    fn add(&mut self, rules: &Ruleset, to: &Destination, address: IpAddr, ranges: Option<&str>) {
        let v6 = address.is_ipv6();
        let ask = |origin: Origin, source: &str| {
            let tuple = Tuple::new(to.proto, source.parse().unwrap(), 40_000, address, to.port).unwrap();
            rules.follow(&Packet { tuple, origin }, &self.node)
        };
        let guarded = ranges.filter(|_| (address.to_string().as_str(), to.port) == ("1.2.3.4", 80));
        // From inside of the source ranges, where there are some.
        let outside = if v6 { "2001:db9::7" } else { "203.0.113.7" };
        let pod = if v6 { "fd00:10::ff:7" } else { "10.200.0.7" };
        let pod = if guarded.is_some() { outside } else { pod };
        let [pod, own, outside] =
            [ask(Origin::Pod, pod), ask(Origin::Node, if v6 { "2001:db8::1" } else { "192.168.0.2" }), ask(Origin::Outside, outside)];
        if [&pod, &own, &outside].iter().all(|decision| decision.verdict == Verdict::Pass) {
            return;
        }
        let name = outside.service.clone().unwrap_or_else(|| "ns/unnamed".into());
        for decision in [&pod, &own, &outside] {
            self.known.entry(name.clone()).or_default().extend(decision.backends.iter().map(|backend| backend.to));
        }
        let action = |decision: &nomagic_kube_proxy_rules::Decision| match decision.verdict {
            Verdict::Forward => {
                let backends: Vec<Backend> =
                    decision.backends.iter().map(|b| Backend { addr: b.to.ip(), port: b.to.port(), weight: 1, stats: 0 }).collect();
                let snat = decision.masquerades("0.0.0.0".parse().unwrap()).unwrap();
                Action::Forward { pool: Arc::new(Pool::new(backends, &HashSeed::new(0)).unwrap()), snat }
            }
            Verdict::Reject => Action::Reject(Reason::NoEndpoints),
            _ => Action::Drop(Reason::NoLocalEndpoints),
        };
        let kind = match (to.address, self.services.in_service_range(address)) {
            (None, _) => AddressKind::NodePort,
            (_, true) => AddressKind::ClusterIp,
            _ => AddressKind::LoadBalancer,
        };
        let (namespace, service) = name.split_once('/').unwrap();
        let port = ServicePort {
            namespace: namespace.into(),
            name: service.into(),
            port_name: "p80".into(),
            port: to.port,
            proto: to.proto,
            affinity: pod.affinity_s.map(|seconds| Affinity::new(namespace, service, "p80", to.proto, seconds)),
            limits: Limits::default(),
            refused: Arc::new(Refused::default()),
        };
        let source_ranges = guarded.map(|range| Arc::new(PrefixSet::new([range.parse().unwrap()])));
        let frontend =
            Frontend { port: Arc::new(port), kind, pod: action(&pod), node: action(&own), external: action(&outside), source_ranges };
        self.services.add_frontend(address, to.port, to.proto, frontend).map_err(drop).unwrap();
        if kind == AddressKind::ClusterIp {
            self.services.cluster_ips.insert(address, 1);
        }
    }

    /// The table holds a Service less.
    pub fn forget(&mut self, address: &str, port: u16, proto: nomagic_core::tuple::Proto) {
        self.services.set_frontend(address.parse().unwrap(), port, proto, None);
    }

    pub fn check(&self, rules: &Ruleset) -> Report {
        check(&Table { services: &self.services, node: &self.node, primary: &self.primary, objects: self }, rules)
    }
}

impl Objects for Mirror {
    fn standing(&self, port: &ServicePort, to: SocketAddr) -> Standing {
        let known = self.known.get(&format!("{}/{}", port.namespace, port.name)).is_some_and(|known| known.contains(&to));
        match (known, to.ip().to_string().starts_with(LOCAL)) {
            (false, _) => Standing::Unknown,
            (true, true) => Standing::Usable { local: true },
            (true, false) => Standing::LeftOut { why: "on another node".into(), other_node: Some("node-b.example".into()) },
        }
    }
    fn has_node_port(&self, port: u16, _: nomagic_core::tuple::Proto) -> bool {
        self.services.frontends().any(|(_, at, _, frontend)| at == port && frontend.kind == AddressKind::NodePort)
    }
}
