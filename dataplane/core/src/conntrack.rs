//! The connection table, shared by all workers, without locks.
//!
//! One flow object, two keys: packets of both directions find it. To create a flow, a worker takes a free slot, writes the flow, reserves
//! the original key, then the reply key, and sets the slot live; for readers everything else is a miss. Readers never write and never wait:
//! a slot's state word carries a generation, and a reader that finds it changed treats its result as a miss. See `create` for two workers
//! that create the same flow.

pub mod affinity;
mod clients;
pub mod copy;
mod create;
mod direction;
mod endpoints;
pub mod flow;
mod fragments;
mod hit;
mod lookup;
pub mod phase;
mod recovery;
mod region;
mod sequence;
mod shares;
mod timeouts;

pub use affinity::{Affinity, Remembered, Sticky};
pub use clients::{ClientCount, Clients, CountedClient};
pub use create::{Pending, Refused};
pub use direction::Direction;
pub use endpoints::EndpointPorts;
pub use flow::{AGE_MODULUS_MS, Deltas, Flow};
pub use fragments::{AGE_MAX_S as FRAGMENTS_AGE_MAX_S, Datagram, Fate, Fragments};
pub use hit::{FlowRef, Hit};
pub use lookup::Prefetched;
pub use phase::{EvictionRank, Phase, PhaseKind};
pub use recovery::{Expected, Recovered, recover};
pub use region::{CAPACITY_MAX, RegionError};
pub use sequence::{NextNumbers, Sequences};
pub use shares::{NoPort, SnatPorts};
pub use timeouts::{IdleTimes, Timeouts};

use std::ops::Range;

use crate::frame::{NextHopId, PortId};
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering};
use crate::tuple::{INGRESS_MASK, Key, Tuple, fast_range, ingress_mark};
use clients::counted_of;
use flow::{HOP_MASK, HOPS, HOPS_MASK, KEYS, SEEN, STATE, TARGET, hops_empty, with_phase};
use hit::{hop_half, hop_shift};
use region::{DYING, Region, STATE_MASK, W_CURSOR, W_LIVE};

/// Resolution of last-seen times: hits within this time write nothing.
pub(crate) const SEEN_RESOLUTION_MS: u64 = 256;

/// Slots of a sample that are prefetched together.
const SAMPLE_FETCHED: u32 = 10;

/// The table: a view of a region, cheap to copy.
#[derive(Clone, Copy)]
pub struct Conntrack<'r> {
    region: Region<'r>,
}

impl<'r> Conntrack<'r> {
    /// Words that a table for this many connections needs; about 176 bytes a connection.
    pub fn words_needed(capacity: u32) -> usize {
        Region::words_needed(capacity)
    }

    /// Formats a region as an empty table, whatever was in it. `seed` keys the hash; choose a random one for each table.
    pub fn format(words: &'r [AtomicU64], capacity: u32, seed: u64, boot_id: [u64; 2]) -> Result<Conntrack<'r>, RegionError> {
        Region::format(words, capacity, seed, boot_id).map(|region| Conntrack { region })
    }

    /// Like [`Conntrack::format`] for memory that is all zero already, as fresh memory is.
    pub fn format_zeroed(words: &'r [AtomicU64], capacity: u32, seed: u64, boot_id: [u64; 2]) -> Result<Conntrack<'r>, RegionError> {
        Region::format_zeroed(words, capacity, seed, boot_id).map(|region| Conntrack { region })
    }

    /// Another view of a table that this process uses; checks the header. For the table of an earlier process see [`recover`].
    pub fn attach(words: &'r [AtomicU64]) -> Result<Conntrack<'r>, RegionError> {
        Region::attach(words).map(|region| Conntrack { region })
    }

    /// Connections at the most.
    pub fn capacity(&self) -> u32 {
        self.region.capacity
    }

    /// Live connections.
    pub fn live(&self) -> u64 {
        self.region.header(W_LIVE).load(Ordering::Relaxed)
    }

    /// The number that the table's hashes are keyed with.
    pub fn seed(&self) -> u64 {
        self.region.seed_number()
    }

    /// The hash of a key in this table.
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        tuple.hash(&self.region.seed)
    }

    /// Like [`Conntrack::hash`]; `v6` is the key's family.
    #[inline(always)]
    pub fn hash_key(&self, key: &Key, v6: bool) -> u64 {
        key.hash(v6, &self.region.seed)
    }

    /// A hash of a few words, with the key of [`Conntrack::hash`].
    pub fn hash_words(&self, words: &[u64]) -> u64 {
        self.region.seed.hash_words(words)
    }

    /// Updates last-seen time and phase. Usually writes nothing.
    pub fn touch(&self, hit: &Hit, phase: Phase, now_ms: u64) {
        if hit.is_touch_due(now_ms) {
            self.set_seen(hit.slot, hit.state, now_ms);
        }
        if phase != hit.phase {
            self.set_phase(hit, phase);
        }
    }

    /// Updates the last-seen time of a flow, found by [`Hit::place`].
    #[inline]
    pub fn set_seen(&self, slot: u32, state: u64, now_ms: u64) {
        let words = self.region.slot(slot).0;
        if words[STATE].load(Ordering::Relaxed) == state {
            words[SEEN].store(now_ms, Ordering::Relaxed);
        }
    }

    /// Changes the phase, unless another worker changed it first, or a flow goes on after it was closed and there is no room for its count.
    /// Then the next packet decides again.
    fn set_phase(&self, hit: &Hit, phase: Phase) {
        let (counted, was_over, is_over) = (counted_of(hit.state), hit.phase.is_over(), phase.is_over());
        // Counted before the change: from then on, whoever ends the flow gives the count back.
        let counted_again = counted.filter(|_| was_over && !is_over);
        if counted_again.is_some_and(|client| self.clients().take(client, u64::MAX) != ClientCount::Counted) {
            return;
        }
        let word = &self.region.slot(hit.slot).0[TARGET];
        // Whoever gives a count back must see it taken.
        let changed = word.compare_exchange(hit.target, with_phase(hit.target, phase), Ordering::AcqRel, Ordering::Relaxed);
        let given_back = if changed.is_ok() { counted.filter(|_| !was_over && is_over) } else { counted_again };
        if let Some(client) = given_back {
            self.clients().give_back(client);
        }
    }

    /// Whether this direction's packets were last seen to come in by this port.
    pub fn came_by(&self, hit: &Hit, port: PortId) -> bool {
        let word = self.region.slot(hit.slot).word(KEYS + hit.direction as usize);
        word & INGRESS_MASK == ingress_mark(port)
    }

    /// Remembers that this direction's packets come in by this port.
    pub fn remember_ingress(&self, hit: &Hit, port: PortId) {
        let slot = self.region.slot(hit.slot);
        let word = &slot.0[KEYS + hit.direction as usize];
        let old = word.load(Ordering::Relaxed);
        // A free slot has a link here, or nothing: numbers below those of a key, whose upper port is not 0.
        if old >> 32 & 0xffff != 0 && slot.0[STATE].load(Ordering::Acquire) == hit.state {
            let _ = word.compare_exchange(old, (old & !INGRESS_MASK) | ingress_mark(port), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Caches a next hop for this direction. When another worker was faster nothing is written, and the next packet resolves again.
    pub fn cache_hop(&self, hit: &Hit, routes_generation: u64, hop: NextHopId) {
        let word = &self.region.slot(hit.slot).0[HOPS];
        let old = word.load(Ordering::Relaxed);
        if old & !HOPS_MASK != hops_empty(hit.state >> 32) {
            return;
        }
        let shift = hop_shift(hit.direction);
        let new = (old & !(HOP_MASK << shift)) | (hop_half(routes_generation, hop) << shift);
        let _ = word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Ends a flow. Only the caller that ended it gets the flow, and must withdraw its announcement.
    pub fn end(&self, hit: &Hit) -> Option<Flow> {
        let slot = self.region.slot(hit.slot);
        let dying = (hit.state & !STATE_MASK) | DYING;
        slot.0[STATE].compare_exchange(hit.state, dying, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // Dying: this caller owns the words.
        let flow = slot.read();
        self.clear_key(&flow.original(), Direction::Original, hit.slot);
        self.clear_key(&flow.reply(), Direction::Reply, hit.slot);
        if flow.replaces_source() {
            self.snat_ports().give_back(&flow);
        }
        if let Some(client) = flow.counted {
            self.clients().end(client, &slot.0[TARGET]);
        }
        self.region.header(W_LIVE).fetch_sub(1, Ordering::Relaxed);
        self.region.free(hit.slot);
        Some(flow)
    }

    /// Visits the next `places` slots from a cursor that all workers share. Clears stale next hops, ends every live flow for which `ends`
    /// is true, and hands it to `ended`, an established TCP connection's with its next sequence numbers.
    pub fn sweep(
        &self,
        places: u32,
        routes_generation: u64,
        ends: impl Fn(&Hit) -> bool,
        mut ended: impl FnMut(Flow, Phase, Option<NextNumbers>),
    ) {
        let range = self.region.high_water();
        if range == 0 {
            return;
        }
        let places = places.min(range);
        let from = self.region.header(W_CURSOR).fetch_add(u64::from(places), Ordering::Relaxed);
        for i in 0..u64::from(places) {
            let Some(hit) = self.live_at(((from + i) % u64::from(range)) as u32) else { continue };
            // Read before the end: afterwards another worker may reuse the slot.
            let gone = if ends(&hit) { Some((self.sequences().established(&hit), self.end(&hit))) } else { None };
            match gone {
                Some((next, Some(flow))) => ended(flow, hit.phase, next),
                _ => self.forget_stale_hops(&hit, routes_generation),
            }
        }
    }

    /// The live flows in `places` slots, spread evenly over the table: slot numbers are multiples of the golden ratio, starting with the
    /// one numbered `from`, whose fractional parts leave no large gaps. Lazy: slots are read on demand.
    pub fn sample(&self, from: u64, places: u32) -> impl Iterator<Item = FlowRef> {
        let range = self.region.high_water();
        let slot = move |place: u32| sampled(from.wrapping_add(u64::from(place)), range);
        (0..places).step_by(SAMPLE_FETCHED as usize).flat_map(move |first| {
            let part = first..places.min(first + SAMPLE_FETCHED);
            part.clone().for_each(|place| prefetch(&self.region.slot(slot(place)).0[0]));
            part.filter_map(move |place| self.flow_ref(slot(place)))
        })
    }

    /// Prefetches the first slots of a sample.
    pub fn prefetch_sample(&self, from: u64) {
        let range = self.region.high_water();
        (0..SAMPLE_FETCHED).for_each(|place| prefetch(&self.region.slot(sampled(from.wrapping_add(u64::from(place)), range)).0[0]));
    }

    /// The flow as it is now, unless it has ended.
    pub fn revalidate(&self, seen: &FlowRef) -> Option<Hit> {
        self.live_at(seen.slot).filter(|now| now.state == seen.state)
    }

    /// The live flow in a slot; `None` as well for a number that is no slot's.
    pub fn flow_in(&self, slot: u32) -> Option<(FlowRef, Flow)> {
        let seen = if slot < self.region.capacity { self.flow_ref(slot)? } else { return None };
        Some((seen, self.flow_at(slot, seen.state)?))
    }

    /// Prefetches the index lines that [`Conntrack::end`] will touch. Returns the flow so that the caller can prefetch its reply-filter
    /// bucket.
    pub fn prefetch_end(&self, seen: &FlowRef) -> Option<Flow> {
        let flow = self.flow_at(seen.slot, seen.state)?;
        self.prefetch_key(&flow.original());
        self.prefetch_key(&flow.reply());
        Some(flow)
    }

    /// Generations are compared by their low bits: stale next hops must be cleared before the value repeats.
    fn forget_stale_hops(&self, hit: &Hit, routes_generation: u64) {
        for direction in [Direction::Original, Direction::Reply] {
            let hit = Hit { direction, ..*hit };
            let known = (hit.hops >> hop_shift(direction)) & HOP_MASK != 0;
            if known && hit.cached_hop(routes_generation).is_none() {
                self.cache_hop(&hit, 0, NextHopId(0));
            }
        }
    }

    /// Visits every live flow. Flows may come and go meanwhile.
    pub fn for_each(&self, visit: impl FnMut(&Hit, &Flow)) {
        self.walk(0..self.slots_used(), visit);
    }

    /// Number of slots ever used: live flows are below it.
    pub fn slots_used(&self) -> u32 {
        self.region.high_water()
    }

    /// Session affinity: the endpoints that clients were last sent to.
    pub fn affinity(&self) -> Affinity<'r> {
        Affinity { region: self.region }
    }

    /// The connections of fragmented packets.
    pub fn fragments(&self) -> Fragments<'r> {
        Fragments { table: *self }
    }

    /// The source ports of connections whose client address is replaced: who holds how many, towards which endpoint.
    pub fn snat_ports(&self) -> SnatPorts<'r> {
        SnatPorts { region: self.region }
    }

    /// The sequence numbers of TCP flows.
    #[inline(always)]
    pub fn sequences(&self) -> Sequences<'_, 'r> {
        Sequences { region: &self.region }
    }

    /// The flows of each client to each Service that limits them.
    pub fn clients(&self) -> Clients<'r> {
        Clients { region: self.region }
    }

    /// Notes that the table is left in order: no thread of this process uses it any more.
    pub fn detach(&self) {
        self.region.end_use();
    }

    /// Visits the live flows in a range of slots; slots beyond the table are skipped.
    pub fn walk(&self, slots: Range<u32>, mut visit: impl FnMut(&Hit, &Flow)) {
        for hit in (slots.start..slots.end.min(self.region.capacity)).filter_map(|slot| self.live_at(slot)) {
            if let Some(flow) = self.flow(&hit) {
                visit(&hit, &flow);
            }
        }
    }
}

/// The slot of a number: multiples of the golden ratio, see [`Conntrack::sample`].
fn sampled(number: u64, range: u32) -> u32 {
    const GOLDEN_FRACTION: u64 = 0x9e37_79b9_7f4a_7c15;
    fast_range((number.wrapping_mul(GOLDEN_FRACTION) >> 32) as u32, range)
}

fn entry(tag: u32, slot: u32, direction: Direction) -> u64 {
    (u64::from(tag) << 32) | (u64::from(slot + 1) << 1) | u64::from(direction == Direction::Reply)
}

#[inline(always)]
fn entry_slot(entry: u64) -> u32 {
    (entry as u32 >> 1).wrapping_sub(1)
}

#[inline(always)]
fn entry_direction(entry: u64) -> Direction {
    if entry & 1 == 0 { Direction::Original } else { Direction::Reply }
}

#[cfg(test)]
mod tests;
