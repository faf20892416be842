//! Services as they are listed.

use std::collections::BTreeSet;

use nomagic_core::mss::SegmentSize;
use nomagic_core::services::{SnatRange, TcpReject, UnusedPorts};
use nomagic_core::tuple::HashSeed;
use serde_json::{Value, json};

use super::*;
use crate::compile::{Compiler, TARGETS_MAX};
use crate::findings::findings;
use crate::objects::{Kind, Object, read};
use crate::problem::Origin;
use crate::settings::{DefaultLimits, ExternalIps, NodePortAddresses, ThisNode};

fn settings() -> Settings {
    let ip = || "192.168.0.2".parse().unwrap();
    Settings {
        snat: SnatRange::default(),
        node: ThisNode { name: "here".into(), ips: vec![ip()], primary: vec![ip()], zone: None },
        cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        pods_by_interface: false,
        incomplete: false,
        service_cidrs: vec!["172.30.0.0/16".parse().unwrap()],
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortAddresses::Primary,
        kernel_ips: [ip()].into(),
        keep_local: Vec::new(),
        external_ips: ExternalIps::default(),
        api_servers: ["198.51.100.6:80".parse().unwrap()].into(),
        tcp_reject: TcpReject::default(),
        unused_ports: UnusedPorts::default(),
        answer_ping: false,
        mss: SegmentSize::Keep,
        fragment: true,
        reset_idle: false,
        limits: DefaultLimits::default(),
        seed: HashSeed::new(0),
    }
}

fn service(name: &str, spec: Value) -> Object {
    let mut all = json!({"clusterIP": "172.30.0.1", "ports": [{"name": "http", "port": 80}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let status = json!({"loadBalancer": {"ingress": all["ingress"].take()}});
    let value = json!({"metadata": {"name": name, "namespace": "n", "labels": all["labels"].take()}, "spec": all, "status": status});
    read(Kind::Service, value, &Origin::default()).unwrap_or_else(|e| panic!("{}", e.problem))
}

fn slice(of: &str, endpoints: Value) -> Object {
    let metadata = json!({"name": format!("{of}-1"), "namespace": "n", "labels": {"kubernetes.io/service-name": of}});
    let ports = json!([{"name": "http", "port": 8080}]);
    let value = json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    read(Kind::EndpointSlice, value, &Origin::default()).unwrap_or_else(|e| panic!("{}", e.problem))
}

fn one() -> Value {
    json!([{"addresses": ["10.1.0.1"], "nodeName": "here"}])
}

/// Lists the Service `name` among these objects, in full.
fn listed(objects: Vec<Object>, name: &str) -> api::Service {
    listed_with(objects, name, settings())
}

fn listed_with(objects: Vec<Object>, name: &str, settings: Settings) -> api::Service {
    let index = Index::of(objects);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    let key = NamespacedName { namespace: "n".into(), name: name.into() };
    let object = format!("Service {key}");
    let problems: Vec<&Problem> = compiled.problems.iter().filter(|p| p.object == object).collect();
    let findings = findings(&index, &settings.node, &key, true);
    let listing = Listing { index: &index, settings: &settings, table: &compiled.services };
    listing.describe(index.service(&key).unwrap(), Said { problems: &problems, findings: &findings }, true).0
}

/// Kind and address, state, and why.
fn addresses(service: &api::Service) -> Vec<(String, AddressState, String)> {
    let all = service.ports.iter().flat_map(|port| &port.addresses);
    all.map(|a| (format!("{} {}", a.kind, socket(a.ip, a.port)), a.state, a.why.clone().unwrap_or_default())).collect()
}

#[test]
fn every_address_has_its_state() {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "externalIPs": ["198.51.100.1", "172.30.9.9", "2001:db8::7", "198.51.100.6"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        "ingress": [{"ip": "198.51.100.2"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}],
    });
    let older = service("older", json!({"clusterIP": "172.30.0.2", "externalIPs": ["198.51.100.1"]}));
    let found = listed(vec![service("web", spec), slice("web", one()), older], "web");
    let state = |kind: &str| addresses(&found).into_iter().find(|(at, ..)| at == kind).unwrap_or_else(|| panic!("{kind}: {found:#?}"));
    let expected = [
        ("clusterIP 172.30.0.1:80", AddressState::Served, ""),
        ("nodePort 192.168.0.2:30080", AddressState::Served, ""),
        ("loadBalancerIP 198.51.100.2:80", AddressState::Served, ""),
        ("loadBalancerIP 198.51.100.3:80", AddressState::LoadBalancer, "ipMode is Proxy"),
        ("externalIP 198.51.100.1:80", AddressState::Taken, "by Service n/older (externalIP)"),
        ("externalIP 172.30.9.9:80", AddressState::Refused, "in the cluster IP range 172.30.0.0/16"),
        ("externalIP 198.51.100.6:80", AddressState::Refused, "an address of the API server"),
        ("externalIP [2001:db8::7]:80", AddressState::OtherFamily, "the Service has no IPv6 cluster IP"),
    ];
    for (at, as_expected, why) in expected {
        assert_eq!(state(at), (at.to_owned(), as_expected, why.to_owned()));
    }
    assert_eq!(addresses(&found).len(), expected.len());
    assert_eq!((found.state, found.kind.as_deref()), (ServiceState::PartlyServed, Some("LoadBalancer")));
    assert_eq!((found.internal_traffic_policy.as_deref(), found.external_traffic_policy.as_deref()), (Some("Cluster"), Some("Local")));
    assert!(found.problems.iter().any(|p| p.contains("is taken by Service n/older")) && found.needs_attention(), "{found:#?}");
}

#[test]
fn endpoints_tell_why_they_are_left_out() {
    let endpoints = json!([
        {"addresses": ["10.1.0.4"], "nodeName": "there"},
        {"addresses": ["10.1.0.1"], "conditions": {"ready": false}, "nodeName": "here"},
        {"addresses": ["10.1.0.2"], "nodeName": "here"},
        {"addresses": ["127.0.0.1"]},
    ]);
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let found = listed(vec![service("web", spec), slice("web", endpoints)], "web");
    let backends: Vec<(&str, Option<&str>, Option<&str>)> =
        found.ports[0].backends.iter().map(|b| (b.endpoint.as_str(), b.left_out.as_deref(), b.left_out_outside.as_deref())).collect();
    let elsewhere = Some("on another node, and the traffic policy is Local");
    assert_eq!(
        backends,
        [
            ("10.1.0.2:8080", None, None),
            ("10.1.0.4:8080", None, elsewhere),
            ("10.1.0.1:8080", Some("not ready"), Some("not ready")),
            ("127.0.0.1", Some("a loopback address"), None),
        ]
    );
    assert_eq!((found.state, found.ports[0].backends[1].node.as_deref()), (ServiceState::Served, Some("there")));
}

#[test]
fn states_of_services() {
    let state = |spec: Value, endpoints: Value| listed(vec![service("web", spec), slice("web", endpoints)], "web");
    assert_eq!(state(json!({}), one()).state, ServiceState::Served);
    assert!(!state(json!({}), one()).needs_attention());
    assert_eq!(state(json!({}), json!([])).state, ServiceState::NoEndpoints);
    let elsewhere = json!([{"addresses": ["10.1.0.1"], "nodeName": "there"}]);
    let local = state(json!({"internalTrafficPolicy": "Local"}), elsewhere);
    assert_eq!((local.state, addresses(&local)[0].1), (ServiceState::NoEndpoints, AddressState::NoLocalEndpoints));
    let headless = state(json!({"clusterIP": "None"}), one());
    assert!(headless.state == ServiceState::SetAside && headless.why.is_some_and(|why| why.contains("headless")));
    let other = state(json!({"labels": {"service.kubernetes.io/service-proxy-name": "other"}}), one());
    assert_eq!((other.state, other.needs_attention(), addresses(&other)[0].1), (ServiceState::OtherProxy, false, AddressState::Kernel));
    let unread = json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {"clusterIP": "172.30.0.1", "ports": 7}});
    let stand_in = read(Kind::Service, unread, &Origin::default()).unwrap_err().stand_in.unwrap();
    assert_eq!(listed(vec![Object::Service(stand_in)], "web").state, ServiceState::Unreadable);
    let keep = Settings {
        keep_local: vec!["172.30.0.1/32".parse().unwrap()],
        kernel_ips: BTreeSet::from(["172.30.0.1".parse().unwrap()]),
        ..settings()
    };
    let kept = listed_with(vec![service("web", json!({})), slice("web", one())], "web", keep);
    assert_eq!((kept.state, addresses(&kept)[0].1), (ServiceState::NotServed, AddressState::Kernel));
}

#[test]
fn near_misses_of_a_port_without_endpoints() {
    let spec = json!({"ports": [{"name": "web", "port": 80}]});
    let found = listed(vec![service("web", spec), slice("web", one())], "web");
    assert_eq!(found.state, ServiceState::NoEndpoints);
    let near: Vec<&String> = found.near_misses.iter().filter(|n| n.contains("has endpoints for port \"http\"")).collect();
    assert_eq!(near.len(), 1, "said once: {:?}", found.near_misses);
}

#[test]
fn what_a_service_may_have_in_any_number_is_limited() {
    let endpoints: Vec<Value> = (0..1_000).map(|i| json!({"addresses": [format!("10.1.{}.{}", i / 250, i % 250 + 1)]})).collect();
    let ports: Vec<Value> =
        (1..=3_000).map(|port| json!({"name": if port == 1 { "http".into() } else { format!("p{port}") }, "port": port})).collect();
    let lots = listed(vec![service("web", json!({"ports": ports})), slice("web", json!(endpoints))], "web");
    assert!(lots.ports.len() <= LISTED_MAX && lots.more_ports + lots.ports.len() as u64 == 3_000, "{}", lots.more_ports);
    assert_eq!((lots.ports[0].backends.len(), lots.ports[0].more_backends), (1_000, 0));
    let of = |service: &api::Service| service.ports.iter().map(|p| p.addresses.len()).sum::<usize>();
    assert!(of(&lots) <= LISTED_MAX);
    let ips: Vec<String> = (0..3_000).map(|i| format!("198.18.{}.{}", i / 250, i % 250 + 1)).collect();
    let many = listed(vec![service("web", json!({"externalIPs": ips})), slice("web", one())], "web");
    assert_eq!((of(&many), many.ports[0].more_addresses), (LISTED_MAX, 3_001 - LISTED_MAX as u64));
    let big: Vec<Value> = (0..3_000).map(|i| json!({"addresses": [format!("10.2.{}.{}", i / 250, i % 250 + 1)]})).collect();
    // A slice holds 1,000.
    let slices: Vec<Object> = (0..3)
        .map(|n| {
            let metadata = json!({"name": format!("web-{n}"), "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}});
            let ports = json!([{"name": "http", "port": 8080}]);
            let value = json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": big[n * 1_000..(n + 1) * 1_000]});
            read(Kind::EndpointSlice, value, &Origin::default()).unwrap()
        })
        .collect();
    let big = listed([vec![service("web", json!({}))], slices].concat(), "web");
    assert_eq!((big.ports[0].backends.len(), big.ports[0].more_backends), (LISTED_MAX, 3_000 - LISTED_MAX as u64));
}
