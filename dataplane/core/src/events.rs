//! The last events of a worker: what the slow path did, in a ring that any thread may read meanwhile.
//!
//! One thread writes, never waits and allocates nothing; a new event takes the place of the oldest one. A reader names the event to go on with, and is
//! told how many it has missed. Each place has a sequence number, odd while its event is written (a seqlock), so no reader sees half of an event.

mod record;

use record::{RECORD_WORDS, Words, decode, encode};

use crate::conntrack::{Direction, Flow, Hit, PhaseKind};
use crate::frame::PortId;
use crate::reason::Reason;
use crate::reject::Answer;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::Tuple;

/// Events that a worker's ring keeps.
pub const EVENTS_MAX: usize = 4_096;

/// Something that happened to a flow or to a packet that opened none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, milliseconds of the workers' clock.
    pub at_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// The client's packet, if there is a flow; else the packet as it came in. `None`: it could not be read.
    pub packet: Option<Tuple>,
    /// The client's packet as the backend gets it. `None`: there is no flow.
    pub rewritten: Option<Tuple>,
    /// The port that received the frame, [`PortId::NONE`] if there was none.
    pub port: PortId,
    /// Bytes of the frame, 0 if there was none.
    pub bytes: u32,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A flow was created, in this phase.
    New(PhaseKind),
    /// A flow has another phase now.
    Changed(PhaseKind),
    /// A flow, in this phase, has ended.
    Ended(EndCause, PhaseKind),
    /// A packet was refused. Its sender was told, unless limits forbade it (`sent` is false).
    Rejected {
        /// Why.
        reason: Reason,
        /// How.
        told: Told,
        /// Whether the answer was sent.
        sent: bool,
    },
    /// A packet was dropped in silence.
    Dropped(Reason),
    /// A packet waits.
    Held(HeldFor),
    /// A packet was left to the kernel.
    Kernel(Reason),
    /// An ICMP error about a flow was translated and sent on.
    IcmpError,
}

/// Why a flow has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EndCause {
    /// No packet came for the time that its phase has.
    TimedOut,
    /// Its client opens a new connection from the same address and port.
    Replaced,
    /// A full table made room.
    Evicted,
    /// Its source port was needed for a new flow.
    PortReclaimed,
    /// Its endpoint no longer serves (UDP).
    EndpointGone,
    /// A person has ended it.
    Command,
}

impl EndCause {
    /// All causes.
    pub const ALL: [EndCause; 6] =
        [EndCause::TimedOut, EndCause::Replaced, EndCause::Evicted, EndCause::PortReclaimed, EndCause::EndpointGone, EndCause::Command];
}

/// What a refused packet's sender was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Told {
    /// An ICMP error.
    Icmp,
    /// A TCP reset.
    Reset,
    /// An SCTP ABORT.
    Abort,
}

impl From<Answer> for Told {
    fn from(answer: Answer) -> Told {
        match answer {
            Answer::Icmp(_) => Told::Icmp,
            Answer::Reset => Told::Reset,
            Answer::Abort => Told::Abort,
        }
    }
}

/// What a packet waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum HeldFor {
    /// The link-layer address of the next hop.
    Neighbour,
    /// Other fragments of its datagram.
    Fragments,
}

impl Event {
    /// An event of a flow, without a frame.
    pub fn of_flow(at_ms: u64, kind: EventKind, flow: &Flow) -> Event {
        let (packet, rewritten) = (Some(flow.original()), Some(flow.reply().reversed()));
        Event { at_ms, kind, packet, rewritten, port: PortId::NONE, bytes: 0 }
    }

    /// An event of a packet that belongs to no flow.
    pub fn of_packet(at_ms: u64, kind: EventKind, packet: Option<Tuple>, (port, bytes): (PortId, usize)) -> Event {
        Event { at_ms, kind, packet, rewritten: None, port, bytes: bytes as u32 }
    }

    /// An event of the flow that a packet belongs to.
    pub(crate) fn of_hit(at_ms: u64, kind: EventKind, (packet, hit): (&Tuple, &Hit), (port, bytes): (PortId, usize)) -> Event {
        let (original, rewritten) = ends(packet, hit);
        Event { at_ms, kind, packet: Some(original), rewritten: Some(rewritten), port, bytes: bytes as u32 }
    }
}

/// The client's packet, and that packet as the endpoint gets it, of the flow that a packet belongs to.
pub(crate) fn ends(packet: &Tuple, hit: &Hit) -> (Tuple, Tuple) {
    match hit.direction {
        Direction::Original => (*packet, hit.new),
        Direction::Reply => (hit.new.reversed(), packet.reversed()),
    }
}

/// One place of the ring: its sequence number and an event.
#[repr(align(64))]
struct Place {
    sequence: AtomicU64,
    words: [AtomicU64; RECORD_WORDS],
}

/// A ring of events. One thread at a time may [record](EventRing::record); any number read.
pub struct EventRing {
    /// Events recorded so far.
    recorded: AtomicU64,
    places: Box<[Place]>,
}

/// What a reader has seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// The number of the event to go on with.
    pub next: u64,
    /// Events that were overwritten before they were read.
    pub missed: u64,
}

impl Default for EventRing {
    /// With room for [`EVENTS_MAX`] events.
    fn default() -> EventRing {
        EventRing::new(EVENTS_MAX)
    }
}

impl EventRing {
    /// A ring with room for `events_max` events, at least one.
    pub fn new(events_max: usize) -> EventRing {
        let place = |_| Place { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) };
        EventRing { recorded: AtomicU64::new(0), places: (0..events_max.max(1)).map(place).collect() }
    }

    fn place(&self, number: u64) -> &Place {
        &self.places[(number % self.places.len() as u64) as usize]
    }

    /// Adds an event. Only one thread at a time may do so; of two at once, events are lost or mixed up.
    pub fn record(&self, event: &Event) {
        let number = self.recorded.load(Ordering::Relaxed);
        let (place, done) = (self.place(number), 2 * (number + 1));
        place.sequence.store(done - 1, Ordering::Relaxed);
        // Whoever sees a word from below sees the odd number as well.
        fence(Ordering::Release);
        let mut words = Words::default();
        let used = encode(event, &mut words);
        for (to, word) in place.words.iter().zip(&words[..used]) {
            to.store(*word, Ordering::Relaxed);
        }
        place.sequence.store(done, Ordering::Release);
        self.recorded.store(number + 1, Ordering::Release);
    }

    /// The number of the event to be recorded next.
    pub fn end(&self) -> u64 {
        self.recorded.load(Ordering::Acquire)
    }

    /// Passes on the events from number `from` on, at most `events_max`, in their order. A number that was not reached yet counts as the oldest
    /// event's: the reader comes from another ring.
    pub fn read(&self, from: u64, events_max: usize, mut visit: impl FnMut(Event)) -> Seen {
        let end = self.end();
        let oldest = end.saturating_sub(self.places.len() as u64);
        let from = if from > end { oldest } else { from };
        let first = from.max(oldest);
        let next = end.min(first.saturating_add(events_max as u64));
        let mut missed = first - from;
        for number in first..next {
            match self.read_one(number) {
                Some(event) => visit(event),
                None => missed += 1,
            }
        }
        Seen { next, missed }
    }

    /// `None`: it is overwritten.
    fn read_one(&self, number: u64) -> Option<Event> {
        let (place, done) = (self.place(number), 2 * (number + 1));
        if place.sequence.load(Ordering::Acquire) != done {
            return None;
        }
        let words: Words = std::array::from_fn(|at| place.words[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if place.sequence.load(Ordering::Relaxed) != done {
            return None;
        }
        decode(&words)
    }
}

impl std::fmt::Debug for EventRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRing").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
