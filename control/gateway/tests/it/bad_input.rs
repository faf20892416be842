//! Objects that a real API server would reject, from files and from the fake API server: each is named in a warning and skipped or
//! corrected, and the others are served.

use std::path::Path;

use nomagic::config::Config;
use nomagic::manifests;
use nomagic_core::services::Decision;
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::explain::parse_flow;
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, Object, read};
use nomagic_table::problem::{Origin, Problem};
use serde_json::{Value, json};

use crate::common::watching::{TestWatch, server, service, slice};

fn compile(index: &Index) -> Compiled {
    let config = Config::parse("node: {name: gw, ips: [192.168.0.2]}", Path::new("c")).unwrap();
    Compiler::new(TARGETS_MAX).compile(index, &config.settings_for(&[], index))
}

/// The warnings without file positions.
fn words<'p>(problems: impl Iterator<Item = &'p Problem>) -> Vec<String> {
    let mut words: Vec<String> = problems.map(|p| Problem { origin: Origin::default(), ..p.clone() }.to_string()).collect();
    words.sort();
    words
}

/// Returns all warnings for these objects and a good Service, which must be served.
fn through_files(objects: &[Value]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("objects.json");
    std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let loaded = manifests::load(&file, None).unwrap();
    let index = Index::of(loaded.objects);
    let compiled = compile(&index);
    good_is_served(&compiled);
    words(loaded.problems.iter().chain(&compiled.problems))
}

fn good_is_served(compiled: &Compiled) {
    let at_good = compiled.services.frontends().filter(|(ip, port, ..)| ip.to_string() == "10.96.0.1" && *port == 80);
    let owners: Vec<&str> = at_good.map(|(_, _, _, f)| f.port.name.as_str()).collect();
    assert_eq!(owners, ["good"]);
}

/// Like `through_files`, through an API server: in a list, and as events.
fn through_the_api(objects: &[Value], expected: &[String]) {
    let api = server();
    let (good, bad) = objects.split_first().unwrap();
    api.put(good.clone()).unwrap();
    let mut watched = TestWatch::listed(&api);
    bad.iter().for_each(|o| {
        api.put(o.clone()).unwrap();
    });
    let told = |w: &TestWatch| words(w.feed.problems().chain(&compile(&w.index).problems));
    // Objects without problems also arrive as events.
    let heard = |w: &TestWatch| w.of("Service").events + w.of("EndpointSlice").events;
    watched.until(&format!("the warnings {expected:#?}"), |w| heard(w) >= bad.len() as u64 && told(w) == expected);
    good_is_served(&compile(&watched.index));
    let listed = TestWatch::listed(&api);
    assert_eq!(told(&listed), expected);
    good_is_served(&compile(&listed.index));
}

/// Each row: bad objects, and all warnings expected for them next to a good Service, which is served.
fn check(rows: Vec<(Vec<Value>, &[&str])>) {
    let (mut ran, mut warned) = (0, 0);
    for (bad, expected) in rows {
        let mut good = service("good");
        good["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
        let objects = [vec![good], bad].concat();
        let mut expected: Vec<String> = expected.iter().map(|w| (*w).to_owned()).collect();
        expected.sort();
        let told = through_files(&objects);
        assert_eq!(told, expected);
        assert!(told.iter().all(|w| w.len() < 2_000 && !w.contains(char::is_control)), "{told:?}");
        // The fake API server stores no object without a name.
        if objects.iter().all(|o| o["metadata"]["name"] != "") {
            through_the_api(&objects, &expected);
        }
        ran += 1;
        warned += expected.len();
    }
    println!("{ran} kinds of bad objects, {warned} warnings, through files and through an API server");
}

fn bad_service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad", "namespace": "default"}, "spec": spec})
}

/// A Service with one port and more fields.
fn one_port(more: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    bad_service(spec)
}

fn ports(ports: Value) -> Value {
    one_port(json!({ "ports": ports }))
}

fn endpoints(endpoints: Value) -> Value {
    let mut s = slice("bad-1", "bad", &[]);
    s["endpoints"] = endpoints;
    s
}

fn named(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.3", "ports": [{"port": 80}]}})
}

#[test]
fn ports_out_of_range_and_twice() {
    let long = "x".repeat(1_000_000);
    let many = Value::from((1..=2_000).map(|p| json!({"name": format!("p{p}"), "port": p})).collect::<Vec<_>>());
    check(vec![
        (
            vec![ports(
                json!([{"name": "a", "port": 70_000}, {"name": "b", "port": -1}, {"name": "c", "port": 0}, {"name": "d", "port": 80, "nodePort": 65_536}]),
            )],
            &[
                "Service default/bad: spec.ports[0].port: 70000: 1 to 65535 are allowed; the port is skipped",
                "Service default/bad: spec.ports[1].port: -1: 1 to 65535 are allowed; the port is skipped",
                "Service default/bad: spec.ports[2].port: 0: 1 to 65535 are allowed; the port is skipped",
                "Service default/bad: spec.ports[3].nodePort: 65536: 1 to 65535 are allowed; it is skipped",
            ],
        ),
        (
            vec![ports(json!([{"port": 2_147_483_648u32}]))],
            &["Service default/bad: spec.ports[0].port: the number 2147483648: a smaller number is expected; the object is skipped"],
        ),
        (
            vec![ports(json!([{"port": "80"}]))],
            &["Service default/bad: spec.ports[0].port: the text \"80\": a number (without quotes) is expected; the object is skipped"],
        ),
        (
            vec![ports(json!([{"port": 80.5}]))],
            &["Service default/bad: spec.ports[0].port: the number 80.5: a whole number is expected; the object is skipped"],
        ),
        (
            vec![ports(json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "a", "port": 82, "protocol": "UDP"}]))],
            &["Service default/bad: spec.ports[1].name: \"a\" is the name of spec.ports[0] (TCP) already; the port is skipped"],
        ),
        (
            vec![ports(json!([{"port": 80}, {"port": 81}]))],
            &["Service default/bad: spec.ports[1].name: \"\" is the name of spec.ports[0] (TCP) already; the port is skipped"],
        ),
        (
            vec![ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]))],
            &["Service default/bad: spec.ports[1].port: 80/TCP is spec.ports[0] already; the port is skipped"],
        ),
        (
            vec![ports(json!([{"name": long, "port": 80}]))],
            &["Service default/bad: spec.ports[0].name: 1000000 bytes long, 253 are allowed; the port is skipped"],
        ),
        (vec![ports(many)], &[]),
    ]);
}

#[test]
fn missing_values_and_wrong_types() {
    let bare = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"}});
    let meta = |meta: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}});
    let empty = "Service default/bad: spec.ports: empty: a Service without ports answers nowhere; add at least one port";
    let spec = "Service default/bad: spec: missing: a Service needs a spec with ports; it is skipped";
    check(vec![
        (vec![bare], &[spec]),
        (vec![bad_service(Value::Null)], &[spec]),
        (vec![bad_service(json!("text"))], &["Service default/bad: spec: the text \"text\": a mapping is expected; the object is skipped"]),
        (vec![bad_service(json!([]))], &["Service default/bad: spec: a list: a mapping is expected; the object is skipped"]),
        (vec![ports(Value::Null)], &[empty]),
        (vec![ports(json!([]))], &[empty]),
        (vec![ports(json!(7))], &["Service default/bad: spec.ports: the number 7: a list is expected; the object is skipped"]),
        (vec![ports(json!([null]))], &["Service default/bad: spec.ports[0]: nothing: a mapping is expected; the object is skipped"]),
        (
            vec![one_port(json!({"clusterIPs": ["10.96.0.2", null]}))],
            &["Service default/bad: spec.clusterIPs[1]: nothing: text is expected; the entry is skipped"],
        ),
        (
            // Labels that nomagic does not read.
            vec![meta(json!({"name": "bad", "labels": {"a\u{1b}[2Jb": 5, "empty": null}, "managedFields": "none", "generation": {}}))],
            &[],
        ),
        (
            vec![endpoints(json!({"a": 1}))],
            &["EndpointSlice default/bad-1: endpoints: a mapping: a list is expected; the object is skipped"],
        ),
        (
            vec![endpoints(json!([null, 5]))],
            &["EndpointSlice default/bad-1: endpoints[1]: the number 5: a mapping is expected; the object is skipped"],
        ),
        (vec![endpoints(Value::Null)], &[]),
        (vec![endpoints(json!([{"addresses": ["10.1.0.1"], "conditions": null, "hints": null, "nodeName": null}]))], &[]),
    ]);
}

#[test]
fn invalid_addresses() {
    let long = "x".repeat(1_000_000);
    let many: Vec<String> = (0..5_000).map(|i| format!("203.{}.{}.1", i / 250, i % 250)).collect();
    let cut = format!(
        "Service default/bad: spec.clusterIPs[0]: \"{}[... 999438 characters ...]{}\" is not an IP address; it is skipped",
        "x".repeat(399),
        "x".repeat(163)
    );
    check(vec![
        (
            vec![one_port(json!({"clusterIP": "10.96.0.1"}))],
            &[
                "Service default/bad: spec.ports[0]: TCP 10.96.0.1:80 is taken by Service default/good (clusterIP): cluster IPs come first, then node ports, load balancer addresses and external IPs, each by creation time and name; this Service does not answer there",
            ],
        ),
        (
            vec![one_port(json!({"clusterIPs": ["10.96.0.2", "10.96.0.4"]}))],
            &[
                "Service default/bad: spec.clusterIPs[1]: a second address of the family of 10.96.0.2: one a family is allowed; 10.96.0.4 is skipped",
            ],
        ),
        (
            vec![one_port(json!({"externalIPs": ["169.254.1.1", "ff02::1", "0.0.0.0", "1.2.3"]}))],
            &[
                "Service default/bad: spec.externalIPs[0]: 169.254.1.1 is a link-local address, which no Service can have; it is skipped",
                "Service default/bad: spec.externalIPs[1]: ff02::1 is a multicast address, which no Service can have; it is skipped",
                "Service default/bad: spec.externalIPs[2]: 0.0.0.0 is the unspecified address, which no Service can have; it is skipped",
                "Service default/bad: spec.externalIPs[3]: \"1.2.3\" is not an IP address; it is skipped",
            ],
        ),
        (vec![one_port(json!({ "externalIPs": many }))], &[]),
        (vec![one_port(json!({ "clusterIP": long }))], &[&cut]),
    ]);
}

#[test]
fn negative_numbers() {
    check(vec![
        (
            vec![one_port(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -5}}}))],
            &["Service default/bad: spec.sessionAffinityConfig.clientIP.timeoutSeconds: -5: 1 to 86400 are allowed; 10800 is used"],
        ),
        (
            vec![one_port(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": -1}))],
            &["Service default/bad: spec.healthCheckNodePort: -1: 1 to 65535 are allowed; it is skipped"],
        ),
    ]);
}

#[test]
fn names_with_unusual_characters() {
    let n = "n".repeat(300);
    let too_long = format!("Service \"{n}\": metadata.name: 300 bytes long, 253 are allowed; the object is skipped");
    let unreadable = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x\u{7}\ny", "namespace": "z\r"}, "spec": 5});
    check(vec![
        (vec![named("")], &["Service \"\": metadata.name: missing: every object needs a name; it is skipped"]),
        (vec![named(&n)], &[&too_long]),
        (vec![named("a/b")], &["Service \"a/b\": metadata.name: \"a/b\" contains '/', which no name may; the object is skipped"]),
        (
            vec![named("a\nWARN forged: line")],
            &[
                r#"Service "a\nWARN forged: line": metadata.name: "a\nWARN forged: line" contains '\n', which no name may; the object is skipped"#,
            ],
        ),
        (
            vec![named("a\u{1b}[31mb")],
            &[r#"Service "a\u{1b}[31mb": metadata.name: "a\u{1b}[31mb" contains '\u{1b}', which no name may; the object is skipped"#],
        ),
        (
            vec![named("right\u{202e}left")],
            &[
                r#"Service "right\u{202e}left": metadata.name: "right\u{202e}left" contains '\u{202e}', which no name may; the object is skipped"#,
            ],
        ),
        (vec![unreadable], &[r"Service z\r/x\u{7}\ny: spec: the number 5: a mapping is expected; the object is skipped"]),
        // Unusual but harmless.
        (vec![named("quote\"and'dollar$日本")], &[]),
    ]);
}

#[test]
fn invalid_endpoints_do_not_affect_the_others() {
    let addresses =
        ["10.1.0.1", "127.0.0.1", "127.255.0.9", "169.254.9.9", "224.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "pod-7", "a\nb", ""];
    let faulty = Value::from(addresses.iter().map(|a| json!({"addresses": [a]})).collect::<Vec<_>>());
    let thousand = |garbage: Value| {
        let endpoint = |i: usize| json!({"addresses": [format!("10.1.{}.{}", i / 250, i % 250 + 1)]});
        Value::from((0..1_000).map(|i| if i == 500 { garbage.clone() } else { endpoint(i) }).collect::<Vec<_>>())
    };
    let mut strange = endpoints(json!([{"addresses": ["10.1.0.1"]}]));
    strange["addressType"] = json!("IPX\u{1b}");
    let mut numbers = endpoints(json!([{"addresses": ["10.1.0.1"]}]));
    numbers["ports"] = json!([{"name": "a", "port": 70_000}, {"name": "b", "port": -80}, {"name": "c", "port": 80, "protocol": "ICMP\n"}]);
    let rows: Vec<(Vec<Value>, &[&str])> = vec![
        (
            vec![endpoints(faulty)],
            &[
                "EndpointSlice default/bad-1: endpoints[1].addresses[0]: \"127.0.0.1\" is a loopback address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[2].addresses[0]: \"127.255.0.9\" is a loopback address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[3].addresses[0]: \"169.254.9.9\" is a link-local address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[4].addresses[0]: \"224.0.0.1\" is a multicast address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[5].addresses[0]: \"0.0.0.0\" is the unspecified address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[6].addresses[0]: \"255.255.255.255\" is the broadcast address; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[7].addresses[0]: \"fd00::1\" is not an IPv4 address, as the slice's addressType says; the endpoint is skipped",
                "EndpointSlice default/bad-1: endpoints[8].addresses[0]: \"pod-7\" is not an IP address; the endpoint is skipped",
                r#"EndpointSlice default/bad-1: endpoints[9].addresses[0]: "a\nb" is not an IP address; the endpoint is skipped"#,
                "EndpointSlice default/bad-1: endpoints[10].addresses[0]: \"\" is not an IP address; the endpoint is skipped",
            ],
        ),
        (
            vec![endpoints(thousand(json!({"addresses": ["pod-500"]})))],
            &["EndpointSlice default/bad-1: endpoints[500].addresses[0]: \"pod-500\" is not an IP address; the endpoint is skipped"],
        ),
        (
            vec![endpoints(thousand(Value::Null))],
            &["EndpointSlice default/bad-1: endpoints[500]: nothing: a mapping is expected; the endpoint is skipped"],
        ),
        (
            vec![endpoints(thousand(json!({"addresses": ["10.9.9.9"], "conditions": {"ready": "yes"}})))],
            &[
                "EndpointSlice default/bad-1: endpoints[500].conditions.ready: the text \"yes\": true or false (without quotes) is expected; the endpoint is skipped",
            ],
        ),
        (
            vec![endpoints(json!([{"addresses": ["10.1.0.1"]}, {"addresses": [5]}]))],
            &[
                "EndpointSlice default/bad-1: endpoints[1].addresses[0]: the number 5: text (in quotes) is expected; the endpoint is skipped",
            ],
        ),
        (
            vec![strange],
            &[r#"EndpointSlice default/bad-1: addressType: "IPX\u{1b}": IPv4, IPv6 and FQDN are allowed; the slice is skipped"#],
        ),
        (
            vec![numbers],
            &[
                "EndpointSlice default/bad-1: ports[0].port: 70000: 1 to 65535 are allowed; the port is skipped",
                "EndpointSlice default/bad-1: ports[1].port: -80: 1 to 65535 are allowed; the port is skipped",
                r#"EndpointSlice default/bad-1: ports[2].protocol: "ICMP\n": TCP, UDP and SCTP are allowed; the port is skipped"#,
            ],
        ),
    ];
    check(rows);
    // All but the invalid one of a thousand are used.
    for garbage in [json!({"addresses": ["pod-500"]}), Value::Null, json!({"addresses": 7}), json!("10.1.0.1")] {
        let objects = [one_port(json!({})), endpoints(thousand(garbage))];
        let read = objects.map(|o| {
            let kind = if o["kind"] == "Service" { Kind::Service } else { Kind::EndpointSlice };
            read(kind, o, &Origin::default()).unwrap()
        });
        let Object::Slice(slice) = &read[1] else { panic!("a slice") };
        assert_eq!((slice.endpoints.len(), slice.problems.len()), (999, 1), "{:?}", slice.problems);
    }
}

#[test]
fn mangled_manifests_never_panic() {
    let example = concat!(
        include_str!("../../../../deploy/example/manifests/nginx.yaml"),
        "---\n",
        include_str!("../../../../deploy/example/manifests/echo.yaml")
    );
    let scraps = [
        "null",
        "-1",
        "99999999999999999999",
        "[]",
        "{}",
        "''",
        "\u{0}",
        "&a",
        "*a",
        "---\n",
        "\t",
        ":",
        "\"",
        "1e999",
        "!!binary x",
        "Local",
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.yaml");
    let (mut random, mut readable, mut compiler) = (7, 0, Compiler::new(64));
    let mut next = |n: usize| (nomagic_core::tuple::splitmix64(&mut random) % n as u64) as usize;
    let settings = Config::default().settings(&[]);
    let question = parse_flow("tcp 10.9.9.9:40000 -> 10.109.35.24:80").unwrap();
    for _ in 0..1_500 {
        let mut text: Vec<char> = example.chars().collect();
        for _ in 0..=next(4) {
            let (at, gone, scrap) = (next(text.len()), next(12), scraps[next(scraps.len())]);
            let end = (at + gone).min(text.len());
            text.splice(at..end, scrap.chars());
        }
        std::fs::write(&file, text.into_iter().collect::<String>()).unwrap();
        let loaded = manifests::load(&file, None).unwrap();
        let compiled = compiler.compile(&Index::of(loaded.objects), &settings);
        readable += usize::from(matches!(compiled.services.decide(&question), Decision::Forward { .. }));
    }
    assert!((150..1_500).contains(&readable), "{readable}: faults stay where they are, and there are some");
}
