//! One network namespace.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

use super::cleanup::{Guard, Undo, undo_later};
use super::{finish, require_root, run, sys};

/// A network namespace. Dropping it ends its processes and deletes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    _guard: Guard,
}

impl Netns {
    /// Creates a namespace `nm-<tag>-<pid>-<n>` with its loopback up, forwarding off and IPv6 without duplicate address detection.
    pub fn new(tag: &str) -> Result<Netns> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        require_root()?;
        let name = format!("nm-{tag}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name])?;
        let netns = Netns { _guard: undo_later(Undo::Namespace(name.clone())), name };
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        netns.sysctl("net.ipv6.conf.default.accept_ra", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip -n <name> <words>`, with the words split at blanks.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut args = vec!["-n", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args)
    }

    /// Runs a command inside to its end. Only the network namespace differs: /run, /sys and bpffs are the host's.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        sys::run_inside(command.args(args), self.open()?);
        finish(&mut command)
    }

    /// Sets a `net.*` sysctl. Dots separate the parts, and a slash stands for a dot in an interface's name, as in sysctl(8).
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        let done = self.run(|| std::fs::write(&path, value))?;
        done.with_context(|| format!("cannot set {key} = {value} in {}", self.name))
    }

    /// The value of a sysctl in this namespace.
    pub fn sysctl_get(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key);
        let read = self.run(|| std::fs::read_to_string(&path))?;
        Ok(read.with_context(|| format!("cannot read {key} in {}", self.name))?.trim().to_owned())
    }

    /// Runs a closure on a new thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let handle = scope.spawn(|| {
                sys::enter_netns(&file).with_context(|| format!("cannot enter {}", self.name))?;
                Ok(work())
            });
            handle.join().map_err(|panic| anyhow!("a thread in {} panicked: {}", self.name, panic_text(&*panic)))?
        })
    }

    /// Starts a thread inside the namespace, which stays alive (unnamed) with the thread even if this value is dropped.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<Result<T>>> {
        let (file, name) = (self.open()?, self.name.clone());
        let builder = std::thread::Builder::new().name(format!("in {name}"));
        let handle = builder.spawn(move || {
            sys::enter_netns(&file).with_context(|| format!("cannot enter {name}"))?;
            Ok(work())
        });
        handle.context("cannot start a thread")
    }

    /// Runs a future inside the namespace, on a new thread with a single-threaded runtime.
    pub fn block_on<F: Future>(&self, make: impl FnOnce() -> F + Send) -> Result<F::Output>
    where
        F::Output: Send,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")?;
            Ok(runtime.block_on(async { make().await }))
        })?
    }

    pub(super) fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    let swapped: String = key
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    PathBuf::from("/proc/sys").join(swapped)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_follow_sysctl_8() {
        assert_eq!(sysctl_path("net.ipv4.conf.eth0.rp_filter"), PathBuf::from("/proc/sys/net/ipv4/conf/eth0/rp_filter"));
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/5.rp_filter"), PathBuf::from("/proc/sys/net/ipv4/conf/eth0.5/rp_filter"));
    }
}
