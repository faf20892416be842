//! A gateway with objects from an API server, in network namespaces, with real traffic.

use std::collections::BTreeSet;
use std::time::Duration;

use nomagic_api::WatchState;
use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_testbed::rig::{PODS, Scene};
use serde_json::{Value, json};

use crate::common::*;

const WEB: &str = "10.109.35.24:80";

/// The scene's configuration with an API server instead of manifests.
fn api_config(dir: &std::path::Path, api: &FakeApiServer) -> String {
    config(dir, "").replace("manifests: manifests.yaml", &format!("kubernetes: {{url: '{}'}}", api.url()))
}

/// A scene with a silent API server in the gateway's namespace, and nomagic waiting for it.
fn waiting(tag: &str) -> (Gateway, FakeApiServer) {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    let api = scene.gw.run(|| FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None)).unwrap().unwrap();
    api.set_bookmark_interval(Duration::from_secs(1));
    api.set_silent(true);
    let dir = tempfile::tempdir().unwrap();
    let config = api_config(dir.path(), &api);
    let mut g = Gateway::begin(scene, dir, &config);
    g.process.wait_for_line("waiting for objects", START).expect("the log line");
    (g, api)
}

/// Waits until these pods are the Service's endpoints, and checks that all new connections go to them.
fn answered_by(g: &Gateway, pods: &[usize]) {
    let wanted: BTreeSet<String> = pods.iter().map(|&i| format!("{}:80", PODS[i].v4)).collect();
    wait_for(&format!("{wanted:?} to be the endpoints"), Duration::from_secs(10), || {
        let status = g.status();
        let targets = status.targets.into_iter().map(|t| t.backend);
        targets.filter(|t| t.starts_with("192.168.") && t.ends_with(":80")).collect::<BTreeSet<_>>() == wanted
    });
    let report = g.http(&g.scene.client, WEB, 40);
    assert_eq!((report.answered(), report.failed()), (40, 0), "{report:?}");
    assert_eq!(report.per_pod.keys().cloned().collect::<BTreeSet<_>>(), pods.iter().map(|&i| PODS[i].name.to_owned()).collect());
}

#[test]
fn services_change_and_stay_while_the_api_server_is_unreachable() {
    let (mut g, mut api) = waiting("api");
    let status = g.status();
    assert!(!status.ready && status.workers.is_empty(), "{status:#?}");
    assert!(status.not_ready[0].contains("not listed yet"), "{status:#?}");
    assert!(!g.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"), "nothing is programmed before the lists");

    api.set_silent(false);
    g.wait_until_ready();
    assert!(g.status().ready);
    wait_for("the event of the start", START, || api.events().iter().any(|e| e["reason"] == "Starting" && e["regarding"]["name"] == "gw"));
    api.put_yaml(&nginx(&[0])).unwrap();
    answered_by(&g, &[0]);
    api.put_yaml(&nginx(&[1, 2])).unwrap();
    answered_by(&g, &[1, 2]);

    api.stop();
    let watch = |g: &Gateway| g.status().api.expect("a watch").kinds.remove(0);
    wait_for("the watch to notice", Duration::from_secs(10), || {
        let services = watch(&g);
        services.state == WatchState::Away && services.error.unwrap().contains("Connection refused")
    });
    assert!(g.status().ready, "known objects stay in force");
    answered_by(&g, &[1, 2]);

    api.put_yaml(&nginx(&[0, 1])).unwrap();
    api.compact();
    g.scene.gw.run(|| api.resume()).unwrap().unwrap();
    answered_by(&g, &[0, 1]);
    let page = nomagic_testbed::rig::run(NOMAGIC, &["status", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert!(page.contains(&format!("objects from {}", api.url())) && page.contains("EndpointSlice        2  connected"), "{page}");
    g.assert_accounts_close();
}

#[test]
fn healthz_fails_when_the_node_is_about_to_be_deleted() {
    let (mut g, api) = waiting("apinode");
    let codes = |g: &Gateway| {
        let ask = |path: &'static str| plain_http::get("10.0.0.1:10256".parse().unwrap(), path).map_or(0, |answer| answer.status);
        g.scene.client.run(move || ["/healthz", "/livez", "/readyz"].map(ask)).unwrap()
    };
    assert_eq!(codes(&g), [503, 200, 503], "alive while it waits for its first objects, but no Node is known");
    api.set_silent(false);
    g.wait_until_ready();
    for (node, healthz) in [
        ("metadata: {name: gw}", 200),
        ("metadata: {name: gw}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}", 503),
        ("metadata: {name: gw}\nspec: {taints: [{key: other, effect: NoSchedule}]}", 200),
    ] {
        api.put_yaml(&format!("apiVersion: v1\nkind: Node\n{node}\n")).unwrap();
        wait_for(&format!("{healthz} after {node}"), Duration::from_secs(10), || codes(&g) == [healthz, 200, healthz]);
    }
}

/// Objects that a real server would reject are named in the log and in `status`, counted and skipped; the others are served.
#[test]
fn bad_objects_are_reported_and_the_others_are_served() {
    let (mut g, api) = waiting("apibad");
    let service = |meta: Value, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec});
    let long = "x".repeat(1_000_000);
    let mut endpoints: Vec<Value> = (0..999).map(|i| json!({"addresses": [format!("192.168.{}.{}", 1 + i / 250, 1 + i % 250)]})).collect();
    endpoints.insert(500, json!({"addresses": ["127.0.0.1\u{1b}[2J"]}));
    let bad = [
        service(json!({"name": "a\nWARN forged\u{1b}[31m", "namespace": "\r"}), json!(5)),
        service(json!({"name": "no-spec"}), Value::Null),
        service(json!({"name": "long"}), json!({"clusterIP": long, "ports": [{"port": -1}]})),
        service(json!({"name": "taken"}), json!({"clusterIP": "10.109.35.24", "ports": [{"name": "http", "port": 80}]})),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": "many", "labels": {"kubernetes.io/service-name": "other"}}, "ports": [{"name": "http", "port": 80}]}),
    ];
    let words = [
        r#"Service \r/a\nWARN forged\u{1b}[31m: spec: the number 5: a mapping is expected"#,
        "Service default/no-spec: spec: missing",
        "Service default/long: spec.ports[0].port: -1: 1 to 65535 are allowed; the port is skipped",
        "[... 999438 characters ...]",
        "Service default/taken: spec.ports[0]: TCP 10.109.35.24:80 is taken by Service default/nginx (clusterIP)",
        r#"EndpointSlice default/many: endpoints[500].addresses[0]: "127.0.0.1\u{1b}[2J" is not an IP address; the endpoint is skipped"#,
    ];
    api.put_yaml(&nginx(&[0, 1])).unwrap();
    bad.iter().for_each(|o| {
        api.put(o.clone()).unwrap();
    });
    api.set_silent(false);
    g.wait_until_ready();
    answered_by(&g, &[0, 1]);
    let problems = g.status().services.problems;
    let log = g.process.output();
    for word in words {
        assert!(problems.iter().any(|p| p.contains(word)), "{word}: {problems:#?}");
        assert!(log.contains(word), "{word}: {log}");
    }
    assert_eq!(problems.len(), words.len(), "{problems:#?}");
    assert!(!log.contains(|c: char| c.is_control() && c != '\n') && log.lines().all(|l| l.len() < 2_000), "{log:?}");
    let page = g.scene.gw.run(|| plain_http::get("127.0.0.1:10249".parse().unwrap(), "/metrics").unwrap().body).unwrap();
    assert!(page.contains(&format!("\nnomagic_object_problems {}\n", words.len())), "{page}");
    for (resource, namespace, name) in [
        (Resource::Services, "\r", "a\nWARN forged\u{1b}[31m"),
        (Resource::Services, "default", "no-spec"),
        (Resource::Services, "default", "long"),
        (Resource::Services, "default", "taken"),
        (Resource::EndpointSlices, "default", "many"),
    ] {
        assert!(api.delete(resource, namespace, name));
    }
    wait_for("all problems to be gone", Duration::from_secs(10), || g.status().services.problems.is_empty());
    answered_by(&g, &[0, 1]);
}

#[test]
fn a_waiting_gateway_can_be_stopped() {
    let (mut g, _api) = waiting("apiwait");
    let status = g.process.terminate(Duration::from_secs(5)).unwrap();
    assert!(status.success(), "{status}: {}", g.process.output());
    assert!(!g.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"));
}
