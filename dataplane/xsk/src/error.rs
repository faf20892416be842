//! What can go wrong at the edge, in words that say what to do.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// The capabilities that the edge needs when it does not run as root.
const CAPABILITIES: &str =
    "root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK (and CAP_SYS_ADMIN to mount a bpffs)";

/// Why the edge could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A value of the configuration is outside of its limits.
    #[error("{0}")]
    Config(String),
    /// The interface does not exist in this network namespace.
    #[error("interface {interface} does not exist in this network namespace; `ip link show` lists those that do")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Somebody else's XDP program is attached.
    #[error(
        "interface {interface} is held by another XDP program ({program}); see `ip link show dev {interface}`, detach it with `ip link set dev {interface} xdp off` or stop its owner"
    )]
    XdpBusy {
        /// The interface.
        interface: String,
        /// Id and name of the program that holds it.
        program: String,
    },
    /// The interface takes no XDP program, neither in its driver nor generically.
    #[error("interface {interface} takes no XDP program: {detail}")]
    XdpRefused {
        /// The interface.
        interface: String,
        /// What the kernel said, and what to look at.
        detail: String,
    },
    /// Not privileged.
    #[error("{what}: not permitted; run as {CAPABILITIES}")]
    Privileges {
        /// What was tried.
        what: String,
    },
    /// Locked memory is limited too tightly.
    #[error(
        "{what}: too little memory may be locked (RLIMIT_MEMLOCK is {limit_bytes} bytes and could not be raised); raise it with `ulimit -l unlimited` or LimitMEMLOCK=infinity, or grant CAP_IPC_LOCK"
    )]
    MemoryLock {
        /// What was tried.
        what: String,
        /// The limit in force, in bytes.
        limit_bytes: u64,
    },
    /// No bpffs could be mounted for the pins.
    #[error("cannot mount a bpffs on {}: {source}; mount one there beforehand: `mount -t bpf bpffs {}`", path.display(), path.display())]
    Bpffs {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is pinned was left by an incompatible version.
    #[error("what is pinned in {} does not fit this version ({detail}); run `nomagic cleanup` and start again", path.display())]
    Layout {
        /// The pinned object.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// The XDP program could not be loaded.
    #[error("cannot load the XDP program for {interface}: {detail}")]
    Program {
        /// The interface it was for.
        interface: String,
        /// What the kernel said.
        detail: String,
    },
    /// A BPF map could not be used.
    #[error("BPF map {map}: {detail}")]
    Map {
        /// Its name.
        map: String,
        /// What the kernel said.
        detail: String,
    },
    /// More filter rules than the map holds.
    #[error("the XDP filter has room for {limit} {map}, but there are {wanted}")]
    FilterFull {
        /// What there are too many of.
        map: &'static str,
        /// The limit.
        limit: usize,
        /// How many there would be.
        wanted: usize,
    },
    /// The sockets' memory could not be set up.
    #[error("cannot register {bytes} bytes of packet memory: {source}")]
    Umem {
        /// Its size in bytes.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too few huge pages are set aside.
    #[error(
        "{pages} huge pages of 2 MiB are asked for, which are not free; set them aside with `sysctl vm.nr_hugepages=N` (`grep Huge /proc/meminfo` shows them) or turn `hugePages` off"
    )]
    HugePages {
        /// Pages asked for.
        pages: u64,
    },
    /// The connection table's file cannot be used.
    #[error("conntrack file {}: {detail}", path.display())]
    TableFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        detail: String,
    },
    /// A queue could not be bound.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue}: {source}{}", bind_hint(source))]
    Bind {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker is not there, or does not answer.
    #[error("{what}; the log says why workers ended, and `nomagic status` shows who is alive")]
    Workers {
        /// What was expected of whom.
        what: String,
    },
    /// The worker's CPU cannot be had.
    #[error("cannot pin the worker to CPU {cpu}: {source}; `taskset -p $$` shows the CPUs this process may use")]
    Cpu {
        /// Number of the CPU.
        cpu: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else the operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn bind_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) => "; another process has a socket on this queue: stop it first",
        Some(Errno::NETDOWN) => "; the interface is down: `ip link set up` it",
        _ => "",
    }
}

impl EdgeError {
    /// An operating system error, with missing privileges told apart.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> EdgeError {
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => EdgeError::Privileges { what: what.into() },
            _ => EdgeError::Io { what: what.into(), source },
        }
    }

    /// A BPF map's error, with missing privileges told apart.
    pub(crate) fn map(map: &str, error: &(dyn std::error::Error + 'static)) -> EdgeError {
        match os_error(error) {
            Some(Errno::PERM | Errno::ACCESS) => EdgeError::Privileges { what: format!("BPF map {map}") },
            _ => EdgeError::Map { map: map.into(), detail: chain(error) },
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

/// The operating system's error number somewhere in the chain of causes.
pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Errno::from_io_error(io);
        }
        // Transparent wrappers hide themselves from `source`.
        if let Some(call) = e.downcast_ref::<aya::sys::SyscallError>() {
            return Errno::from_io_error(&call.io_error);
        }
        if let Some(aya::programs::ProgramError::SyscallError(call)) = e.downcast_ref::<aya::programs::ProgramError>() {
            return Errno::from_io_error(&call.io_error);
        }
        if let Some(aya::maps::MapError::SyscallError(call)) = e.downcast_ref::<aya::maps::MapError>() {
            return Errno::from_io_error(&call.io_error);
        }
        cause = e.source();
    }
    None
}
