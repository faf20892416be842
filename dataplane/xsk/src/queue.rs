//! One queue of one port: an AF_XDP socket with its four rings.
//!
//! The only place that touches rings. Descriptors that go onto a ring come from consumed tokens or free lists, those that
//! come off one become tokens or return to the free list, so a frame is never in two places.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use arrayvec::ArrayVec;
use nomagic_core::counters::{SendCounters, SendError};
use nomagic_core::frame::{BATCH_MAX, PortId};
use nomagic_core::reason::Reason;
use nomagic_sys::xdp_socket::{kick_rx, kick_tx};
use rustix::io::Errno;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::pool::Pool;
use crate::umem::{Place, Token};

/// Frames that one batch may leave for one queue.
pub const STAGED_MAX: usize = 2 * BATCH_MAX;
/// Times that a full transmit ring is kicked and looked at again before its frames are given up.
const FLUSH_TRIES: u32 = 16;
/// sendto() calls in a row that stop early (EAGAIN) before the rest waits for the next round.
const KICK_TRIES: u32 = 8;

/// What a staged frame was counted as, to take it back when it cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A forwarded frame.
    Forward,
    /// A frame for the kernel, for this reason.
    Kernel(Reason),
    /// A frame made here.
    Made,
    /// Another worker's frame.
    Handed,
}

/// A staged frame that could not be sent: its frame is free again.
#[derive(Clone, Copy, Debug)]
pub struct Unsent {
    /// What it was.
    pub origin: Origin,
    /// Bytes of it.
    pub len: usize,
}

/// The rings of a socket.
pub(crate) struct Rings {
    pub tx: TxQueue,
    pub rx: RxQueue,
    pub fill: FillQueue,
    pub comp: CompQueue,
}

/// What a queue is made of.
pub(crate) struct QueueParts {
    pub port: PortId,
    /// Its number on the port.
    pub index: u32,
    /// The number of its pool.
    pub pool: usize,
    /// What its rings are called in the account of frames.
    pub place: Place,
    /// Entries of each ring.
    pub ring_size: u32,
    /// Those of a freshly bound socket.
    pub rings: Rings,
}

/// A bound queue.
pub struct Queue {
    /// Its port.
    pub port: PortId,
    /// Number of the queue on the port.
    pub index: u32,
    /// The number of its pool.
    pub pool: usize,
    /// What its rings are called in the account of frames.
    pub place: Place,
    /// The last sendto() said that the port is down or gone.
    pub down: bool,
    #[cfg(test)]
    told_instead: Option<std::net::UdpSocket>,
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// Frames that are kept with the kernel for receiving, at most the size of the ring.
    fill_target: u32,
    ring_size: u32,
    /// Frames on the fill and rx rings.
    in_fill: u32,
    /// Frames on the tx and completion rings.
    in_tx: u32,
    /// Frames are on the tx ring that the kernel was not told about.
    kick_due: bool,
    staged: ArrayVec<FrameDesc, STAGED_MAX>,
    origins: ArrayVec<Origin, STAGED_MAX>,
    /// Where descriptors that come off a ring are read into; what is in it between two calls means nothing.
    taken: [FrameDesc; BATCH_MAX],
}

/// The socket that a ring is of.
pub(crate) fn socket_of(tx: &TxQueue) -> BorrowedFd<'_> {
    // SAFETY: the ring keeps its socket open. xsk-rs gives the number only.
    unsafe { BorrowedFd::borrow_raw(tx.fd().as_raw_fd()) }
}

impl Queue {
    /// With empty rings.
    pub(crate) fn new(QueueParts { port, index, pool, place, ring_size, rings }: QueueParts) -> Queue {
        let Rings { tx, rx, fill, comp } = rings;
        Queue {
            port,
            index,
            pool,
            place,
            down: false,
            #[cfg(test)]
            told_instead: None,
            tx,
            rx,
            fill,
            comp,
            fill_target: ring_size,
            ring_size,
            in_fill: 0,
            in_tx: 0,
            kick_due: false,
            staged: ArrayVec::new(),
            origins: ArrayVec::new(),
            taken: [FrameDesc::default(); BATCH_MAX],
        }
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        socket_of(&self.tx)
    }

    /// Limits the frames that wait for data, when there are fewer than all fill rings could take.
    pub fn limit_fill(&mut self, frames: u32) {
        self.fill_target = frames.min(self.ring_size);
    }

    /// Frames that are with the kernel: `(for receiving, for sending)`.
    pub fn outstanding(&self) -> (u32, u32) {
        (self.in_fill, self.in_tx + self.staged.len() as u32)
    }

    /// Whether the kernel must be told about frames to send.
    pub fn kick_due(&self) -> bool {
        self.kick_due
    }

    /// Takes sent frames back.
    pub fn complete(&mut self, pool: &mut Pool) {
        if self.in_tx == 0 {
            return;
        }
        loop {
            // SAFETY: the ring belongs to this pool's UMEM; what comes off it is used as frames of this pool only.
            let n = unsafe { self.comp.consume(&mut self.taken) };
            self.taken[..n].iter().for_each(|d| pool.complete(*d, self.place));
            self.in_tx -= n as u32;
            if n < self.taken.len() {
                return;
            }
        }
    }

    /// Gives the kernel free frames to receive into, up to the size of the ring.
    pub fn refill(&mut self, pool: &mut Pool) {
        // In chunks: a few frames are not worth a store to shared memory.
        while self.fill_target.saturating_sub(self.in_fill) >= BATCH_MAX as u32 / 2 {
            let wanted = ((self.fill_target.saturating_sub(self.in_fill)) as usize).min(BATCH_MAX);
            let mut descs: ArrayVec<FrameDesc, BATCH_MAX> = ArrayVec::new();
            while descs.len() < wanted
                && let Some(desc) = pool.take_desc()
            {
                descs.push(desc);
            }
            pool.put(&descs, self.place);
            // SAFETY: the frames come from this pool's free list, and the ring belongs to its UMEM.
            let n = unsafe { self.fill.produce(&descs) };
            pool.take_off(&descs[n..], self.place);
            descs[n..].iter().for_each(|d| pool.give_up(*d));
            self.in_fill += n as u32;
            if n < wanted {
                break;
            }
        }
        if self.fill.needs_wakeup() && !self.down {
            // Errors say that the port is down, which the next transmission counts.
            let _ = kick_rx(self.fd());
        }
    }

    /// Received frames, up to `max`: calls `take` for each.
    pub fn receive(&mut self, pool: &Pool, max: usize, mut take: impl FnMut(Token)) -> usize {
        let max = max.min(BATCH_MAX);
        // SAFETY: the ring belongs to this pool's UMEM; each frame that comes off it becomes one token of this pool.
        let n = unsafe { self.rx.consume(&mut self.taken[..max]) };
        self.in_fill -= n as u32;
        self.taken[..n].iter().for_each(|d| take(pool.token_of(*d, self.place)));
        n
    }

    /// Leaves a placed frame for the next [`Queue::flush`]. Gives it back when there is no room.
    pub fn stage(&mut self, token: Token, origin: Origin) -> Result<(), Token> {
        if self.staged.is_full() {
            return Err(token);
        }
        self.staged.push(token.into_desc());
        self.origins.push(origin);
        Ok(())
    }

    /// Puts what is staged onto the ring. When the ring is full the kernel is kicked and asked for completions a bounded
    /// number of times; what is left then is given up.
    pub fn flush(&mut self, pool: &mut Pool, sends: &SendCounters) -> ArrayVec<Unsent, STAGED_MAX> {
        let mut unsent = ArrayVec::new();
        let mut tries = 0;
        while !self.staged.is_empty() && !self.down {
            let wanted = self.staged.len() as u32;
            let n = self.tx.nb_free(wanted).min(wanted) as usize;
            pool.put(&self.staged[..n], self.place);
            // SAFETY: staged descriptors come from consumed tokens of the pool whose UMEM the ring belongs to.
            let sent = unsafe { self.tx.produce(&self.staged[..n]) };
            pool.take_off(&self.staged[sent..n], self.place);
            let n = sent;
            self.staged.drain(..n);
            self.origins.drain(..n);
            self.in_tx += n as u32;
            self.kick_due |= n > 0;
            if self.staged.is_empty() || tries == FLUSH_TRIES {
                break;
            }
            tries += 1;
            self.kick_due = true;
            self.kick(pool, sends);
            self.complete(pool);
        }
        for (desc, origin) in self.staged.drain(..).zip(self.origins.drain(..)) {
            unsent.push(Unsent { origin, len: desc.lengths().data() });
            pool.give_up(desc);
        }
        unsent
    }

    /// Tells the kernel to send, if it must be told.
    pub fn kick(&mut self, pool: &mut Pool, sends: &SendCounters) {
        if !self.kick_due {
            return;
        }
        if !self.tx.needs_wakeup() {
            self.kick_due = false;
            return;
        }
        for _ in 0..KICK_TRIES {
            sends.calls.add(1);
            let Err(error) = self.tell_kernel() else {
                self.kick_due = false;
                self.down = false;
                return;
            };
            match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => sends.again.add(1),
                Some(Errno::BUSY) => return sends.errors.of(SendError::Busy).add(1),
                Some(Errno::NOBUFS) => return sends.errors.of(SendError::NoBuffers).add(1),
                Some(Errno::NETDOWN | Errno::NXIO | Errno::NODEV | Errno::BADF | Errno::INVAL) => {
                    sends.errors.of(SendError::Down).add(1);
                    // What is on the ring is sent when the port is back; see `probe`.
                    self.kick_due = false;
                    self.down = true;
                    return;
                }
                _ => return sends.errors.of(SendError::Other).add(1),
            }
            self.complete(pool);
        }
    }

    fn tell_kernel(&self) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(socket) = &self.told_instead {
            return kick_tx(socket);
        }
        kick_tx(self.fd())
    }

    /// From now on this socket is told to send in place of the queue's own.
    #[cfg(test)]
    pub(crate) fn tell_instead(&mut self, socket: std::net::UdpSocket) {
        self.told_instead = Some(socket);
    }

    /// Looks whether a port that was down is back.
    pub fn probe(&mut self, pool: &mut Pool, sends: &SendCounters) {
        if self.down {
            self.kick_due = true;
            self.kick(pool, sends);
        }
    }
}
