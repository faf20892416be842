//! kube-proxy's behaviour cases (`tests/data/cases`, nftables column): each flow goes through manifests, index, compiler and `explain`.
//!
//! `cargo test -p nomagic --test cases -- --nocapture` prints how many flows ran.

#[path = "common/case_files.rs"]
mod case_files;
#[path = "common/wire.rs"]
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use case_files::*;
use nomagic::compile::endpoints::{self, candidates};
use nomagic::compile::{Compiled, Compiler, Node, Settings, TARGETS_MAX};
use nomagic::explain::{Explainer, parse_flow};
use nomagic::index::Index;
use nomagic::objects::{Key, Port, addr::socket};
use nomagic_core::tuple::Proto;
use serde_json::{Value, json};

/// Source ports tried for each flow, so that every backend turns up.
const CONNECTIONS: u16 = 400;

struct Table {
    index: Index,
    settings: Settings,
    compiled: Compiled,
}

impl Table {
    fn new(objects: &Value, settings: Settings) -> Table {
        let index = index(objects);
        let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
        Table { index, settings, compiled }
    }

    /// `explain`'s JSON for the flow from one source port.
    fn explain(&self, flow: &Value, source_port: u16) -> Value {
        let port = flow["port"].as_u64().unwrap() as u16;
        let proto = flow["proto"].as_str().unwrap_or("TCP").to_lowercase();
        let from = socket(text(flow, "from").parse().unwrap(), source_port);
        let to = socket(text(flow, "to").parse().unwrap(), port);
        let question = format!("{proto} {from} -> {to}");
        let explainer = Explainer::new(&self.index, &self.settings, &self.compiled);
        serde_json::to_value(explainer.answer(&question, &parse_flow(&question).unwrap())).unwrap()
    }
}

/// Each flow also as a frame through the packet path, from many source ports: the bytes and `explain` must agree.
#[test]
fn frames_meet_what_explain_says() {
    let file = cases("kubeproxy-cases.yaml");
    let (mut frames, mut wrong) = (0, Vec::new());
    for case in list(&file["cases"]) {
        for step in list(&case["steps"]) {
            let table = Table::new(&step["objects"], settings(&file["defaults"]["config"], case));
            for flow in list(&step["flows"]) {
                for source_port in 40_000..40_010 {
                    let answer = table.explain(flow, source_port);
                    let tuple = parse_flow(text(&answer, "flow")).unwrap();
                    wrong.extend(wire::disagreement(&table.compiled.services, &tuple, &answer));
                    frames += 1;
                }
            }
        }
    }
    println!("{frames} frames went through the packet path");
    assert!(wrong.is_empty(), "{} differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(frames >= 3_540);
}

/// What differs from the expectation, if anything does.
fn disagreement(table: &Table, flow: &Value) -> Option<String> {
    let expected = if flow["expect"].is_null() { &flow["expectByMode"]["nftables"] } else { &flow["expect"] };
    let answer = table.explain(flow, 40_000);
    if answer["verdict"] != expected["verdict"] {
        return Some(format!("verdict {} instead of {}", answer["verdict"], expected["verdict"]));
    }
    if expected["verdict"] != "forward" {
        let silent =
            answer["backends"] == json!([]) && answer["chosen"].is_null() && answer["snat"].is_null() && !answer["reason"].is_null();
        return (!silent && expected["verdict"] != "local").then(|| format!("not a refusal: {answer}"));
    }
    let wanted = strings(&expected["backends"]);
    if strings(&answer["backends"]) != wanted {
        return Some(format!("backends {} instead of {}", answer["backends"], expected["backends"]));
    }
    let mut seen = BTreeSet::new();
    let hairpin = strings(&expected["hairpin"]);
    for source_port in 40_000..40_000 + CONNECTIONS {
        let answer = table.explain(flow, source_port);
        let chosen = text(&answer, "chosen").to_string();
        let snat = expected["snat"] == true || hairpin.contains(&chosen);
        let own = |a: &str| table.settings.node.ips.iter().any(|ip| ip.to_string() == a);
        if answer["snat"].as_str().is_some_and(own) != snat {
            return Some(format!("snat {} for {chosen}", answer["snat"]));
        }
        seen.insert(chosen);
    }
    (seen != wanted).then(|| format!("only {seen:?} turned up"))
}

#[test]
fn kube_proxy_cases() {
    let file = cases("kubeproxy-cases.yaml");
    let (mut ran, mut wrong) = (0, Vec::new());
    for case in list(&file["cases"]) {
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let table = Table::new(&step["objects"], settings(&file["defaults"]["config"], case));
            for flow in list(&step["flows"]) {
                ran += 1;
                if let Some(what) = disagreement(&table, flow) {
                    wrong.push(format!("{} step {number} {}: {what}", text(case, "id"), text(flow, "id")));
                }
            }
        }
    }
    println!("{ran} flows ran, {} agree with kube-proxy's nftables mode", ran - wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ran >= 354, "only {ran} flows found");
}

#[test]
fn endpoint_cases() {
    let file = cases("kubeproxy-stateful.yaml");
    for case in list(&file["endpointCases"]) {
        let index = index(&case["objects"]);
        let node = Node { name: text(&case["node"], "name").into(), ips: vec![], primary: vec![], zone: None };
        for (name, expected) in case["expect"].as_object().unwrap() {
            let found: BTreeMap<String, Value> = known_endpoints(&index, name, &node);
            assert_eq!(serde_json::to_value(found).unwrap(), *expected, "{} {name}", case["id"]);
        }
    }
}

/// Endpoints of `namespace/service:port/protocol` with their conditions.
fn known_endpoints(index: &Index, name: &str, node: &Node) -> BTreeMap<String, Value> {
    let (service, port) = name.split_once(':').unwrap();
    let (namespace, service) = service.split_once('/').unwrap();
    let (port, proto) = port.split_once('/').unwrap();
    assert_eq!(proto, "TCP");
    let key = Key { namespace: namespace.into(), name: service.into() };
    let port = Port { name: port.into(), proto: Proto::Tcp, port: 1, node_port: None, index: 0 };
    let conditions = |c: &endpoints::Candidate<'_>| {
        let e = c.endpoint;
        json!({"local": c.local, "ready": e.ready, "serving": e.serving, "terminating": e.terminating})
    };
    candidates(index, &key, &port, false, node).iter().map(|c| (socket(c.endpoint.addr, c.port), conditions(c))).collect()
}

#[test]
fn spread_cases() {
    let file = cases("kubeproxy-stateful.yaml");
    for case in list(&file["spreadCases"]) {
        let table = Table::new(&case["objects"], settings(&file["defaults"]["config"], case));
        let mut connections: BTreeMap<String, u64> = BTreeMap::new();
        for i in 0..case["connections"].as_u64().unwrap() {
            let answer = table.explain(&case["connect"], 32_768 + i as u16);
            *connections.entry(text(&answer, "chosen").into()).or_default() += 1;
        }
        let (low, high) = (case["eachBetween"][0].as_u64().unwrap(), case["eachBetween"][1].as_u64().unwrap());
        println!("{}: {connections:?}", case["id"]);
        assert!(connections.len() == 7 && connections.values().all(|n| (low..=high).contains(n)), "{connections:?}");
    }
}
