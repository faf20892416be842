//! The command as a user runs it.

use super::{AnswerFormat, ExplainArgs, run};
use crate::cli::config_args::{ConfigArgs, ConfigFile};
use serde_json::Value;
use std::path::{Path, PathBuf};

const CONFIG: &str = "
node: {name: here, ips: [192.168.0.2, 192.168.1.2, 'fd00:1::2'], primaryIPs: [192.168.0.2, 'fd00:1::2'], labels: {topology.kubernetes.io/zone: z1}}
clusterCIDRs: [10.0.0.0/8]
serviceCIDRs: [172.30.0.0/16]
manifests: m.yaml
hash: {seed: 0}
";

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIPs: [172.30.0.1, 'fd00:30::1']
  externalIPs: [198.51.100.1]
  loadBalancerSourceRanges: [203.0.113.0/25]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 1.2.3.4}, {ip: 1.2.3.5, ipMode: Proxy}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], nodeName: here}
- {addresses: [10.1.0.2], nodeName: there}
- {addresses: [10.1.0.3], conditions: {ready: false}}
- {addresses: [10.1.0.4], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [127.0.0.1]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 172.30.0.2
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 30000
  sessionAffinity: ClientIP
  ports: [{port: 80, nodePort: 30081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-1, namespace: shop, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.2], nodeName: there}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 172.30.0.3, ports: [{port: 80}]}
";

fn files(config: &str, objects: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.yaml"), objects).unwrap();
    let path = dir.path().join("c.yaml");
    std::fs::write(&path, config).unwrap();
    (dir, path)
}

/// `(exit code, standard output, standard error)`
fn ask(config: &Path, format: AnswerFormat, flows: &[&str], stdin: &[u8]) -> (u8, String, String) {
    let file = ConfigFile { config: Some(config.into()), kube_proxy_config: None };
    ask_with(ConfigArgs { file, manifests: None }, format, flows, stdin)
}

fn ask_with(config: ConfigArgs, format: AnswerFormat, flows: &[&str], stdin: &[u8]) -> (u8, String, String) {
    let args = ExplainArgs {
        config,
        live: false,
        client: None,
        state_dir: None,
        kube_proxy_rules: Vec::new(),
        format,
        flows: flows.iter().map(ToString::to_string).collect(),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&args, &mut &stdin[..], &mut out, &mut err).unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn answers() {
    let (_dir, config) = files(CONFIG, OBJECTS);
    // Flow, [verdict, reason, service, port, address, snat], parts of the steps.
    let table: &[(&str, &str, &[&str])] = &[
        (
            "tcp 10.9.9.9:1 -> 172.30.0.1:80",
            r#"["forward",null,"shop/web",80,"clusterIP",null]"#,
            &[
                "The client is a pod",
                "2 of 4: 10.1.0.1:8080, 10.1.0.2:8080",
                "10.1.0.3:8080 (not ready)",
                "10.1.0.4:8080 (terminating",
                "\"127.0.0.1\" (a loopback",
                "no SNAT",
                "of 1021",
            ],
        ),
        (
            "tcp 203.0.113.9:1 -> 172.30.0.1:80",
            r#"["forward",null,"shop/web",80,"clusterIP","192.168.0.2"]"#,
            &["outside of the cluster", "the client is not a pod", "port from 1024 to 65535"],
        ),
        (
            "tcp 192.168.1.2:1 -> 192.168.0.2:30080",
            r#"["forward",null,"shop/web",80,"nodePort","192.168.0.2"]"#,
            &["node port of Service shop/web", "this node itself"],
        ),
        (
            "tcp 203.0.113.9:1 -> 198.51.100.1:80",
            r#"["forward",null,"shop/web",80,"externalIP","192.168.0.2"]"#,
            &["externalIPs", "externalTrafficPolicy is Cluster"],
        ),
        (
            "tcp 203.0.113.9:1 -> 1.2.3.4:80",
            r#"["forward",null,"shop/web",80,"loadBalancerIP","192.168.0.2"]"#,
            &["This client is one of them"],
        ),
        (
            "tcp 203.0.113.200:1 -> 1.2.3.4:80",
            r#"["drop","source_range","shop/web",80,"loadBalancerIP",null]"#,
            &["not one of them", "dropped silently"],
        ),
        ("tcp 203.0.113.9:1 -> 1.2.3.5:80", r#"["pass","not_ours",null,null,null,null]"#, &["ipMode Proxy", "shop/web"]),
        (
            "tcp [2001:db8::9]:1 -> [fd00:30::1]:80",
            r#"["reject","no_endpoints","shop/web",80,"clusterIP",null]"#,
            &["has no endpoints", "port unreachable", "without pod ranges"],
        ),
        (
            "tcp 10.9.9.9:1 -> 172.30.0.2:80",
            r#"["drop","no_local_endpoints","shop/local",80,"clusterIP",null]"#,
            &["internalTrafficPolicy is Local", "on node there; this one is here", "session affinity"],
        ),
        (
            "tcp 203.0.113.9:1 -> 192.168.0.2:30081",
            r#"["drop","no_local_endpoints","shop/local",80,"nodePort",null]"#,
            &["externalTrafficPolicy is Local: only"],
        ),
        (
            "tcp 10.9.9.9:1 -> 192.168.0.2:30081",
            r#"["forward",null,"shop/local",80,"nodePort",null]"#,
            &["binds clients from outside", "keeps its address"],
        ),
        (
            "tcp 10.1.0.2:1 -> 192.168.0.2:30081",
            r#"["forward",null,"shop/local",80,"nodePort","192.168.0.2"]"#,
            &["the endpoint chosen is the client itself"],
        ),
        (
            "tcp 192.168.1.2:1 -> 192.168.0.2:30081",
            r#"["forward",null,"shop/local",80,"nodePort","192.168.0.2"]"#,
            &["the client is the node itself"],
        ),
        ("tcp 10.9.9.9:1 -> 172.30.0.3:80", r#"["reject","no_endpoints","shop/empty",80,"clusterIP",null]"#, &["has no endpoints"]),
        (
            "udp 10.9.9.9:1 -> 172.30.0.1:80",
            r#"["reject","unused_service_port","shop/web",null,"clusterIP",null]"#,
            &["not one of its ports (80/TCP)"],
        ),
        ("tcp 10.9.9.9:1 -> 172.30.9.9:80", r#"["drop","unallocated_service_address",null,null,null,null]"#, &["172.30.0.0/16"]),
        (
            "tcp 203.0.113.9:1 -> 192.168.0.2:30000",
            r#"["local",null,"shop/local",null,null,null]"#,
            &["healthCheckNodePort", "503, 0 local"],
        ),
        (
            "tcp 203.0.113.9:1 -> 192.168.1.2:30080",
            r#"["pass","not_ours","shop/web",80,"nodePort",null]"#,
            &["nodePortAddresses allow: 192.168.0.2"],
        ),
        (
            "tcp 127.0.0.1:1 -> 127.0.0.1:30080",
            r#"["pass","not_ours","shop/web",80,"nodePort",null]"#,
            &["loopback address", "localhostNodePorts has no effect"],
        ),
        (
            "tcp 203.0.113.9:1 -> 192.168.0.2:22",
            r#"["pass","not_ours",null,null,null,null]"#,
            &["for the node itself", "the kernel processes it"],
        ),
        ("tcp 203.0.113.9:1 -> 192.168.0.2:62000", r#"["pass","no_flow",null,null,null,null]"#, &["replies to rewritten sources"]),
    ];
    for (flow, expected, words) in table {
        let (code, out, err) = ask(&config, AnswerFormat::Json, &[flow], b"");
        assert_eq!(code, 0, "{err}");
        let a: Value = serde_json::from_str(&out).unwrap();
        let got = serde_json::json!([a["verdict"], a["reason"], a["service"], a["port"], a["address"], a["snat"]]).to_string();
        assert!(got == *expected, "{flow}: {got}");
        let steps = a["steps"].to_string();
        let missing: Vec<_> = words.iter().filter(|w| !steps.contains(&w.replace('"', "\\\""))).collect();
        assert!(missing.is_empty(), "{flow}: {missing:?} not in {steps}");
        assert_eq!(a["flow"], *flow);
        assert_eq!((a["verdict"] == "forward"), a["chosen"].is_string(), "{flow}");
    }
}

#[test]
fn every_answer_has_every_field_in_order() {
    let (_dir, config) = files(CONFIG, OBJECTS);
    let flows = ["tcp 10.9.9.9:1 -> 172.30.0.1:80", "tcp 10.9.9.9:1 -> 8.8.8.8:80"];
    let (_, out, _) = ask(&config, AnswerFormat::Json, &flows, b"");
    for line in out.lines() {
        let mut rest = line;
        for field in ["flow", "verdict", "reason", "service", "port", "address", "backends", "chosen", "certain", "snat", "steps"] {
            let place = rest.find(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field} missing or out of order in {line}"));
            rest = &rest[place..];
        }
    }
    assert_eq!(out.lines().count(), 2);
    assert!(
        out.contains(r#""backends":["10.1.0.1:8080","10.1.0.2:8080"]"#)
            && out.contains(r#""backends":[],"chosen":null,"certain":true,"snat":null"#)
    );
}

#[test]
fn without_an_snat_address_the_packet_is_dropped() {
    let (_dir, config) = files(&CONFIG.replace("[192.168.0.2, 'fd00:1::2'], labels", "['fd00:1::2'], labels"), OBJECTS);
    let (_, out, _) = ask(&config, AnswerFormat::Json, &["tcp 203.0.113.9:1 -> 172.30.0.1:80"], b"");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&answer["verdict"], &answer["reason"]), (&"drop".into(), &"snat_address_missing".into()));
    assert!(answer["steps"].to_string().contains("no IPv4 address for it"));
}

#[test]
fn a_reject_names_the_response_to_the_client() {
    let flows = ["tcp 10.9.9.9:1 -> 172.30.0.3:80", "udp 10.9.9.9:1 -> 172.30.0.3:80"];
    for (extra, words) in [("", ["ICMP", "ICMP"]), ("\nreject: tcpReset\n", ["a TCP reset (reject: tcpReset)", "ICMP"])] {
        let (_dir, config) = files(&format!("{CONFIG}{extra}"), OBJECTS);
        for (flow, words) in flows.iter().zip(words) {
            let (_, out, _) = ask(&config, AnswerFormat::Text, &[flow], b"");
            assert!(out.contains("connection refused") && out.contains(words), "{extra} {out}");
        }
    }
}

#[test]
fn a_node_without_addresses_gives_a_warning() {
    let (_dir, config) = files("manifests: m.yaml", OBJECTS);
    let (code, _, err) = ask(&config, AnswerFormat::Json, &["tcp 203.0.113.9:1 -> 172.30.0.1:80"], b"");
    assert!(code == 0 && err.contains("c.yaml: node.primaryIPs: missing"), "{err}");
}

#[test]
fn flows_from_standard_input_and_invalid_lines() {
    let (_dir, config) = files(CONFIG, OBJECTS);
    let long = "x".repeat(100_000);
    let stdin = format!("# two good ones\n\ntcp 10.9.9.9:1 -> 172.30.0.1:80\nnonsense\n{long}\n\u{fffd}\n  tcp 10.9.9.9:1 -> 8.8.8.8:80  ");
    let (code, out, err) = ask(&config, AnswerFormat::Text, &[], stdin.as_bytes());
    assert_eq!((code, out.matches("=> ").count()), (2, 2), "{err}");
    assert!(out.starts_with("tcp 10.9.9.9:1 -> 172.30.0.1:80\n  1. A client at") && out.contains("=> FORWARD to 10.1.0."), "{out}");
    for expected in ["error: line 4 (\"nonsense\"): no `->`", "error: line 5 (\"xxx", "512 are allowed", "error: line 6"] {
        assert!(err.contains(expected), "{expected}: {err}");
    }
    let (code, out, err) =
        ask(&config, AnswerFormat::Json, &["tcp 1.2.3.4:1 -> x", "tcp 10.9.9.9:1 -> 8.8.8.8:80"], b"tcp 1.1.1.1:1 -> 2.2.2.2:2");
    assert_eq!((code, out.lines().count()), (2, 1), "standard input is not read");
    assert!(err.contains("error: flow 1 (\"tcp 1.2.3.4:1 -> x\")"), "{err}");
    assert_eq!(ask(&config, AnswerFormat::Text, &[], b""), (0, String::new(), err.split("error:").next().unwrap().into()));
}

#[test]
fn invalid_input_is_reported() {
    let (dir, config) = files(CONFIG, OBJECTS);
    let flow = ["tcp 10.9.9.9:1 -> 172.30.0.1:80"];
    let (_, _, err) = ask(&config, AnswerFormat::Json, &flow, b"");
    let place = format!("{}:13: EndpointSlice shop/web-1: endpoints[4].addresses[0]", dir.path().join("m.yaml").display());
    assert!(err.contains(&place) && err.contains("warning: "), "{err}");

    for (text, words) in [
        ("node: {nam: x}", "c.yaml:1:8: node.nam: unknown field"),
        ("{}", "c.yaml: manifests: missing"),
        ("manifests: gone", "gone: the manifests cannot be read"),
    ] {
        std::fs::write(&config, text).unwrap();
        let (code, out, err) = ask(&config, AnswerFormat::Json, &flow, b"");
        assert_eq!((code, out.as_str()), (2, ""), "{text}");
        assert!(err.starts_with("error: ") && err.contains(words), "{text}: {err}");
    }
    assert_eq!(ask(&dir.path().join("nowhere.yaml"), AnswerFormat::Json, &flow, b"").0, 2);
}

#[test]
fn without_the_seed_no_endpoint_is_promised() {
    let flow = "tcp 10.9.9.9:1 -> 172.30.0.1:80";
    let (dir, config) = files(CONFIG, OBJECTS);
    let secret = dir.path().join("secret");
    let ask_with_hash = |hash: &str, format| {
        std::fs::write(&config, CONFIG.replace("hash: {seed: 0}", hash)).unwrap();
        ask(&config, format, &[flow], b"")
    };
    let json = |hash: &str| {
        let (code, out, err) = ask_with_hash(hash, AnswerFormat::Json);
        assert_eq!(code, 0, "{hash}: {err}");
        (serde_json::from_str::<Value>(&out).unwrap(), err)
    };
    let (known, _) = json("hash: {seed: 0}");
    assert_eq!((&known["certain"], known["chosen"].is_string()), (&true.into(), true));
    let (unknown, err) = json("");
    assert_eq!((&unknown["certain"], &unknown["chosen"], &unknown["backends"]), (&false.into(), &known["chosen"], &known["backends"]));
    assert!(unknown["steps"].to_string().contains("explain --live") && !err.contains("hash"), "{unknown} {err}");
    let (_, text, _) = ask_with_hash("", AnswerFormat::Text);
    let candidate = known["chosen"].as_str().unwrap();
    assert!(text.contains(&format!("=> FORWARD to any of 2 candidates ({candidate} with the seed 0), source unchanged")), "{text}");

    // A secret is known where it can be read. For others the answer is that of a missing seed.
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    assert_eq!(json("hash: {seedFile: secret}").0["certain"], true);
    let (unread, err) = json("hash: {seedFile: nowhere}");
    assert_eq!(unread["certain"], false);
    assert!(err.contains("warning: ") && err.contains("c.yaml: hash.seedFile: ") && err.contains("nowhere: cannot be read"), "{err}");
    std::fs::write(&secret, "short").unwrap();
    let (code, out, err) = ask_with_hash("hash: {seedFile: secret}", AnswerFormat::Json);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("c.yaml: hash.seedFile: ") && err.contains("5 bytes"), "{err}");
}

#[test]
fn seeds_of_files_spread_flows_differently() {
    let (dir, config) = files(&CONFIG.replace("hash: {seed: 0}", "hash: {seedFile: secret}"), OBJECTS);
    let flows: String = (1..=64).map(|port| format!("tcp 10.9.9.9:{port} -> 172.30.0.1:80\n")).collect();
    let chosen = |secret: &str| -> Vec<Value> {
        std::fs::write(dir.path().join("secret"), secret).unwrap();
        let (_, out, _) = ask(&config, AnswerFormat::Json, &[], flows.as_bytes());
        out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["chosen"].clone()).collect()
    };
    let first = chosen("correct horse battery staple");
    assert_eq!((first.len(), &chosen(" correct horse battery staple\n")), (64, &first));
    assert_ne!(chosen("correct horse battery stable"), first);
}

#[test]
fn the_example_configuration() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/example/nomagic.yaml");
    let flows = [
        "tcp 192.168.0.5:40000 -> 10.109.35.24:80",
        "tcp [2001:db8::5]:40000 -> [fd00:10:109::24]:80",
        "udp 203.0.113.5:5 -> 10.109.35.25:7",
    ];
    let (code, out, err) = ask(&config, AnswerFormat::Json, &flows, b"");
    assert_eq!((code, err.as_str()), (0, ""));
    let answers: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(answers.iter().all(|a| a["verdict"] == "forward" && a["backends"].as_array().unwrap().len() == 3), "{out}");
    assert_eq!((&answers[0]["snat"], &answers[1]["snat"], &answers[2]["snat"]), (&Value::Null, &"fd00:1::1".into(), &"10.0.0.1".into()));
}

#[test]
fn kube_proxys_configuration_is_accepted() {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let ask = |rest: &str, manifests: bool| {
        let (dir, kp) = files(&format!("{head}{rest}"), OBJECTS);
        let file = ConfigFile { config: None, kube_proxy_config: Some(kp) };
        let config = ConfigArgs { file, manifests: manifests.then(|| dir.path().join("m.yaml")) };
        ask_with(config, AnswerFormat::Text, &["tcp 10.9.9.9:1 -> 172.30.0.1:80", "tcp 10.9.9.9:1 -> 192.168.0.2:30080"], b"")
    };
    let (code, out, err) = ask("hostnameOverride: here\nbindAddress: 192.168.0.2\nclusterCIDR: 10.0.0.0/8\nipvs: {scheduler: rr}", true);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("The client is a pod") && out.contains("node port of Service shop/web"), "{out}");
    assert!(err.contains("c.yaml:6:19: ipvs.scheduler: ") && !err.contains("bindAddress"), "{err}");
    let (code, _, err) = ask("clusterCIDR: 10.0.0.0/8", true);
    assert!(code == 0 && err.contains("c.yaml: bindAddress: missing"), "{err}");
    let (code, _, err) = ask("", false);
    assert!(code == 2 && err.contains("reads files") && err.contains("--manifests"), "{err}");
    let (code, _, err) = ask("mode: magic", true);
    assert!(code == 2 && err.contains("c.yaml:3:7: mode: magic"), "{err}");
}
