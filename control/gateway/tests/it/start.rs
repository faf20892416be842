//! `nomagic run` when it cannot start: it prints one clear error, leaves nothing behind, and does not affect other programs.

use std::time::Duration;

use nomagic_testbed::rig::{Netns, cable};

use crate::common::*;

/// A gateway namespace with the configured interfaces, and the configuration.
fn scene(tag: &str, config_extra: &str) -> (Netns, Netns, tempfile::TempDir) {
    let (gw, peer) = (Netns::new(&format!("{tag}-gw")).expect("needs root"), Netns::new(&format!("{tag}-peer")).expect("needs root"));
    cable(&gw, "cl0", &peer, "eth0", 1).unwrap();
    cable(&gw, "pods0", &peer, "eth1", 1).unwrap();
    gw.ip("addr add 10.0.0.1/24 dev cl0").unwrap();
    gw.sysctl("net.ipv4.ip_local_reserved_ports", "61000-65535").unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0])).unwrap();
    std::fs::write(dir.path().join("nomagic.yaml"), config(dir.path(), config_extra)).unwrap();
    (gw, peer, dir)
}

/// Runs a command that must fail soon: `(exit code, output)`.
fn fails(gw: &Netns, program: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut process = gw.spawn(program, args).unwrap();
    let status = process.wait(Duration::from_secs(20)).unwrap();
    // The threads that read its output may need a moment.
    let _ = process.wait_for_line("error: ", Duration::from_secs(5));
    (status.code(), process.output())
}

fn run(gw: &Netns, dir: &tempfile::TempDir) -> (Option<i32>, String) {
    fails(gw, NOMAGIC, &["run", "--config", &dir.path().join("nomagic.yaml").to_string_lossy()])
}

fn clean(gw: &Netns, dir: &tempfile::TempDir) {
    gw.exec(NOMAGIC, &["cleanup", "--state-dir", &dir.path().join("state").to_string_lossy()]).unwrap();
}

#[test]
fn an_interface_that_does_not_exist() {
    let (gw, _peer, dir) = scene("nolink", "");
    gw.ip("link del pods0").unwrap();
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("pods0") && said.contains("does not exist") && said.contains("ip link"), "{said}");
    assert!(!gw.ip("-d link show cl0").unwrap().contains("xdp"), "the other interface is not touched");
    clean(&gw, &dir);
}

#[test]
fn an_interface_with_another_xdp_program() {
    let (gw, _peer, dir) = scene("held", "");
    let (source, object) = (dir.path().join("other.c"), dir.path().join("other.o"));
    std::fs::write(&source, "__attribute__((section(\"xdp\"), used)) int other(void *ctx) { return 2; }\nchar _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n").unwrap();
    let (source, object) = (source.to_string_lossy(), object.to_string_lossy());
    nomagic_testbed::rig::run("clang", &["-O2", "-target", "bpf", "-c", &source, "-o", &object]).unwrap();
    gw.exec("ip", &["link", "set", "dev", "pods0", "xdpdrv", "obj", &object, "sec", "xdp"]).unwrap();
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("pods0") && said.contains("held by another XDP program"), "{said}");
    assert!(gw.ip("-d link show pods0").unwrap().contains("xdp"), "the other program stays");
    assert!(!gw.ip("-d link show cl0").unwrap().contains("xdp"), "nothing is half done");
    clean(&gw, &dir);
}

#[test]
fn no_privileges() {
    let (gw, _peer, dir) = scene("nopriv", "");
    let path = dir.path().join("nomagic.yaml");
    std::fs::create_dir(dir.path().join("state")).unwrap();
    for p in [dir.path(), &dir.path().join("state")] {
        nomagic_testbed::rig::run("chmod", &["0777", &p.to_string_lossy()]).unwrap();
    }
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", NOMAGIC];
    let (code, said) = fails(&gw, "setpriv", &[&user[..], &["run", "--config", &path.to_string_lossy()]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    // `explain` needs none.
    let explain = ["explain", "--config", &path.to_string_lossy(), "tcp 10.0.0.2:40000 -> 10.109.35.24:80"];
    let mut process = gw.spawn("setpriv", &[&user[..], &explain].concat()).unwrap();
    assert!(process.wait(Duration::from_secs(10)).unwrap().success(), "{}", process.output());
}

#[test]
fn too_little_locked_memory() {
    let (gw, _peer, dir) = scene("memlock", "");
    let path = dir.path().join("nomagic.yaml").to_string_lossy().into_owned();
    let args = ["--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock,-sys_resource", NOMAGIC, "run", "--config", &path];
    let (code, said) = fails(&gw, "prlimit", &args);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("locked memory") || said.contains("memlock") || said.contains("RLIMIT_MEMLOCK"), "{said}");
    assert!(!gw.ip("-d link show cl0").unwrap().contains("xdp"));
    clean(&gw, &dir);
}

#[test]
fn a_configuration_error_names_the_line() {
    let (gw, _peer, dir) = scene("badconf", "conntrak: {capacity: 1000}");
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nomagic.yaml:7") && said.contains("conntrak") && said.contains("conntrack"), "{said}");
}

#[test]
fn a_snat_range_that_the_kernel_uses() {
    let (gw, _peer, dir) = scene("snatrange", "snat: {ports: 40000-50000}");
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ip_local_port_range") && said.contains("ip_local_reserved_ports"), "{said}");
    clean(&gw, &dir);
}

#[test]
fn an_http_address_in_use() {
    let (gw, _peer, dir) = scene("httpheld", "bindAddressHardFail: true");
    let held = gw.run(|| std::net::TcpListener::bind("0.0.0.0:10256").unwrap()).unwrap();
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("healthzBindAddress") && said.contains("0.0.0.0:10256") && said.contains("in use"), "{said}");
    assert!(!gw.ip("-d link show cl0").unwrap().contains("xdp"), "nothing is half done");
    drop(held);
    clean(&gw, &dir);
}

#[test]
fn missing_manifests() {
    let (gw, _peer, dir) = scene("nomanifests", "");
    std::fs::remove_file(dir.path().join("manifests.yaml")).unwrap();
    let (code, said) = run(&gw, &dir);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("manifests.yaml"), "{said}");
    clean(&gw, &dir);
}

#[test]
fn a_second_process_on_one_state_directory() {
    let g = Gateway::start("second", "", &nginx(&[0]));
    let (code, said) = fails(&g.scene.gw, NOMAGIC, &["run", "--config", &g.config_path().to_string_lossy()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another nomagic runs"), "{said}");
    let cleanup = g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]);
    assert!(cleanup.unwrap_err().to_string().contains("stop it first"));
    let report = g.http(&g.scene.client, "10.109.35.24:80", 10);
    assert_eq!(report.answered(), 10, "the first one continues: {report:?}");
}
