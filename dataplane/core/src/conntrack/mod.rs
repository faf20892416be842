//! The connection table, shared by all workers, without locks.
//!
//! One flow object, two keys: packets of both directions find it. To create a connection a worker takes a free slot, writes the
//! flow, reserves the reply's key, then the original's, and sets it live; readers treat whatever is not live as a miss. Readers never
//! write and never wait: a slot's state word carries a generation, and a reader that finds it changed behind its back has not found anything.
//!
//! Two workers that create one connection at the same time cannot both succeed. Each first publishes its index entry, then looks again
//! for another one of the same key. Whoever sees a live one gives up. Of two pending ones the one further back gives up, and the one
//! further front makes sure of it by setting the other's state from pending to aborted, so that it can no longer go live.

pub mod flow;
mod fragments;
pub mod phase;
mod region;

pub use flow::{Deltas, Direction, Flow};
pub use phase::{Phase, PhaseKind, Timeouts};
pub use region::{CAPACITY_MAX, RegionError};

use crate::frame::NextHopId;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::Tuple;
use flow::{HOP_BITS, HOPS, SEEN, STATE, TARGET, target_word};
use region::{ABORTED, BUCKET_ENTRIES, DYING, Home, LIVE, PENDING, Region, STATE_MASK, W_CURSOR, W_LIVE};

/// Attempts at an index place before the creation counts as busy.
const INSERT_TRIES: u32 = 16;
/// A first bucket with more entries than this shares with the second one.
const FIRST_BUCKET_LIKED: usize = 5;
/// Next hops that a flow can name.
const NEXT_HOP_MAX: u16 = crate::routes::NEXT_HOPS_MAX as u16;
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

/// Why a connection could not be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No free slot, or no room in the index.
    Full,
    /// Another worker is creating it right now.
    Busy,
    /// It is there already: look it up.
    Exists,
    /// None of the source ports gives a reply key that is free.
    ReplyTaken,
}

/// A connection that is written and reserved but not live yet.
#[must_use = "a pending connection must be committed or aborted"]
pub struct Pending {
    slot: u32,
    state: u64,
    /// The connection, with the source port that was reserved.
    pub flow: Flow,
    phase: Phase,
    now_ms: u64,
}

/// What became of a key's reservation.
enum Key {
    Reserved,
    Live,
    Busy,
    NoRoom,
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

    /// Writes and reserves a connection. `source_ports`: tried in turn until the reply's key is free; the first is usually enough.
    pub fn reserve(
        &self,
        mut flow: Flow,
        original_hash: u64,
        phase: Phase,
        now_ms: u64,
        source_ports: impl Iterator<Item = u16>,
    ) -> Result<Pending, Refused> {
        let slot = self.region.allocate().ok_or(Refused::Full)?;
        let words = self.region.slot(slot);
        let state = words.word(STATE);
        let mut result = Err(Refused::ReplyTaken);
        words.write(&flow, phase, now_ms);
        for port in source_ports {
            flow.source_port = port;
            words.write_source(&flow);
            let reply = flow.reply();
            match self.reserve_key(&reply, self.hash(&reply), Direction::Reply, slot) {
                Key::Reserved => result = Ok(()),
                Key::NoRoom => result = Err(Refused::Full),
                Key::Live | Key::Busy => continue,
            }
            break;
        }
        if result.is_ok() {
            result = match self.reserve_key(&flow.original(), original_hash, Direction::Original, slot) {
                Key::Reserved => Ok(()),
                Key::NoRoom => Err(Refused::Full),
                Key::Live => Err(Refused::Exists),
                Key::Busy => Err(Refused::Busy),
            };
            if result.is_err() {
                self.clear_key(&flow.reply(), Direction::Reply, slot);
            }
        }
        match result {
            Ok(()) => Ok(Pending { slot, state, flow, phase, now_ms }),
            Err(refused) => {
                self.region.free(slot);
                Err(refused)
            }
        }
    }

    /// Makes a pending connection visible. Fails when another worker's creation of the same connection won.
    pub fn commit(&self, pending: Pending) -> Result<Hit, Refused> {
        let words = self.region.slot(pending.slot).0;
        let live = (pending.state & !STATE_MASK) | LIVE;
        // Counted first, so that the count never runs below zero.
        self.region.header(W_LIVE).fetch_add(1, Ordering::Relaxed);
        if words[STATE].compare_exchange(pending.state, live, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            self.region.header(W_LIVE).fetch_sub(1, Ordering::Relaxed);
            self.abort(pending);
            return Err(Refused::Busy);
        }
        let (new, deltas) = self.region.slot(pending.slot).rewritten(&pending.flow.original(), Direction::Original);
        Ok(Hit {
            slot: pending.slot,
            state: live,
            direction: Direction::Original,
            new,
            stats: pending.flow.stats,
            deltas,
            phase: pending.phase,
            seen_ms: pending.now_ms,
        })
    }

    /// Gives up a pending connection.
    pub fn abort(&self, pending: Pending) {
        self.clear_key(&pending.flow.original(), Direction::Original, pending.slot);
        self.clear_key(&pending.flow.reply(), Direction::Reply, pending.slot);
        self.region.free(pending.slot);
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

    fn reserve_key(&self, tuple: &Tuple, hash: u64, direction: Direction, slot: u32) -> Key {
        let home = self.region.home(hash);
        let entry = entry(home.tag, slot, direction);
        for _ in 0..INSERT_TRIES {
            match self.rival(&home, tuple, None) {
                Some((_, _, state)) if state & STATE_MASK == LIVE => return Key::Live,
                Some(_) => return Key::Busy,
                None => {}
            }
            let Some(place) = self.empty_place(&home) else { return Key::NoRoom };
            let word = self.place(&home, place);
            if word.compare_exchange(0, entry, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // Publish first, look second: of two workers doing this at least one sees the other.
            fence(Ordering::SeqCst);
            return match self.settle(&home, tuple, place) {
                Key::Reserved => Key::Reserved,
                lost => {
                    word.store(0, Ordering::Release);
                    lost
                }
            };
        }
        Key::Busy
    }

    /// Decides between the entry just published at `mine` and others of the same key.
    fn settle(&self, home: &Home, tuple: &Tuple, mine: usize) -> Key {
        while let Some((place, slot, state)) = self.rival(home, tuple, Some(mine)) {
            if state & STATE_MASK == LIVE {
                return Key::Live;
            }
            if place < mine {
                return Key::Busy;
            }
            let aborted = (state & !STATE_MASK) | ABORTED;
            let _ = self.region.slot(slot).0[STATE].compare_exchange(state, aborted, Ordering::AcqRel, Ordering::Relaxed);
        }
        Key::Reserved
    }

    /// The first entry of this key that is live or pending, except at `mine`: `(place, slot, state)`.
    fn rival(&self, home: &Home, tuple: &Tuple, mine: Option<usize>) -> Option<(usize, u32, u64)> {
        let last = if home.buckets[0] == home.buckets[1] { BUCKET_ENTRIES } else { 2 * BUCKET_ENTRIES };
        (0..last).filter(|&p| Some(p) != mine).find_map(|place| {
            let entry = self.place(home, place).load(Ordering::Acquire);
            if entry == 0 || (entry >> 32) as u32 != home.tag {
                return None;
            }
            let slot = self.region.slot(entry_slot(entry));
            let state = slot.0[STATE].load(Ordering::Acquire);
            let counts = matches!(state & STATE_MASK, LIVE | PENDING) && slot.has_key(tuple, entry_direction(entry));
            fence(Ordering::Acquire);
            // A state that changed meanwhile: whatever it was, its owner is the one to look again.
            (counts && slot.word(STATE) & !STATE_MASK == state & !STATE_MASK).then_some((place, entry_slot(entry), state))
        })
    }

    /// An empty place: in the first bucket while it has room to spare, else in the emptier one.
    fn empty_place(&self, home: &Home) -> Option<usize> {
        let used = home.buckets.map(|b| self.region.bucket(b).iter().filter(|e| e.load(Ordering::Relaxed) != 0).count());
        let second = used[0] > FIRST_BUCKET_LIKED && used[1] < used[0];
        let base = if second { BUCKET_ENTRIES } else { 0 };
        (base..base + BUCKET_ENTRIES).find(|&p| self.place(home, p).load(Ordering::Relaxed) == 0)
    }

    /// Places 0..8 are the first bucket's, 8..16 the second's.
    fn place(&self, home: &Home, place: usize) -> &'r AtomicU64 {
        &self.region.bucket(home.buckets[place / BUCKET_ENTRIES])[place % BUCKET_ENTRIES]
    }

    fn clear_key(&self, tuple: &Tuple, direction: Direction, slot: u32) {
        let home = self.region.home(self.hash(tuple));
        let entry = entry(home.tag, slot, direction);
        for place in 0..2 * BUCKET_ENTRIES {
            let word = self.place(&home, place);
            // Only the slot's owner writes an entry that names it.
            if word.load(Ordering::Relaxed) == entry {
                word.store(0, Ordering::Release);
            }
        }
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
