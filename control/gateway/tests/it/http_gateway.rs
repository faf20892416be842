//! A real gateway's HTTP servers (health, metrics, health checks), requested from outside and from the node. Needs root.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use nomagic_testbed::rig::{Netns, PODS, Scene};
use serde_json::Value;

use crate::common::plain_http::{HttpResponse, get};
use crate::common::*;

const TO: &str = "10.109.35.24:80";
const LONG: Duration = Duration::from_secs(20);

/// A LoadBalancer Service with policy Local and one pod on `node`. `trigger` is the slice's last change trigger time.
fn local_service(name: &str, cluster_ip: u8, health_check_port: u16, node: &str, trigger: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: LoadBalancer
  clusterIP: 10.109.35.{cluster_ip}
  externalTrafficPolicy: Local
  healthCheckNodePort: {health_check_port}
  ports: [{{name: http, port: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: default
  labels: {{kubernetes.io/service-name: {name}}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{trigger}'}}
addressType: IPv4
endpoints: [{{addresses: ['{}'], nodeName: {node}}}]
ports: [{{name: http, port: 80}}]
",
        PODS[0].v4
    )
}

fn ask(from: &Netns, at: &str, path: &'static str) -> Option<HttpResponse> {
    let at: SocketAddr = at.parse().unwrap();
    from.run(move || get(at, path)).unwrap().ok()
}

fn status_of(from: &Netns, at: &str) -> Option<u16> {
    ask(from, at, "/").map(|answer| answer.status)
}

fn metrics(g: &Gateway) -> prometheus::Page {
    let answer = ask(&g.scene.gw, "127.0.0.1:10249", "/metrics").expect("metrics on the node");
    assert_eq!(answer.status, 200, "{}", answer.body);
    println!("/metrics:\n{}", answer.body);
    prometheus::parse(&answer.body)
}

#[test]
fn health_metrics_and_health_checks_of_a_running_gateway() {
    let scene = Scene::new("http").expect("a scene (needs root)");
    // Another process uses one of the ports on one of the two addresses.
    let held = scene.gw.run(|| TcpListener::bind("10.0.0.1:31998").unwrap()).unwrap();
    let objects = |node: &str, trigger: &str| {
        nginx(&[0, 1]) + &local_service("web", 40, 31_999, node, trigger) + &local_service("taken", 41, 31_998, node, "")
    };
    let mut g = Gateway::start_in(scene, "", &objects("gw", "2020-01-01T00:00:00Z"));

    let health = ask(&g.scene.client, "10.0.0.1:10256", "/healthz").expect("healthz from outside");
    println!("$ curl http://10.0.0.1:10256/healthz\n{}", health.body);
    let body: Value = serde_json::from_str(&health.body).unwrap();
    assert_eq!((health.status, &body["healthy"], &body["status"]["IPv6"]["healthy"]), (200, &Value::from(true), &Value::from(true)));
    assert!(ask(&g.scene.client, "10.0.0.1:10249", "/metrics").is_none(), "metrics are the node's own");
    assert_eq!(ask(&g.scene.gw, "127.0.0.1:10249", "/proxyMode").unwrap().body, "nftables");

    // On the node ports' addresses of both families, and through the client port's XDP program.
    for at in ["10.0.0.1:31999", "[fd00:a::1]:31999"] {
        let answer = ask(&g.scene.client, at, "/").expect("the health check");
        assert_eq!((answer.status, answer.headers["x-load-balancing-endpoint-weight"].as_str()), (200, "1"), "{at}: {answer:?}");
        println!("$ curl http://{at}\n{}\n{}", answer.head, answer.body);
    }
    assert_eq!(status_of(&g.scene.gw, "192.168.0.1:31999"), None, "not one of the node ports' addresses");
    let problems = g.status().services.problems;
    assert_eq!(problems.iter().filter(|p| p.contains("default/taken")).count(), 1, "{problems:?}");
    assert_eq!(status_of(&g.scene.client, "[fd00:a::1]:31998"), Some(200), "the other address of the same Service");
    drop(held);
    wait_for("the port to be answered once it is free", LONG, || status_of(&g.scene.client, "10.0.0.1:31998") == Some(200));

    // Connections and rejects are counted once, with equal numbers in all metrics.
    assert_eq!(g.http(&g.scene.client, TO, 20).answered(), 20);
    assert_eq!(g.http(&g.scene.client, "10.109.35.24:81", 3).failed(), 3);
    let (page, frames) = (metrics(&g), g.status().totals.counts.frames);
    let pair = [("namespace", "default"), ("service", "nginx"), ("port", "http"), ("protocol", "TCP")];
    assert_eq!(page.sum("nomagic_backend_connections_total", &pair), 20.0);
    assert_eq!(page.value("nomagic_ready", &[]), 1.0);
    let dropped = frames.dropped.packets;
    assert!(dropped >= 3);
    assert_eq!(page.sum("nomagic_frames_dropped_total", &[]), dropped as f64, "each drop has its reason");
    assert_eq!(page.sum("nomagic_frames_left_to_kernel_total", &[]), frames.kernel.packets as f64);
    assert_eq!(page.sum("nomagic_worker_dropped_frames_total", &[]), dropped as f64);
    assert!(page.sum("nomagic_xdp_frames_total", &[("port", "cl0"), ("outcome", "taken")]) >= 40.0);
    assert_eq!(page.sum("nomagic_xsk_rx_ring_full_total", &[]), 0.0);
    assert!(page.value("nomagic_worker_cpu_seconds_total", &[("worker", "0")]) >= 0.0);
    assert_eq!(page.value("kubeproxy_sync_proxy_rules_service_changes_total", &[]), 3.0);
    let programmed = |page: &prometheus::Page| page.value("kubeproxy_network_programming_duration_seconds_count", &[("ip_family", "IPv4")]);
    assert_eq!(programmed(&page), 0.0, "triggers before the start are not measured");

    // The pod moves to another node.
    let synced = page.value("kubeproxy_sync_proxy_rules_duration_seconds_count", &[("ip_family", "IPv4")]);
    let trigger = nomagic::observe::health::Moment::now().wall.to_string();
    g.apply(&objects("other", &trigger));
    assert_eq!(status_of(&g.scene.client, "10.0.0.1:31999"), Some(503));
    let page = metrics(&g);
    assert_eq!(programmed(&page), 1.0);
    assert_eq!(page.value("kubeproxy_sync_proxy_rules_duration_seconds_count", &[("ip_family", "IPv4")]), synced + 1.0);
    let no_local = [("ip_family", "IPv4"), ("traffic_policy", "external")];
    assert_eq!(page.value("kubeproxy_sync_proxy_rules_no_local_endpoints_total", &no_local), 2.0);
    assert_eq!(page.value("kubeproxy_sync_proxy_rules_endpoint_changes_pending", &[]), 0.0);

    // The Services are deleted, and their health check ports are closed.
    g.apply(&nginx(&[0, 1]));
    wait_for("the ports to close", LONG, || status_of(&g.scene.client, "10.0.0.1:31999").is_none());
    assert!(metrics(&g).value("kubeproxy_proxy_healthz_total", &[("code", "200")]) >= 1.0);

    let tasks = std::fs::read_dir(format!("/proc/{}/task", g.process.pid())).unwrap();
    let http = tasks.map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).unwrap()).find(|s| s.contains("Name:\tnm-http\n"));
    assert!(http.expect("the servers' thread").contains("CapPrm:\t0000000000000000\n"), "it faces the network without privileges");
}
