//! What a worker shows to other threads, and how they talk to it.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::Sender;
use nomagic_core::counters::{Counters, IoCounters, NeighbourCounters, SendCounters};
use nomagic_core::frame::PortId;
use nomagic_sys::fds::Waker;

use crate::pool::FrameAccount;
use crate::queue::Queue;
use crate::umem::Token;

/// What the edge tells a worker. Each is answered or acknowledged by a message on the channel it carries.
pub(crate) enum Command {
    /// Queues to serve from now on.
    Add(Vec<Queue>, Sender<()>),
    /// Give up the queues of a port: they come back, with their sockets open and their rings as they are.
    Remove(PortId, Sender<Vec<Queue>>),
    /// Frames of this worker that were on the rings of a closed queue.
    Reclaimed(Vec<Token>),
}

/// What a worker shows to other threads.
pub(crate) struct Shared {
    pub counters: Counters,
    pub io: IoCounters,
    pub sends: SendCounters,
    pub neighbours: NeighbourCounters,
    /// Where the frames are, by pool, as of the last housekeeping.
    pub accounts: Mutex<Vec<FrameAccount>>,
    /// Held frames.
    pub held: AtomicU64,
    pub waker: Waker,
    /// In poll(2), or about to be.
    pub sleeping: AtomicBool,
    pub stop: AtomicBool,
    pub alive: AtomicBool,
}

impl Shared {
    /// With room for this many (Service port, backend) pairs.
    pub fn new(targets_max: usize) -> io::Result<Shared> {
        Ok(Shared {
            counters: Counters::new(targets_max),
            io: IoCounters::default(),
            sends: SendCounters::default(),
            neighbours: NeighbourCounters::default(),
            accounts: Mutex::new(Vec::new()),
            held: AtomicU64::new(0),
            waker: Waker::new()?,
            sleeping: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            alive: AtomicBool::new(true),
        })
    }

    /// To be called before the last look at what other workers have left: whatever they leave later wakes this one.
    pub fn fall_asleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        // See `Peer::wake`.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// After poll(2).
    pub fn wake_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
