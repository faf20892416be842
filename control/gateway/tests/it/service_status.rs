//! What operators see of Services: those without backends, refused packets, one Service's page, metrics without backends; and
//! `nomagic check`. The live ones need root.

use std::process::Command;
use std::time::Duration;

use crate::common::plain_http::get;
use crate::common::*;

const EMPTY: &str = "10.109.35.40:80";

/// A Service with a pod, and one without any.
fn two_services() -> String {
    let empty = Svc {
        name: "empty",
        spec: "clusterIP: 10.109.35.40\nclusterIPs: [10.109.35.40, 'fd00:10:109::40']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("http", "TCP", 80, 0)],
        pods: &[],
    };
    nginx(&[0, 1]) + &manifests(&[empty])
}

fn said(g: &Gateway, args: &[&str]) -> String {
    let out = Command::new(NOMAGIC).arg("status").args(args).arg("--state-dir").arg(g.state_dir()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn services_without_backends_and_refused_packets_are_shown() {
    let g = Gateway::start("svcstatus", "metrics: {backendSeries: false}", &two_services());
    let port = |g: &Gateway| g.status().service_ports.into_iter().find(|p| p.service == "empty");
    let before = port(&g).expect("it has no backends");
    assert_eq!((before.backends, before.rejected, before.dropped, before.service_port().as_str()), (0, 0, 0, "default/empty:80/TCP"));
    assert_eq!(g.http(&g.scene.client, EMPTY, 5).answered(), 0);
    assert_eq!(g.http(&g.scene.client, "10.109.35.24:80", 5).answered(), 5);
    let after = port(&g).unwrap();
    assert!(after.rejected >= 5 && after.dropped == 0, "{after:?}\n{}", g.account());
    assert!(!g.status().service_ports.iter().any(|p| p.service == "nginx"), "it has backends and refused nothing");

    let page = said(&g, &["--service", "default/empty"]);
    assert!(page.contains("no backends") && !page.contains("nginx"), "{page}");
    let page = said(&g, &["--service", "default/nginx", "--sort", "flows"]);
    assert!(page.contains("default/nginx:80/TCP") && !page.contains("empty"), "{page}");
    assert_eq!(said(&g, &["--problems"]), "ready\n");
    assert!(said(&g, &[]).contains("no backends"));

    let metrics = g.scene.gw.run(|| get("127.0.0.1:10249".parse().unwrap(), "/metrics").unwrap().body).unwrap();
    let metrics = prometheus::parse(&metrics);
    let of = |service| [("namespace", "default"), ("service", service), ("port", "http"), ("protocol", "TCP")];
    assert_eq!(metrics.value("nomagic_service_rejected_total", &of("empty")), after.rejected as f64);
    assert_eq!(metrics.value("nomagic_service_ports_without_backends", &[]), 1.0);
    assert_eq!(metrics.value("nomagic_backend_connections_total", &[&of("nginx")[..], &[("backend", "_all")]].concat()), 5.0);
    g.assert_accounts_close();
}

#[test]
fn refused_packets_are_counted_on_after_a_change_of_the_service() {
    let mut g = Gateway::start("svckeep", "", &two_services());
    assert_eq!(g.http(&g.scene.client, EMPTY, 3).answered(), 0);
    let rejected = |g: &Gateway| g.status().service_ports.iter().find(|p| p.service == "empty").map_or(0, |p| p.rejected);
    let before = rejected(&g);
    assert!(before >= 3, "{}", g.account());
    g.apply(&two_services().replace(
        "ports: [{name: http, protocol: TCP, port: 80}]\n\n",
        "ports: [{name: http, protocol: TCP, port: 80}]\n  sessionAffinity: ClientIP\n",
    ));
    assert_eq!(rejected(&g), before);
    wait_for("more rejects", Duration::from_secs(5), || {
        g.http(&g.scene.client, EMPTY, 1);
        rejected(&g) > before
    });
}

/// Runs `nomagic check` on a configuration and manifests: `(exit code, output)`.
fn check(config: &str, manifests: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nomagic.yaml"), config).unwrap();
    std::fs::write(dir.path().join("m.yaml"), manifests).unwrap();
    let out = Command::new(NOMAGIC).args(["check", "--no-machine", "--config"]).arg(dir.path().join("nomagic.yaml")).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn a_check_finds_what_a_start_would_find() {
    let good = "interfaces: [eth0]\nmanifests: m.yaml\nnode: {name: gw, ips: [10.0.0.1]}";
    let (code, said) = check(good, &two_services());
    assert!(code == Some(0) && said.contains("2 Services and 4 EndpointSlices in 1 files") && said.contains(", 0 problems"), "{said}");
    let (code, said) = check(good, "kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec: {clusterIP: nonsense, ports: [{port: 80}]}");
    assert!(code == Some(1) && said.contains("problem: ") && said.contains("nonsense"), "{said}");
    for (config, words) in [
        ("interfaces: [eth0]\nmanifests: m.yaml\nlog: {level: loud}", "error, warn, info, debug, trace"),
        ("interfaces: [eth0]", "manifests: name a file"),
        ("manifests: m.yaml", "interfaces: name at least one"),
        ("interfaces: [eth0]\nmanifest: m.yaml", "manifest"),
    ] {
        let (code, said) = check(config, "");
        assert!(code == Some(2) && said.contains(words), "{config}: {code:?} {said}");
    }
}
