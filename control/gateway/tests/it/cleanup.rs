//! `nomagic cleanup`: what it refuses, and what it finds and leaves. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nomagic_testbed::rig::run;

use crate::common::*;

const TO: &str = "10.109.35.24:80";

fn cleanup(g: &Gateway, more: &[&str]) -> Output {
    inside(g, &[&[NOMAGIC, "cleanup"], more].concat())
}

/// Runs a command in the gateway's network namespace, with this process's mounts (`ip netns exec` would mount another /sys).
fn inside(g: &Gateway, words: &[&str]) -> Output {
    Command::new("nsenter").arg(format!("--net={}", g.scene.gw.path().display())).args(words).output().unwrap()
}

fn text(out: &Output) -> String {
    format!("{:?}: {}{}", out.status.code(), String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn nothing_changes_beside_a_process_that_is_stopped() {
    let g = Gateway::start("clstopped", "graceMs: 20000\nconntrack: {capacity: 2048, file: $STATE/conntrack}", &nginx(&[0, 1, 2]));
    let (mut stream, pod) = g.scene.client.run(|| keep_alive(TO.parse().unwrap())).unwrap();
    g.process.signal(libc::SIGSTOP).unwrap();
    // Clients that nobody accepts fill its queue: further ones must not wait.
    let waiting: Vec<_> = (0..200)
        .map_while(|_| {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let to = socket2::SockAddr::unix(g.state_dir().join("control.sock")).unwrap();
            socket.connect(&to).is_ok().then_some(socket)
        })
        .collect();
    let (config, state) = (g.config_path(), g.state_dir());
    let (config, state) = (config.to_string_lossy(), state.to_string_lossy());
    let table = g.state_dir().join("conntrack");
    let elsewhere = g.dir.path().join("elsewhere.yaml");
    // Another state directory, but the same table.
    let other = std::fs::read_to_string(g.config_path()).unwrap().replace(&format!("stateDir: {state}"), "stateDir: /tmp/nomagic-nowhere");
    std::fs::write(&elsewhere, other).unwrap();
    let said = [
        cleanup(&g, &["--config", &config]),
        cleanup(&g, &["--state-dir", &state]),
        cleanup(&g, &["--config", &elsewhere.to_string_lossy()]),
    ];
    g.process.signal(libc::SIGCONT).unwrap();
    drop(waiting);
    for (out, words) in said.iter().zip(["another nomagic runs", "another nomagic runs", "another process uses it"]) {
        assert!(out.status.code() == Some(1) && text(out).contains(words), "{}", text(out));
    }
    assert!(table.exists());
    assert_eq!(ask(&mut stream), pod);
    assert_eq!(g.http(&g.scene.client, TO, 20).answered(), 20);
    wait_for("the gateway to be ready", Duration::from_secs(5), || g.status().ready);
}

/// A directory in the node's bpffs, removed when dropped.
struct NodePins(PathBuf);

impl Drop for NodePins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// As in a pod of the DaemonSet: the state directory's bpffs is a directory of the node's, mounted by the container's runtime.
#[test]
fn a_pods_pins_are_found_on_the_node_and_its_mount_is_left_in_the_pod() {
    if !Path::new("/sys/fs/bpf").exists() || run("mountpoint", &["-q", "/sys/fs/bpf"]).is_err() {
        run("mount", &["-t", "bpf", "bpffs", "/sys/fs/bpf"]).expect("needs root");
    }
    for in_pod in [true, false] {
        let pins = NodePins(format!("/sys/fs/bpf/nomagic-test-{}", std::process::id()).into());
        std::fs::create_dir(&pins.0).unwrap();
        let scene = nomagic_testbed::rig::Scene::new("clpod").expect("a scene (needs root)");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0, 1, 2])).unwrap();
        let config = config(dir.path(), "conntrack: {capacity: 2048, file: $STATE/conntrack}");
        let bpf = dir.path().join("state/bpf");
        std::fs::create_dir_all(&bpf).unwrap();
        let (from, to) = (pins.0.to_string_lossy(), bpf.to_string_lossy());
        run("mount", &["--bind", &from, &to]).unwrap();
        let mut g = Gateway::begin(scene, dir, &config);
        g.wait_until_ready();
        assert!(g.process.terminate(Duration::from_secs(5)).unwrap().success());
        let attached = |g: &Gateway| g.scene.gw.ip("-d link show").unwrap().contains("nomagic_filter");
        assert!(attached(&g), "the programs outlive the pod");
        let config = g.config_path();
        let config = config.to_string_lossy();
        let out = if in_pod {
            let capabilities = "--bounding-set=-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
            inside(&g, &["setpriv", capabilities, NOMAGIC, "cleanup", "--config", &config])
        } else {
            // The pod and its mount are gone.
            run("umount", &[&to]).unwrap();
            cleanup(&g, &["--config", &config, "--pins", &from])
        };
        assert!(out.status.success() && text(&out).contains("removed XDP programs and maps"), "{}", text(&out));
        assert_eq!(text(&out).contains("left the mount of an empty bpffs"), in_pod, "{}", text(&out));
        assert!(text(&out).contains("the connection table") && !attached(&g), "{}", text(&out));
        assert!(!pins.0.join("if").exists() && (in_pod || !pins.0.exists()), "no pin is left");
        let again = cleanup(&g, &["--config", &config, "--pins", &from]);
        let _ = run("umount", &["-q", &to]);
        assert!(in_pod || text(&again).contains("nothing to remove"), "{}", text(&again));
    }
}
