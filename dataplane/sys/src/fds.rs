//! File descriptors: polling, waking a sleeping thread, close-on-exec.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

pub use rustix::event::{PollFd, PollFlags};

/// Waits for one of the descriptors and returns the number of ready ones. An interruption by a signal counts as none.
///
/// # Errors
/// System errors.
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
    /// # Errors
    /// System errors: EMFILE and ENFILE if too many descriptors are open.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub fn wake(&self) {
        // A full counter (EAGAIN) means a wake-up is already pending.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Discards all pending wake-ups.
    pub fn clear(&self) {
        // EAGAIN: no wake-up was pending.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    /// For [`poll`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Closes a descriptor in child processes. A child that inherits an AF_XDP socket would keep its queue bound for its whole life.
///
/// # Errors
/// System errors.
pub fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    // FD_CLOEXEC is the only descriptor flag, so none is lost.
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
    fn a_descriptor_is_closed_in_children() {
        let (reader, _writer) = io::pipe().unwrap();
        fcntl_setfd(&reader, FdFlags::empty()).unwrap();
        close_on_exec(&reader).unwrap();
        assert_eq!(fcntl_getfd(&reader).unwrap(), FdFlags::CLOEXEC);
    }
}
