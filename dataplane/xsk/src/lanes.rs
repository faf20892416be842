//! Rings between workers: frames handed over to the owner of the outgoing queue, and free frames on their way back.
//!
//! Each ordered pair of workers has one [`Lane`] of two bounded single-producer, single-consumer rings. A full hand-over ring drops frames
//! with a reason; the return ring has room for all frames that could ever be on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use nomagic_core::frame::PortId;

use crate::queue::Origin;
use crate::shared::WorkerShared;
use crate::umem::Token;

/// A frame that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Handed {
    pub token: Token,
    pub port: PortId,
    /// The queue it was received on: frames of one queue stay in order.
    pub queue: u32,
    /// How the first worker counted it.
    pub origin: Origin,
}

/// The rings from one worker to another.
pub(crate) struct Lane {
    frames: ArrayQueue<Handed>,
    returns: ArrayQueue<Token>,
}

/// All lanes, by sender and receiver.
pub(crate) fn mesh(workers: usize, frames_max: usize, returns_max: usize) -> Vec<Vec<Arc<Lane>>> {
    let lane = || Arc::new(Lane { frames: ArrayQueue::new(frames_max), returns: ArrayQueue::new(returns_max) });
    (0..workers).map(|_| (0..workers).map(|_| lane()).collect()).collect()
}

/// Another worker, seen from this one.
pub(crate) struct Peer {
    to: Arc<Lane>,
    from: Arc<Lane>,
    shared: Arc<WorkerShared>,
    heartbeat: &'static AtomicU64,
    fresh_ns: u64,
    /// A frame was put on a lane since the peer was last woken.
    wake_due: bool,
}

impl Peer {
    pub fn new(to: Arc<Lane>, from: Arc<Lane>, shared: Arc<WorkerShared>, heartbeat: &'static AtomicU64, fresh_ns: u64) -> Peer {
        Peer { to, from, shared, heartbeat, fresh_ns, wake_due: false }
    }

    /// Whether its heartbeat is fresh.
    pub fn alive(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.heartbeat.load(Ordering::Relaxed)) <= self.fresh_ns
    }

    /// Hands it a frame to send. `Err` returns the frame: the lane is full.
    pub fn hand_over(&mut self, handed: Handed) -> Result<(), Handed> {
        self.to.frames.push(handed)?;
        self.wake_due = true;
        Ok(())
    }

    /// Takes a frame it has handed over.
    pub fn handed(&self) -> Option<Handed> {
        self.from.frames.pop()
    }

    /// Takes back a frame it has not taken yet.
    pub fn take_back(&self) -> Option<Handed> {
        self.to.frames.pop()
    }

    /// Returns one of its frames. `Err` gives the frame back.
    pub fn send_home(&mut self, token: Token) -> Result<(), Token> {
        self.to.returns.push(token)?;
        self.wake_due = true;
        Ok(())
    }

    /// Takes a frame of this worker that it has returned.
    pub fn returned(&self) -> Option<Token> {
        self.from.returns.pop()
    }

    /// Whether it has left frames for this worker.
    pub fn waiting(&self) -> bool {
        !self.from.frames.is_empty() || !self.from.returns.is_empty()
    }

    /// Wakes it if it sleeps while frames wait for it.
    pub fn wake(&mut self) {
        if !std::mem::take(&mut self.wake_due) {
            return;
        }
        // Pairs with the fence in `fall_asleep`: either the peer sees the pushed frame, or this thread sees that it sleeps.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed) {
            self.shared.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::pool;
    use nomagic_core::reason::Reason;
    use nomagic_sys::fds::{PollFd, PollFlags, poll};
    use std::time::Duration;

    fn pair(frames_max: usize) -> (Peer, Peer, &'static AtomicU64) {
        let lanes = mesh(2, frames_max, 8);
        let beat: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(1_000)));
        let shared = || Arc::new(WorkerShared::new(1).unwrap());
        let b_seen_by_a = Peer::new(lanes[0][1].clone(), lanes[1][0].clone(), shared(), beat, 100);
        let a_seen_by_b = Peer::new(lanes[1][0].clone(), lanes[0][1].clone(), shared(), beat, 100);
        (b_seen_by_a, a_seen_by_b, beat)
    }

    #[test]
    fn frames_are_handed_over_in_order_and_returned() {
        let (mut pool, (mut there, mut here, _)) = (pool(0, 8), pair(2));
        let mut handed = |queue| Handed { token: pool.take().unwrap(), port: PortId(1), queue, origin: Origin::Forward };
        there.hand_over(handed(0)).unwrap();
        there.hand_over(handed(1)).unwrap();
        let refused = there.hand_over(handed(2)).unwrap_err();
        assert_eq!(refused.queue, 2, "full");
        pool.give(refused.token);
        assert!(here.waiting() && !there.waiting());
        for queue in 0..2 {
            let frame = here.handed().unwrap();
            assert_eq!(frame.queue, queue);
            here.send_home(frame.token).unwrap();
        }
        assert!(here.handed().is_none() && there.waiting());
        std::iter::from_fn(|| there.returned()).for_each(|t| pool.give(t));
        assert_eq!(pool.free(), pool.total());
    }

    #[test]
    fn frames_a_dead_worker_has_not_taken_are_taken_back() {
        let (mut pool, (mut there, _here, beat)) = (pool(0, 8), pair(4));
        assert!(there.alive(1_100) && !there.alive(1_101));
        beat.store(1_050, Ordering::Relaxed);
        assert!(there.alive(1_101));
        let handed = Handed { token: pool.take().unwrap(), port: PortId(1), queue: 0, origin: Origin::Kernel(Reason::NotOurs) };
        there.hand_over(handed).unwrap();
        pool.give(there.take_back().unwrap().token);
        assert!(there.take_back().is_none() && pool.free() == pool.total());
    }

    #[test]
    fn a_sleeping_worker_is_woken_once() {
        let (mut pool, (mut there, _here, _)) = (pool(0, 8), pair(4));
        let shared = there.shared.clone();
        let woken = || poll(&mut [PollFd::new(&shared.waker, PollFlags::IN)], Duration::ZERO).unwrap() > 0;
        there.shared.fall_asleep();
        there.wake();
        assert!(!woken(), "nothing waits for it");
        there.send_home(pool.take().unwrap()).unwrap();
        there.wake();
        assert!(woken());
        there.shared.wake_up();
        there.shared.waker.clear();
        there.send_home(pool.take().unwrap()).unwrap();
        there.wake();
        assert!(!woken(), "it is awake");
    }
}
