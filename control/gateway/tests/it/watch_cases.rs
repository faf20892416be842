//! The same objects from files and from an API server give the same table: kube-proxy's behaviour cases, step by step.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use nomagic::config::Config;
use nomagic::manifests;
use nomagic_core::services::Services;
use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::settings::Settings;
use serde_json::{Value, json};

use crate::common::watching::{TestWatch, server};

/// A table without its generation, as text.
fn table(index: &Index, config: &Config) -> String {
    let settings: Settings = config.settings_for(&[], index);
    let compiled = Compiler::new(TARGETS_MAX).compile(index, &settings);
    let s: &Services = &compiled.services;
    let mut out = format!("{}\n{:?}\n{:?}\n{:?}\n", s.ports, s.service_cidrs, s.pod_cidrs, s.snat);
    let sorted = |set: &mut dyn Iterator<Item = std::net::IpAddr>| set.collect::<BTreeSet<_>>();
    let _ = writeln!(out, "{:?} {:?}", sorted(&mut s.cluster_ips.iter().map(|(ip, _)| *ip)), sorted(&mut s.node_ips.iter().copied()));
    let _ = writeln!(out, "{:?}", sorted(&mut s.pod_ips.iter().copied()));
    let mut frontends: Vec<String> = s.frontends().map(|f| format!("{f:?}\n")).collect();
    frontends.sort();
    out.extend(frontends);
    let _ = writeln!(out, "{:?}", compiled.health_checks);
    out
}

fn from_files(objects: &Value) -> Index {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    Index::of(manifests::load(&file, None).unwrap().objects)
}

fn id(object: &Value) -> (Resource, String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let resource = Resource::of(&text(&object["apiVersion"]), &text(&object["kind"])).unwrap();
    let namespace = if resource.namespaced() && object["metadata"]["namespace"].is_null() {
        "default".into()
    } else {
        text(&object["metadata"]["namespace"])
    };
    (resource, namespace, text(&object["metadata"]["name"]))
}

/// Makes the server have exactly these objects.
fn set(server: &FakeApiServer, before: &[Value], now: &[Value]) {
    let ids: BTreeSet<_> = now.iter().map(id).collect();
    for (resource, namespace, name) in before.iter().map(id).filter(|i| !ids.contains(i)) {
        assert!(server.delete(resource, &namespace, &name));
    }
    now.iter().for_each(|o| {
        server.put(o.clone()).unwrap();
    });
}

/// The object lists of a case's steps.
fn states(case: &Value) -> Vec<Value> {
    let steps = case["steps"].as_array().into_iter().flatten();
    std::iter::once(case).chain(steps).map(|step| step["objects"].clone()).filter(Value::is_array).collect()
}

fn configuration(file: &Value, case: &Value) -> Config {
    let mut config = file["defaults"]["config"].clone();
    config.as_object_mut().unwrap().extend(case["config"].as_object().cloned().unwrap_or_default());
    config.as_object_mut().unwrap().remove("detectLocalMode");
    Config::parse(&config.to_string(), Path::new("case")).unwrap()
}

#[test]
fn every_case_gives_the_same_table_through_the_api() {
    let (mut tables, mut frontends) = (0, 0);
    for name in ["kubeproxy-cases.yaml", "kubeproxy-stateful.yaml", "more-cases.yaml", "more-stateful.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases").join(name);
        let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let lists = file.as_object().unwrap().iter().filter(|(key, _)| key.to_lowercase().ends_with("cases"));
        for case in lists.flat_map(|(_, list)| list.as_array().unwrap()) {
            let config = configuration(&file, case);
            let api = server();
            let mut before: Vec<Value> = Vec::new();
            let mut watched: Option<TestWatch> = None;
            for objects in states(case) {
                let now = objects.as_array().unwrap();
                set(&api, &before, now);
                before.clone_from(now);
                let expected = table(&from_files(&objects), &config);
                let watched = watched.get_or_insert_with(|| TestWatch::listed(&api));
                watched.until(&format!("the table of case {}", case["id"]), |w| table(&w.index, &config) == expected);
                tables += 1;
                frontends += expected.matches("Frontend {").count();
            }
        }
    }
    println!("{tables} tables with {frontends} addresses are the same");
    assert!(tables >= 210 && frontends > 600, "{tables} {frontends}");
}

/// Also for Nodes and ServiceCIDRs.
#[test]
fn nodes_and_ranges_from_either_source() {
    let objects = json!([
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gw", "labels": {"topology.kubernetes.io/zone": "z"}},
         "spec": {"podCIDRs": ["10.1.0.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.9"}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
         "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [
            {"addresses": ["10.1.0.5"], "hints": {"forZones": [{"name": "z"}]}}, {"addresses": ["10.1.0.6"], "hints": {"forZones": [{"name": "y"}]}}]},
    ]);
    let config = Config::parse("node: {name: gw, ips: [192.168.0.2]}\nserviceCIDRs: [10.0.0.0/8]", Path::new("c")).unwrap();
    let expected = table(&from_files(&objects), &config);
    assert!(expected.contains("192.168.0.9") && expected.contains("10.96.0.0") && !expected.contains("10.0.0.0"), "{expected}");
    assert!(expected.contains("10.1.0.5") && !expected.contains("10.1.0.6"), "the other zone's endpoint is left out: {expected}");
    let api = server();
    set(&api, &[], objects.as_array().unwrap());
    let watched = TestWatch::listed(&api);
    assert_eq!(table(&watched.index, &config), expected);
}
