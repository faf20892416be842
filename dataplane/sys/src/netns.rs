//! Network namespaces.
#![allow(unsafe_code, reason = "a hook between fork and exec")]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves the calling thread into a network namespace: a descriptor of `/run/netns/NAME` or `/proc/PID/ns/net`.
///
/// # Errors
/// System errors: EPERM without privileges, EINVAL if the descriptor is not a network namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Makes a command run in a network namespace. Only the network namespace differs from this process's: /run, /sys and bpffs are the same.
pub fn run_inside(command: &mut Command, namespace: impl AsFd + Send + Sync + 'static) {
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe, and allocates nothing; it owns the open
    // descriptor. `pre_exec` is unsafe for any closure.
    unsafe { command.pre_exec(move || enter(&namespace)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use std::fs::{self, File};

    fn current() -> String {
        fs::read_link("/proc/thread-self/ns/net").unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn threads_and_commands_move_and_others_stay() {
        let before = current();
        let make = || {
            // SAFETY: unsharing the network namespace does not affect the table of file descriptors.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("needs root");
            (current(), File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (other, namespace) = std::thread::spawn(make).join().unwrap();
        assert_ne!(other, before);
        let mut command = Command::new("readlink");
        run_inside(command.arg("/proc/self/ns/net"), namespace.try_clone().unwrap());
        assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap().trim(), other);
        let moved = std::thread::spawn(move || enter(&namespace).map(|()| current()));
        assert_eq!(moved.join().unwrap().unwrap(), other);
        assert_eq!(current(), before);
        assert!(enter(File::open("/proc/self/ns/mnt").unwrap()).is_err(), "that is another kind of namespace");
    }
}
