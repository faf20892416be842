//! Remembers what the first fragment of a datagram met, for the later ones: they carry no ports, only addresses and identification. All workers
//! share it, since a NIC may give the first fragment to another queue than the later ones.
//!
//! A table of small buckets next to the flows. An entry has two words: the value, and the key's hash xor the value (R. Hyatt's lockless
//! hashing), so a reader never combines halves of two writers. A newer datagram takes an empty place, or that of the oldest of its bucket. Two writers
//! may choose one place: then one of the datagrams is lost.

use super::affinity::BEHIND_MAX_S;
use super::region::{CAPACITY_MAX, LIVE, STATE_MASK};
use super::{Conntrack, Deltas, Direction, Flow, Hit};
use crate::frame::Waiting;
use crate::parse::FRAGMENT_UNIT;
use crate::reason::{Disposition, Reason};
use crate::sync::AtomicU64;
use crate::sync::Ordering::Relaxed;
use crate::tuple::Tuple;

/// How long an entry counts, seconds: longer than later fragments wait. The kernel waits 30 s, but at gateway rates IPv4's 16-bit identifications
/// wrap sooner.
pub const AGE_MAX_S: u64 = 5;

// A flow: slot | direction << 27 | slot generation (low 12 bits) << 28 | end of the first fragment, in units << 40 | second (low 11 bits) << 53.
// Anything else: number | kind << 24 | no flow << 26 | second << 53.
const KIND_AT: u32 = 24;
const NO_FLOW: u64 = 1 << 26;
const DIRECTION_AT: u32 = 27;
const GENERATION_AT: u32 = 28;
const GENERATION_MASK: u64 = (1 << 12) - 1;
const END_AT: u32 = 40;
const END_MASK: u64 = (1 << 13) - 1;
const SECOND_AT: u32 = 53;
const SECOND_MASK: u64 = (1 << 11) - 1;
const SLOT_MASK: u64 = NO_FLOW - 1;
const _: () = assert!(CAPACITY_MAX as u64 <= NO_FLOW && AGE_MAX_S + BEHIND_MAX_S < SECOND_MASK);

/// The key of a place without an entry.
const EMPTY: u64 = 0;

const KERNEL: u64 = 0;
const DROP: u64 = 1;
const LENGTH: u64 = 2;

/// A datagram that came in fragments: a keyed hash of the addresses, the protocol and the identification, which all of them have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Datagram(u64);

impl Datagram {
    /// The number that tells datagrams apart.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What is known of a datagram.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It belongs to this flow, and its first fragment ended here.
    Flow(Hit, u16),
    /// It is the kernel's.
    Kernel(Reason),
    /// It is dropped.
    Drop(Reason),
    /// Only its length is known, bytes: the last fragment came before the first one.
    Length(u16),
}

/// What is remembered of fragmented datagrams: see [`Conntrack::fragments`].
#[derive(Clone, Copy)]
pub struct Fragments<'r> {
    pub(super) table: Conntrack<'r>,
}

impl Fragments<'_> {
    /// The datagram with these addresses, this protocol and this identification. Ports do not count.
    pub fn datagram(&self, t: &Tuple, id: u32) -> Datagram {
        let last = (u64::from(id) << 16) | (u64::from(t.proto as u8) << 8) | u64::from(t.v6);
        Datagram(self.table.region.seed.hash_words(&[t.src[0], t.src[1], t.dst[0], t.dst[1], last]))
    }

    /// Remembers the flow of a datagram, and where its first fragment ends.
    pub fn remember(&self, datagram: Datagram, hit: &Hit, first_end: u16, now_ms: u64) {
        let generation = (hit.state >> 32) & GENERATION_MASK;
        let direction = u64::from(hit.direction == Direction::Reply);
        let units = u64::from(first_end) / FRAGMENT_UNIT as u64;
        let value = u64::from(hit.slot) | (direction << DIRECTION_AT) | (generation << GENERATION_AT) | (units << END_AT);
        self.store(datagram, value, now_ms);
    }

    /// Remembers that a datagram is the kernel's.
    pub fn leave_to_kernel(&self, datagram: Datagram, reason: Reason, now_ms: u64) {
        self.store(datagram, NO_FLOW | (KERNEL << KIND_AT) | reason.index() as u64, now_ms);
    }

    /// Remembers that a datagram is dropped.
    pub fn drop(&self, datagram: Datagram, reason: Reason, now_ms: u64) {
        self.store(datagram, NO_FLOW | (DROP << KIND_AT) | reason.index() as u64, now_ms);
    }

    /// Remembers the length of a datagram whose first fragment waits for it.
    pub fn note_length(&self, datagram: Datagram, len: u16, now_ms: u64) {
        self.store(datagram, NO_FLOW | (LENGTH << KIND_AT) | u64::from(len), now_ms);
    }

    /// Forgets a datagram that has come whole: its identification may be used again.
    pub fn forget(&self, datagram: Datagram) {
        for [key, value] in self.table.region.fragments(datagram.0) {
            let known = value.load(Relaxed) ^ datagram.0;
            let _ = key.compare_exchange(known, EMPTY, Relaxed, Relaxed);
        }
    }

    /// What is known of the datagram with these addresses, if that is recent and its flow still lives.
    pub fn lookup(&self, datagram: Datagram, t: &Tuple, now_ms: u64) -> Option<Fate> {
        let value = self.recent(datagram, now_ms)?;
        if value & NO_FLOW == 0 {
            return self.flow(value, t).map(|hit| Fate::Flow(hit, (((value >> END_AT) & END_MASK) as usize * FRAGMENT_UNIT) as u16));
        }
        let reason = |disposition| Reason::ALL.get(value as usize & 0xff).filter(|r| r.dispositions().contains(&disposition)).copied();
        match (value >> KIND_AT) & 3 {
            KERNEL => reason(Disposition::Kernel).map(Fate::Kernel),
            DROP => reason(Disposition::Drop).map(Fate::Drop),
            _ => Some(Fate::Length(value as u16)),
        }
    }

    /// Whether a fragment that waits for others of its datagram should be submitted again.
    pub fn is_settled(&self, waiting: &Waiting, now_ms: u64) -> bool {
        let is_enough = |value: u64| match value & NO_FLOW {
            0 => self.state(value).is_some(),
            _ => waiting.first || (value >> KIND_AT) & 3 != LENGTH,
        };
        self.recent(waiting.datagram, now_ms).is_some_and(is_enough)
    }

    fn store(&self, datagram: Datagram, value: u64, now_ms: u64) {
        let places = self.table.region.fragments(datagram.0);
        let is_own = |[key, value]: &&[AtomicU64; 2]| key.load(Relaxed) ^ value.load(Relaxed) == datagram.0;
        // Of several as old as each other, any: which one depends on the datagram.
        let from = (datagram.0 >> 32) as usize % places.len();
        let (newer, older) = places.split_at(from);
        let age = |[key, value]: &&[AtomicU64; 2]| match key.load(Relaxed) {
            EMPTY => u64::MAX,
            _ => age_s(value.load(Relaxed), now_ms),
        };
        let place = places.iter().find(is_own).or_else(|| older.iter().chain(newer).max_by_key(age));
        if let Some([key, place]) = place {
            let value = value | (((now_ms / 1_000) & SECOND_MASK) << SECOND_AT);
            place.store(value, Relaxed);
            key.store(datagram.0 ^ value, Relaxed);
        }
    }

    fn value(&self, datagram: Datagram) -> Option<u64> {
        let read = |[key, value]: &[AtomicU64; 2]| (key.load(Relaxed), value.load(Relaxed));
        let mut places = self.table.region.fragments(datagram.0).iter().map(read);
        places.find(|(key, value)| *value != 0 && key ^ value == datagram.0).map(|(_, value)| value)
    }

    fn recent(&self, datagram: Datagram, now_ms: u64) -> Option<u64> {
        let value = self.value(datagram)?;
        (age_s(value, now_ms) <= AGE_MAX_S + BEHIND_MAX_S).then_some(value)
    }

    /// The slot that a value names, and its state word, if it still has the flow that the value is about.
    fn state(&self, value: u64) -> Option<(u32, u64)> {
        let slot = (value & SLOT_MASK) as u32;
        if slot >= self.table.region.capacity {
            return None;
        }
        let state = self.table.region.slot(slot).word(super::flow::STATE);
        let generation = (value >> GENERATION_AT) & GENERATION_MASK;
        (state & STATE_MASK == LIVE && (state >> 32) & GENERATION_MASK == generation).then_some((slot, state))
    }

    fn flow(&self, value: u64, t: &Tuple) -> Option<Hit> {
        let (slot, state) = self.state(value)?;
        let original = self.table.live_at(slot).filter(|hit| hit.state == state)?;
        let flow = self.table.flow(&original)?;
        let reply = value & (1 << DIRECTION_AT) != 0;
        let arrives = if reply { flow.reply() } else { flow.original() };
        // The hash may collide; the addresses decide.
        if (arrives.src, arrives.dst, arrives.proto, arrives.v6) != (t.src, t.dst, t.proto, t.v6) {
            return None;
        }
        Some(if reply { turned(&original, &flow) } else { original })
    }
}

/// How old an entry is, plus [`BEHIND_MAX_S`]: another worker's clock may be ahead.
fn age_s(value: u64, now_ms: u64) -> u64 {
    (now_ms / 1_000 + BEHIND_MAX_S).wrapping_sub(value >> SECOND_AT) & SECOND_MASK
}

/// The same flow for a packet of the other direction. Built from the flow that was read, since the slot may have been reused.
fn turned(hit: &Hit, flow: &Flow) -> Hit {
    let ((l3, l4), new) = (flow.deltas(), flow.original().reversed());
    let new_ports = (u32::from(new.sport) << 16) | u32::from(new.dport);
    Hit { direction: Direction::Reply, new, new_ports, deltas: Deltas { l3: !l3, l4: !l4 }, ..*hit }
}
