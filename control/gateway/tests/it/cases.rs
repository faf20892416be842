//! kube-proxy's behaviour cases (`tests/data/cases`, nftables column): each flow goes through manifests, index, compiler and `explain`.
//!
//! `cargo test -p nomagic --test it cases -- --nocapture` prints how many flows ran.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nomagic_core::tuple::Proto;
use nomagic_table::compile::endpoints::{self, Members, candidates};
use nomagic_table::explain::parse_flow;
use nomagic_table::index::Index;
use nomagic_table::objects::{NamespacedName, ServicePortSpec, addr::socket};
use nomagic_table::settings::ThisNode;
use serde_json::{Value, json};

use crate::common::replay::{CaseTable, FIRST_PACKETS, cases, index, list, settings, strings, text};
use crate::common::wire;

/// Source ports tried for each flow, so that every backend is selected.
const CONNECTIONS: u16 = 400;

/// Sends each flow as frames from many source ports through the packet path; the result must agree with `explain`.
#[test]
fn frames_agree_with_explain() {
    let (mut flows, mut frames, mut wrong) = (0, 0, Vec::new());
    for_each_step(|_, _, step, table| {
        for flow in list(&step["flows"]) {
            flows += 1;
            for source_port in 40_000..40_010 {
                let answer = table.explain(flow, source_port);
                let tuple = parse_flow(text(&answer, "flow")).unwrap();
                wrong.extend(wire::disagreement(&table.compiled.services, &tuple, &answer));
                frames += 1;
            }
        }
    });
    println!("first packets on the wire: {flows} flows, {frames} frames went through the packet path, {} disagree", wrong.len());
    assert!(wrong.is_empty(), "{} differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(frames >= 4_200);
}

/// Runs `work` for each step of each first-packet case, with the case, the step's number, the step and its table.
fn for_each_step(mut work: impl FnMut(&Value, usize, &Value, &CaseTable)) {
    for name in FIRST_PACKETS {
        let file = cases(name);
        for case in list(&file["cases"]) {
            for (number, step) in list(&case["steps"]).iter().enumerate() {
                let table = CaseTable::new(&step["objects"], settings(&file["defaults"]["config"], case));
                work(case, number, step, &table);
            }
        }
    }
}

/// The difference from the expectation, if any.
fn disagreement(table: &CaseTable, flow: &Value) -> Option<String> {
    let expected = if flow["expect"].is_null() { &flow["expectByMode"]["nftables"] } else { &flow["expect"] };
    let answer = table.explain(flow, 40_000);
    // kube-proxy does not know Services of another proxy. It drops what that one has not taken when the kernel forwards it; here the kernel gets it.
    let of_others = || {
        let to: IpAddr = text(flow, "to").parse().unwrap();
        table.index.services().any(|service| service.ignored.is_some() && service.cluster_ips.contains(&to))
    };
    if answer["verdict"] == "pass" && expected["verdict"] == "drop" && of_others() {
        return None;
    }
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
    let (mut ids, mut steps, mut flows, mut wrong) = (BTreeSet::new(), 0, 0, Vec::new());
    for_each_step(|case, number, step, table| {
        assert!(ids.insert(text(case, "id").to_owned()) || number > 0, "two cases are called {}", case["id"]);
        steps += 1;
        for flow in list(&step["flows"]) {
            flows += 1;
            if let Some(what) = disagreement(table, flow) {
                wrong.push(format!("{} step {number} {}: {what}", text(case, "id"), text(flow, "id")));
            }
        }
    });
    let (cases, right) = (ids.len(), flows - wrong.len());
    println!("first packets: {cases} cases, {steps} steps, {flows} flows ran, {right} agree with kube-proxy's nftables mode");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(flows >= 420, "only {flows} flows found");
}

#[test]
fn endpoint_cases() {
    let (file, mut ports) = (cases("kubeproxy-stateful.yaml"), 0);
    for case in list(&file["endpointCases"]) {
        let index = index(&case["objects"]);
        let node = ThisNode { name: text(&case["node"], "name").into(), ips: vec![], primary: vec![], zone: None };
        for (name, expected) in case["expect"].as_object().unwrap() {
            let found: BTreeMap<String, Value> = known_endpoints(&index, name, &node);
            assert_eq!(serde_json::to_value(found).unwrap(), *expected, "{} {name}", case["id"]);
            ports += 1;
        }
    }
    println!("endpointCases: {} cases with {ports} Service ports ran", list(&file["endpointCases"]).len());
    assert!(ports >= 3, "{ports}");
}

/// Endpoints of `namespace/service:port/protocol` with their conditions.
fn known_endpoints(index: &Index, name: &str, node: &ThisNode) -> BTreeMap<String, Value> {
    let (service, port) = name.split_once(':').unwrap();
    let (namespace, service) = service.split_once('/').unwrap();
    let (port, proto) = port.split_once('/').unwrap();
    assert_eq!(proto, "TCP");
    let key = NamespacedName { namespace: namespace.into(), name: service.into() };
    let port = ServicePortSpec { name: port.into(), proto: Proto::Tcp, port: 1, node_port: None, index: 0 };
    let conditions = |c: &endpoints::Candidate<'_>| {
        let e = c.endpoint;
        json!({"local": c.local, "ready": e.ready, "serving": e.serving, "terminating": e.terminating})
    };
    candidates(&Members::of(index, &key), &port, false, node).iter().map(|c| (socket(c.endpoint.addr, c.port), conditions(c))).collect()
}

#[test]
fn spread_cases() {
    let file = cases("kubeproxy-stateful.yaml");
    println!("spreadCases: {} cases run", list(&file["spreadCases"]).len());
    assert!(!list(&file["spreadCases"]).is_empty());
    for case in list(&file["spreadCases"]) {
        let table = CaseTable::new(&case["objects"], settings(&file["defaults"]["config"], case));
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
