//! The machine to check: files below a root, programs, and the one question that only a system call answers.

use std::path::Path;
use std::process::Command;

/// The largest file to read, in bytes.
const FILE_MAX: usize = 8 << 20;

/// A machine, or its imitation in tests. Facts are read in the network namespace of the calling thread.
pub trait Host {
    /// The directory that stands for `/`.
    fn root(&self) -> &Path;

    /// Runs a program to its end. `Err` says why there is no output.
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String>;

    /// What an interface's driver can do with XDP: bits of `enum netdev_xdp_act` (linux/netdev.h), which the kernel tells since 6.3.
    fn xdp_features(&self, interface: &str) -> Option<u64>;

    /// The text of a file; `path` has no leading slash.
    fn read(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.root().join(path)).ok().filter(|b| b.len() <= FILE_MAX)?;
        String::from_utf8(bytes).ok()
    }

    fn line(&self, path: &str) -> Option<String> {
        Some(self.read(path)?.trim().to_owned()).filter(|l| !l.is_empty())
    }

    /// The names in a directory, sorted.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root().join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The machine that this program runs on.
pub struct ThisHost;

impl Host for ThisHost {
    fn root(&self) -> &Path {
        Path::new("/")
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let out = Command::new(program).args(args).env("LC_ALL", "C").output();
        let out = out.map_err(|e| format!("cannot run {program}: {e}"))?;
        if out.status.success() {
            return String::from_utf8(out.stdout).map_err(|_| format!("{program} did not write UTF-8"));
        }
        let error = String::from_utf8_lossy(&out.stderr);
        Err(error.lines().next().unwrap_or("it failed without a message").trim().to_owned())
    }

    fn xdp_features(&self, interface: &str) -> Option<u64> {
        nomagic_xsk::xdp_features(interface)
    }
}
