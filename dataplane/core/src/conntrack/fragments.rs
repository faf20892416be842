//! Remembers which flow the later fragments of a packet belong to. They carry no ports, only addresses and identification.
//!
//! A direct-mapped table next to the flows. An entry has two words: the value, and the key's hash xor the value (R. Hyatt's lockless
//! hashing), so a reader never combines halves of two writers. A later packet overwrites an earlier one.

use super::affinity::BEHIND_MAX_S;
use super::region::{LIVE, STATE_MASK};
use super::{Conntrack, Deltas, Direction, Flow, Hit};
use crate::parse::LaterFragment;
use crate::sync::Ordering::Relaxed;
use crate::tuple::{AddrWords, Proto, Tuple};

/// How long a packet's later fragments may take, seconds. The kernel waits 30 s, but at gateway rates IPv4's 16-bit identifications wrap
/// sooner.
const AGE_MAX_S: u64 = 5;

// What is remembered: slot | direction << 27 | slot generation (low 20 bits) << 28 | second (low 16 bits) << 48.
const DIRECTION_AT: u32 = 27;
const GENERATION_AT: u32 = 28;
const GENERATION_MASK: u64 = (1 << 20) - 1;
const SECOND_AT: u32 = 48;
const SECOND_MASK: u64 = 0xffff;

/// What is remembered of fragmented packets: see [`Conntrack::fragments`].
#[derive(Clone, Copy)]
pub struct Fragments<'r> {
    pub(super) table: Conntrack<'r>,
}

impl Fragments<'_> {
    /// Remembers the flow of the packet with these addresses and this identification.
    pub fn remember(&self, first: &Tuple, id: u32, hit: &Hit, now_ms: u64) {
        let hash = self.hash(first.src, first.dst, first.proto, first.v6, id);
        let generation = (hit.state >> 32) & GENERATION_MASK;
        let second = (now_ms / 1_000) & SECOND_MASK;
        let direction = u64::from(hit.direction == Direction::Reply);
        let memory = u64::from(hit.slot) | (direction << DIRECTION_AT) | (generation << GENERATION_AT) | (second << SECOND_AT);
        let [key, value] = self.table.region.fragment(hash);
        value.store(memory, Relaxed);
        key.store(hash ^ memory, Relaxed);
    }

    /// The flow of a later fragment, if the first fragment came recently and the flow still lives.
    pub fn lookup(&self, fragment: &LaterFragment, now_ms: u64) -> Option<Hit> {
        let t = &fragment.tuple;
        let hash = self.hash(t.src, t.dst, t.proto, t.v6, fragment.id);
        let [key, value] = self.table.region.fragment(hash);
        let (key, memory) = (key.load(Relaxed), value.load(Relaxed));
        // Another worker's clock may be ahead.
        let age_s = (now_ms / 1_000 + BEHIND_MAX_S).wrapping_sub(memory >> SECOND_AT) & SECOND_MASK;
        if memory == 0 || key ^ memory != hash || age_s > AGE_MAX_S + BEHIND_MAX_S {
            return None;
        }
        let slot = memory as u32 & ((1 << DIRECTION_AT) - 1);
        if slot >= self.table.region.capacity {
            return None;
        }
        let state = self.table.region.slot(slot).word(super::flow::STATE);
        let same_life = state & STATE_MASK == LIVE && (state >> 32) & GENERATION_MASK == (memory >> GENERATION_AT) & GENERATION_MASK;
        if !same_life {
            return None;
        }
        let original = self.table.live_at(slot).filter(|hit| hit.state == state)?;
        let flow = self.table.flow(&original)?;
        let reply = memory & (1 << DIRECTION_AT) != 0;
        let arrives = if reply { flow.reply() } else { flow.original() };
        // The hash may collide; the addresses decide.
        if (arrives.src, arrives.dst, arrives.proto, arrives.v6) != (t.src, t.dst, t.proto, t.v6) {
            return None;
        }
        Some(if reply { turned(&original, &flow) } else { original })
    }

    fn hash(&self, src: AddrWords, dst: AddrWords, proto: Proto, v6: bool, id: u32) -> u64 {
        let last = (u64::from(id) << 16) | (u64::from(proto as u8) << 8) | u64::from(v6);
        self.table.region.seed.hash_words(&[src[0], src[1], dst[0], dst[1], last])
    }
}

/// The same flow for a packet of the other direction. Built from the flow that was read, since the slot may have been reused.
fn turned(hit: &Hit, flow: &Flow) -> Hit {
    let ((l3, l4), new) = (flow.deltas(), flow.original().reversed());
    let new_ports = (u32::from(new.sport) << 16) | u32::from(new.dport);
    Hit { direction: Direction::Reply, new, new_ports, deltas: Deltas { l3: !l3, l4: !l4 }, ..*hit }
}
