//! Watching the system calls of a process, and failing some of them.
//!
//! strace can inject errors, too, but it finds a call by its number within a thread, which changes with every file that a start opens, and it
//! injects into all threads that reach that number. Here a fault is found by what the call does (path, BPF command, netlink message) and by
//! its thread. It uses seccomp's user notification: each call stops until this process has decided about it.

mod call;
mod decode;
mod kinds;
mod listen;

pub use call::Call;

use std::process::Command;

use anyhow::{Context, Result};

use super::netns::Netns;
use super::process::Process;
use super::sys;
use call::Watched;
use listen::Listener;

impl Netns {
    /// Like [`Netns::spawn`]. `decide` is asked about every system call, on a thread of its own, and returns the error with which the call
    /// fails, or `None`: the call goes on. Calls that only wait, end or return something are not shown: `kinds.rs` lists them.
    pub fn spawn_watched(
        &self,
        program: &str,
        args: &[&str],
        mut decide: impl FnMut(&Call<'_>) -> Option<i32> + Send + 'static,
    ) -> Result<Process> {
        let mut command = Command::new(program);
        sys::run_inside(command.args(args), self.open()?);
        listen::install(&mut command, kinds::PASSED);
        let process = self.start(command, format!("{program} {}", args.join(" ")))?;
        let listener = Listener::of(process.pid()).context("cannot take over the listener of system calls")?;
        let watched = Watched::new(process.pid())?;
        let watch = move || {
            while let Some(stopped) = listener.next() {
                let error = decide(&Call::new(&watched, &stopped));
                listener.answer(&stopped, error);
            }
        };
        std::thread::Builder::new().name("rig-calls".into()).spawn(watch).context("cannot start a thread for system calls")?;
        Ok(process)
    }
}
