//! A worker without work: spins, or sleeps until a frame, a command or another worker wakes it.

use std::os::fd::AsFd;
use std::time::Duration;

use nomagic_sys::fds::{PollFd, PollFlags, poll};

use super::Worker;
use crate::config::Idle;
use crate::io::WorkerIo;
use crate::queue::Queue;

/// Longest sleep: well below the time a heartbeat stays fresh.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Longest sleep while fragments are held.
const SLEEP_WITH_FRAGMENTS: Duration = Duration::from_millis(1);

impl Worker {
    /// Sleeps if there is nothing to do and the configuration allows it.
    pub(super) fn idle(&mut self, frames: usize) {
        if frames > 0 || self.io.queues.iter().any(Queue::kick_due) {
            self.busy_ns = self.io.now_ns;
            return;
        }
        match self.idle {
            Idle::Sleep { after_us } if self.io.now_ns.saturating_sub(self.busy_ns) >= after_us * 1000 => self.sleep(),
            _ => std::hint::spin_loop(),
        }
    }

    fn sleep(&mut self) {
        let WorkerIo { queues, shared, .. } = &self.io;
        // A port that is down would wake this thread continuously.
        let listening: Vec<usize> = (0..queues.len()).filter(|q| !queues[*q].down).collect();
        let sockets = listening.iter().map(|q| queues[*q].fd()).chain([shared.waker.as_fd()]);
        let mut fds: Vec<PollFd<'_>> = sockets.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        shared.io.sleeps.add(1);
        shared.fall_asleep();
        let limit = match self.io.waiting() {
            true => Duration::ZERO,
            // Nobody wakes this worker when another one has the first fragment.
            false if !self.fragments.is_empty() => SLEEP_WITH_FRAGMENTS,
            false => SLEEP_MAX,
        };
        if poll(&mut fds, limit).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.wake_up();
        if fds.last().is_some_and(|waker| !waker.revents().is_empty()) {
            shared.waker.clear();
        }
        let is_lost = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let lost: Vec<usize> = listening.iter().zip(&fds).filter(|(_, fd)| is_lost(fd)).map(|(q, _)| *q).collect();
        for q in lost {
            self.io.queues[q].down = true;
        }
    }
}
