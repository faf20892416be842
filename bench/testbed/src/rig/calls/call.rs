//! A system call in words.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::decode;
use super::kinds::{Shape, kind};
use super::listen::Stopped;

/// The process whose calls are watched.
pub(super) struct Watched {
    pub pid: u32,
    /// Its memory.
    pub memory: File,
    /// Refers to it, for copies of its descriptors.
    pub pidfd: OwnedFd,
    /// Where libc's code is; empty until it is loaded.
    libc: RefCell<Vec<Range<u64>>>,
}

impl Watched {
    pub fn new(pid: u32) -> Result<Watched> {
        let memory = File::open(format!("/proc/{pid}/mem")).with_context(|| format!("cannot read the memory of process {pid}"))?;
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process")?;
        Ok(Watched { pid, memory, pidfd: pidfd_open(id, PidfdFlags::empty())?, libc: RefCell::default() })
    }

    /// Whether an address is in libc's code.
    fn is_in_libc(&self, at: u64) -> bool {
        let mut ranges = self.libc.borrow_mut();
        if ranges.is_empty() {
            *ranges = decode::libc_ranges(self.pid);
        }
        ranges.iter().any(|range| range.contains(&at))
    }
}

/// A system call that has stopped. What it says is read from the process when it is asked for.
pub struct Call<'s> {
    watched: &'s Watched,
    stopped: &'s Stopped,
    kind: Option<(&'static str, Shape)>,
}

impl<'s> Call<'s> {
    pub(super) fn new(watched: &'s Watched, stopped: &'s Stopped) -> Call<'s> {
        Call { watched, stopped, kind: kind(stopped.number()) }
    }

    /// The call's name; `None`: the testbed does not know the call.
    pub fn name(&self) -> Option<&'static str> {
        self.kind.map(|(name, _)| name)
    }

    /// The thread's name.
    pub fn thread(&self) -> String {
        let path = format!("/proc/{}/task/{}/comm", self.watched.pid, self.stopped.tid());
        std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    }

    /// What distinguishes it from others of its name: a path, a BPF command, what a descriptor is of. The number of an unknown call.
    pub fn detail(&self) -> String {
        let Some((_, shape)) = self.kind else { return self.stopped.number().to_string() };
        decode::detail(self.watched, shape, self.stopped.args())
    }

    /// The beginning of what a write writes.
    pub fn written(&self) -> String {
        let [_, at, len, ..] = self.stopped.args();
        if self.name() == Some("write") { decode::text(self.watched, at, len) } else { String::new() }
    }

    /// Whether it is memory for the heap or for a thread's signal handlers: Rust ends a program that cannot have it.
    pub fn is_of_runtime(&self) -> bool {
        let args = self.stopped.args();
        let of_heap = || decode::is_of_heap(args) && self.watched.is_in_libc(self.stopped.from());
        self.name() == Some("mmap") && (decode::is_signal_stack(args) || of_heap())
    }
}
