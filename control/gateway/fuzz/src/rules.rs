//! The rules of a kube-proxy, in any of their formats: they are refused with a readable error, or can be followed.

use nomagic_kube_proxy_rules::{Node, Origin, Packet, Ruleset};
use nomagic_table::explain::parse_flow;

use crate::FLOWS;

/// Flows that the texts of the corpus are about.
const NEAR: [&str; 2] = ["tcp 10.180.0.1:40000 -> 172.30.0.41:80", "tcp 203.0.113.9:40000 -> 192.168.0.2:3001"];

pub fn run(data: &[u8]) {
    let mut rules = Ruleset::default();
    match rules.read(&String::from_utf8_lossy(data)) {
        Err(e) => assert_readable(&e.to_string()),
        Ok(_) => follow(&rules),
    }
}

fn follow(rules: &Ruleset) {
    rules.unknown().iter().for_each(|place| assert_readable(&place.to_string()));
    assert!(rules.destinations().len() < 1_000_000);
    let node = Node { addresses: vec!["192.168.0.2".parse().expect("an address")] };
    for flow in FLOWS.iter().chain(&NEAR) {
        let tuple = parse_flow(flow).expect("a flow");
        for origin in [Origin::Pod, Origin::Node, Origin::Outside] {
            let decision = rules.follow(&Packet { tuple, origin }, &node);
            let shares: f64 = decision.backends.iter().map(|b| b.share).chain(decision.others.iter().map(|(_, share)| *share)).sum();
            assert!(shares < 1.001, "{shares}");
            decision.steps.iter().for_each(|step| assert_readable(&step.to_string()));
        }
    }
}

/// Short, and without anything that a terminal would obey.
fn assert_readable(text: &str) {
    assert!(!text.is_empty() && text.len() < 6_000 && !text.contains(char::is_control), "{text:?}");
}
