//! What a child process inherits. Needs root. Runs in a separate process, because sockets being opened by other tests would count.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::net::sockopt::socket_domain;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::common::*;

/// `socket:[inode]` of every AF_XDP socket of this process.
fn xdp_sockets() -> BTreeSet<String> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    // Descriptors that are not sockets, or are closed meanwhile, give an error.
    let is_xdp = |fd| {
        let fd = pidfd_getfd(&this, fd, PidfdGetfdFlags::empty());
        fd.and_then(socket_domain) == Ok(AddressFamily::XDP)
    };
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let sockets = open.filter(|path| is_xdp(path.file_name().unwrap().to_str().unwrap().parse().unwrap()));
    sockets.filter_map(|path| Some(fs::read_link(path).ok()?.to_str()?.to_owned())).collect()
}

fn files_of_a_child() -> String {
    let child = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    assert!(child.status.success());
    String::from_utf8(child.stdout).unwrap()
}

/// Set in the process that runs only this test.
const ALONE: &str = "NOMAGIC_TEST_ALONE";

#[test]
fn a_child_process_gets_no_af_xdp_socket() {
    if std::env::var_os(ALONE).is_some() {
        return look_at_a_child();
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "child::a_child_process_gets_no_af_xdp_socket", "--nocapture"]).env(ALONE, "1");
    let output = alone.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

fn look_at_a_child() {
    let scene = Scene::new();
    let edge = scene.start(scene.config(), true);
    let sockets = xdp_sockets();
    assert!(sockets.len() >= 3, "one for each of two interfaces and the internal port: {sockets:?}");
    let files = files_of_a_child();
    let inherited: Vec<_> = sockets.iter().filter(|socket| files.contains(socket.as_str())).collect();
    assert!(inherited.is_empty(), "{inherited:?}");
    edge.stop(true).unwrap();

    // Counter-check: a socket without the flag is in the list.
    let socket = socket(AddressFamily::XDP, SocketType::RAW, None).unwrap();
    let name = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let (sockets, files) = (xdp_sockets(), files_of_a_child());
    let name = name.to_str().unwrap();
    assert!(sockets.contains(name) && files.contains(name), "{name}: {sockets:?} {files}");
}
