//! Errors of the edge. Their messages name the remedy.

use std::io;
use std::path::PathBuf;

use nomagic_sys::capabilities::{has_what_is_needed, is_filtered};
use nomagic_sys::shortage::remedy;
use rustix::io::Errno;

/// The capabilities the edge needs when not running as root.
const CAPABILITIES: &str =
    "root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK (and CAP_SYS_ADMIN to mount a bpffs)";

#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A configuration value is out of range.
    #[error("{0}")]
    Config(String),
    #[error("interface {interface} does not exist in this network namespace; `ip link show` lists those that do")]
    NoInterface { interface: String },
    /// Another XDP program is attached.
    #[error(
        "interface {interface} is held by another XDP program ({program}); see `ip link show dev {interface}`, detach it with `ip link set dev {interface} xdp off` or stop its owner"
    )]
    XdpBusy {
        interface: String,
        /// Id and name of the attached program.
        program: String,
    },
    /// The interface accepts no XDP program, neither in its driver nor generically.
    #[error("interface {interface} accepts no XDP program: {detail}")]
    XdpRefused {
        interface: String,
        /// The kernel's error and a hint.
        detail: String,
    },
    /// Missing privileges.
    #[error("{what}: not permitted; {hint}")]
    Privileges {
        /// The attempted operation.
        what: String,
        /// What would permit it to the thread that attempted it.
        hint: String,
    },
    /// The limit of locked memory is too low.
    #[error(
        "{what}: too little memory may be locked (RLIMIT_MEMLOCK is {limit_bytes} bytes and could not be raised); raise it with `ulimit -l unlimited` or LimitMEMLOCK=infinity, or grant CAP_IPC_LOCK"
    )]
    MemoryLock {
        /// The attempted operation.
        what: String,
        /// The limit in force, in bytes.
        limit_bytes: u64,
    },
    /// No bpffs could be mounted for the pins.
    #[error("cannot mount a bpffs on {}: {source}{}; or mount one there beforehand: `mount -t bpf bpffs {}`", path.display(), shortage_hint(source), path.display())]
    Bpffs {
        /// The mount point.
        path: PathBuf,
        source: io::Error,
    },
    /// The pinned objects are of an incompatible version.
    #[error("the pinned objects in {} do not fit this version ({detail}); run `nomagic cleanup` and start again", path.display())]
    Layout {
        /// The pinned object.
        path: PathBuf,
        /// The difference.
        detail: String,
    },
    /// The XDP program could not be loaded.
    #[error("cannot load the XDP program for {interface}: {detail}")]
    Program { interface: String, detail: String },
    /// A BPF map could not be used.
    #[error("BPF map {map}: {detail}")]
    Map { map: String, detail: String },
    /// More filter rules than the map holds.
    #[error("the XDP filter has room for {limit} {map}, but there are {wanted}")]
    FilterFull {
        /// The kind of rules.
        map: &'static str,
        limit: usize,
        /// The number of rules there would be.
        wanted: usize,
    },
    /// The sockets' memory could not be set up.
    #[error("cannot register {bytes} bytes of packet memory: {source}{}", shortage_hint(source))]
    Umem { bytes: u64, source: io::Error },
    /// Too few huge pages are free.
    #[error(
        "{pages} huge pages of 2 MiB are needed but not free; reserve them with `sysctl vm.nr_hugepages=N` (`grep Huge /proc/meminfo` shows them) or turn `hugePages` off"
    )]
    HugePages {
        /// Pages asked for.
        pages: u64,
    },
    /// The connection table's file cannot be used.
    #[error("conntrack file {}: {detail}", path.display())]
    TableFile {
        path: PathBuf,
        /// The problem and its remedy.
        detail: String,
    },
    /// A queue could not be bound.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue}: {source}{}", bind_hint(source))]
    Bind { interface: String, queue: u32, source: io::Error },
    /// A worker has ended or does not respond.
    #[error("{what}; the log shows why workers ended, and `nomagic status` shows the live ones")]
    Workers {
        /// The worker and the failed operation.
        what: String,
    },
    /// The worker cannot be pinned to its CPU.
    #[error("cannot pin the worker to CPU {cpu}: {source}; `taskset -p $$` shows the CPUs this process may use")]
    Cpu { cpu: usize, source: io::Error },
    /// Any other operating system error.
    #[error("{what}: {source}{}", shortage_hint(source))]
    Io {
        /// The attempted operation.
        what: String,
        source: io::Error,
    },
}

fn bind_hint(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) => "; another process has a socket on this queue: stop it first".into(),
        Some(Errno::NETDOWN) => "; the interface is down: `ip link set up` it".into(),
        _ => shortage_hint(error),
    }
}

/// What lets the calling thread do what it was not permitted to.
pub fn permit_hint() -> String {
    if !has_what_is_needed() {
        return format!("run as {CAPABILITIES}");
    }
    let forbids = if is_filtered() {
        "its seccomp profile forbids the system call (mostly bpf(2)). Use a profile that allows it with CAP_BPF, as the default ones of Docker \
         23 and of current containerd and podman do, or none (`seccompProfile: {type: Unconfined}`)"
    } else {
        "a security module (AppArmor, SELinux, lockdown) forbids it: the kernel's log says which"
    };
    format!("this process has the capabilities for it, so {forbids}")
}

/// What to do if something is used up.
fn shortage_hint(error: &io::Error) -> String {
    remedy(error).map(|remedy| format!("; {remedy}")).unwrap_or_default()
}

/// Whether an error may pass by itself, so that it says nothing about what was asked for.
pub(crate) fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR | Errno::PERM | Errno::ACCESS)
}

impl EdgeError {
    /// An operation that was not permitted to the calling thread, whose capabilities the hint goes by: another thread may print the error.
    pub(crate) fn privileges(what: impl Into<String>) -> EdgeError {
        EdgeError::Privileges { what: what.into(), hint: permit_hint() }
    }

    /// An operating system error; missing privileges become [`EdgeError::Privileges`].
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> EdgeError {
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges(what),
            _ => EdgeError::Io { what: what.into(), source },
        }
    }

    /// A BPF map's error; missing privileges become [`EdgeError::Privileges`].
    pub(crate) fn map(map: &str, error: &(dyn std::error::Error + 'static)) -> EdgeError {
        match os_error(error) {
            Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges(format!("BPF map {map}")),
            _ => EdgeError::Map { map: map.into(), detail: explained(error) },
        }
    }
}

/// An error and its causes in one line. A cause that the text has already is not repeated.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    text
}

/// [`chain`], and what to do about a shortage.
pub(crate) fn explained(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error) + &os_error(error).map(|code| shortage_hint(&code.into())).unwrap_or_default()
}

/// The operating system's error number somewhere in the chain of causes.
pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Errno::from_io_error(io);
        }
        // Transparent wrappers do not appear in `source`.
        if let Some(aya::programs::links::LinkError::SyscallError(call)) = e.downcast_ref::<aya::programs::links::LinkError>() {
            return Errno::from_io_error(&call.io_error);
        }
        if let Some(aya::pin::PinError::SyscallError(call)) = e.downcast_ref::<aya::pin::PinError>() {
            return Errno::from_io_error(&call.io_error);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_a_remedy_that_helps() {
        let refused = || EdgeError::io("loading a program", Errno::PERM.into());
        let without = std::thread::spawn(move || {
            nomagic_sys::capabilities::keep_nothing().unwrap();
            refused()
        });
        // The hint goes by the capabilities of the thread that was refused, not of this one.
        let without = without.join().unwrap().to_string();
        assert!(without.contains("run as root, or CAP_NET_ADMIN"), "{without}");
        // As root, only something else can forbid it.
        let with = refused().to_string();
        assert!(has_what_is_needed() && with.contains("this process has the capabilities for it, so"), "{with}");
        for (error, words) in
            [(Errno::MFILE, "ulimit -n"), (Errno::NOMEM, "memory.max"), (Errno::NOSPC, "free room"), (Errno::AGAIN, "pids.max")]
        {
            let text = EdgeError::io("opening a socket", error.into()).to_string();
            assert!(text.contains(words) && text.contains("start again"), "{text}");
        }
        assert!(!EdgeError::io("opening a socket", Errno::INVAL.into()).to_string().contains(';'));
    }
}
