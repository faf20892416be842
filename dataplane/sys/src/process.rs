//! The process: its user, its limits, and signals to others.

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, kill_process, setrlimit};

pub fn effective_user() -> u32 {
    geteuid().as_raw()
}

/// The size of a page: the unit of memory in /proc.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Raises the limit of locked memory as far as possible and returns the limit in force, in bytes.
pub fn raise_memory_lock() -> u64 {
    // On failure the old limit stays and is read back.
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        let limit = getrlimit(Resource::Memlock);
        let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    }
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit of open files to `wanted`, or as far as the hard limit allows, and returns the limit in force. Never lowers it.
pub fn raise_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        // On failure the old limit stays and is read back.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The current limit of open files.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Sends a signal to another process.
///
/// # Errors
/// System errors, and invalid input if the number does not name a single other process. A process that has already exited is not an error.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // 0 and negative numbers are process groups; 1 is init.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
    match kill_process(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_signal_goes_to_one_process_and_never_to_a_group() {
        for pid in [0, 1, u32::MAX, 1 << 31] {
            assert_eq!(signal(pid, libc::SIGTERM).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{pid}");
        }
        assert!(signal(std::process::id(), 0).is_err(), "signal 0 is refused");
        for number in [libc::SIGTERM, libc::SIGKILL] {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            signal(child.id(), number).unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(number));
            signal(child.id(), number).unwrap();
        }
    }

    #[test]
    fn open_files_are_raised_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        assert_eq!(raise_open_files(1), before.current.unwrap_or(u64::MAX));
        let wanted = before.maximum.unwrap_or(1 << 20);
        assert_eq!(raise_open_files(wanted), wanted.max(before.current.unwrap_or(u64::MAX)));
        assert_eq!(raise_open_files(u64::MAX), wanted.max(before.current.unwrap_or(u64::MAX)), "the hard limit stays");
    }

    #[test]
    fn the_limit_in_force_is_returned() {
        let limit = raise_memory_lock();
        assert_eq!(limit, getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX));
        assert!(limit > 0);
    }
}
