//! What a child process gets. Needs root. Runs in a process of its own: the sockets that other tests are about to open would count.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::common::*;

/// `socket:[inode]` of every AF_XDP socket of this process.
fn xdp_sockets() -> BTreeSet<String> {
    let is_xdp = |fd: libc::c_int| {
        let (mut domain, mut len) = (0, std::mem::size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the value is valid for its length; what is no socket is an error.
        let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &mut len) };
        done == 0 && domain == libc::AF_XDP
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

/// Tells the test's process that it runs this test alone.
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

    // Such a list does tell: a socket without the flag is in it.
    // SAFETY: creates a descriptor.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW, 0) };
    let name = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let (sockets, files) = (xdp_sockets(), files_of_a_child());
    // SAFETY: the descriptor was created above.
    unsafe { libc::close(fd) };
    let name = name.to_str().unwrap();
    assert!(sockets.contains(name) && files.contains(name), "{name}: {sockets:?} {files}");
}
