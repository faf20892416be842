//! The node's own addresses: only Service ports are taken there, and addresses are followed as they come and go. Needs root.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nomagic_core::reason::Reason;
use nomagic_testbed::rig::Scene;

use crate::common::*;

const LONG: Duration = Duration::from_secs(20);
/// On the node, not of a Service.
const OWN_PORT: &str = "10.0.0.1:2222";
/// The node's address on the clients' side, and most of the cluster's.
const WIDE_RANGE: &str =
    "---\napiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: wide}\nspec: {cidrs: [10.0.0.0/9, 'fd00:a::/64']}\n";

/// A Service with a node port.
fn web() -> String {
    manifests(&[Svc {
        name: "web",
        spec: "type: NodePort\nclusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("http", "TCP", 80, 30_080)],
        pods: &[0],
    }])
}

/// A server of the node's own, which closes each connection at once. It ends with the process.
fn serve(g: &Gateway, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let listener = g.scene.gw.run(move || TcpListener::bind(at).unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

fn connects(g: &Gateway, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    g.scene.client.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()).unwrap()
}

fn served(g: &Gateway, to: &str) -> bool {
    g.http(&g.scene.client, to, 1).answered() == 1
}

#[test]
fn a_service_range_that_contains_the_nodes_address_leaves_it_to_the_node() {
    let mut g = Gateway::start("ra", "", &web());
    serve(&g, OWN_PORT);
    assert!(connects(&g, OWN_PORT) && served(&g, "10.0.0.1:30080"), "{}", g.account());
    g.apply(&(web() + WIDE_RANGE));
    wait_for("the range to be in force", LONG, || {
        g.scene.client.run(|| TcpStream::connect_timeout(&"10.1.2.3:80".parse().unwrap(), Duration::from_millis(300)).is_ok()).unwrap();
        g.reason(Reason::UnallocatedServiceAddress) > 0
    });
    for _ in 0..3 {
        assert!(connects(&g, OWN_PORT), "the node's server: {}", g.account());
        assert!(served(&g, "10.0.0.1:30080"), "a node port at the same address: {}", g.account());
    }
    // The client's neighbours are not the gateway's to answer for, but its own answers reach the client.
    assert!(g.scene.gw.exec("ping", &["-c1", "-W2", "10.0.0.2"]).is_ok(), "{}", g.account());
}

#[test]
fn node_ports_follow_addresses_that_come_and_go() {
    const VIP: &str = "203.0.113.77";
    let (scene, dir) = (Scene::new("rb").expect("a scene (needs root)"), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("manifests.yaml"), web()).unwrap();
    // Without node.ips: all that the kernel has.
    let (head, tail) = ("node: {name: gw", "}\nserviceCIDRs");
    let text = config(dir.path(), "nodePortAddresses: []");
    let (_, rest) = text.split_once(tail).unwrap();
    let mut g = Gateway::begin(scene, dir, &format!("{head}, primaryIPs: [10.0.0.1, 'fd00:a::1']{tail}{rest}"));
    g.wait_until_ready();
    let at = format!("{VIP}:30080");
    g.scene.client.ip(&format!("route add {VIP}/32 via 10.0.0.1")).unwrap();
    assert!(!connects(&g, &at), "nobody has the address yet");
    for round in 0..2 {
        g.scene.gw.ip(&format!("addr add {VIP}/32 dev lo")).unwrap();
        wait_for("the node port at the new address", LONG, || connects(&g, &at));
        assert!(served(&g, &at), "round {round}: {}", g.account());
        g.scene.gw.ip(&format!("addr del {VIP}/32 dev lo")).unwrap();
        wait_for("the node port to go with its address", LONG, || !connects(&g, &at));
        assert!(served(&g, "10.0.0.1:30080"), "round {round}: {}", g.account());
    }
}

#[test]
fn a_cluster_ip_on_the_node_is_carried_for_the_node_too() {
    let scene = Scene::new("rc").expect("a scene (needs root)");
    // What an earlier kube-proxy in IPVS mode leaves, or a node-local DNS cache sets up.
    let addresses = ["10.109.35.24/32", "fd00:10:109::24/128"];
    addresses.iter().for_each(|addr| drop(scene.gw.ip(&format!("addr add {addr} dev lo nodad")).unwrap()));
    let before = scene.gw.ip("rule show").unwrap();
    let g = Gateway::start_in(scene, "", &web());
    serve(&g, "10.109.35.24:9253");
    let from_node = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        g.scene.gw.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()).unwrap()
    };
    for to in ["10.109.35.24:80", "[fd00:10:109::24]:80"] {
        let report = g.http(&g.scene.gw, to, 10);
        assert_eq!((report.answered(), report.failed()), (10, 0), "{to}: {report:?} {}", g.account());
    }
    assert!(from_node("10.109.35.24:9253"), "the local process's own port: {}", g.account());
    assert!(!from_node("10.109.35.24:9254"), "nobody's port: {}", g.account());
    // Node ports need `localTraffic.ownAddresses`.
    assert!(!from_node("10.0.0.1:30080"), "{}", g.account());

    // When the address has gone, the kernel's rules are as they were.
    addresses.iter().for_each(|addr| drop(g.scene.gw.ip(&format!("addr del {addr} dev lo")).unwrap()));
    let rules = || g.scene.gw.ip("rule show").unwrap();
    wait_for("the rule for the local table to be back", LONG, || rules().lines().count() == before.lines().count() + 1);
    assert!(rules().starts_with("0:\tfrom all lookup local"), "{}", rules());
    assert_eq!(g.http(&g.scene.gw, "10.109.35.24:80", 5).answered(), 5, "{}", g.account());
}
