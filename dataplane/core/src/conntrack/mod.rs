//! The connection table, shared by all workers, without locks.
//!
//! One flow object, two keys: packets of both directions find it. To create a connection a worker takes a free slot, writes the
//! flow, reserves the reply's key, then the original's, and sets it live; readers treat whatever is not live as a miss. Readers never
//! write and never wait: a slot's state word carries a generation, and a reader that finds it changed behind its back has not found anything.
//! How two workers settle who creates a connection is told in `create`.

mod create;
pub mod flow;
mod fragments;
pub mod phase;
mod region;

pub use create::{Pending, Refused};
pub use flow::{Deltas, Direction, Flow};
pub use phase::{Phase, PhaseKind, Timeouts};
pub use region::{CAPACITY_MAX, RegionError};

use crate::frame::NextHopId;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::Tuple;
use flow::{HOP_BITS, HOPS, SEEN, STATE, TARGET, target_word};
use region::{DYING, LIVE, Region, STATE_MASK, W_CURSOR, W_LIVE};

/// Next hops that a flow can name.
const NEXT_HOP_MAX: u16 = (1 << 14) - 1;
const _: () = assert!(crate::routes::NEXT_HOPS_MAX < NEXT_HOP_MAX as usize);
const HOP_GENERATION_BITS: u32 = 12;
const HOP_GENERATION_MASK: u64 = (1 << HOP_GENERATION_BITS) - 1;
/// Resolution of last-seen: a hit within this time writes nothing.
const SEEN_RESOLUTION_MS: u64 = 256;

/// The table: a view of a region, cheap to copy.
#[derive(Clone, Copy)]
pub struct Conntrack<'r> {
    region: Region<'r>,
}

/// A connection found, as it was at that moment.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    slot: u32,
    /// The state word: generation and LIVE.
    state: u64,
    /// Which way the packet goes.
    pub direction: Direction,
    /// What the packet is to become.
    pub new: Tuple,
    /// Place of the statistics, see [`crate::services::Backend::stats`].
    pub stats: u32,
    /// Checksum deltas for this direction.
    pub deltas: Deltas,
    /// Where it stands.
    pub phase: Phase,
    /// When it was last seen, to [`SEEN_RESOLUTION_MS`].
    pub seen_ms: u64,
}

impl<'r> Conntrack<'r> {
    /// Words that a table for this many connections needs; about 155 bytes a connection.
    pub fn words_needed(capacity: u32) -> usize {
        Region::words_needed(capacity)
    }

    /// Makes an empty table of a region, whatever was in it. `seed` keys the hash: random per table.
    pub fn format(words: &'r [AtomicU64], capacity: u32, seed: u64, boot_id: [u64; 2]) -> Result<Conntrack<'r>, RegionError> {
        Region::format(words, capacity, seed, boot_id).map(|region| Conntrack { region })
    }

    /// A view of a table that is in the region already; the header is checked.
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

    /// The hash of a key in this table.
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        tuple.hash(&self.region.seed)
    }

    /// First step ahead of a look-up: fetches the index line.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        prefetch(&self.region.bucket(self.region.home(hash).buckets[0])[0]);
    }

    /// Second step ahead of a look-up: fetches the flow that the index seems to name.
    #[inline]
    pub fn prefetch_flow(&self, hash: u64) {
        let home = self.region.home(hash);
        for entry in self.region.bucket(home.buckets[0]) {
            let entry = entry.load(Ordering::Relaxed);
            if (entry >> 32) as u32 == home.tag && entry != 0 {
                let slot = self.region.slot(entry_slot(entry));
                prefetch(&slot.0[0]);
                prefetch(&slot.0[8]);
                return;
            }
        }
        prefetch(&self.region.bucket(home.buckets[1])[0]);
    }

    /// Finds the connection that a packet belongs to.
    #[inline]
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
    #[inline]
    fn read_live(&self, entry: u64, tuple: &Tuple) -> Option<Hit> {
        if entry == 0 {
            return None;
        }
        let (index, direction) = (entry_slot(entry), entry_direction(entry));
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE || !slot.has_key(tuple, direction) {
            return None;
        }
        let (new, deltas) = slot.rewritten(tuple, direction);
        let (seen_ms, target) = (slot.word(SEEN), slot.word(TARGET));
        fence(Ordering::Acquire);
        if slot.word(STATE) != state {
            return None;
        }
        let phase = Phase::from_bits((target >> 32) as u8);
        Some(Hit { slot: index, state, direction, new, stats: target as u32, deltas, phase, seen_ms })
    }

    /// The whole connection, unless it has ended meanwhile.
    pub fn flow(&self, hit: &Hit) -> Option<Flow> {
        let slot = self.region.slot(hit.slot);
        let flow = slot.read();
        fence(Ordering::Acquire);
        (slot.word(STATE) == hit.state).then_some(flow)
    }

    /// Notes that a packet of the connection was seen, and the phase it is in now. Usually writes nothing.
    #[inline]
    pub fn touch(&self, hit: &Hit, phase: Phase, now_ms: u64) {
        let words = self.region.slot(hit.slot).0;
        if now_ms.wrapping_sub(hit.seen_ms) >= SEEN_RESOLUTION_MS && words[STATE].load(Ordering::Relaxed) == hit.state {
            words[SEEN].store(now_ms, Ordering::Relaxed);
        }
        if phase != hit.phase {
            self.set_phase(hit, phase);
        }
    }

    /// Changes the phase unless another worker changed it first; the next packet decides again.
    fn set_phase(&self, hit: &Hit, phase: Phase) {
        let word = &self.region.slot(hit.slot).0[TARGET];
        let target = |p: Phase| target_word(hit.stats, p, hit.state >> 32);
        let _ = word.compare_exchange(target(hit.phase), target(phase), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next hop cached for this direction, if it was resolved under this generation of the routes (compared by its low 12 bits).
    #[inline]
    pub fn cached_hop(&self, hit: &Hit, routes_generation: u64) -> Option<NextHopId> {
        let half = self.region.slot(hit.slot).word(HOPS) >> hop_shift(hit.direction);
        let id = (half >> HOP_GENERATION_BITS) as u16 & NEXT_HOP_MAX;
        (id != 0 && (half ^ routes_generation) & HOP_GENERATION_MASK == 0).then_some(NextHopId(id))
    }

    /// Caches a next hop for this direction. When another worker is faster nothing is written: it is resolved again.
    pub fn cache_hop(&self, hit: &Hit, routes_generation: u64, hop: NextHopId) {
        let word = &self.region.slot(hit.slot).0[HOPS];
        let old = word.load(Ordering::Relaxed);
        if (old >> (2 * HOP_BITS)) != (hit.state >> 32) & (u64::MAX >> (2 * HOP_BITS)) {
            return;
        }
        let half = (u64::from(hop.0 & NEXT_HOP_MAX) << HOP_GENERATION_BITS) | (routes_generation & HOP_GENERATION_MASK);
        let shift = hop_shift(hit.direction);
        let new = (old & !(((1 << HOP_BITS) - 1) << shift)) | (half << shift);
        let _ = word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Ends a connection. The one caller that ended it gets it (and must withdraw its announcement).
    pub fn end(&self, hit: &Hit) -> Option<Flow> {
        let slot = self.region.slot(hit.slot);
        let dying = (hit.state & !STATE_MASK) | DYING;
        slot.0[STATE].compare_exchange(hit.state, dying, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // Dying: its words are this caller's alone.
        let flow = slot.read();
        self.clear_key(&flow.original(), Direction::Original, hit.slot);
        self.clear_key(&flow.reply(), Direction::Reply, hit.slot);
        self.region.header(W_LIVE).fetch_sub(1, Ordering::Relaxed);
        self.region.free(hit.slot);
        Some(flow)
    }

    /// Visits the next `places` slots from a cursor that all workers share: stale next hops are forgotten, and every live
    /// connection for which `ends` says so is ended and handed to `ended`.
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

    /// Generations are compared by a few bits only: no flow may be left to see its value come round again.
    fn forget_stale_hops(&self, hit: &Hit, routes_generation: u64) {
        let hops = self.region.slot(hit.slot).word(HOPS);
        for direction in [Direction::Original, Direction::Reply] {
            let hit = Hit { direction, ..*hit };
            let known = (hops >> hop_shift(direction)) & ((1 << HOP_BITS) - 1) != 0;
            if known && self.cached_hop(&hit, routes_generation).is_none() {
                self.cache_hop(&hit, 0, NextHopId(0));
            }
        }
    }

    /// Visits every live connection. Others may come and go meanwhile.
    pub fn for_each(&self, mut visit: impl FnMut(&Hit, &Flow)) {
        for hit in (0..self.region.high_water()).filter_map(|slot| self.live_at(slot)) {
            if let Some(flow) = self.flow(&hit) {
                visit(&hit, &flow);
            }
        }
    }

    /// The live connection in a slot, as if found by its original key.
    fn live_at(&self, index: u32) -> Option<Hit> {
        let slot = self.region.slot(index);
        let state = slot.0[STATE].load(Ordering::Acquire);
        if state & STATE_MASK != LIVE {
            return None;
        }
        let (new, deltas) = slot.rewritten(&slot.read().original(), Direction::Original);
        let (seen_ms, target) = (slot.word(SEEN), slot.word(TARGET));
        fence(Ordering::Acquire);
        let phase = Phase::from_bits((target >> 32) as u8);
        let hit = Hit { slot: index, state, direction: Direction::Original, new, stats: target as u32, deltas, phase, seen_ms };
        (slot.word(STATE) == state).then_some(hit)
    }

    /// The same connection for a packet of the other direction.
    fn turned(&self, hit: &Hit, flow: &Flow) -> Hit {
        let (new, deltas) = self.region.slot(hit.slot).rewritten(&flow.reply(), Direction::Reply);
        Hit { direction: Direction::Reply, new, deltas, ..*hit }
    }
}

fn entry(tag: u32, slot: u32, direction: Direction) -> u64 {
    (u64::from(tag) << 32) | (u64::from(slot + 1) << 1) | u64::from(direction == Direction::Reply)
}

#[inline]
fn entry_slot(entry: u64) -> u32 {
    (entry as u32 >> 1).wrapping_sub(1)
}

#[inline]
fn entry_direction(entry: u64) -> Direction {
    if entry & 1 == 0 { Direction::Original } else { Direction::Reply }
}

#[inline]
fn hop_shift(direction: Direction) -> u32 {
    if direction == Direction::Original { 0 } else { HOP_BITS }
}

#[cfg(test)]
mod tests;
