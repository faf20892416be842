//! Tests of the rule and of [`Serving::ends_some_of`]. kube-proxy's own cases are in the gateway's `tests/it/established.rs`.

use nomagic_core::tuple::addr_words;

use super::*;
use crate::objects::Object;
use crate::problem::Origin;

const DNS: &str = "{clusterIP: 10.96.0.1, externalIPs: [203.0.113.7], ports: [{name: dns, protocol: UDP, port: 53, nodePort: 30053}, {name: web, port: 80}]}";

fn service(name: &str, spec: &str) -> Object {
    let yaml = format!("metadata: {{name: {name}, namespace: n, creationTimestamp: '2026-01-01T00:00:00Z'}}\nspec: {spec}");
    Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

/// Endpoints of `dns` port `dns`, as `address` or `address=conditions`.
fn slice(of: &str, port: u16, endpoints: &[&str]) -> Object {
    let entry = |text: &&str| {
        let (address, conditions) = text.split_once('=').unwrap_or((text, "ready: true"));
        format!("{{addresses: ['{address}'], conditions: {{{conditions}}}}}")
    };
    let list: Vec<String> = endpoints.iter().map(entry).collect();
    let yaml = format!(
        "metadata: {{name: {of}-1, namespace: n, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: IPv4\nports: [{{name: dns, protocol: UDP, port: {port}}}, {{name: web, port: 80}}]\nendpoints: [{}]",
        list.join(", ")
    );
    Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
}

/// Applies the index to `before`, with all of its Services touched.
fn following(before: &Serving, index: &Index) -> Serving {
    let mut serving = before.clone();
    serving.follow(index, &index.services().map(|s| s.key.clone()).collect());
    serving
}

fn serving(objects: Vec<Object>) -> Serving {
    following(&Serving::default(), &Index::of(objects))
}

fn keeps(serving: &Serving, proto: Proto, service: &str, backend: &str) -> bool {
    let (service, backend): (std::net::SocketAddr, std::net::SocketAddr) = (service.parse().unwrap(), backend.parse().unwrap());
    let (words, v6) = addr_words(service.ip());
    let client = addr_words("198.51.100.1".parse().unwrap()).0;
    serving.rule().keeps(&Flow {
        proto,
        v6,
        announced: false,
        client,
        client_port: 1,
        service: words,
        service_port: service.port(),
        backend: addr_words(backend.ip()).0,
        backend_port: backend.port(),
        source: client,
        source_port: 1,
        stats: 0,
        counted: None,
    })
}

#[test]
fn the_rule() {
    let draining = "10.1.0.2=ready: false, serving: true, terminating: true";
    let dead = "10.1.0.3=ready: false, serving: false, terminating: true";
    let s = serving(vec![service("dns", DNS), slice("dns", 53, &["10.1.0.1", draining, dead, "10.1.0.4=ready: false, serving: false"])]);
    for (proto, to, backend, stays) in [
        (Proto::Udp, "10.96.0.1:53", "10.1.0.1:53", true),
        (Proto::Udp, "10.96.0.1:53", "10.1.0.2:53", true),
        (Proto::Udp, "10.96.0.1:53", "10.1.0.3:53", false),
        (Proto::Udp, "10.96.0.1:53", "10.1.0.4:53", false),
        (Proto::Udp, "10.96.0.1:53", "10.1.0.9:53", false),
        (Proto::Udp, "10.96.0.1:53", "10.1.0.1:5353", false),
        (Proto::Udp, "203.0.113.7:53", "10.1.0.9:53", false),
        (Proto::Udp, "192.0.2.1:30053", "10.1.0.9:53", false),
        (Proto::Udp, "192.0.2.1:30053", "10.1.0.2:53", true),
        // Addresses and ports that no Service has now, of one family or both.
        (Proto::Udp, "192.0.2.1:53", "10.1.0.1:53", false),
        (Proto::Udp, "10.96.0.1:54", "10.1.0.1:53", false),
        (Proto::Udp, "[fd00::1]:30053", "[fd00::9]:53", false),
        // Other protocols, and TCP on the same address.
        (Proto::Tcp, "10.96.0.1:53", "10.1.0.9:53", true),
        (Proto::Tcp, "10.96.0.1:80", "10.1.0.9:80", true),
        (Proto::Sctp, "10.96.0.1:53", "10.1.0.9:53", true),
    ] {
        assert_eq!(keeps(&s, proto, to, backend), stays, "{proto} {to} -> {backend}");
    }
    let nobody = serving(vec![service("dns", DNS), slice("dns", 53, &[dead])]);
    assert!(!keeps(&nobody, Proto::Udp, "10.96.0.1:53", "10.1.0.9:53"), "no serving endpoint at all");
    assert!(!keeps(&serving(vec![]), Proto::Udp, "10.96.0.1:53", "10.1.0.9:53"), "a removed Service");
    assert!(keeps(&serving(vec![]), Proto::Tcp, "10.96.0.1:80", "10.1.0.9:80"));
}

#[test]
fn the_oldest_service_holds_an_address_and_addresses_precede_node_ports() {
    let other = "{clusterIP: 10.96.0.2, externalIPs: [203.0.113.7], ports: [{name: dns, protocol: UDP, port: 53}]}";
    let same = "{clusterIP: 10.96.0.3, ports: [{name: dns, protocol: UDP, port: 30053}]}";
    let objects = vec![service("dns", DNS), slice("dns", 53, &["10.1.0.1"]), service("other", other), slice("other", 53, &["10.1.0.2"])];
    let s = serving([objects, vec![service("same", same), slice("same", 53, &["10.1.0.3"])]].concat());
    assert!(keeps(&s, Proto::Udp, "203.0.113.7:53", "10.1.0.1:53") && !keeps(&s, Proto::Udp, "203.0.113.7:53", "10.1.0.2:53"));
    assert!(keeps(&s, Proto::Udp, "10.96.0.3:30053", "10.1.0.3:53") && !keeps(&s, Proto::Udp, "10.96.0.3:30053", "10.1.0.1:53"));
}

#[test]
fn removed_endpoints_and_added_ports_may_end_connections() {
    let with = |endpoints: &[&str]| serving(vec![service("dns", DNS), slice("dns", 53, endpoints)]);
    let dns = |spec: &str| serving(vec![service("dns", spec), slice("dns", 53, &["10.1.0.1", "10.1.0.2"])]);
    let (empty, none, one, two) = (serving(vec![]), with(&[]), with(&["10.1.0.1"]), with(&["10.1.0.1", "10.1.0.2"]));
    let draining = with(&["10.1.0.1", "10.1.0.2=ready: false, serving: true, terminating: true"]);
    let web = serving(vec![service("web", "{clusterIP: 10.96.0.9, ports: [{name: web, port: 80}]}"), slice("web", 53, &["10.1.0.1"])]);
    for (before, now, expected, what) in [
        (&empty, &two, true, "a Service is added"),
        (&empty, &web, false, "one without UDP is added"),
        (&web, &empty, false, "it is removed"),
        (&two, &two, false, "no change"),
        (&one, &two, false, "an endpoint is added"),
        (&two, &one, true, "an endpoint is removed"),
        (&two, &draining, false, "an endpoint drains"),
        (&one, &none, true, "the last endpoint is removed"),
        (&none, &one, false, "the first endpoint is added: there was no connection"),
        (&two, &serving(vec![service("dns", DNS), slice("dns", 5353, &["10.1.0.1", "10.1.0.2"])]), true, "another target port"),
        (&two, &dns(&DNS.replace("203.0.113.7", "203.0.113.8")), true, "another external address"),
        (&two, &dns(&DNS.replace("30053", "30054")), true, "another node port"),
        (&two, &dns(&DNS.replace("port: 80", "port: 81")), false, "another TCP port"),
        (&two, &empty, true, "it is removed"),
    ] {
        assert_eq!(now.ends_some_of(before), expected, "{what}");
    }
}

#[test]
fn unchanged_services_are_shared() {
    let mut index = Index::of([service("dns", DNS), slice("dns", 53, &["10.1.0.1"]), service("b", DNS), slice("b", 53, &["10.1.0.1"])]);
    let before = following(&Serving::default(), &index);
    index.apply(slice("b", 53, &["10.1.0.2"]));
    let now = following(&before, &index);
    let mut services: Vec<_> = now.services.iter().collect();
    services.sort_by_key(|(key, _)| *key);
    let shared: Vec<bool> =
        services.into_iter().map(|(key, entry)| before.services.get(key).is_some_and(|b| Arc::ptr_eq(entry, b))).collect();
    assert_eq!(shared, [false, true], "b, dns");
}
