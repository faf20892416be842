//! Taps on the workers: packets that fit a filter, with the bytes before and after the rewrite and the decisions about them.
//!
//! A tap is opened by the control thread and ends by itself: when its time is over, or when its receiver is dropped. Workers never wait for a reader; what
//! does not fit its queue is counted. Other packets pay for the question whether they fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam::channel::{Receiver, Sender, bounded};
use nomagic_core::frame::{Frame, NextHopId, PortId, Verdict};
use nomagic_core::tap::{FlowView, Notes, PacketFilter, Tap};

/// Maximum number of taps at a time.
pub const TAPS_MAX: usize = 4;
/// Maximum number of bytes of a packet that a tap keeps.
pub const SNAP_LEN_MAX: usize = 65_535;
/// Bytes that wait for a tap's reader at the most.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Packets that wait for a tap's reader at the most.
const WAITING_PACKETS_MAX: usize = 8_192;
const NS_PER_S: u64 = 1_000_000_000;

/// What a tap watches.
#[derive(Clone, Debug)]
pub struct TapOptions {
    pub filter: PacketFilter,
    /// Bytes of each packet that are kept.
    pub snap_len: usize,
    /// Packets that are watched in a second at the most, by all workers together.
    pub packets_per_s: u32,
    /// How long it lasts at the most.
    pub lasts: Duration,
}

/// A packet that was watched.
#[derive(Clone, Debug)]
pub struct TapPacket {
    /// Nanoseconds of the workers' clock.
    pub at_ns: u64,
    pub worker: u32,
    /// The port that received it.
    pub port: PortId,
    /// It was held before.
    pub resubmitted: bool,
    pub received: Snap,
    /// As it is sent, and by which port; for the kernel by the internal one. `None`: it is not sent, or held.
    pub sent: Option<(PortId, Snap)>,
    /// The answer to its sender, and the port by which it is sent.
    pub answer: Option<(PortId, Snap)>,
    pub verdict: Verdict,
    pub notes: Notes,
}

/// The beginning of a frame.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Snap {
    pub bytes: Vec<u8>,
    /// Bytes of the whole frame.
    pub len: usize,
}

impl Snap {
    fn of(frame: &Frame<'_>, snap_len: usize) -> Snap {
        let mut bytes = Vec::with_capacity(frame.total_len().min(snap_len));
        for part in [frame.head()].into_iter().chain(frame.tail().iter().copied()) {
            bytes.extend_from_slice(&part[..part.len().min(snap_len - bytes.len())]);
        }
        Snap { bytes, len: frame.total_len() }
    }
}

/// What a tap has seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TapCounts {
    /// Packets that fit the filter.
    pub matched: u64,
    /// Packets that were not watched because of the limit for a second.
    pub limited: u64,
    /// Packets that found the reader's queue full.
    pub missed: u64,
}

#[derive(Default, Debug)]
struct Shared {
    matched: AtomicU64,
    limited: AtomicU64,
    missed: AtomicU64,
    /// The second, and the packets in it: `second << 32 | packets`.
    window: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    /// Takes one of a second's packets.
    fn take(&self, now_ns: u64, packets_per_s: u32) -> bool {
        let second = (now_ns / NS_PER_S) << 32;
        let taken = self.window.fetch_update(Relaxed, Relaxed, |window| match window >= second {
            true => ((window as u32) < packets_per_s).then_some(window + 1),
            false => Some(second + 1),
        });
        taken.is_ok()
    }
}

impl Shared {
    /// Gives one of a second's packets back.
    fn give_back(&self) {
        let _ = self.window.fetch_update(Relaxed, Relaxed, |window| (window as u32 > 0).then(|| window - 1));
    }
}

/// The reader's end of a tap. Dropping it ends the tap.
#[derive(Debug)]
pub struct TapReader {
    packets: Receiver<TapPacket>,
    shared: Arc<Shared>,
}

impl TapReader {
    /// The next packet that waits.
    pub fn next(&self) -> Option<TapPacket> {
        self.packets.try_recv().ok()
    }

    pub fn counts(&self) -> TapCounts {
        let Shared { matched, limited, missed, .. } = &*self.shared;
        TapCounts { matched: matched.load(Relaxed), limited: limited.load(Relaxed), missed: missed.load(Relaxed) }
    }
}

impl Drop for TapReader {
    fn drop(&mut self) {
        self.shared.closed.store(true, Relaxed);
    }
}

/// A worker's end of a tap.
#[derive(Clone, Debug)]
pub(crate) struct TapSession {
    options: Arc<TapOptions>,
    ends_ns: u64,
    packets: Sender<TapPacket>,
    shared: Arc<Shared>,
}

/// Both ends of a tap that begins now.
pub(crate) fn open(mut options: TapOptions, now_ns: u64) -> (TapSession, TapReader) {
    options.snap_len = options.snap_len.clamp(1, SNAP_LEN_MAX);
    options.packets_per_s = options.packets_per_s.max(1);
    let waiting_max = (WAITING_BYTES_MAX / (3 * options.snap_len)).clamp(1, WAITING_PACKETS_MAX);
    let (sender, packets) = bounded(waiting_max);
    let shared = Arc::new(Shared::default());
    let ends_ns = now_ns.saturating_add(options.lasts.as_nanos().try_into().unwrap_or(u64::MAX));
    (TapSession { options: Arc::new(options), ends_ns, packets: sender, shared: shared.clone() }, TapReader { packets, shared })
}

/// The taps on one worker.
#[derive(Default, Debug)]
pub(crate) struct WorkerTaps {
    worker: u32,
    now_ns: u64,
    sessions: ArrayVec<TapSession, TAPS_MAX>,
    /// The sessions that want the packet, by bit.
    wanted: u32,
    received: Snap,
}

impl WorkerTaps {
    pub fn of_worker(worker: u32) -> WorkerTaps {
        WorkerTaps { worker, ..WorkerTaps::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Adds a tap. If there are too many, the oldest one ends.
    pub fn add(&mut self, session: TapSession) {
        self.sessions.retain(|session| !session.shared.closed.load(Relaxed));
        if self.sessions.is_full() {
            self.sessions.remove(0);
        }
        self.sessions.push(session);
    }

    /// Removes taps that have ended.
    pub fn tend(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.sessions.retain(|session| now_ns < session.ends_ns && !session.shared.closed.load(Relaxed));
    }

    /// The sessions that want the packet.
    fn wanting(&self) -> impl Iterator<Item = &TapSession> {
        self.sessions.iter().enumerate().filter(|(at, _)| self.wanted & (1 << at) != 0).map(|(_, session)| session)
    }
}

impl Tap for WorkerTaps {
    fn wants(&mut self, view: &FlowView<'_, '_>, frame: &Frame<'_>) -> bool {
        self.wanted = 0;
        for (at, session) in self.sessions.iter().enumerate() {
            if session.options.filter.fits(view) {
                session.shared.matched.fetch_add(1, Relaxed);
                match session.shared.take(self.now_ns, session.options.packets_per_s) {
                    true => self.wanted |= 1 << at,
                    false => drop(session.shared.limited.fetch_add(1, Relaxed)),
                }
            }
        }
        if self.wanted != 0 {
            let longest = self.wanting().map(|session| session.options.snap_len).max();
            self.received = Snap::of(frame, longest.unwrap_or(0));
        }
        self.wanted != 0
    }

    fn judged(&mut self, frame: &Frame<'_>, verdict: &Verdict, notes: &Notes, made: &[(Frame<'_>, PortId, NextHopId)]) {
        let sent_by = match *verdict {
            Verdict::Forward(port, _) | Verdict::Fragment(port, ..) => Some(port),
            Verdict::Kernel(_) => Some(PortId::NONE),
            Verdict::Drop(_) | Verdict::Hold(_) => None,
        };
        for session in self.wanting() {
            let TapOptions { filter, snap_len, .. } = &*session.options;
            // Only now the endpoint of a new flow is known.
            if filter.backend.is_some() && !notes.endpoint().is_some_and(|(addr, port)| filter.has_backend(addr, port)) {
                session.shared.matched.fetch_sub(1, Relaxed);
                session.shared.give_back();
                continue;
            }
            let kept = self.received.bytes.len().min(*snap_len);
            let received = Snap { bytes: self.received.bytes[..kept].to_vec(), len: self.received.len };
            let packet = TapPacket {
                at_ns: self.now_ns,
                worker: self.worker,
                port: frame.port,
                resubmitted: frame.resubmitted,
                received,
                sent: sent_by.map(|port| (port, Snap::of(frame, *snap_len))),
                answer: made.first().map(|(answer, port, _)| (*port, Snap::of(answer, *snap_len))),
                verdict: *verdict,
                notes: notes.clone(),
            };
            if session.packets.try_send(packet).is_err() {
                session.shared.missed.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
