//! The process: its user, its limits, and signals to others.

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, kill_process, setrlimit};

/// The user that this process acts as.
pub fn effective_user() -> u32 {
    geteuid().as_raw()
}

/// Raises the limit of locked memory as far as possible and returns what is in force, in bytes.
pub fn raise_memory_lock() -> u64 {
    // Failures leave the old limit, which is read back.
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        let limit = getrlimit(Resource::Memlock);
        let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    }
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// Sends a signal to another process, by both numbers.
///
/// # Errors
/// The system's, and when the number cannot be one other process's. A process that is gone already is no error.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // 0 and negative numbers mean groups, and 1 is init.
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
    fn one_process_is_ended_and_never_a_group() {
        for pid in [0, 1, u32::MAX, 1 << 31] {
            assert_eq!(signal(pid, libc::SIGTERM).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{pid}");
        }
        assert!(signal(std::process::id(), 0).is_err(), "no signal is no request");
        for number in [libc::SIGTERM, libc::SIGKILL] {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            signal(child.id(), number).unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(number));
            signal(child.id(), number).unwrap();
        }
    }

    #[test]
    fn the_limit_in_force_is_told() {
        let limit = raise_memory_lock();
        assert_eq!(limit, getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX));
        assert!(limit > 0);
    }
}
