//! `nomagic explain --running`: a gateway explains what it does with its own flows and routes.

use std::net::SocketAddr;
use std::process::Command;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_testbed::rig::PODS;

use crate::common::*;

fn explain(g: &Gateway, flow: &str) -> Answer {
    let mut command = Command::new(NOMAGIC);
    command.args(["explain", "--running", "--format", "json", "--state-dir"]).arg(g.state_dir()).arg(flow);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn known_flows_and_routes_count_and_nothing_changes() {
    let g = Gateway::start("explain", "", &nginx(&[0, 1, 2]));
    let service: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let (stream, pod, from) = g
        .scene
        .client
        .run(move || {
            let (stream, pod) = keep_alive(service);
            let from = stream.local_addr().unwrap();
            (stream, pod, from)
        })
        .unwrap();
    let flows = |g: &Gateway| g.number(|s| s.conntrack.live);
    let before = flows(&g);

    let known = explain(&g, &format!("tcp {from} -> {service}"));
    let backend = PODS.iter().find(|p| p.name == pod).map(|p| format!("{}:80", p.v4)).unwrap();
    assert_eq!((known.verdict, known.chosen.as_deref()), (Verdict::Forward, Some(backend.as_str())), "{known:#?}");
    assert!(known.steps.iter().any(|step| step.starts_with("The gateway knows this flow")), "{known:#?}");

    let new = explain(&g, &format!("tcp {}:{} -> {service}", from.ip(), from.port() ^ 1));
    assert_eq!(new.verdict, Verdict::Forward, "{new:#?}");
    assert!(new.steps.iter().any(|step| step.contains("pods0")), "the way to the endpoint: {new:#?}");

    assert_eq!(flows(&g), before, "asking opens no flow");
    drop(stream);
    let elsewhere = tempfile::tempdir().unwrap();
    let out =
        Command::new(NOMAGIC).args(["explain", "--running", "tcp 1.2.3.4:1 -> 5.6.7.8:9", "--state-dir"]).arg(elsewhere.path()).output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("is it running?"), "{out:?}");
}
