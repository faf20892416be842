//! A worker's state that other threads read, and the commands it receives.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam::channel::Sender;
use nomagic_core::counters::{Counters, IoCounters, NeighbourCounters, SendCounters};
use nomagic_core::events::{Event, EventKind, EventRing};
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_sys::fds::Waker;

use crate::latency::Latencies;
use crate::pool::FrameAccount;
use crate::queue::Queue;
use crate::taps::TapSession;
use crate::umem::Token;

/// A command from the edge to a worker. The worker answers or acknowledges it on the channel it carries.
pub(crate) enum WorkerCommand {
    /// Serve these queues from now on.
    Add(Vec<Queue>, Sender<()>),
    /// Return the queues of a port, with their sockets open and their rings as they are.
    Remove(PortId, Sender<Vec<Queue>>),
    /// Watch packets for this tap.
    Tap(TapSession),
    /// Take back these frames of this worker, which were on the rings of a closed queue.
    Reclaimed(Vec<Token>),
}

/// A worker's state that other threads read.
pub(crate) struct WorkerShared {
    pub counters: Counters,
    pub io: IoCounters,
    pub sends: SendCounters,
    pub neighbours: NeighbourCounters,
    pub latencies: Latencies,
    /// Its last events. The packet path records there as well, on the same thread.
    pub events: Arc<EventRing>,
    /// The frame accounts, by pool, as of the last housekeeping.
    pub accounts: Mutex<Vec<FrameAccount>>,
    /// Held frames.
    pub held: AtomicU64,
    pub waker: Waker,
    /// In poll(2), or about to call it.
    pub sleeping: AtomicBool,
    pub stop: AtomicBool,
    pub alive: AtomicBool,
}

impl WorkerShared {
    /// With room for this many (Service port, backend) pairs.
    pub fn new(targets_max: usize) -> io::Result<WorkerShared> {
        Ok(WorkerShared {
            counters: Counters::new(targets_max),
            io: IoCounters::default(),
            sends: SendCounters::default(),
            neighbours: NeighbourCounters::default(),
            latencies: Latencies::default(),
            events: Arc::default(),
            accounts: Mutex::new(Vec::new()),
            held: AtomicU64::new(0),
            waker: Waker::new()?,
            sleeping: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            alive: AtomicBool::new(true),
        })
    }

    /// Records that a frame was dropped after its verdict, or without one. Only the worker may call it.
    pub fn record_drop(&self, now_ns: u64, reason: Reason, bytes: usize) {
        let frame = (PortId::NONE, bytes);
        self.events.record(&Event::of_packet(now_ns / 1_000_000, EventKind::Dropped(reason), None, frame));
    }

    /// Call it before the last check of the lanes: frames put there afterwards wake this worker.
    pub fn fall_asleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        // See `Peer::wake`.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Call it after poll(2).
    pub fn wake_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
