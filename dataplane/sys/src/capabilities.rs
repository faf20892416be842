//! Drops privileges after setup.
//!
//! Capabilities are per thread. Workers need none: sending on a bound socket requires no capability. The control threads keep the
//! capabilities that rebinding an interface requires.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};

/// Routes, neighbours and XDP programs; AF_XDP sockets; locked memory; the BPF verifier; BPF maps.
const NEEDED_LATER: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::BPF);

/// Reduces the capabilities of the calling thread, and of threads it starts later, to those that rebinding an interface requires.
///
/// # Errors
/// System errors.
pub fn keep_what_is_needed() -> io::Result<()> {
    keep(NEEDED_LATER)
}

/// Reduces the capabilities of the calling thread to the one that marking a socket (`SO_MARK`) requires.
///
/// # Errors
/// System errors.
pub fn keep_marking() -> io::Result<()> {
    keep(CapabilitySet::NET_ADMIN)
}

/// Whether the calling thread has the capabilities that rebinding an interface requires.
pub fn has_what_is_needed() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(NEEDED_LATER))
}

/// Whether a seccomp profile filters the system calls of the calling thread.
pub fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// Drops all capabilities of the calling thread.
///
/// # Errors
/// System errors.
pub fn keep_nothing() -> io::Result<()> {
    keep(CapabilitySet::empty())
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.permitted &= wanted;
    (sets.effective, sets.inheritable) = (sets.permitted, CapabilitySet::empty());
    set_capabilities(None, sets)?;
    // Programs executed later get no more than this thread has.
    Ok(set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calling thread's effective and permitted capabilities, as reported by /proc.
    fn reported() -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (of("CapEff:"), of("CapPrm:"))
    }

    #[test]
    fn capabilities_are_dropped_for_the_calling_thread_only() {
        let before = reported();
        let wanted = [12, 13, 14, 38, 39].iter().fold(0, |bits, c| bits | 1u64 << c);
        let later = std::thread::spawn(move || {
            keep_what_is_needed().unwrap();
            assert!(has_what_is_needed() == (before.1 & wanted == wanted) && !is_filtered());
            let some = reported();
            let inherited = std::thread::spawn(reported).join().unwrap();
            keep_marking().unwrap();
            let marking = reported();
            keep_nothing().unwrap();
            assert!(!has_what_is_needed());
            (some, inherited, marking, reported())
        });
        let (some, inherited, marking, none) = later.join().unwrap();
        assert_eq!(some, (before.1 & wanted, before.1 & wanted));
        assert_eq!((inherited, none), (some, (0, 0)));
        assert_eq!(marking, (before.1 & 1 << 12, before.1 & 1 << 12));
        assert_eq!(reported(), before, "other threads keep theirs");
    }
}
