//! Tests of the individual rules. The gateway's `tests/it/cases.rs` tests their combinations.

use nomagic_core::mss::SegmentSize;
use nomagic_core::services::{Action, ClientClass, Decision, SnatCause, SnatRange, TcpReject, UnusedPorts};
use nomagic_core::tuple::{Proto, Tuple};

use super::*;
use crate::compile::endpoints::Class;
use crate::objects::Service;
use crate::objects::{Object, Slice};
use crate::problem::Origin;
use crate::settings::{DefaultLimits, ExternalIps, NodePortAddresses, ThisNode};

/// A node with addresses of all kinds; node ports answer on its primary ones.
pub(super) fn settings() -> Settings {
    let ips = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    let primary = ips(&["192.168.0.2", "fd00:1::2"]);
    Settings {
        snat: SnatRange { v4: vec![primary[0]], v6: vec![primary[1]], port_first: 61_000, port_last: 61_999, ..SnatRange::default() },
        node: ThisNode {
            name: "here".into(),
            ips: ips(&["192.168.0.2", "192.168.1.2", "10.0.0.1", "fd00:1::2", "127.0.0.1", "fe80::1"]),
            primary,
            zone: None,
        },
        cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        pods_by_interface: false,
        incomplete: false,
        service_cidrs: vec!["172.30.0.0/16".parse().unwrap()],
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortAddresses::Primary,
        kernel_ips: BTreeSet::new(),
        keep_local: Vec::new(),
        external_ips: ExternalIps::default(),
        api_servers: BTreeSet::new(),
        tcp_reject: TcpReject::PortUnreachable,
        unused_ports: UnusedPorts::default(),
        answer_ping: false,
        mss: SegmentSize::Keep,
        fragment: true,
        reset_idle: false,
        limits: DefaultLimits::default(),
        seed: HashSeed::new(0),
    }
}

fn service(name: &str, spec: &str) -> Object {
    named(&format!("{{name: {name}, namespace: n}}"), spec, "{}")
}

pub(super) fn named(meta: &str, spec: &str, status: &str) -> Object {
    let yaml = format!("metadata: {meta}\nspec: {spec}\nstatus: {status}");
    Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

/// Endpoints as `address [node] [notready|draining|dead] [zone=x] [on=x]`.
pub(super) fn slice(name: &str, of: &str, port: &str, endpoints: &[&str]) -> Object {
    let entry = |text: &&str| {
        let mut words = text.split(' ');
        let address = words.next().unwrap();
        let mut fields = format!("addresses: ['{address}']");
        for word in words {
            fields += &match word.split_once('=') {
                Some(("zone", z)) => format!(", hints: {{forZones: [{{name: {z}}}]}}"),
                Some((_, n)) => format!(", hints: {{forNodes: [{{name: {n}}}]}}"),
                None if word == "notready" => ", conditions: {ready: false, serving: false}".into(),
                None if word == "draining" => ", conditions: {ready: false, serving: true, terminating: true}".into(),
                None if word == "dead" => ", conditions: {ready: false, serving: false, terminating: true}".into(),
                None => format!(", nodeName: {word}"),
            };
        }
        format!("- {{{fields}}}\n")
    };
    let family = if endpoints.iter().any(|e| e.contains("::")) { "IPv6" } else { "IPv4" };
    let list: String = endpoints.iter().map(entry).collect();
    let list = if list.is_empty() { "[]".into() } else { format!("\n{list}") };
    let yaml = format!(
        "metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: {family}\nports: [{port}]\nendpoints: {list}"
    );
    Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

const P80: &str = "{name: '', port: 8080}";

pub(super) fn compile(objects: &[Object], settings: &Settings) -> Compiled {
    Compiler::new(TARGETS_MAX).compile(&Index::of(objects.to_vec()), settings)
}

/// `forward a,b[ snat]`, or `verdict reason`.
fn decide(c: &Compiled, flow: &str) -> String {
    let (from, to) = flow.split_once(" -> ").unwrap();
    let to: std::net::SocketAddr = to.parse().unwrap();
    match c.services.decide(&Tuple::new(Proto::Tcp, from.parse().unwrap(), 40_000, to.ip(), to.port()).unwrap()) {
        Decision::Pass(r) => format!("pass {}", r.label()),
        Decision::Reject(_, r) => format!("reject {}", r.label()),
        Decision::Drop(_, r) => format!("drop {}", r.label()),
        Decision::Forward { pool, snat, .. } => {
            let backends: Vec<String> = pool.backends.iter().map(|b| addr::socket(b.addr, b.port)).collect();
            let snat = if snat == Some(SnatCause::Masquerade) { " snat" } else { "" };
            format!("forward {}{snat}", backends.join(","))
        }
    }
}

#[test]
fn readiness_termination_locality_and_hints() {
    let near = settings();
    let zoned = Settings { node: ThisNode { zone: Some("z1".into()), ..near.node.clone() }, ..near.clone() };
    // Endpoints, settings, endpoints of policy Cluster, endpoints of policy Local. Addresses are 10.1.0.x.
    let table: &[(&[&str], &Settings, &str, &str)] = &[
        (&["10.1.0.1 here", "10.1.0.2 there", "10.1.0.3"], &near, "1 2 3", "1"),
        (&["10.1.0.1 here notready", "10.1.0.2 there"], &near, "2", ""),
        (&["10.1.0.1 here draining", "10.1.0.2 there"], &near, "2", "1"),
        (&["10.1.0.1 here draining", "10.1.0.2 there draining", "10.1.0.3 here dead"], &near, "1 2", "1"),
        (&["10.1.0.1 here dead", "10.1.0.2 notready"], &near, "", ""),
        (&["10.1.0.1 zone=z1", "10.1.0.2 zone=z2"], &near, "1 2", ""),
        (&["10.1.0.1 zone=z1", "10.1.0.2 here zone=z2"], &zoned, "1", "2"),
        (&["10.1.0.1 zone=z1", "10.1.0.2"], &zoned, "1 2", ""),
        (&["10.1.0.1 zone=z3", "10.1.0.2 zone=z2"], &zoned, "1 2", ""),
        (&["10.1.0.1 zone=z1", "10.1.0.2 notready"], &zoned, "1", ""),
        (&["10.1.0.1 zone=z1 notready", "10.1.0.2 zone=z2"], &zoned, "2", ""),
        (&["10.1.0.1 on=here", "10.1.0.2 on=there"], &near, "1", ""),
        (&["10.1.0.1 on=other", "10.1.0.2 on=there"], &near, "1 2", ""),
        // A duplicate: the one that is not terminating counts, in either order.
        (&["10.1.0.1 here draining", "10.1.0.1 there"], &near, "1", ""),
        (&["10.1.0.1 here", "10.1.0.1 there draining"], &near, "1", "1"),
    ];
    for (endpoints, settings, cluster, local) in table {
        let index = Index::of([service("s", "{clusterIP: 172.30.0.1, ports: [{port: 80}]}"), slice("s-1", "s", P80, endpoints)]);
        let s = index.services().next().unwrap();
        let selection = endpoints::select(
            endpoints::candidates(&endpoints::Members::of(&index, &s.key), &s.ports[0], false, &settings.node),
            &settings.node,
        );
        let last = |class| selection.usable(class).map(|c| c.endpoint.addr.to_string()[7..].to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!((last(Class::Cluster).as_str(), last(Class::Local).as_str()), (*cluster, *local), "{endpoints:?}");
        let left_out = selection.left_out(Class::Cluster).count() + selection.usable(Class::Cluster).count();
        assert_eq!(left_out, selection.candidates.len());
    }
}

#[test]
fn why_endpoints_are_left_out() {
    let index = Index::of([
        service("s", "{clusterIP: 172.30.0.1, ports: [{port: 80}]}"),
        slice(
            "s-1",
            "s",
            P80,
            &["10.1.0.1 on=here", "10.1.0.2 on=x", "10.1.0.3 notready on=x", "10.1.0.4 draining", "10.1.0.5 dead", "10.1.0.6 here on=y"],
        ),
    ]);
    let s = index.services().next().unwrap();
    let node = settings().node;
    let selection = endpoints::select(endpoints::candidates(&endpoints::Members::of(&index, &s.key), &s.ports[0], false, &node), &node);
    let why = |class| selection.left_out(class).map(|(_, why)| why).collect::<Vec<_>>();
    use endpoints::Exclusion::*;
    assert_eq!(why(Class::Cluster), [NodeHint, NotReady, Terminating, NotServing, NodeHint]);
    assert_eq!(why(Class::Local), [OtherNode, OtherNode, OtherNode, OtherNode, NotServing], "the sixth is the local one");
}

#[test]
fn policies_and_masquerading_by_client() {
    let endpoints = slice("s-1", "s", P80, &["10.1.0.1 here", "10.1.0.2 there"]);
    let both = "10.1.0.1:8080,10.1.0.2:8080";
    let only = "10.1.0.1:8080";
    let (pod, node, outside) = ("10.9.9.9", "192.168.0.2", "203.0.113.9");
    let (cluster_ip, node_port) = ("172.30.0.1:80", "192.168.0.2:30080");
    let rows = |spec: &str, masquerade_all: bool| {
        let object = service("s", &format!("{{type: NodePort, clusterIP: 172.30.0.1, ports: [{{port: 80, nodePort: 30080}}]{spec}}}"));
        let c = compile(&[object, endpoints.clone()], &Settings { masquerade_all, ..settings() });
        let ask = |to: &str| [pod, node, outside].map(|from| decide(&c, &format!("{from} -> {to}")));
        [ask(cluster_ip), ask(node_port)]
    };
    let (f, fs) = (|b: &str| format!("forward {b}"), |b: &str| format!("forward {b} snat"));
    assert_eq!(rows("", false), [[f(both), fs(both), fs(both)], [fs(both), fs(both), fs(both)]]);
    assert_eq!(rows("", true)[0], [fs(both), fs(both), fs(both)]);
    assert_eq!(rows(", internalTrafficPolicy: Local", false)[0], [f(only), fs(only), fs(only)]);
    assert_eq!(rows(", externalTrafficPolicy: Local", false)[1], [f(both), fs(both), f(only)]);
}

#[test]
fn without_pod_ranges_no_client_is_a_pod() {
    let mut s = settings();
    s.cluster_cidrs.clear();
    let object =
        service("s", "{type: NodePort, clusterIP: 172.30.0.1, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]}");
    let c = compile(&[object, slice("s-1", "s", P80, &["10.1.0.1 there"])], &s);
    assert_eq!(decide(&c, "203.0.113.9 -> 172.30.0.1:80"), "forward 10.1.0.1:8080");
    assert_eq!(decide(&c, "10.9.9.9 -> 192.168.0.2:30080"), "drop no_local_endpoints");
    assert_eq!(decide(&c, "192.168.0.2 -> 192.168.0.2:30080"), "forward 10.1.0.1:8080 snat");
}

#[test]
fn local_detection_is_per_family() {
    let objects = [
        service("s", "{clusterIPs: ['fd00:10::1', 172.30.0.1], ports: [{port: 80}]}"),
        slice("s-4", "s", P80, &["10.1.0.1"]),
        slice("s-6", "s", P80, &["fd00:2::1"]),
    ];
    let c = compile(&objects, &settings());
    assert_eq!(decide(&c, "203.0.113.9 -> 172.30.0.1:80"), "forward 10.1.0.1:8080 snat");
    assert_eq!(decide(&c, "2001:db8::9 -> [fd00:10::1]:80"), "forward [fd00:2::1]:8080");
}

#[test]
fn the_nodes_bridge_address_is_a_pod() {
    let c = compile(&[], &settings());
    let class = |ip: &str| c.services.client_class(ip.parse().unwrap());
    assert_eq!(class("10.0.0.1"), ClientClass::Pod);
    assert_eq!((class("192.168.1.2"), class("127.0.0.1"), class("::1")), (ClientClass::Node, ClientClass::Node, ClientClass::Node));
    assert_eq!(class("203.0.113.1"), ClientClass::External);
}

#[test]
fn node_port_addresses() {
    let of = |cidrs: &[&str]| NodePortAddresses::Cidrs(cidrs.iter().map(|c| c.parse().unwrap()).collect());
    let ips = |node_port_addresses: NodePortAddresses, v6: bool| {
        let settings = Settings { node_port_addresses, ..settings() };
        settings.node_port_ips(v6).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ips(NodePortAddresses::Primary, false), "192.168.0.2");
    assert_eq!(ips(of(&[]), false), "192.168.0.2 192.168.1.2 10.0.0.1");
    assert_eq!(ips(of(&[]), true), "fd00:1::2", "neither loopback nor link-local");
    assert_eq!(ips(of(&["192.168.1.0/24"]), false), "192.168.1.2");
    assert_eq!(ips(of(&["192.168.1.0/24"]), true), "fd00:1::2", "a family without a CIDR is not restricted");
    assert_eq!(ips(of(&["127.0.0.0/8"]), false), "");
}

#[test]
fn source_ranges_guard_load_balancer_addresses_only() {
    let spec = |ranges: &str| {
        let spec = format!(
            "{{type: LoadBalancer, clusterIP: 172.30.0.1, externalIPs: [198.51.100.1], ports: [{{port: 80, nodePort: 30080}}], loadBalancerSourceRanges: [{ranges}]}}"
        );
        compile(
            &[named("{name: s, namespace: n}", &spec, "{loadBalancer: {ingress: [{ip: 1.2.3.4}]}}"), slice("s-1", "s", P80, &["10.1.0.1"])],
            &settings(),
        )
    };
    let forward = "forward 10.1.0.1:8080 snat";
    let c = spec("203.0.113.0/25");
    assert_eq!(decide(&c, "203.0.113.1 -> 1.2.3.4:80"), forward);
    assert_eq!(decide(&c, "203.0.113.200 -> 1.2.3.4:80"), "drop source_range");
    assert_eq!(decide(&c, "203.0.113.200 -> 198.51.100.1:80"), forward);
    assert_eq!(decide(&c, "203.0.113.200 -> 192.168.0.2:30080"), forward);
    assert_eq!(decide(&c, "1.2.3.4 -> 1.2.3.4:80"), "drop source_range");
    assert_eq!(decide(&spec("192.168.0.0/24"), "1.2.3.4 -> 1.2.3.4:80"), forward, "the node's primary address is inside");
    assert_eq!(decide(&spec("10.0.0.0/8, 0.0.0.0/0"), "203.0.113.200 -> 1.2.3.4:80"), forward);
    assert_eq!(decide(&spec("'fd00::/8'"), "203.0.113.200 -> 1.2.3.4:80"), forward, "no range of this family");
    assert_eq!(decide(&spec("everybody"), "203.0.113.1 -> 1.2.3.4:80"), "drop source_range", "invalid ranges admit no client");
}

#[test]
fn the_older_of_two_services_holds_a_shared_address() {
    let spec = "{clusterIP: 172.30.0.9, externalIPs: [198.51.100.1], ports: [{port: 80}]}";
    let old = named(
        "{name: z-old, namespace: n, creationTimestamp: '2020-01-01T00:00:00Z'}",
        spec,
        "{loadBalancer: {ingress: [{ip: 198.51.100.1}]}}",
    );
    let young = named("{name: a-young, namespace: n, creationTimestamp: '2024-01-01T00:00:00Z'}", &spec.replace(".0.9,", ".0.8,"), "{}");
    let c = compile(&[young, old, slice("o", "z-old", P80, &["10.1.0.1"]), slice("y", "a-young", P80, &["10.1.0.2"])], &settings());
    assert!(decide(&c, "203.0.113.1 -> 198.51.100.1:80").contains("10.1.0.1"));
    assert!(decide(&c, "203.0.113.1 -> 172.30.0.8:80").contains("10.1.0.2"));
    let shown: Vec<String> = c.problems.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(
        shown[0].starts_with("Service n/a-young: spec.ports[0]: TCP 198.51.100.1:80 is taken by Service n/z-old (loadBalancerIP)"),
        "{shown:?}"
    );
}

#[test]
fn addresses_without_an_answering_service() {
    let c = compile(
        &[service("s", "{clusterIP: 172.30.0.1, ports: [{port: 80}]}"), service("none", "{clusterIP: 172.30.0.2, ports: []}")],
        &settings(),
    );
    assert_eq!(decide(&c, "10.9.9.9 -> 172.30.0.1:80"), "reject no_endpoints");
    assert_eq!(decide(&c, "10.9.9.9 -> 172.30.0.1:81"), "reject unused_service_port");
    assert_eq!(decide(&c, "10.9.9.9 -> 172.30.0.2:80"), "drop unallocated_service_address", "a Service without ports holds no address");
    assert_eq!(decide(&c, "10.9.9.9 -> 8.8.8.8:53"), "pass not_ours");
    assert_eq!(c.problems.len(), 1);
}

#[test]
fn counters_and_pools_last_as_long_as_their_backends() {
    let mut compiler = Compiler::new(4);
    let s = settings();
    let web = service("s", "{clusterIP: 172.30.0.1, ports: [{port: 80}]}");
    let index = |endpoints: &[&str]| Index::of([web.clone(), slice("s-1", "s", P80, endpoints)]);
    let pool = |c: &Compiled| match &c.services.frontend("172.30.0.1".parse().unwrap(), 80, Proto::Tcp).unwrap().pod {
        Action::Forward { pool, .. } => pool.clone(),
        other => panic!("{other:?}"),
    };
    let places = |c: &Compiled| pool(c).backends.iter().map(|b| b.stats).collect::<Vec<_>>();

    let first = compiler.compile(&index(&["10.1.0.1", "10.1.0.2"]), &s);
    assert_eq!((places(&first), first.services.generation), (vec![1, 2], 1));
    let same = compiler.compile(&index(&["10.1.0.2", "10.1.0.1"]), &s);
    assert!(Arc::ptr_eq(&pool(&first), &pool(&same)) && same.services.generation == 2);
    assert_eq!(
        places(&compiler.compile(&index(&["10.1.0.2", "10.1.0.3", "10.1.0.4"]), &s)),
        [2, 3, 0],
        "without free indices, index 0 is shared"
    );
    assert_eq!(places(&compiler.compile(&index(&["10.1.0.2", "10.1.0.5"]), &s)), [2, 1], "a freed index is reused");
    let mut targets: Vec<u32> = compiler.targets().map(|t| t.0).collect();
    targets.sort();
    assert_eq!(targets, [1, 2]);
    let other_seed = Settings { seed: HashSeed::new(7), ..settings() };
    let before = compiler.compile(&index(&["10.1.0.2"]), &s);
    let after = compiler.compile(&index(&["10.1.0.2"]), &other_seed);
    assert!(!Arc::ptr_eq(&pool(&before), &pool(&after)), "a new seed makes a new pool");
    compiler.compile(&Index::default(), &s);
    assert_eq!(compiler.targets().count(), 0);
}

#[test]
fn health_checks_count_local_ready_addresses() {
    let spec = "{type: LoadBalancer, clusterIP: 172.30.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 30000, ports: [{name: a, port: 80}, {name: b, port: 81}]}";
    let ports = "{name: a, port: 1}, {name: b, port: 2}";
    let c = compile(
        &[service("s", spec), slice("s-1", "s", ports, &["10.1.0.1 here", "10.1.0.2 here draining", "10.1.0.3 there"])],
        &settings(),
    );
    assert_eq!(c.health_checks[&30_000].local_endpoints, 1);
    let twice = compile(&[service("a", spec), service("b", &spec.replace(".0.1", ".0.2"))], &settings());
    assert_eq!(twice.health_checks[&30_000].service.name, "a");
    assert!(twice.problems[0].to_string().starts_with("Service n/b: spec.healthCheckNodePort: 30000 is already Service n/a's"));
}

#[test]
fn filter_rules() {
    let s = settings();
    let c = compile(
        &[service(
            "s",
            "{type: NodePort, clusterIP: 172.30.0.1, externalIPs: [198.51.100.1], ports: [{port: 80, nodePort: 30080, protocol: UDP}]}",
        )],
        &s,
    );
    let ip = |t: &str| t.parse::<IpAddr>().unwrap();
    assert_eq!(
        FilterRules::of(&c.services),
        FilterRules {
            services: [(ip("192.168.0.2"), 30_080, Proto::Udp), (ip("198.51.100.1"), 80, Proto::Udp)].into(),
            addresses: [ip("172.30.0.1")].into(),
            service_cidrs: ["172.30.0.0/16".parse().unwrap()].into(),
        }
    );
}
