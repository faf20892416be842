//! The integration tests of the benchmarks, in one binary.

mod compare;
mod floods;
mod hot_path;
mod pktgen;
mod report;
mod rigs;
mod sample;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A comparison wants the CPUs for itself; other traffic may share them.
static CPUS: RwLock<()> = RwLock::new(());

fn all_cpus() -> RwLockWriteGuard<'static, ()> {
    CPUS.write().unwrap_or_else(PoisonError::into_inner)
}

fn shared_cpus() -> RwLockReadGuard<'static, ()> {
    CPUS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `nomagic-bench` and shows what it wrote. Returns its process number and its standard output.
fn bench(args: &[&str]) -> (u32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nomagic-bench"));
    let child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let done = child.wait_with_output().unwrap();
    let (said, table) = (String::from_utf8_lossy(&done.stderr), String::from_utf8_lossy(&done.stdout));
    println!("{said}\n{table}");
    assert!(done.status.success(), "{said}");
    (pid, table.into_owned())
}

/// The program `nomagic` of the same profile, with the API server for tests; built if missing.
fn nomagic() -> PathBuf {
    let profile = Path::new(env!("CARGO_BIN_EXE_nomagic-bench")).parent().unwrap();
    let (nomagic, api) = (profile.join("nomagic"), profile.join("nomagic-fake-apiserver"));
    if !nomagic.exists() || !api.exists() {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked", "-p", "nomagic", "-p", "nomagic-fake-apiserver"]);
        assert!(build.arg("--target-dir").arg(profile.parent().unwrap()).status().unwrap().success());
    }
    nomagic
}
