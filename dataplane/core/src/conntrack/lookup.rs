//! Flow look-up: two steps that only prefetch, then the look-up itself.
//!
//! Readers take no lock and write nothing. A read counts only if the slot's state word was live before and is unchanged after.

use super::flow::{HOPS, Rewritten, SEEN, STATE, Slot, TARGET, phase_of};
use super::region::{LIVE, STATE_MASK};
use super::{Conntrack, Direction, Flow, FlowRef, Hit, entry_direction, entry_slot};
use crate::bucket_scan::{BUCKET_ENTRIES, entry_at, tagged};
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::{Key, Tuple};

/// Where the flow of a key seems to be, found ahead of its look-up.
#[derive(Clone, Copy, Default)]
pub struct Prefetched<'r> {
    /// The key's hash.
    pub hash: u64,
    bucket: Option<&'r [AtomicU64; BUCKET_ENTRIES]>,
    entry: u64,
    slot: Option<Slot<'r>>,
    v6: bool,
}

impl<'r> Conntrack<'r> {
    /// First step: prefetches the index line. `v6` is the key's family.
    #[inline(always)]
    pub fn prefetch_index(&self, hash: u64, v6: bool) -> Prefetched<'r> {
        let bucket = self.region.bucket(self.region.home(hash).buckets[0]);
        prefetch(&bucket[0]);
        Prefetched { hash, bucket: Some(bucket), entry: 0, slot: None, v6 }
    }

    /// Second step: prefetches the flow that the key's first bucket seems to name. False: it names none, and the second bucket is
    /// prefetched; call [`Conntrack::prefetch_second`] some time later.
    #[inline(always)]
    pub fn prefetch_flow(&self, prefetched: &mut Prefetched<'r>) -> bool {
        let Some(bucket) = prefetched.bucket else { return true };
        let places = tagged(bucket, (prefetched.hash >> 32) as u32);
        let entry = entry_at(bucket, places.first());
        let found = !places.is_empty() & (entry as u32 != 0);
        if found {
            self.fetch(prefetched, entry);
        } else {
            prefetch(&self.region.bucket(self.region.home(prefetched.hash).buckets[1])[0]);
        }
        found
    }

    /// Like [`Conntrack::prefetch_flow`], for the key's second bucket.
    #[inline(never)]
    pub fn prefetch_second(&self, prefetched: &mut Prefetched<'r>) {
        let home = self.region.home(prefetched.hash);
        let bucket = self.region.bucket(home.buckets[1]);
        let places = tagged(bucket, home.tag);
        let entry = entry_at(bucket, places.first());
        if !places.is_empty() && entry as u32 != 0 {
            self.fetch(prefetched, entry);
        }
    }

    #[inline(always)]
    fn fetch(&self, prefetched: &mut Prefetched<'r>, entry: u64) {
        let slot = self.region.slot(entry_slot(entry));
        prefetch(&slot.0[0]);
        if prefetched.v6 {
            prefetch(&slot.0[8]);
        }
        (prefetched.entry, prefetched.slot) = (entry, Some(slot));
    }

    /// The look-up of nearly every packet, after the prefetch steps. After a miss [`Conntrack::lookup`] may still find the flow. `v6` is
    /// the key's family.
    #[inline(always)]
    pub fn lookup_prefetched(&self, prefetched: &Prefetched<'r>, key: &Key, v6: bool) -> Option<Hit> {
        read_live(prefetched.entry, prefetched.slot?, key, v6, Slot::has_marked_key)
    }

    /// Finds the flow that a packet belongs to.
    pub fn lookup(&self, tuple: &Tuple, hash: u64) -> Option<Hit> {
        let (home, key) = (self.region.home(hash), tuple.key());
        home.buckets.into_iter().find_map(|bucket| {
            let bucket = self.region.bucket(bucket);
            tagged(bucket, home.tag).map(|place| entry_at(bucket, place)).find_map(|entry| match entry as u32 {
                0 => None,
                _ => read_live(entry, self.region.slot(entry_slot(entry)), &key, tuple.v6, Slot::has_key),
            })
        })
    }

    /// The whole flow, unless it has ended meanwhile.
    pub fn flow(&self, hit: &Hit) -> Option<Flow> {
        self.flow_at(hit.slot, hit.state)
    }

    /// The same by slot and state.
    pub(super) fn flow_at(&self, slot: u32, state: u64) -> Option<Flow> {
        let slot = self.region.slot(slot);
        let flow = slot.read();
        fence(Ordering::Acquire);
        (slot.word(STATE) == state).then_some(flow)
    }

    /// The live flow in a slot, as if found by its original key.
    pub(super) fn live_at(&self, index: u32) -> Option<Hit> {
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE {
            return None;
        }
        let Rewritten { new, new_ports, deltas } = slot.rewritten(slot.is_v6(), Direction::Original);
        let (seen_ms, target, hops) = (slot.word(SEEN), slot.word(TARGET), slot.word(HOPS));
        fence(Ordering::Acquire);
        let (direction, stats, phase) = (Direction::Original, target as u32, phase_of(target));
        let hit = Hit { slot: index, state, direction, new, new_ports, stats, deltas, phase, seen_ms, hops, target };
        (slot.word(STATE) == state).then_some(hit)
    }

    /// A reference to the live flow in a slot.
    pub(super) fn flow_ref(&self, index: u32) -> Option<FlowRef> {
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE {
            return None;
        }
        let seen = FlowRef { slot: index, state, phase: phase_of(slot.word(TARGET)), seen_ms: slot.word(SEEN) };
        fence(Ordering::Acquire);
        (slot.word(STATE) == state).then_some(seen)
    }
}

/// Reads the flow of an entry, if it is live, has this key and did not change meanwhile (seqlock, reader side).
#[inline(always)]
fn read_live<'r>(
    entry: u64,
    slot: Slot<'r>,
    key: &Key,
    v6: bool,
    has_key: impl Fn(&Slot<'r>, &Key, bool, Direction) -> bool,
) -> Option<Hit> {
    let direction = entry_direction(entry);
    let state = slot.0[STATE].load(Ordering::Acquire);
    if state & STATE_MASK != LIVE || !has_key(&slot, key, v6, direction) {
        return None;
    }
    let Rewritten { new, new_ports, deltas } = slot.rewritten(v6, direction);
    let (seen_ms, target, hops) = (slot.word(SEEN), slot.word(TARGET), slot.word(HOPS));
    fence(Ordering::Acquire);
    if slot.word(STATE) != state {
        return None;
    }
    let (slot, stats, phase) = (entry_slot(entry), target as u32, phase_of(target));
    Some(Hit { slot, state, direction, new, new_ports, stats, deltas, phase, seen_ms, hops, target })
}
