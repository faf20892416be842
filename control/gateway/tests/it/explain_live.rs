//! `nomagic explain --live`: by the name of a Service, about existing flows, and against files. Needs root.

use std::net::SocketAddr;
use std::process::{Command, Output};

use nomagic_api::explain::{Answer, FlowFate, Verdict};
use nomagic_api::flows::FlowState;
use nomagic_testbed::rig::PODS;

use crate::common::*;

/// Pods of IPv4 are told apart from other clients.
const WITH_PODS: &str = "clusterCIDRs: [192.168.0.0/16]";

fn explain(g: &Gateway, args: &[&str]) -> Output {
    Command::new(NOMAGIC).args(["explain", "--live", "--state-dir"]).arg(g.state_dir()).args(args).output().unwrap()
}

fn text(g: &Gateway, code: i32, args: &[&str]) -> String {
    let out = explain(g, args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn parsed(g: &Gateway, code: i32, args: &[&str]) -> Vec<Answer> {
    let args = [args, &["--format", "json"]].concat();
    text(g, code, &args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_service_is_explained_by_its_name() {
    let g = Gateway::start("explainname", WITH_PODS, &nginx(&[0, 1]));
    let answers = parsed(&g, 0, &["default/nginx:http"]);
    let asked: Vec<(String, String)> = answers.iter().map(|a| (a.asked.as_ref().unwrap().client.clone(), a.flow.clone())).collect();
    let expected = [
        ("outside", "tcp 203.0.113.9:40000 -> 10.109.35.24:80"),
        ("pod", "tcp 192.168.0.1:40000 -> 10.109.35.24:80"),
        ("outside", "tcp [2001:db8::9]:40000 -> [fd00:10:109::24]:80"),
    ];
    let without_pod = |(client, flow): &(String, String)| (client.clone(), if client == "pod" { String::new() } else { flow.clone() });
    let expected = expected.map(|(client, flow)| (client.to_owned(), flow.to_owned()));
    assert_eq!(asked.iter().map(without_pod).collect::<Vec<_>>(), expected.iter().map(without_pod).collect::<Vec<_>>());
    for answer in &answers {
        let of = answer.asked.as_ref().unwrap();
        assert_eq!((of.service_port.as_str(), of.address.as_str()), ("default/nginx:http", "clusterIP"));
        assert_eq!((answer.service.as_deref(), answer.backends.len()), (Some("default/nginx"), 2), "{answer:#?}");
        assert!(matches!(answer.verdict, Verdict::Forward | Verdict::Hold), "{answer:#?}");
    }
    // Clients outside get SNAT, pods do not.
    assert!(answers[0].snat.is_some() && answers[1].snat.is_none(), "{answers:#?}");
    let page = text(&g, 0, &["default/nginx:80/tcp"]);
    for words in [
        "default/nginx:http, clusterIP 10.109.35.24:80\n(an example of a client outside the cluster; --client names another)\n",
        "For a pod the answer differs:\n",
        "default/nginx:http, clusterIP [fd00:10:109::24]:80\n",
        "source rewritten to",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let named = parsed(&g, 0, &["--client", "10.0.0.2:1234", "default/nginx:http"]);
    assert_eq!(named.iter().map(|a| a.flow.as_str()).collect::<Vec<_>>(), ["tcp 10.0.0.2:1234 -> 10.109.35.24:80"]);

    for (args, words) in [
        (&["default/nginx"][..], "has several ports; ask about one of: default/nginx:http, default/nginx:echo"),
        (&["default/nginx:https"], "no such port"),
        (&["default/ngnix:http"], "no Service default/ngnix (there is default/nginx)"),
        (&["a/b/c"], "neither a flow"),
        (&["--client", "here", "default/nginx:http"], "not an address such as"),
        (&["--manifests", "x", "default/nginx:http"], "--manifests needs the configuration too"),
    ] {
        let out = explain(&g, args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(words), "{args:?}: {out:?}");
    }
}

#[test]
fn a_known_flow_tells_where_it_goes_and_why() {
    let mut g = Gateway::start("explainflow", "", &nginx(&[0, 1, 2]));
    let service: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let (stream, pod) = g.scene.client.run(move || keep_alive(service)).unwrap();
    let flow = format!("tcp {} -> {service}", stream.local_addr().unwrap());
    let place = PODS.iter().position(|p| p.name == pod).unwrap();
    let backend = format!("{}:80", PODS[place].v4);

    let ask = |g: &Gateway| {
        let answer = parsed(g, 0, &[&flow]).remove(0);
        let known = answer.known_flow.clone().unwrap_or_else(|| panic!("{answer:#?}"));
        (answer, known)
    };
    let (answer, known) = ask(&g);
    assert_eq!((known.state, known.fate, &known.backend), (FlowState::Established, FlowFate::Continues, &backend));
    assert!(known.idle_ms < 10_000 && known.expires_in_ms > 3_600_000 && known.age_remainder_ms < 30_000, "{known:?}");
    assert_eq!((known.new_one_goes_to.as_ref(), &known.goes_elsewhere_because), (Some(&backend), &None), "{answer:#?}");
    // The record has the time modulo 256 s: more is known only shortly after the boot.
    assert!(known.age_ms.is_none_or(|age| age == known.age_remainder_ms) && known.age_modulus_ms == 256_000, "{known:?}");
    assert!(answer.steps.iter().any(|s| s.starts_with("It was opened ")) && answer.steps.iter().any(|s| s.contains("would go there too")));

    // Without its endpoint, the flow goes on, and a new one would go elsewhere.
    let others: Vec<usize> = (0..3).filter(|i| *i != place).collect();
    g.apply(&nginx(&others));
    let (answer, known) = ask(&g);
    assert_eq!((&known.backend, answer.verdict, answer.chosen.as_ref()), (&backend, Verdict::Forward, Some(&backend)));
    let other = known.new_one_goes_to.clone().expect("others are there");
    assert!(other != backend && known.goes_elsewhere_because.as_ref().is_some_and(|why| why.contains("no longer one of")), "{known:?}");
    // And without any.
    g.apply(&nginx(&[]));
    let (_, known) = ask(&g);
    assert!(known.new_one_goes_to.is_none() && known.goes_elsewhere_because.is_some_and(|why| why.contains("the Service has no")));
    drop(stream);
}

#[test]
fn the_gateway_is_compared_with_files() {
    let g = Gateway::start("explaindiff", WITH_PODS, &nginx(&[0, 1, 2]));
    let config = g.config_path();
    let config = config.to_str().unwrap();
    let same = parsed(&g, 0, &["--config", config, "default/nginx:http"]);
    assert!(same.len() == 3 && same.iter().all(|a| a.differences.as_ref().is_some_and(Vec::is_empty)), "{same:#?}");
    assert!(same[0].steps.last().unwrap().starts_with("The files answer the same."));

    let fewer = g.dir.path().join("fewer.yaml");
    std::fs::write(&fewer, nginx(&[0, 1])).unwrap();
    let with_fewer = ["--config", config, "--manifests", fewer.to_str().unwrap()];
    let flow = "tcp 10.0.0.2:1234 -> 10.109.35.24:80";
    let differ = parsed(&g, 3, &[&with_fewer[..], &[flow]].concat()).remove(0);
    let backends = differ.differences.as_ref().unwrap().iter().find(|d| d.field == "backends").unwrap();
    let count = |value: &serde_json::Value| value.as_array().unwrap().len();
    assert_eq!((count(&backends.live), count(&backends.files)), (3, 2));
    let last = differ.steps.last().unwrap();
    assert!(last.contains(&format!("backends: {}:80 only in the gateway", PODS[2].v4)), "{last}");

    // A known flow: a new one in its place is compared.
    let service: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let (stream, _) = g.scene.client.run(move || keep_alive(service)).unwrap();
    let flow = format!("tcp {} -> {service}", stream.local_addr().unwrap());
    let known = parsed(&g, 0, &["--config", config, &flow]).remove(0);
    assert!(known.known_flow.is_some() && known.steps.last().unwrap().contains("a new one in its place is compared"), "{known:#?}");
    std::fs::write(&fewer, nginx(&[])).unwrap();
    let rejected = parsed(&g, 3, &[&with_fewer[..], &[&flow]].concat()).remove(0);
    assert!(rejected.differences.unwrap().iter().any(|d| d.field == "verdict" && d.live == "forward" && d.files == "reject"));
    // What is wrong with the question counts more than a difference.
    let out = explain(&g, &[&with_fewer[..], &[&flow, "nonsense"]].concat());
    assert_eq!(out.status.code(), Some(2));
    drop(stream);
}
