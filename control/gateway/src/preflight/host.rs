//! The machine to check: files below a root directory, programs, and a system call for XDP features.

use std::path::Path;
use std::process::Command;

/// Maximum size of a file in bytes; larger files are not read.
const FILE_MAX: usize = 8 << 20;

/// A machine, or a fake one in tests. Facts are read in the network namespace of the calling thread.
pub trait Host {
    /// The directory used as `/`.
    fn root(&self) -> &Path;

    /// Runs a program and returns its output, or the reason why there is none.
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String>;

    /// The XDP features of an interface's driver: bits of `enum netdev_xdp_act` (linux/netdev.h). Reported by Linux 6.3 and later.
    fn xdp_features(&self, interface: &str) -> Option<u64>;

    /// Whether AF_XDP sockets take packets in several packet buffers (Linux 6.6).
    fn knows_segments(&self) -> bool;

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

/// The machine on which this process runs.
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
        Err(error.lines().next().unwrap_or("the command failed without a message").trim().to_owned())
    }

    fn xdp_features(&self, interface: &str) -> Option<u64> {
        nomagic_xsk::xdp_features(interface)
    }

    fn knows_segments(&self) -> bool {
        nomagic_sys::xdp_socket::knows_segments().unwrap_or(false)
    }
}
