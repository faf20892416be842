//! Compiles the BPF programs with clang; `src/program.rs` and `src/answers.rs` embed the objects.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    compile("filter", "filter", &[]);
    compile("filter", "filter_segments", &["-DSEGMENTS"]);
    compile("answers", "answers", &[]);
}

fn compile(program: &str, object: &str, definitions: &[&str]) {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let object = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(format!("{object}.o"));
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"]);
    // `asm/types.h` lives below the multiarch directory on Debian and its relatives.
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    command.arg(format!("-I/usr/include/{arch}-linux-gnu"));
    command.args(definitions);
    command.args(["-c", &format!("bpf/{program}.c"), "-o"]).arg(&object);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile dataplane/xsk/bpf/{program}.c ({status}); its messages are above"),
        Err(e) => panic!("cannot run {clang} ({e}): install it (Debian: apt-get install clang libc6-dev) or set CLANG to its path"),
    }
}
