//! Findings about small sets of objects.

use serde_json::{Value, json};

use super::*;
use crate::objects::{Kind, read};
use crate::problem::Origin;

fn service(name: &str, spec: Value) -> (Kind, Value) {
    let mut all = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    (Kind::Service, json!({"metadata": {"name": name, "namespace": "n"}, "spec": all}))
}

fn slice(name: &str, of: &str, ports: Value, endpoints: Value) -> (Kind, Value) {
    let metadata = json!({"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": of}});
    (Kind::EndpointSlice, json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
}

fn one() -> Value {
    json!([{"addresses": ["10.1.0.1"]}])
}

fn http(port: u16) -> Value {
    json!([{"name": "http", "port": port}])
}

fn index<const N: usize>(objects: [(Kind, Value); N]) -> Index {
    Index::of(objects.map(|(kind, value)| read(kind, value, &Origin::default()).unwrap_or_else(|e| panic!("{}", e.problem))))
}

fn found(index: &Index, name: &str, all_services: bool) -> Vec<String> {
    let node = ThisNode { name: "gw".into(), ips: Vec::new(), primary: Vec::new(), zone: None };
    let key = NamespacedName { namespace: "n".into(), name: name.into() };
    findings(index, &node, &key, all_services).iter().map(ToString::to_string).collect()
}

#[test]
fn a_healthy_service_has_no_findings() {
    let index = index([service("a", json!({})), slice("a-1", "a", http(8080), one())]);
    assert_eq!(found(&index, "a", true), Vec::<String>::new());
    assert_eq!(set_aside(&index, true), Vec::<String>::new());
}

#[test]
fn ports_that_differ() {
    let rows: [(Value, &str); 4] = [
        (json!([{"port": 8080}]), ""),
        (
            json!([{"name": "web", "port": 8080}]),
            "has endpoints for port \"web\" (8080/TCP): a slice's port must have the Service port's name, here \"http\" (TCP)",
        ),
        (
            json!([{"name": "http", "port": 8080, "protocol": "UDP"}]),
            "port \"http\" (8080/UDP): a slice's port must have the Service port's name and protocol",
        ),
        (json!([]), "EndpointSlice n/a-1 has endpoints but no ports"),
    ];
    for (ports, words) in rows {
        // Only in files a port without a name has one, \"\".
        let index = index([service("a", json!({})), slice("a-1", "a", ports.clone(), one())]);
        let found = found(&index, "a", true);
        if words.is_empty() {
            assert!(found.len() <= 1, "{found:?}");
            continue;
        }
        assert!(
            found.len() == 1 && found[0].starts_with("Service n/a: spec.ports[0]: it has no endpoints; ") && found[0].contains(words),
            "{found:?}"
        );
    }
    // A slice of ready ports beside one that differs, and slices without endpoints, are normal.
    let two = json!([{"name": "http", "port": 80}, {"name": "admin", "port": 81}]);
    let normal = index([service("a", json!({ "ports": two })), slice("a-1", "a", http(8080), one())]);
    assert_eq!(found(&normal, "a", true), Vec::<String>::new(), "no slice has a port that nobody takes");
    let empty = index([service("a", json!({})), slice("a-1", "a", json!([]), json!([]))]);
    assert_eq!(found(&empty, "a", true), Vec::<String>::new());
}

#[test]
fn a_missing_service_and_those_near_it() {
    let other = |name: &str, namespace: &str| {
        let (kind, mut value) = service(name, json!({}));
        value["metadata"]["namespace"] = namespace.into();
        (kind, value)
    };
    let slice = || slice("web-1", "web", http(80), one());
    let start = "EndpointSlice n/web-1: metadata.labels[kubernetes.io/service-name]: there is no Service n/web";
    let rows = [
        (index([slice()]), ""),
        (index([slice(), other("web", "apps")]), " (one is in apps)"),
        (index([slice(), other("web", "apps"), other("web", "test")]), " (there are some in apps, test)"),
        (index([slice(), other("webb", "n")]), " (there is n/webb)"),
        (index([slice(), other("database", "n")]), ""),
    ];
    for (index, near) in rows {
        assert_eq!(found(&index, "web", true), [format!("{start}{near}")]);
        assert_eq!(found(&index, "web", false), Vec::<String>::new(), "an API server is not asked for all Services");
        let aside = set_aside(&index, false);
        assert!(aside.len() == 1 && aside[0].starts_with("1 EndpointSlices: their Service does not exist"), "{aside:?}");
    }
}

#[test]
fn families_that_differ() {
    let (kind, mut value) =
        service("a", json!({"type": "LoadBalancer", "externalIPs": ["fd00::5", "203.0.113.1"], "loadBalancerSourceRanges": ["fd00::/8"]}));
    value["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}, {"ip": "fd00::6"}]}});
    let (_, mut v6) = slice("a-2", "a", http(80), json!([{"addresses": ["fd00::7"]}]));
    v6["addressType"] = json!("IPv6");
    let index = index([(kind, value), slice("a-1", "a", http(80), one()), (Kind::EndpointSlice, v6)]);
    assert_eq!(
        found(&index, "a", true),
        [
            "Service n/a: spec.externalIPs: fd00::5 is not served: the Service has no IPv6 cluster IP",
            "Service n/a: status.loadBalancer.ingress: fd00::6 is not served: the Service has no IPv6 cluster IP",
            "Service n/a: spec.loadBalancerSourceRanges: no IPv4 range: everybody is let in at 203.0.113.2",
            "EndpointSlice n/a-2: addressType: its IPv6 endpoints are not used: Service n/a has no IPv6 cluster IP",
        ]
    );
}

#[test]
fn hints_that_one_endpoint_lacks() {
    let hinted = |hints: Value| {
        let endpoints = json!([{"addresses": ["10.1.0.1"], "hints": hints}, {"addresses": ["10.1.0.2"]}]);
        index([service("a", json!({})), slice("a-1", "a", http(8080), endpoints)])
    };
    let zones = hinted(json!({"forZones": [{"name": "z"}]}));
    assert_eq!(found(&zones, "a", true), ["Service n/a: hints for zones are not used: 10.1.0.2:8080 has none"]);
    let nodes = hinted(json!({"forNodes": [{"name": "gw"}]}));
    assert_eq!(found(&nodes, "a", true), ["Service n/a: hints for nodes are not used: 10.1.0.2:8080 has none"]);
    assert_eq!(found(&hinted(json!(null)), "a", true), Vec::<String>::new());
}

#[test]
fn what_is_set_aside_is_counted_by_reason() {
    let headless: Vec<(Kind, Value)> = (0..40).map(|i| service(&format!("h{i}"), json!({"clusterIP": "None"}))).collect();
    let index = Index::of(headless.into_iter().map(|(kind, value)| read(kind, value, &Origin::default()).unwrap()));
    let lines = set_aside(&index, true);
    assert!(
        lines.len() == 1 && lines[0].starts_with("40 Services: clusterIP None: a headless Service has no address of its own: n/h0, n/h1, "),
        "{lines:?}"
    );
    assert!(lines[0].ends_with(" and 28 more"), "{lines:?}");
    assert_eq!(found(&index, "h0", true), Vec::<String>::new(), "headless Services are no findings");
}
