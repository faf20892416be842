//! The connection table, shared by all workers, without locks.
//!
//! One flow object, two keys: packets of both directions find it. To create a flow, a worker takes a free slot, writes the flow, reserves
//! the original key, then the reply key, and sets the slot live; for readers everything else is a miss. Readers never write and never wait:
//! a slot's state word carries a generation, and a reader that finds it changed treats its result as a miss. See `create` for two workers
//! that create the same flow.

pub mod affinity;
pub mod copy;
mod create;
mod direction;
mod endpoints;
pub mod flow;
mod fragments;
mod lookup;
pub mod phase;
mod recovery;
mod region;
mod shares;
mod timeouts;

pub use affinity::{Affinity, Remembered, Sticky};
pub use create::{Pending, Refused};
pub use direction::Direction;
pub use endpoints::EndpointPorts;
pub use flow::{Deltas, Flow};
pub use fragments::Fragments;
pub use lookup::Prefetched;
pub use phase::{EvictionRank, Phase, PhaseKind};
pub use recovery::{Expected, Recovered, recover};
pub use region::{CAPACITY_MAX, RegionError};
pub use shares::{NoPort, SnatPorts};
pub use timeouts::{IdleTimes, Timeouts};

use std::ops::Range;

use crate::frame::NextHopId;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering};
use crate::tuple::{Key, Tuple, fast_range};
use flow::{HOP_MASK, HOPS, HOPS_MASK, SEEN, STATE, TARGET, hops_empty, is_old, with_phase};
use region::{DYING, Region, STATE_MASK, W_CURSOR, W_LIVE};

/// Next hops that a flow can name.
const NEXT_HOP_MAX: u16 = (1 << 14) - 1;
const _: () = assert!(crate::routes::NEXT_HOPS_MAX < NEXT_HOP_MAX as usize);
const HOP_GENERATION_BITS: u32 = 12;
const HOP_GENERATION_MASK: u32 = (1 << HOP_GENERATION_BITS) - 1;
/// Resolution of last-seen times: hits within this time write nothing.
const SEEN_RESOLUTION_MS: u64 = 256;

/// Slots of a sample that are prefetched together.
const SAMPLE_FETCHED: u32 = 10;

/// The table: a view of a region, cheap to copy.
#[derive(Clone, Copy)]
pub struct Conntrack<'r> {
    region: Region<'r>,
}

/// A flow found, as it was at that moment.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    slot: u32,
    /// The state word: generation and LIVE.
    state: u64,
    /// Which way the packet goes.
    pub direction: Direction,
    /// The packet's tuple after the rewrite.
    pub new: Tuple,
    /// Its ports in packet layout.
    pub new_ports: u32,
    /// Place of the statistics, see [`crate::services::Backend::stats`].
    pub stats: u32,
    /// Checksum deltas for this direction.
    pub deltas: Deltas,
    /// The flow's phase.
    pub phase: Phase,
    /// When it was last seen, to [`SEEN_RESOLUTION_MS`].
    pub seen_ms: u64,
    /// The `hops` word.
    hops: u64,
    /// The `target` word.
    target: u64,
}

/// A short reference to a flow: its phase and age, and what is needed to find it again.
#[derive(Clone, Copy, Debug)]
pub struct FlowRef {
    slot: u32,
    state: u64,
    /// See [`Hit::phase`].
    pub phase: Phase,
    /// See [`Hit::seen_ms`].
    pub seen_ms: u64,
}

impl Hit {
    /// A short reference to the flow.
    pub fn flow_ref(&self) -> FlowRef {
        FlowRef { slot: self.slot, state: self.state, phase: self.phase, seen_ms: self.seen_ms }
    }

    /// The phase after this packet.
    pub fn phase_after(&self, tcp_flags: u8, now_ms: u64) -> Phase {
        // Only when this packet's time will be written: until then the fast path, which ignores the age, may take the flow's packets as
        // well.
        let grown_old = now_ms.saturating_sub(self.seen_ms) >= SEEN_RESOLUTION_MS && is_old(self.target, now_ms);
        if grown_old { self.phase.grown_old() } else { self.phase }.after(self.direction, tcp_flags)
    }

    /// The next hop cached for this direction, if it was resolved under this generation of the routes (compared by its low 12 bits).
    #[inline(always)]
    pub fn cached_hop(&self, routes_generation: u64) -> Option<NextHopId> {
        let id = self.cached_hop_or_none(routes_generation)?;
        (id.0 != 0).then_some(id)
    }

    /// Like [`Hit::cached_hop`], but returns id 0 for "none". Hop 0 has MTU 0, so [`check`](crate::rewrite::check) rejects it without an
    /// extra branch.
    #[inline(always)]
    pub fn cached_hop_or_none(&self, routes_generation: u64) -> Option<NextHopId> {
        let half = (self.hops >> hop_shift(self.direction)) as u32;
        let id = (half >> HOP_GENERATION_BITS) as u16 & NEXT_HOP_MAX;
        ((half ^ routes_generation as u32) & HOP_GENERATION_MASK == 0).then_some(NextHopId(id))
    }
}

impl<'r> Conntrack<'r> {
    /// Words that a table for this many connections needs; about 158 bytes a connection.
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

    /// Updates last-seen time and phase. Usually writes nothing.
    pub fn touch(&self, hit: &Hit, phase: Phase, now_ms: u64) {
        self.touch_seen(hit, now_ms);
        if phase != hit.phase {
            self.set_phase(hit, phase);
        }
    }

    /// Updates the last-seen time. Usually writes nothing.
    #[inline(always)]
    pub fn touch_seen(&self, hit: &Hit, now_ms: u64) {
        if now_ms.wrapping_sub(hit.seen_ms) >= SEEN_RESOLUTION_MS {
            self.set_seen(hit.slot, hit.state, now_ms);
        }
    }

    /// Takes plain words so that `hit` can stay in registers.
    #[cold]
    #[inline(never)]
    fn set_seen(&self, slot: u32, state: u64, now_ms: u64) {
        let words = self.region.slot(slot).0;
        if words[STATE].load(Ordering::Relaxed) == state {
            words[SEEN].store(now_ms, Ordering::Relaxed);
        }
    }

    /// Changes the phase, unless another worker changed it first; then the next packet decides again.
    fn set_phase(&self, hit: &Hit, phase: Phase) {
        let word = &self.region.slot(hit.slot).0[TARGET];
        let _ = word.compare_exchange(hit.target, with_phase(hit.target, phase), Ordering::Relaxed, Ordering::Relaxed);
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
        self.region.header(W_LIVE).fetch_sub(1, Ordering::Relaxed);
        self.region.free(hit.slot);
        Some(flow)
    }

    /// Visits the next `places` slots from a cursor that all workers share. Clears stale next hops, ends every live flow for which `ends`
    /// is true, and hands it to `ended`.
    pub fn sweep(&self, places: u32, routes_generation: u64, ends: impl Fn(&Hit) -> bool, mut ended: impl FnMut(Flow)) {
        let range = self.region.high_water();
        if range == 0 {
            return;
        }
        let places = places.min(range);
        let from = self.region.header(W_CURSOR).fetch_add(u64::from(places), Ordering::Relaxed);
        for i in 0..u64::from(places) {
            let Some(hit) = self.live_at(((from + i) % u64::from(range)) as u32) else { continue };
            let gone = if ends(&hit) { self.end(&hit) } else { None };
            match gone {
                Some(flow) => ended(flow),
                None => self.forget_stale_hops(&hit, routes_generation),
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

/// A direction's half of the `hops` word.
fn hop_half(routes_generation: u64, hop: NextHopId) -> u64 {
    (u64::from(hop.0 & NEXT_HOP_MAX) << HOP_GENERATION_BITS) | (routes_generation & u64::from(HOP_GENERATION_MASK))
}

#[inline(always)]
fn hop_shift(direction: Direction) -> u32 {
    direction as u32 * 32
}

#[cfg(test)]
mod tests;
