//! What is not nomagic's to take: the node's addresses, those of Services of others, and what one tenant asks for beyond its share.

use nomagic_core::reason::Reason;
use nomagic_core::services::Decision;
use nomagic_core::tuple::{Proto, Tuple};
use serde_json::json;

use super::tests::{compile, named, settings, slice};
use super::*;
use crate::objects::{Kind, Object, read};
use crate::problem::Origin;
use crate::settings::ExternalIps;

const PORT: &str = "{name: '', port: 8080}";

/// A Service of namespace and age with a slice of one endpoint.
fn service(namespace: &str, name: &str, year: u32, spec: &str) -> Object {
    named(&format!("{{name: {name}, namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}"), spec, "{}")
}

/// What happens to a client's first packet: `pass`, a reason, or the Service.
fn fate(c: &Compiled, dst: &str) -> String {
    let dst: std::net::SocketAddr = dst.parse().unwrap();
    let src: IpAddr = if dst.is_ipv6() { "2001:db8::9" } else { "203.0.113.9" }.parse().unwrap();
    match c.services.decide(&Tuple::new(Proto::Tcp, src, 40_000, dst.ip(), dst.port()).unwrap()) {
        Decision::Pass(Reason::NotOurs) => "pass".into(),
        Decision::Pass(reason) => format!("pass {}", reason.label()),
        Decision::Reject(None, reason) | Decision::Drop(None, reason) => reason.label().into(),
        Decision::Forward { matched, .. } | Decision::Reject(Some(matched), _) | Decision::Drop(Some(matched), _) => {
            matched.frontend.port.name.clone()
        }
    }
}

fn problems(c: &Compiled) -> Vec<String> {
    c.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_for_the_node_itself_is_left_to_it() {
    let inside: IpAddr = "172.30.9.9".parse().unwrap();
    let on_node = Settings { kernel_ips: [inside].into(), ..settings() };
    let both = [service("n", "web", 2024, "{clusterIP: 172.30.9.9, ports: [{port: 80}]}"), slice("web-1", "web", PORT, &["10.1.0.1"])];
    for (objects, port_80) in [(&[][..], "pass"), (&both, "web")] {
        let c = compile(objects, &on_node);
        assert_eq!([fate(&c, "172.30.9.9:22"), fate(&c, "172.30.9.9:80")], ["pass", port_80]);
        assert_eq!(fate(&c, "172.30.9.8:22"), "unallocated_service_address");
        let rules = FilterRules::of(&c.services);
        assert!(!rules.addresses.contains(&inside), "not the whole address");
        assert_eq!(rules.services.contains(&(inside, 80, Proto::Tcp)), port_80 == "web");
    }
    // A node-local cache may keep even the Service's port.
    let keeping = Settings { keep_local: vec!["172.30.9.0/24".parse().unwrap()], ..on_node };
    let c = compile(&both, &keeping);
    assert_eq!((fate(&c, "172.30.9.9:80").as_str(), FilterRules::of(&c.services).services.len()), ("pass", 0));
    // When the node no longer has it, it is a cluster IP as any other.
    let c = compile(&both, &settings());
    assert_eq!([fate(&c, "172.30.9.9:22"), fate(&c, "172.30.9.9:80")], ["unused_service_port", "web"]);
}

#[test]
fn cluster_ips_of_services_of_others_are_left_to_the_kernel() {
    let other = "{name: other, namespace: n, labels: {service.kubernetes.io/service-proxy-name: another}}";
    let objects = [named(other, "{clusterIP: 172.30.5.5, ports: [{port: 80}]}", "{}")];
    let c = compile(&objects, &settings());
    assert_eq!([fate(&c, "172.30.5.5:80"), fate(&c, "172.30.5.6:80")], ["pass", "unallocated_service_address"]);

    // It moves to this proxy and back.
    let mut index = Index::of(objects.clone());
    let mut compiler = Compiler::new(TARGETS_MAX);
    let mut fates = Vec::new();
    for object in [objects[0].clone(), service("n", "other", 2024, "{clusterIP: 172.30.5.5, ports: [{port: 81}]}"), objects[0].clone()] {
        index.apply(object);
        let touched = index.take_touched();
        fates.push(fate(&compiler.recompile(&index, &settings(), &touched), "172.30.5.5:80"));
    }
    assert_eq!(fates, ["pass", "unused_service_port", "pass"]);
}

#[test]
fn what_could_not_be_read_is_left_to_the_kernel() {
    // One port is unreadable: the others are served, and of the rest nobody knows whether it is unused.
    let half = service("n", "half", 2024, "{clusterIP: 172.30.5.5, ports: [{port: 80, name: a}, {port: 443, protocol: TPC, name: b}]}");
    let c = compile(&[half, slice("half-1", "half", "{name: a, port: 8080}", &["10.1.0.1"])], &settings());
    assert_eq!([fate(&c, "172.30.5.5:80"), fate(&c, "172.30.5.5:443"), fate(&c, "172.30.5.5:81")], ["half", "pass", "pass"]);
    let rules = FilterRules::of(&c.services);
    assert!(rules.services.contains(&("172.30.5.5".parse().unwrap(), 80, Proto::Tcp)) && rules.addresses.is_empty());

    // A port that is there twice is none of the unreadable ones.
    let twice = service("n", "twice", 2024, "{clusterIP: 172.30.5.5, ports: [{port: 80, name: a}, {port: 80, name: b}]}");
    assert_eq!(fate(&compile(&[twice], &settings()), "172.30.5.5:81"), "unused_service_port");

    // Of a Service that is unreadable as a whole its cluster IP is known, or nothing at all.
    let whole = json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "172.30.5.5", "ports": 7}});
    let stand_in = read(Kind::Service, whole, &Origin::default()).unwrap_err().stand_in.unwrap();
    let c = compile(&[Object::Service(stand_in)], &settings());
    assert_eq!([fate(&c, "172.30.5.5:80"), fate(&c, "172.30.5.6:80")], ["pass", "unallocated_service_address"]);
    let c = compile(&[], &Settings { incomplete: true, ..settings() });
    assert_eq!(fate(&c, "172.30.5.6:80"), "pass");
}

#[test]
fn the_kind_of_an_address_comes_before_its_age() {
    let everywhere = ExternalIps::Allowed(vec!["0.0.0.0/0".parse().unwrap()]);
    let taker = "{clusterIP: 172.30.0.9, externalIPs: [172.30.0.1, 192.168.0.2, 198.51.100.7], \
                 ports: [{name: a, port: 80}, {name: b, port: 30080}, {name: c, port: 443}]}";
    let objects = [
        service("evil", "taker", 2020, taker),
        service("bank", "cluster", 2024, "{clusterIP: 172.30.0.1, ports: [{port: 80}]}"),
        service("bank", "nodeport", 2024, "{type: NodePort, clusterIP: 172.30.0.2, ports: [{port: 80, nodePort: 30080}]}"),
        named(
            "{name: balancer, namespace: bank, creationTimestamp: '2024-01-01T00:00:00Z'}",
            "{type: LoadBalancer, clusterIP: 172.30.0.3, ports: [{port: 443}]}",
            "{loadBalancer: {ingress: [{ip: 198.51.100.7}]}}",
        ),
    ];
    let c = compile(&objects, &Settings { external_ips: everywhere, ..settings() });
    let fates = ["172.30.0.1:80", "192.168.0.2:30080", "198.51.100.7:443", "198.51.100.7:80"].map(|dst| fate(&c, dst));
    assert_eq!(fates, ["cluster", "nodeport", "balancer", "taker"]);
    assert!(problems(&c).iter().all(|p| p.starts_with("Service evil/taker: spec.ports[")), "{:?}", problems(&c));
}

#[test]
fn external_ips_that_are_not_the_owners_to_choose_are_refused() {
    let servers = ["203.0.113.1:6443".parse().unwrap()].into();
    let settings = Settings { kernel_ips: ["192.168.7.7".parse().unwrap()].into(), api_servers: servers, ..settings() };
    let ips = "172.30.4.4, 10.3.4.5, 192.168.7.7, 192.168.0.2, fd00:1::2, 203.0.113.1, 198.51.100.1";
    let taker = service("n", "taker", 2024, &format!("{{clusterIP: 172.30.0.9, externalIPs: [{ips}], ports: [{{port: 80}}]}}"));
    let c = compile(std::slice::from_ref(&taker), &settings);
    let served = |c: &Compiled| {
        ips.split(", ").filter(|ip| !ip.contains("::") && fate(c, &format!("{ip}:80")) == "taker").map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(served(&c), ["192.168.7.7", "198.51.100.1"]);
    let said = problems(&c);
    for words in ["172.30.4.4 is in the cluster IP range 172.30.0.0/16", "10.3.4.5 is in the pod range 10.0.0.0/8"] {
        assert!(said.iter().any(|p| p.starts_with(&format!("Service n/taker: spec.externalIPs: {words}"))), "{said:?}");
    }
    assert!(said.iter().any(|p| p.contains("192.168.0.2 (and 1 more) is this node's primary address")), "{said:?}");
    assert!(said.iter().any(|p| p.contains("203.0.113.1 is an address of the API server")), "{said:?}");
    assert_eq!(said.len(), 4);

    let allowed = ExternalIps::Allowed(vec!["172.30.4.0/24".parse().unwrap(), "192.168.0.2".parse().unwrap()]);
    assert_eq!(served(&compile(&[taker], &Settings { external_ips: allowed, ..settings })), ["172.30.4.4", "192.168.0.2"]);
}

#[test]
fn the_api_servers_socket_can_be_taken_by_no_kind_but_a_cluster_ip() {
    let settings = Settings { api_servers: ["198.51.100.7:6443".parse().unwrap(), "172.30.0.1:443".parse().unwrap()].into(), ..settings() };
    let balancer = |ports: &str| {
        named(
            "{name: s, namespace: n}",
            &format!("{{type: LoadBalancer, clusterIP: 172.30.0.1, ports: [{ports}]}}"),
            "{loadBalancer: {ingress: [{ip: 198.51.100.7}]}}",
        )
    };
    let c = compile(&[balancer("{name: a, port: 6443}, {name: b, port: 443}")], &settings);
    assert_eq!(["198.51.100.7:6443", "198.51.100.7:443", "172.30.0.1:443"].map(|dst| fate(&c, dst)), ["pass", "s", "s"]);
    assert_eq!(problems(&c), ["Service n/s: spec.ports[0]: 198.51.100.7:6443 is an API server: the Service is not served there"]);
}

/// 256 external IPs with 1,100 ports exceed what one namespace may have; 1,500 ports do not.
#[test]
fn one_service_does_not_take_the_last_place() {
    let ports = |n: u32| (1..=n).map(|port| format!("{{name: p{port}, port: {port}}}")).collect::<Vec<_>>().join(", ");
    let ips = (0..256).map(|i| format!("198.51.100.{i}")).collect::<Vec<_>>().join(", ");
    let greedy = service("evil", "greedy", 2020, &format!("{{clusterIP: 172.30.0.9, externalIPs: [{ips}], ports: [{}]}}", ports(1_100)));
    let many = service("n", "many", 2024, &format!("{{clusterIP: 172.30.0.8, externalIPs: [198.51.100.7], ports: [{}]}}", ports(1_500)));
    let mut index = Index::of([greedy]);
    let mut compiler = Compiler::new(TARGETS_MAX);
    let first = compiler.compile(&index, &settings());
    assert_eq!([fate(&first, "198.51.100.7:80"), fate(&first, "172.30.0.9:80")], ["pass", "greedy"]);
    assert_eq!(first.services.frontend_count(), 1_100, "nothing is built for the others");
    let said = problems(&first);
    assert!(said.len() == 1 && said[0].starts_with("Service evil/greedy: spec: asks for 281600 node ports and external"), "{said:?}");

    index.apply(many);
    let touched = index.take_touched();
    let next = compiler.recompile(&index, &settings(), &touched);
    assert_eq!(["198.51.100.7:1", "198.51.100.7:1500", "172.30.0.9:80"].map(|dst| fate(&next, dst)), ["many", "many", "greedy"]);
    assert_eq!(problems(&next), said);
}
