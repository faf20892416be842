//! `nomagic flows`: what a running gateway carries, with real connections. Needs root.

use std::process::{Command, Output, Stdio};

use nomagic_api::flows::{FLOW_SCHEMA, Flow, FlowState};
use nomagic_testbed::rig::CLIENT_V4;
use serde_json::{Value, json};

use crate::common::*;

fn flows(g: &Gateway, args: &[&str]) -> Output {
    Command::new(NOMAGIC).arg("flows").args(args).arg("--state-dir").arg(g.state_dir()).output().unwrap()
}

fn text(g: &Gateway, args: &[&str]) -> String {
    let out = flows(g, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn parsed(g: &Gateway, args: &[&str]) -> Vec<Flow> {
    let args = [args, &["--format", "json"]].concat();
    text(g, &args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn flows_of_a_running_gateway() {
    let g = Gateway::start("flows", "", &nginx(&[0, 1, 2]));
    let to = "10.109.35.24:80".parse().unwrap();
    let held: Vec<(std::net::TcpStream, String)> = g.scene.client.run(|| (0..12).map(|_| keep_alive(to)).collect()).unwrap();
    assert_eq!(g.udp(&g.scene.client, "[fd00:10:109::24]:53", 3).failed(), 0);

    let established = parsed(&g, &["--service", "default/nginx", "--state", "established"]);
    assert_eq!(established.len(), held.len(), "{}", g.account());
    for (stream, _) in &held {
        let client = stream.local_addr().unwrap().to_string();
        let flow = established.iter().find(|flow| flow.client == client).unwrap_or_else(|| panic!("{client}: {established:?}"));
        assert_eq!((flow.schema, &*flow.proto, &*flow.destination), (FLOW_SCHEMA, "TCP", "10.109.35.24:80"));
        assert_eq!((flow.service.as_deref(), flow.state), (Some("default/nginx:http"), FlowState::Established));
        assert!(flow.snat.is_none() && flow.expires_in_ms > 3_600_000 && flow.idle_ms < 10_000, "{flow:?}");
    }
    let answered = parsed(&g, &["--proto", "udp"]);
    assert!(!answered.is_empty() && answered.iter().all(|flow| flow.destination == "[fd00:10:109::24]:53"), "{answered:?}");

    // By endpoint, in both forms, and by filter.
    let by_backend: Value = serde_json::from_str(&text(&g, &["--proto", "tcp", "--count", "--by", "backend", "--format", "json"])).unwrap();
    assert_eq!(by_backend["flows"], json!(held.len()));
    let groups = by_backend["groups"].as_object().unwrap();
    assert_eq!(groups.values().filter_map(Value::as_u64).sum::<u64>(), held.len() as u64);
    for (backend, flows) in groups {
        assert_eq!(parsed(&g, &["--backend", backend]).len() as u64, flows.as_u64().unwrap());
    }
    let said = text(&g, &["--count", "--by", "state"]);
    assert!(said.lines().any(|line| line.trim() == format!("{}  ESTABLISHED", held.len())), "{said}");
    let client = CLIENT_V4.to_string();
    assert_eq!(parsed(&g, &["--client", &client]).len(), held.len());
    assert_eq!(parsed(&g, &["--client", "192.0.2.0/24"]).len(), 0);
    assert_eq!(parsed(&g, &["--client", &client, "--limit", "5"]).len(), 5);
    let page = text(&g, &["--client", &client]);
    assert_eq!(page.lines().count(), 1 + held.len(), "a head and the flows: {page}");

    for (args, words) in [
        (&["--client", "nowhere"][..], "client `nowhere`: not a CIDR"),
        (&["--service", "nginx"], "not a namespace and a name"),
        (&["--state", "open"], "not a state; there are SYN_SENT, "),
        (&["--by", "state"], "--count"),
    ] {
        let out = flows(&g, args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
    // Ended by command: what fits, and nothing else; the trace says so.
    let one = held[0].0.local_addr().unwrap();
    let backend = established.iter().find(|flow| flow.client == one.to_string()).unwrap().backend.clone();
    let there = established.iter().filter(|flow| flow.backend == backend).count();
    let said = text(&g, &["end", "--service", "default/nginx", "--backend", &backend]);
    assert_eq!(said, format!("{there} flows ended\n"));
    let left = parsed(&g, &["--service", "default/nginx", "--state", "established"]);
    assert!(left.len() == held.len() - there && left.iter().all(|flow| flow.backend != backend), "{left:?}");
    let mut traced = Command::new(NOMAGIC);
    traced.args(["trace", "--last", "1000", "--type", "ended", "--backend", &backend, "--format", "json"]);
    let traced = traced.arg("--state-dir").arg(g.state_dir()).output().unwrap();
    let traced = String::from_utf8(traced.stdout).unwrap();
    assert_eq!(traced.lines().filter(|line| line.contains("\"cause\":\"command\"")).count(), there, "{traced}");
    let none = flows(&g, &["end"]);
    assert!(none.status.code() == Some(2) && String::from_utf8_lossy(&none.stderr).contains("--all ends all flows"));

    // A reader that leaves, such as `head`, is no error.
    let mut child = Command::new(NOMAGIC)
        .args(["flows", "--watch", "0.1", "--state-dir"])
        .arg(g.state_dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), &*String::from_utf8_lossy(&out.stderr)), (Some(0), ""));
    drop(held);
}
