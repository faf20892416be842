//! Giving up privileges once everything is set up.
//!
//! Capabilities belong to threads. Workers need none: sending on a socket that is bound asks for nothing. Control keeps what binding
//! an interface again takes.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};

/// Routes, neighbours and XDP programs; AF_XDP sockets; locked memory; what the verifier asks for; BPF maps.
const NEEDED_LATER: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::BPF);

/// Leaves the calling thread, and those that it starts from now on, what binding interfaces again takes, as far as it has it.
///
/// # Errors
/// The system's.
pub fn keep_what_is_needed() -> io::Result<()> {
    keep(NEEDED_LATER)
}

/// Leaves the calling thread no capability at all.
///
/// # Errors
/// The system's.
pub fn keep_nothing() -> io::Result<()> {
    keep(CapabilitySet::empty())
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.permitted &= wanted;
    (sets.effective, sets.inheritable) = (sets.permitted, CapabilitySet::empty());
    set_capabilities(None, sets)?;
    // Programs that are executed later get no more than this thread has.
    Ok(set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calling thread's effective and permitted capabilities, as /proc tells them.
    fn told() -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (of("CapEff:"), of("CapPrm:"))
    }

    #[test]
    fn what_is_given_up_is_gone_for_this_thread() {
        let before = told();
        let wanted = [12, 13, 14, 38, 39].iter().fold(0, |bits, c| bits | 1u64 << c);
        let later = std::thread::spawn(move || {
            keep_what_is_needed().unwrap();
            let some = told();
            let inherited = std::thread::spawn(told).join().unwrap();
            keep_nothing().unwrap();
            (some, inherited, told())
        });
        let (some, inherited, none) = later.join().unwrap();
        assert_eq!(some, (before.1 & wanted, before.1 & wanted));
        assert_eq!((inherited, none), (some, (0, 0)));
        assert_eq!(told(), before, "other threads keep theirs");
    }
}
