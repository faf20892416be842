//! `nomagic explain --running`: a gateway explains packets with its live flows and routes.

use std::net::SocketAddr;
use std::process::Command;

use nomagic_api::explain::Verdict;
use nomagic_testbed::rig::PODS;

use crate::common::*;

#[test]
fn live_flows_and_routes_are_used_and_not_changed() {
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

    let known = g.explain(&format!("tcp {from} -> {service}"));
    let backend = PODS.iter().find(|p| p.name == pod).map(|p| format!("{}:80", p.v4)).unwrap();
    assert_eq!((known.verdict, known.chosen.as_deref()), (Verdict::Forward, Some(backend.as_str())), "{known:#?}");
    assert!(known.steps.iter().any(|step| step.starts_with("The gateway knows this flow")), "{known:#?}");

    // The client's connection has resolved the MAC address of one endpoint only. A new flow to another one would wait for its address.
    let new = (1..=u16::MAX)
        .map(|port| g.explain(&format!("tcp {}:{port} -> {service}", from.ip())))
        .find(|answer| answer.chosen == Some(backend.clone()) && answer.flow != known.flow)
        .unwrap();
    assert_eq!(new.verdict, Verdict::Forward, "{new:#?}");
    assert!(new.steps.iter().any(|step| step.contains("pods0")), "the route to the endpoint: {new:#?}");

    assert_eq!(flows(&g), before, "explain creates no flow");
    drop(stream);
    let elsewhere = tempfile::tempdir().unwrap();
    let out =
        Command::new(NOMAGIC).args(["explain", "--running", "tcp 1.2.3.4:1 -> 5.6.7.8:9", "--state-dir"]).arg(elsewhere.path()).output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("is it running?"), "{out:?}");
}
