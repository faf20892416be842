//! Compiles the BPF programs of the generator, the sink and the counter with clang; the modules that load them embed the objects.

use std::path::PathBuf;
use std::process::Command;

/// Directory of `bpf.h`, which all BPF programs share.
const SHARED: &str = "../../dataplane/xsk/bpf";

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed={SHARED}/bpf.h");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    // On Debian `asm/types.h` is in the multiarch directory.
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    for name in ["generate", "sink", "count"] {
        let mut command = Command::new(&clang);
        command.args(["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"]);
        command.args([format!("-I/usr/include/{arch}-linux-gnu"), format!("-I{SHARED}")]);
        command.args(["-c", &format!("bpf/{name}.c"), "-o"]).arg(out.join(format!("{name}.o")));
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{clang} could not compile bench/rig/bpf/{name}.c ({status}); its messages are above"),
            Err(e) => panic!("cannot run {clang} ({e}): install it (Debian: apt-get install clang libc6-dev) or set CLANG to its path"),
        }
    }
}
