//! nomagic with a kube-proxy configuration file: it selects its interfaces and reports the fields that it ignores.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nomagic_testbed::peers::{ClientOptions, PodOptions, http_load, start_pod};
use nomagic_testbed::rig::{Netns, PODS, Process, Scene};

use crate::common::local_pod::LocalPod;
use crate::common::*;

/// A gateway with a kube-proxy configuration file, and the arguments to run it.
struct DropInGateway {
    scene: Scene,
    dir: tempfile::TempDir,
    /// Instead of the directory's.
    state: Option<PathBuf>,
}

impl DropInGateway {
    fn new(tag: &str, config: &str) -> DropInGateway {
        let scene = Scene::new(tag).expect("a scene (needs root)");
        let dir = tempfile::tempdir().unwrap();
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(dir.path().join("config.conf"), format!("{head}{config}")).unwrap();
        std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0, 1, 2])).unwrap();
        DropInGateway { scene, dir, state: None }
    }

    fn path(&self, name: &str) -> String {
        let path = self.state.clone().filter(|_| name == "state").unwrap_or_else(|| self.dir.path().join(name));
        path.to_string_lossy().into_owned()
    }

    fn run(&self, extra: &[&str]) -> Process {
        let (config, state) = (self.path("config.conf"), self.path("state"));
        let words = ["run", "--kube-proxy-config", &config, "--state-dir", &state];
        self.scene.gw.spawn(NOMAGIC, &[&words[..], extra].concat()).unwrap()
    }
}

impl Drop for DropInGateway {
    fn drop(&mut self) {
        let _ = self.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &self.path("state")]);
    }
}

#[test]
fn a_kube_proxy_file_suffices_to_carry_services() {
    let config = "clusterCIDR: 192.168.0.0/16,fd00:192::/64\nnodePortAddresses: [10.0.0.0/24]\nipvs: {scheduler: rr}\nspare: 1\n";
    let d = DropInGateway::new("dropin", config);
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml")]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    let pods: Vec<_> = d.scene.pods.iter().zip(PODS).collect();
    let _pods: Vec<_> = pods.iter().map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).unwrap()).collect();
    for to in ["10.109.35.24:80", "[fd00:10:109::24]:80"] {
        let to = to.parse().unwrap();
        let options = ClientOptions::default();
        let report = d.scene.client.block_on(move || http_load(to, 20, options)).unwrap();
        assert_eq!(report.answered(), 20, "{report:?}");
    }
    let said = process.output();
    assert!(said.contains("interfaces selected by the node's addresses and its routes to pods: cl0, pods0"), "{said}");
    assert!(said.contains("config.conf:5:19: ipvs.scheduler: ") && said.contains("config.conf:6:8: spare: unknown"), "{said}");
    process.terminate(Duration::from_secs(5)).unwrap();
}

/// The client addresses that the pods see for connections from a namespace to the Service, by family.
fn seen(d: &DropInGateway, from: &Netns) -> [BTreeSet<IpAddr>; 2] {
    ["10.109.35.24:80", "[fd00:10:109::24]:80"].map(|to| {
        let to = to.parse().unwrap();
        let report = from.block_on(move || http_load(to, 6, ClientOptions::default())).unwrap();
        assert_eq!((report.answered(), report.failed()), (6, 0), "{to} in {}: {report:?}", d.scene.gw.name());
        report.clients_seen.keys().copied().collect()
    })
}

fn just(v4: &str, v6: &str) -> [BTreeSet<IpAddr>; 2] {
    [v4, v6].map(|a| BTreeSet::from([a.parse().unwrap()]))
}

#[test]
fn pods_are_detected_by_the_node_objects_ranges() {
    // Not by the cluster's ranges, in which the client would count as a pod.
    let d = DropInGateway::new("dropnode", "hostnameOverride: gw\ndetectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/24,fd00:a::/64\n");
    let node = |cidrs: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: gw}}\nspec: {{podCIDRs: [{cidrs}]}}\n");
    let manifests = |cidrs: &str| std::fs::write(d.path("manifests.yaml"), nginx(&[0, 1, 2]) + &node(cidrs)).unwrap();
    manifests("192.168.0.0/16, 'fd00:192::/64'");
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml"), "--interface", "cl0", "--interface", "pods0"]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    let _pods: Vec<_> = d.scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).unwrap()).collect();
    assert_eq!(seen(&d, &d.scene.client), just("10.0.0.1", "fd00:a::1"), "not a pod: masqueraded");
    assert!(process.output().contains("clusterCIDR: used only with another detectLocalMode"), "{}", process.output());
    // The ranges change while running.
    manifests("10.0.0.0/24, 'fd00:a::/64'");
    wait_for("the new ranges to count", Duration::from_secs(10), || seen(&d, &d.scene.client) == just("10.0.0.2", "fd00:a::2"));
    process.terminate(Duration::from_secs(5)).unwrap();
}

#[test]
fn pods_are_detected_by_the_interfaces_of_their_routes() {
    let config = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n";
    let d = DropInGateway::new("dropif", config);
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml"), "--interface", "cl0", "--interface", "pods0"]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    let _pods: Vec<_> = d.scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).unwrap()).collect();
    assert_eq!(seen(&d, &d.scene.client), just("10.0.0.1", "fd00:a::1"), "not a pod, also without pods: masqueraded");
    // A pod created at run time is detected and keeps its address.
    let pod = LocalPod::new(&d.scene, "cali", 21);
    let own = just(&pod.v4, &pod.v6);
    let asks =
        |to: &'static str| pod.ns.block_on(move || http_load(to.parse().unwrap(), 1, ClientOptions::default())).unwrap().answered() == 1;
    wait_for("the pod to be met", Duration::from_secs(10), || asks("10.109.35.24:80") && asks("[fd00:10:109::24]:80"));
    wait_for("the pod to be known", Duration::from_secs(10), || seen(&d, &pod.ns) == own);
    assert_eq!(seen(&d, &d.scene.client), just("10.0.0.1", "fd00:a::1"));
    // The node's own connections.
    assert_eq!(seen(&d, &d.scene.gw), just("10.0.0.1", "fd00:a::1"));
    process.terminate(Duration::from_secs(5)).unwrap();
}

/// A connection that the client keeps open; SNAT, so another process can continue it only with the table.
#[test]
fn connections_survive_a_restart_if_the_state_directory_is_in_memory() {
    let mut d = DropInGateway::new("droptable", "clusterCIDR: 192.168.0.0/16,fd00:192::/64\n");
    let _pods: Vec<_> = d.scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).unwrap()).collect();
    let manifests = d.path("manifests.yaml");
    let run = |d: &DropInGateway| {
        let mut process = d.run(&["--manifests", &manifests]);
        process.wait_for_line("nomagic is ready", START).expect("ready");
        process
    };
    let in_memory = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs");
    d.state = Some(in_memory.path().join("state"));
    let mut process = run(&d);
    let to: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let (mut stream, pod) = d.scene.client.run(move || keep_alive(to)).unwrap();
    process.kill().unwrap();
    let mut process = run(&d);
    assert_eq!(ask(&mut stream), pod, "{}", process.output());
    assert!(process.output().contains("took over 1 connections"), "{}", process.output());
    process.terminate(Duration::from_secs(5)).unwrap();
    let removed = d.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &d.path("state")]).unwrap();
    assert!(removed.contains("connection table") && !in_memory.path().join("state/conntrack").exists(), "{removed}");

    let on_disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    d.state = Some(on_disk.path().join("state"));
    let mut process = run(&d);
    assert!(process.output().contains("is not in memory"), "{}", process.output());
    process.terminate(Duration::from_secs(5)).unwrap();
    assert!(!std::path::Path::new(&d.path("state")).join("conntrack").exists());
}

#[test]
fn only_the_named_interface_is_used() {
    let d = DropInGateway::new("dropin1", "clusterCIDR: 192.168.0.0/16\n");
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml"), "--interface", "cl0", "--interface", "cl0"]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    assert!(d.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"));
    assert!(!d.scene.gw.ip("-d link show pods0").unwrap().contains("xdp"));
    assert!(!process.output().contains("interfaces selected"), "{}", process.output());
    process.terminate(Duration::from_secs(5)).unwrap();
}

#[test]
fn unusable_configurations_are_rejected_before_any_change() {
    let fails = |d: &DropInGateway, extra: &[&str], code: i32, words: &[&str]| {
        let mut process = d.run(extra);
        let status = process.wait(Duration::from_secs(20)).unwrap();
        // The output threads end with the process's streams.
        std::thread::sleep(Duration::from_millis(50));
        let said = process.output();
        assert!(status.code() == Some(code) && words.iter().all(|w| said.contains(w)), "{status} {said}");
        assert!(!d.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"));
    };
    let d = DropInGateway::new("dropin2", "detectLocalMode: BridgeInterface\n");
    let manifests = d.path("manifests.yaml");
    fails(&d, &["--manifests", &manifests], 2, &["config.conf:3:18", "detectLocalMode", "needs detectLocal.bridgeInterface"]);
    fails(&d, &["--config", "also"], 2, &["cannot be used with"]);
    fails(&d, &["--interface", "lo"], 2, &["lo", "interface"]);
    let text = std::fs::read_to_string(d.dir.path().join("config.conf")).unwrap().replace("BridgeInterface", "ClusterCIDR");
    std::fs::write(d.dir.path().join("config.conf"), text).unwrap();
    for interface in ["cl0", "pods0"] {
        d.scene.gw.ip(&format!("addr flush dev {interface}")).unwrap();
    }
    fails(&d, &["--manifests", &manifests], 1, &["no interface", "--interface"]);
}
