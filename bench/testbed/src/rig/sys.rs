//! The few system calls that std has no words for.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Moves the calling thread into a network namespace.
pub fn enter_netns(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; setns changes nothing but the calling thread's namespace.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Lets a command run inside a network namespace. Only that differs from this process: /run, /sys and bpffs stay the same.
pub fn run_inside(command: &mut Command, namespace: File) {
    // SAFETY: the closure runs between fork and exec and only makes one system call (async-signal-safe, no allocation on success);
    // it owns the open descriptor.
    unsafe { command.pre_exec(move || enter_netns(&namespace)) };
}

/// Asks a process to end (SIGTERM), or ends it (SIGKILL). A process that is gone already is no error.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let Ok(pid) = i32::try_from(pid) else { return Err(io::ErrorKind::InvalidInput.into()) };
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill has no memory effects; the pid is positive, so exactly one process is meant.
    match check(unsafe { libc::kill(pid, signal) }) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// The effective user id.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid always succeeds and has no memory effects.
    unsafe { libc::geteuid() }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
