//! One queue of one port: an AF_XDP socket with its four rings.
//!
//! Rings are touched only here. Descriptors that go onto a ring come from consumed tokens or free lists; descriptors that come off one
//! become tokens or return to the free list. So a frame is never in two places.
#![allow(unsafe_code, reason = "the rings of an AF_XDP socket")]

use std::os::fd::{AsRawFd, BorrowedFd};

use arrayvec::ArrayVec;
use nomagic_core::counters::{SendCounters, SendError};
use nomagic_core::frame::{BATCH_MAX, PortId};
use nomagic_core::reason::Reason;
use nomagic_sys::xdp_socket::{kick_rx, kick_tx};
use rustix::io::Errno;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::pool::FramePool;
use crate::umem::{RingId, Segments, Token};

/// Maximum number of frames that may be staged on one queue.
pub const STAGED_MAX: usize = 2 * BATCH_MAX;
/// `XDP_PKT_CONTD` of linux/if_xdp.h: the packet continues in the next descriptor.
const XDP_PKT_CONTD: u32 = 1;
/// Times that a full tx ring is kicked and checked again before its frames are given up.
const FLUSH_TRIES: u32 = 16;
/// Consecutive sendto() calls that stop early (EAGAIN) before the remaining frames wait for the next round.
const KICK_TRIES: u32 = 8;

/// How a staged frame was counted, so that the count can be corrected if it cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Forward,
    /// A frame for the kernel, with the reason.
    Kernel(Reason),
    /// A frame built here.
    Made,
    /// A frame handed over by another worker.
    Handed,
}

/// A staged packet that could not be sent: its frames are free again.
#[derive(Clone, Copy, Debug)]
pub struct Unsent {
    /// How it was counted.
    pub origin: Origin,
    /// Length of its data in bytes.
    pub len: usize,
}

/// The rings of a socket.
pub(crate) struct Rings {
    pub tx: TxQueue,
    pub rx: RxQueue,
    pub fill: FillQueue,
    pub comp: CompQueue,
}

/// The parts of a new [`Queue`].
pub(crate) struct QueueParts {
    pub port: PortId,
    /// Its index on the port.
    pub index: u32,
    /// The id of its pool.
    pub pool: usize,
    /// Identifies its rings, see [`RingId`].
    pub ring_id: RingId,
    /// Entries of each ring.
    pub ring_size: u32,
    /// The rings of a newly bound socket.
    pub rings: Rings,
}

/// A bound queue.
pub struct Queue {
    pub port: PortId,
    /// Its index on the port.
    pub index: u32,
    /// The id of its pool.
    pub pool: usize,
    /// Identifies its rings, see [`RingId`].
    pub ring_id: RingId,
    /// The last sendto() reported that the port is down or gone.
    pub down: bool,
    #[cfg(test)]
    kicked_instead: Option<std::net::UdpSocket>,
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// The number of frames to keep with the kernel for receiving, at most the ring size.
    fill_target: u32,
    ring_size: u32,
    /// Frames on the fill and rx rings.
    in_fill: u32,
    /// Frames on the tx and completion rings.
    in_tx: u32,
    /// The tx ring has frames that the kernel was not notified of.
    kick_due: bool,
    staged: ArrayVec<FrameDesc, STAGED_MAX>,
    /// Of each staged frame; `None` for those behind a packet's first one.
    origins: ArrayVec<Option<Unsent>, STAGED_MAX>,
    /// The frames of a packet whose others are still on the rx ring. They count as on it.
    incomplete: Segments,
    /// Bytes so far of a packet of too many frames, whose others are still on the rx ring.
    too_long: Option<usize>,
    /// Scratch buffer for descriptors that come off a ring; meaningless between calls.
    taken: [FrameDesc; BATCH_MAX],
}

/// The socket of a tx ring.
pub(crate) fn socket_of(tx: &TxQueue) -> BorrowedFd<'_> {
    // SAFETY: the ring keeps its socket open. xsk-rs returns only the raw descriptor.
    unsafe { BorrowedFd::borrow_raw(tx.fd().as_raw_fd()) }
}

impl Queue {
    /// With empty rings.
    pub(crate) fn new(QueueParts { port, index, pool, ring_id, ring_size, rings }: QueueParts) -> Queue {
        let Rings { tx, rx, fill, comp } = rings;
        Queue {
            port,
            index,
            pool,
            ring_id,
            down: false,
            #[cfg(test)]
            kicked_instead: None,
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
            incomplete: ArrayVec::new(),
            too_long: None,
            taken: [FrameDesc::default(); BATCH_MAX],
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        socket_of(&self.tx)
    }

    /// Limits the frames on the fill ring, for pools with fewer frames than all fill rings could hold.
    pub fn limit_fill(&mut self, frames: u32) {
        self.fill_target = frames.min(self.ring_size);
    }

    /// The numbers of frames with the kernel: `(for receiving, for sending)`.
    pub fn outstanding(&self) -> (u32, u32) {
        (self.in_fill, self.in_tx + self.staged.len() as u32)
    }

    /// Whether the kernel must be notified of frames to send.
    pub fn kick_due(&self) -> bool {
        self.kick_due
    }

    /// Frees sent frames.
    pub fn complete(&mut self, pool: &mut FramePool) {
        if self.in_tx == 0 {
            return;
        }
        loop {
            // SAFETY: the ring belongs to this pool's UMEM; its descriptors are used only as frames of this pool.
            let n = unsafe { self.comp.consume(&mut self.taken) };
            self.taken[..n].iter().for_each(|d| pool.complete(*d, self.ring_id));
            self.in_tx -= n as u32;
            if n < self.taken.len() {
                return;
            }
        }
    }

    /// Fills the fill ring up to its target with free frames.
    pub fn refill(&mut self, pool: &mut FramePool) {
        // In chunks: a few frames are not worth a write to the shared ring.
        while self.fill_target.saturating_sub(self.in_fill) >= BATCH_MAX as u32 / 2 {
            let wanted = ((self.fill_target.saturating_sub(self.in_fill)) as usize).min(BATCH_MAX);
            let mut descs: ArrayVec<FrameDesc, BATCH_MAX> = ArrayVec::new();
            while descs.len() < wanted
                && let Some(desc) = pool.take_desc()
            {
                descs.push(desc);
            }
            pool.put(&descs, self.ring_id);
            // SAFETY: the frames come from this pool's free list, and the ring belongs to its UMEM.
            let n = unsafe { self.fill.produce(&descs) };
            pool.take_off(&descs[n..], self.ring_id);
            descs[n..].iter().for_each(|d| pool.give_up(*d));
            self.in_fill += n as u32;
            if n < wanted {
                break;
            }
        }
        if self.fill.needs_wakeup() && !self.down {
            // Errors mean that the port is down; the next transmission counts that.
            let _ = kick_rx(self.fd());
        }
    }

    /// Takes up to `max` frames off the rx ring, and calls `take` for each packet that they complete. Frees the frames of a packet that has too
    /// many, and calls `drop` with its length. Returns the number of frames.
    pub fn receive(
        &mut self,
        pool: &mut FramePool,
        max: usize,
        mut take: impl FnMut(&FramePool, Token),
        mut drop: impl FnMut(usize),
    ) -> usize {
        let max = max.min(BATCH_MAX);
        // SAFETY: the ring belongs to this pool's UMEM; each frame that comes off it becomes part of one token of this pool.
        let n = unsafe { self.rx.consume(&mut self.taken[..max]) };
        for at in 0..n {
            let desc = self.taken[at];
            if desc.has_more_frames() || !self.incomplete.is_empty() || self.too_long.is_some() {
                self.gather(pool, desc, &mut take, &mut drop);
            } else {
                self.in_fill -= 1;
                take(pool, pool.token_of(desc, self.ring_id));
            }
        }
        n
    }

    /// Takes a frame of a packet of several frames.
    #[cold]
    fn gather(&mut self, pool: &mut FramePool, desc: FrameDesc, take: &mut impl FnMut(&FramePool, Token), drop: &mut impl FnMut(usize)) {
        let is_last = !desc.has_more_frames();
        if self.incomplete.is_full() || self.too_long.is_some() {
            let dropped = self.incomplete.drain(..).chain([desc]).map(|desc| {
                self.in_fill -= 1;
                pool.complete(desc, self.ring_id);
                desc.lengths().data()
            });
            let bytes = self.too_long.take().unwrap_or(0) + dropped.sum::<usize>();
            match is_last {
                true => drop(bytes),
                false => self.too_long = Some(bytes),
            }
            return;
        }
        self.incomplete.push(desc);
        if is_last {
            self.in_fill -= self.incomplete.len() as u32;
            let mut frames = self.incomplete.drain(..).map(|desc| pool.token_of(desc, self.ring_id));
            if let Some(mut packet) = frames.next() {
                frames.for_each(|frame| packet.append(frame));
                take(pool, packet);
            }
        }
    }

    /// Stages a packet for the next [`Queue::flush`]. Returns it if there is no room.
    pub fn stage(&mut self, token: Token, origin: Origin) -> Result<(), Token> {
        if self.staged.remaining_capacity() < token.segments() {
            return Err(token);
        }
        let len = token.total_len();
        let (mut first, rest) = token.into_descs();
        first.set_options(0);
        self.staged.push(first);
        self.origins.push(Some(Unsent { origin, len }));
        if let Some(rest) = rest {
            self.stage_rest(&rest);
        }
        Ok(())
    }

    /// Stages the frames behind a packet's first one.
    #[cold]
    fn stage_rest(&mut self, rest: &Segments) {
        for desc in rest {
            if let Some(before) = self.staged.last_mut() {
                before.set_options(XDP_PKT_CONTD);
            }
            let mut desc = *desc;
            desc.set_options(0);
            self.staged.push(desc);
            self.origins.push(None);
        }
    }

    /// Of the first `n` staged frames, those that make up whole packets.
    fn whole_packets(&self, n: usize) -> usize {
        self.staged[..n].iter().rposition(|desc| !desc.has_more_frames()).map_or(0, |last| last + 1)
    }

    /// Puts the staged frames onto the tx ring. While the ring is full, kicks the kernel and frees sent frames, a bounded number of times; then
    /// gives the remaining frames up and returns them.
    pub fn flush(&mut self, pool: &mut FramePool, sends: &SendCounters) -> ArrayVec<Unsent, STAGED_MAX> {
        let mut unsent = ArrayVec::new();
        let mut tries = 0;
        while !self.staged.is_empty() && !self.down {
            let wanted = self.staged.len() as u32;
            let room = self.tx.nb_free(wanted).min(wanted) as usize;
            let n = self.whole_packets(room);
            pool.put(&self.staged[..n], self.ring_id);
            // SAFETY: staged descriptors come from consumed tokens of the pool whose UMEM the ring belongs to.
            let sent = unsafe { self.tx.produce(&self.staged[..n]) };
            debug_assert_eq!(sent, n, "free places are not taken by others");
            pool.take_off(&self.staged[sent..n], self.ring_id);
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
        unsent.extend(self.origins.drain(..).flatten());
        self.staged.drain(..).for_each(|desc| pool.give_up(desc));
        unsent
    }

    /// Makes the kernel send, if it must be notified.
    pub fn kick(&mut self, pool: &mut FramePool, sends: &SendCounters) {
        if !self.kick_due {
            return;
        }
        if !self.tx.needs_wakeup() {
            self.kick_due = false;
            return;
        }
        for _ in 0..KICK_TRIES {
            sends.calls.add(1);
            let Err(error) = self.kick_socket() else {
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
                    // Frames on the ring are sent when the port is up again; see `probe`.
                    self.kick_due = false;
                    self.down = true;
                    return;
                }
                _ => return sends.errors.of(SendError::Other).add(1),
            }
            self.complete(pool);
        }
    }

    fn kick_socket(&self) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(socket) = &self.kicked_instead {
            return kick_tx(socket);
        }
        kick_tx(self.fd())
    }

    /// From now on, kicks this socket instead of the queue's own.
    #[cfg(test)]
    pub(crate) fn kick_instead(&mut self, socket: std::net::UdpSocket) {
        self.kicked_instead = Some(socket);
    }

    /// Checks whether a port that was down is up again.
    pub fn probe(&mut self, pool: &mut FramePool, sends: &SendCounters) {
        if self.down {
            self.kick_due = true;
            self.kick(pool, sends);
        }
    }
}
