//! The real program on a real veth in a namespace.

use nomagic_testbed::rig::{Netns, cable};
use serde_json::Value;
use std::process::Command;

/// Runs `nomagic-bench preflight` with these words: its exit code and what it wrote.
fn preflight(words: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_nomagic-bench")).arg("preflight").args(words).output().unwrap();
    (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
}

fn finding<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["findings"].as_array().unwrap().iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
fn a_veth_in_a_namespace() {
    let (a, b) = (Netns::new("preflight-a").unwrap(), Netns::new("preflight-b").unwrap());
    cable(&a, "gw0", &b, "peer0", 2).unwrap();
    let place = format!("gw0@{}", a.name());
    let (code, text) = preflight(&["--interface", &place, "--workers", "2", "--cpus", "0,1", "--format", "json"]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let states = [
        ("privileges", "ok"),
        ("kernel options", "ok"),
        ("interface", "ok"),
        ("link", "ok"),
        ("MTU", "ok"),
        ("native XDP", "ok"),
        ("AF_XDP zero-copy", "missing"),
        ("XDP program", "ok"),
        ("queues", "ok"),
        ("PCIe link", "unknown"),
        ("queue interrupts", "unknown"),
        ("IP forwarding", "missing"),
        ("SNAT ports", "ok"),
    ];
    for (name, state) in states {
        assert_eq!(finding(&report, name)["state"], state, "{}", finding(&report, name));
    }
    assert_eq!(finding(&report, "interface")["found"], "veth");
    assert_eq!(finding(&report, "queues")["interface"], place.as_str());
    let remedy = format!("ip netns exec {} sysctl -w net.ipv4.ip_forward=1", a.name());
    assert_eq!(finding(&report, "IP forwarding")["remedy"], remedy.as_str());
    let states = |word: &str| report["findings"].as_array().unwrap().iter().filter(|f| f["state"] == word).count();
    assert_eq!(report["missing"], states("missing"));

    // What the remedies say helps; what breaks is noticed.
    a.sysctl("net.ipv4.ip_forward", "1").unwrap();
    b.ip("link set peer0 down").unwrap();
    let (_, text) = preflight(&["--interface", &place, "--workers", "1", "--format", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(finding(&report, "IP forwarding")["state"], "ok");
    assert_eq!((&finding(&report, "link")["state"], &finding(&report, "queues")["state"]), (&"missing".into(), &"warning".into()));

    // Interfaces of one namespace are not those of another with the same name.
    let (code, text) = preflight(&["--role", "generator", "--interface", &format!("gw0@{}", b.name())]);
    assert_eq!(code, Some(1));
    assert!(text.contains("missing  interface") && text.contains("does not exist") && text.contains("as a generator: "), "{text}");
    let (code, text) = preflight(&["--interface", "gw0@no-such-namespace"]);
    assert!(code == Some(1) && text.contains("ip netns list"), "{text}");
}
