//! `nomagic preflight` on a real veth pair in a namespace.

use std::process::Command;

use nomagic_testbed::rig::{Netns, cable};
use serde_json::Value;

use crate::common::NOMAGIC;

/// Runs `nomagic preflight` in a namespace and returns its exit code and output.
fn preflight(netns: &Netns, words: &str) -> (Option<i32>, String) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns.name(), NOMAGIC, "preflight"]);
    let out = command.args(words.split_whitespace()).output().unwrap();
    (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
}

fn state<'r>(report: &'r Value, name: &str) -> &'r str {
    let finding = report["findings"].as_array().unwrap().iter().find(|f| f["name"] == name);
    finding.unwrap_or_else(|| panic!("{name} in {report}"))["state"].as_str().unwrap()
}

#[test]
fn a_veth_pair_in_a_namespace() {
    let (a, b) = (Netns::new("preflight-a").unwrap(), Netns::new("preflight-b").unwrap());
    cable(&a, "gw0", &b, "peer0", 2).unwrap();
    let (code, text) = preflight(&a, "--interface gw0 --workers 2 --format json");
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let states = [
        ("privileges", "ok"),
        ("kernel", "ok"),
        ("kernel options", "ok"),
        ("IP forwarding", "missing"),
        ("SNAT ports", "ok"),
        ("link", "ok"),
        ("MTU", "ok"),
        ("native XDP", "ok"),
        ("AF_XDP zero-copy", "warning"),
        ("XDP program", "ok"),
        ("queues", "ok"),
        ("LRO", "ok"),
    ];
    for (name, expected) in states {
        assert_eq!(state(&report, name), expected, "{name}: {report:#}");
    }

    // Fixed problems disappear, and new ones are reported.
    a.sysctl("net.ipv4.ip_forward", "1").unwrap();
    b.ip("link set peer0 down").unwrap();
    let (_, text) = preflight(&a, "--interface gw0 --workers 3 --format json");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(["IP forwarding", "link", "queues"].map(|name| state(&report, name)), ["ok", "missing", "missing"], "{report:#}");

    let (code, text) = preflight(&b, "--interface gw0");
    assert!(code == Some(1) && text.contains("missing  link               there is no such interface"), "{text}");
}
