//! File descriptors: waiting for them, waking who waits, and keeping them from child processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

pub use rustix::event::{PollFd, PollFlags};

/// Waits for one of the descriptors. The number that is ready; interruptions count as none.
///
/// # Errors
/// The system's.
pub fn poll(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<usize> {
    let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    match rustix::event::poll(fds, Some(&limit)) {
        Err(Errno::INTR) => Ok(0),
        ready => Ok(ready?),
    }
}

/// A descriptor that wakes a sleeping thread.
pub struct Waker(OwnedFd);

impl Waker {
    /// A new one.
    ///
    /// # Errors
    /// The system's: EMFILE and ENFILE when there are too many descriptors.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        // A full counter (EAGAIN) means that the thread is being woken anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes back all wake-ups so far.
    pub fn clear(&self) {
        // EAGAIN means that there was none.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    /// For [`poll`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Keeps a descriptor from child processes: one that has an AF_XDP socket too keeps its queue bound for as long as it lives.
///
/// # Errors
/// The system's.
pub fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    // There are no other descriptor flags to keep.
    Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::fcntl_getfd;

    #[test]
    fn a_waker_wakes_once_and_is_cleared() {
        let waker = Waker::new().unwrap();
        let ready = |limit| poll(&mut [PollFd::new(&waker, PollFlags::IN)], limit).unwrap();
        assert_eq!(ready(Duration::ZERO), 0);
        waker.wake();
        waker.wake();
        assert_eq!(ready(Duration::from_secs(1)), 1);
        waker.clear();
        assert_eq!(ready(Duration::ZERO), 0);
        waker.clear();
    }

    #[test]
    fn a_descriptor_is_kept_from_children() {
        let (reader, _writer) = io::pipe().unwrap();
        fcntl_setfd(&reader, FdFlags::empty()).unwrap();
        close_on_exec(&reader).unwrap();
        assert_eq!(fcntl_getfd(&reader).unwrap(), FdFlags::CLOEXEC);
    }
}
