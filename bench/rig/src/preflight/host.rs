//! The machine that is looked at: files below a root, programs, and the two questions that only system calls answer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::sys;

/// The largest file that is read, bytes: /proc/interrupts of a machine with hundreds of CPUs has a few hundred kilobytes.
const FILE_MAX: usize = 8 << 20;

/// A machine, or in tests what looks like one. Nothing here fails loudly: what cannot be had is `None` or a reason, and becomes `unknown`.
pub trait Host {
    /// Where `/` is.
    fn root(&self) -> &Path;

    /// Runs a program to its end in the namespace of the calling thread: what it wrote, or why there is nothing.
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String>;

    /// The kernel's word (since 6.3) on what an interface's driver can do with XDP, as bits of `enum netdev_xdp_act`. 0 is a driver without
    /// XDP, or a kernel that cannot be asked; the kernel's version tells which.
    fn xdp_features(&self, interface: &str) -> Option<u64>;

    /// The name of a loaded BPF program.
    fn program_name(&self, id: u32) -> Option<String>;

    /// Waits between two samples.
    fn rest(&self, time: Duration);

    /// The text of a file, `path` without the leading slash.
    fn read(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.root().join(path)).ok().filter(|b| b.len() <= FILE_MAX)?;
        String::from_utf8(bytes).ok()
    }

    /// One line of a file.
    fn line(&self, path: &str) -> Option<String> {
        Some(self.read(path)?.trim().to_owned()).filter(|l| !l.is_empty())
    }

    /// A file's one number.
    fn number(&self, path: &str) -> Option<i64> {
        self.line(path)?.parse().ok()
    }

    /// Names in a directory, sorted; `None` if it is not there.
    fn list(&self, path: &str) -> Option<Vec<String>> {
        let entries = std::fs::read_dir(self.root().join(path)).ok()?;
        let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        Some(names)
    }
}

/// The machine that this runs on.
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
        let said = String::from_utf8_lossy(&out.stderr);
        Err(said.lines().next().unwrap_or("it failed without a word").trim().to_owned())
    }

    fn xdp_features(&self, interface: &str) -> Option<u64> {
        sys::xdp_features(interface)
    }

    fn program_name(&self, id: u32) -> Option<String> {
        let program = aya::programs::loaded_programs().flatten().find(|p| p.id() == id)?;
        program.name_as_str().map(str::to_owned)
    }

    fn rest(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
