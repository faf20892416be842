//! Finding a connection: two steps ahead that only fetch, then the look-up itself.
//!
//! Readers take no lock and write nothing. What they read counts only if the slot's state word was live before and is the same after.

use super::flow::{HOPS, SEEN, STATE, TARGET};
use super::region::{BUCKET_ENTRIES, LIVE, STATE_MASK};
use super::{Conntrack, Direction, Flow, Hit, Phase, entry_direction, entry_slot};
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::Tuple;

/// What the index seemed to say about a key, ahead of its look-up.
#[derive(Clone, Copy, Default, Debug)]
pub struct Candidate(u64);

impl<'r> Conntrack<'r> {
    /// First step ahead of a look-up: fetches the index line.
    #[inline(always)]
    pub fn prefetch_index(&self, hash: u64) {
        prefetch(&self.region.bucket(self.region.home(hash).buckets[0])[0]);
    }

    /// Second step ahead of a look-up: fetches the flow that the first bucket seems to name, or else the second bucket.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Candidate {
        let home = self.region.home(hash);
        let entry = matching(self.region.bucket(home.buckets[0]), home.tag);
        if entry != 0 {
            prefetch(&self.region.slot(entry_slot(entry)).0[0]);
        } else {
            prefetch(&self.region.bucket(home.buckets[1])[0]);
        }
        Candidate(entry)
    }

    /// Fetches a candidate's IPv6 addresses as well.
    #[inline(always)]
    pub fn prefetch_v6(&self, candidate: Candidate) {
        if candidate.0 != 0 {
            prefetch(&self.region.slot(entry_slot(candidate.0)).0[8]);
        }
    }

    /// The look-up of nearly every packet: its candidate, or the one place more that a key usually has. A miss here may still be a
    /// connection: [`Conntrack::lookup`] looks everywhere.
    #[inline(always)]
    pub fn lookup_candidate(&self, candidate: Candidate, tuple: &Tuple, hash: u64) -> Option<Hit> {
        let entry = match candidate.0 {
            0 => {
                let home = self.region.home(hash);
                matching(self.region.bucket(home.buckets[1]), home.tag)
            }
            entry => entry,
        };
        self.read_live(entry, tuple)
    }

    /// Finds the connection that a packet belongs to.
    pub fn lookup(&self, tuple: &Tuple, hash: u64) -> Option<Hit> {
        let home = self.region.home(hash);
        for bucket in home.buckets {
            for entry in self.region.bucket(bucket) {
                let entry = entry.load(Ordering::Acquire);
                if (entry >> 32) as u32 == home.tag
                    && let Some(hit) = self.read_live(entry, tuple)
                {
                    return Some(hit);
                }
            }
        }
        None
    }

    /// Reads the flow behind an entry, if it is live, has this key, and did not change meanwhile (seqlock, reader side).
    #[inline(always)]
    fn read_live(&self, entry: u64, tuple: &Tuple) -> Option<Hit> {
        if entry as u32 == 0 {
            return None;
        }
        let (index, direction) = (entry_slot(entry), entry_direction(entry));
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE || !slot.has_key(tuple, direction) {
            return None;
        }
        let (new, deltas) = slot.rewritten(tuple, direction);
        let (seen_ms, target, hops) = (slot.word(SEEN), slot.word(TARGET), slot.word(HOPS));
        fence(Ordering::Acquire);
        if slot.word(STATE) != state {
            return None;
        }
        let phase = Phase::from_bits((target >> 32) as u8);
        Some(Hit { slot: index, state, direction, new, stats: target as u32, deltas, phase, seen_ms, hops })
    }

    /// The whole connection, unless it has ended meanwhile.
    pub fn flow(&self, hit: &Hit) -> Option<Flow> {
        let slot = self.region.slot(hit.slot);
        let flow = slot.read();
        fence(Ordering::Acquire);
        (slot.word(STATE) == hit.state).then_some(flow)
    }

    /// The live connection in a slot, as if found by its original key.
    pub(super) fn live_at(&self, index: u32) -> Option<Hit> {
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE {
            return None;
        }
        let (new, deltas) = slot.rewritten(&slot.read().original(), Direction::Original);
        let (seen_ms, target, hops) = (slot.word(SEEN), slot.word(TARGET), slot.word(HOPS));
        fence(Ordering::Acquire);
        let phase = Phase::from_bits((target >> 32) as u8);
        let hit = Hit { slot: index, state, direction: Direction::Original, new, stats: target as u32, deltas, phase, seen_ms, hops };
        (slot.word(STATE) == state).then_some(hit)
    }

    /// The same connection for a packet of the other direction.
    pub(super) fn turned(&self, hit: &Hit, flow: &Flow) -> Hit {
        let (new, deltas) = self.region.slot(hit.slot).rewritten(&flow.reply(), Direction::Reply);
        Hit { direction: Direction::Reply, new, deltas, ..*hit }
    }
}

/// The last entry in a bucket that bears this tag; 0: none. No branch depends on where it is.
#[inline(always)]
fn matching(bucket: &[AtomicU64; BUCKET_ENTRIES], tag: u32) -> u64 {
    bucket.iter().fold(0, |found, entry| {
        let entry = entry.load(Ordering::Acquire);
        std::hint::select_unpredictable((entry >> 32) as u32 == tag, entry, found)
    })
}
