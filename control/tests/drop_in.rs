//! nomagic on a kube-proxy's configuration file, in place of it: it finds its interfaces itself and says what it leaves out.

mod common;

use std::time::Duration;

use common::*;
use nomagic_bench::rig::{Process, Scene};

/// A scene's gateway with a kube-proxy's configuration file, and the words to run it.
struct DropIn {
    scene: Scene,
    dir: tempfile::TempDir,
}

impl DropIn {
    fn new(tag: &str, config: &str) -> DropIn {
        let scene = Scene::new(tag).expect("a scene (needs root)");
        let dir = tempfile::tempdir().unwrap();
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(dir.path().join("config.conf"), format!("{head}{config}")).unwrap();
        std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0, 1, 2])).unwrap();
        DropIn { scene, dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn run(&self, extra: &[&str]) -> Process {
        let (config, state) = (self.path("config.conf"), self.path("state"));
        let words = ["run", "--kube-proxy-config", &config, "--state-dir", &state];
        self.scene.gw.spawn(NOMAGIC, &[&words[..], extra].concat()).unwrap()
    }
}

impl Drop for DropIn {
    fn drop(&mut self) {
        let _ = self.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &self.path("state")]);
    }
}

#[test]
fn a_kube_proxys_file_is_enough_to_carry_services() {
    let config = "clusterCIDR: 192.168.0.0/16,fd00:192::/64\nnodePortAddresses: [10.0.0.0/24]\nipvs: {scheduler: rr}\nspare: 1\n";
    let d = DropIn::new("dropin", config);
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml")]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    let pods: Vec<_> = d.scene.pods.iter().zip(nomagic_bench::rig::PODS).collect();
    let _pods: Vec<_> =
        pods.iter().map(|(ns, p)| nomagic_bench::peers::start_pod(ns, nomagic_bench::peers::PodOptions::new(p.name)).unwrap()).collect();
    for to in ["10.109.35.24:80", "[fd00:10:109::24]:80"] {
        let to = to.parse().unwrap();
        let options = nomagic_bench::peers::ClientOptions::default();
        let report = d.scene.client.block_on(move || nomagic_bench::peers::http_load(to, 20, options)).unwrap();
        assert_eq!(report.answered(), 20, "{report:?}");
    }
    let said = process.output();
    assert!(said.contains("interfaces found by the node's addresses and its routes to pods: cl0, pods0"), "{said}");
    assert!(said.contains("config.conf:5:19: ipvs.scheduler: ") && said.contains("config.conf:6:8: spare: unknown"), "{said}");
    process.terminate(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_named_interface_is_taken_and_no_other() {
    let d = DropIn::new("dropin1", "clusterCIDR: 192.168.0.0/16\n");
    let mut process = d.run(&["--manifests", &d.path("manifests.yaml"), "--interface", "cl0", "--interface", "cl0"]);
    process.wait_for_line("nomagic is ready", START).expect("ready");
    assert!(d.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"));
    assert!(!d.scene.gw.ip("-d link show pods0").unwrap().contains("xdp"));
    assert!(!process.output().contains("interfaces found"), "{}", process.output());
    process.terminate(Duration::from_secs(5)).unwrap();
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_touched() {
    let fails = |d: &DropIn, extra: &[&str], code: i32, words: &[&str]| {
        let mut process = d.run(extra);
        let status = process.wait(Duration::from_secs(20)).unwrap();
        // The output threads finish with the process's streams.
        std::thread::sleep(Duration::from_millis(50));
        let said = process.output();
        assert!(status.code() == Some(code) && words.iter().all(|w| said.contains(w)), "{status} {said}");
        assert!(!d.scene.gw.ip("-d link show cl0").unwrap().contains("xdp"));
    };
    let d = DropIn::new("dropin2", "detectLocalMode: NodeCIDR\n");
    let manifests = d.path("manifests.yaml");
    fails(&d, &["--manifests", &manifests], 2, &["config.conf:3:18", "detectLocalMode", "not supported yet"]);
    fails(&d, &["--config", "also"], 2, &["cannot be used with"]);
    fails(&d, &["--interface", "lo"], 2, &["lo", "interface"]);
    let text = std::fs::read_to_string(d.dir.path().join("config.conf")).unwrap().replace("NodeCIDR", "ClusterCIDR");
    std::fs::write(d.dir.path().join("config.conf"), text).unwrap();
    for interface in ["cl0", "pods0"] {
        d.scene.gw.ip(&format!("addr flush dev {interface}")).unwrap();
    }
    fails(&d, &["--manifests", &manifests], 1, &["no interface", "--interface"]);
}
