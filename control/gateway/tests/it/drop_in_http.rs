//! nomagic as a replacement for kube-proxy, from its configuration file to its HTTP servers: the API server of the file's kubeconfig, and
//! kube-proxy's health, metrics and health check responses. Needs root.

use std::net::SocketAddr;
use std::time::Duration;

use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_testbed::peers::{PodOptions, start_pod};
use nomagic_testbed::rig::{Netns, PODS, Scene};
use serde_json::{Value, json};

use crate::common::plain_http::{HttpResponse, get};
use crate::common::*;

const LONG: Duration = Duration::from_secs(20);

fn ask(from: &Netns, at: &str, path: &'static str) -> Option<HttpResponse> {
    let at: SocketAddr = at.parse().unwrap();
    from.run(move || get(at, path)).unwrap().ok()
}

fn node(taints: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gw"}, "spec": {"taints": taints},
           "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})
}

fn slice(node: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
           "endpoints": [{"addresses": [PODS[0].v4.to_string()], "nodeName": node}], "ports": [{"name": "http", "port": 80}]})
}

/// Writes the configuration file and the kubeconfig of the API server.
fn configuration(dir: &std::path::Path, api: &FakeApiServer) -> String {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(dir.join("kubeconfig.conf"), kubeconfig.to_string()).unwrap();
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "clientConnection": {"kubeconfig": dir.join("kubeconfig.conf")}, "hostnameOverride": "gw", "clusterCIDR": "192.168.0.0/16",
        "healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249",
    });
    let file = dir.join("config.conf");
    std::fs::write(&file, config.to_string()).unwrap();
    file.to_string_lossy().into_owned()
}

#[test]
fn health_metrics_and_health_checks_with_a_kube_proxy_file() {
    let scene = Scene::new("drophttp").expect("a scene (needs root)");
    let api = scene.gw.run(|| FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None)).unwrap().unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.109.35.24", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31_999,
        "ports": [{"name": "http", "port": 80, "nodePort": 30_080}]}});
    for object in [node(&json!([])), service, slice("gw")] {
        api.put(object).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, state) = (configuration(dir.path(), &api), dir.path().join("state").to_string_lossy().into_owned());
    let words = ["run", "--kube-proxy-config", &config, "--state-dir", &state, "--interface", "cl0", "--interface", "pods0"];
    let mut process = scene.gw.spawn(NOMAGIC, &words).unwrap();
    process.wait_for_line("nomagic is ready", START).expect("ready");
    let _pod = start_pod(&scene.pods[0], PodOptions::new(PODS[0].name)).unwrap();
    let outside = |at: &str, path| ask(&scene.client, at, path);

    // /healthz and /livez.
    let health = outside("10.0.0.1:10256", "/healthz").expect("from outside");
    assert_eq!(health.status, 200, "{}", health.body);
    assert_eq!(
        (health.headers["content-type"].as_str(), health.headers["x-content-type-options"].as_str()),
        ("application/json", "nosniff")
    );
    let body: Value = serde_json::from_str(&health.body).unwrap();
    let fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    for field in ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"] {
        assert!(fields.contains(&field), "{body}");
    }
    assert_eq!((&body["nodeEligible"], &body["healthy"], &body["status"]["IPv4"]["healthy"]), (&json!(true), &json!(true), &json!(true)));
    let live: Value = serde_json::from_str(&outside("10.0.0.1:10256", "/livez").unwrap().body).unwrap();
    assert!(live["nodeEligible"].is_null() && live["healthy"] == true, "{live}");
    // A node that the autoscaler is about to remove: load balancers must leave it, and the kubelet must not restart the pod.
    api.put(node(&json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]))).unwrap();
    wait_for("the taint to count", LONG, || outside("10.0.0.1:10256", "/healthz").is_some_and(|a| a.status == 503));
    assert_eq!(outside("10.0.0.1:10256", "/livez").unwrap().status, 200);
    api.put(node(&json!([]))).unwrap();
    wait_for("the taint to be gone", LONG, || outside("10.0.0.1:10256", "/healthz").is_some_and(|a| a.status == 200));

    // The metrics server on loopback.
    assert!(outside("10.0.0.1:10249", "/metrics").is_none());
    assert_eq!(ask(&scene.gw, "127.0.0.1:10249", "/proxyMode").unwrap().body, "nftables");
    assert_eq!(ask(&scene.gw, "127.0.0.1:10249", "/healthz").unwrap().body, "ok");
    let page = prometheus::parse(&ask(&scene.gw, "127.0.0.1:10249", "/metrics").unwrap().body);
    assert!(page.value("kubeproxy_sync_proxy_rules_duration_seconds_count", &[("ip_family", "IPv4")]) >= 1.0);
    assert!(page.value("kubeproxy_proxy_healthz_total", &[("code", "503")]) >= 1.0);
    assert_eq!(page.value("nomagic_service_ports", &[]), 1.0);

    // The Service's health check: on the node ports' addresses, with kube-proxy's exact body.
    let check = outside("10.0.0.1:31999", "/").expect("the health check");
    assert_eq!((check.status, check.headers["x-load-balancing-endpoint-weight"].as_str()), (200, "1"));
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(check.body.trim_end(), expected);
    api.put(slice("other")).unwrap();
    wait_for("the pod to have moved", LONG, || {
        outside("10.0.0.1:31999", "/").is_some_and(|a| a.status == 503 && a.body.contains("\"localEndpoints\": 0"))
    });
    assert!(api.delete(Resource::Services, "default", "web"));
    wait_for("the port to close", LONG, || outside("10.0.0.1:31999", "/").is_none());
    process.terminate(Duration::from_secs(5)).unwrap();
    scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &state]).unwrap();
}
