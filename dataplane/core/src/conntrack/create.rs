//! Creating a connection: take a slot, write it, reserve both keys, set it live.
//!
//! Two workers that create one connection at the same time cannot both succeed. Each first publishes its index entry, then looks again
//! for another one of the same key. Whoever sees a live one gives up. Of two pending ones the one further back gives up, and the one
//! further front makes sure of it by setting the other's state from pending to aborted, so that it can no longer go live.

use super::flow::{HOPS, STATE, hops_empty};
use super::region::{ABORTED, BUCKET_ENTRIES, Home, LIVE, PENDING, STATE_MASK, W_LIVE};
use super::{Conntrack, Direction, Flow, Hit, Phase, entry, entry_direction, entry_slot, hop_half};
use crate::frame::NextHopId;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, LOOK, Ordering, PUBLISH, fence, publish_fence};
use crate::tuple::Tuple;

/// Attempts at an index place before the creation counts as busy.
const INSERT_TRIES: u32 = 16;
/// A first bucket with more entries than this shares with the second one.
const FIRST_BUCKET_LIKED: usize = 5;

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

/// What is in a key's places: a bit each, see [`Conntrack::place`].
struct Seen {
    /// Entries with the key's tag.
    same: u32,
    free: u32,
}

const FIRST_BUCKET: u32 = (1 << BUCKET_ENTRIES) - 1;

impl Seen {
    /// A free place: in the first bucket while it has room to spare, else in the emptier one.
    fn free_place(&self) -> Option<usize> {
        let (first, second) = (self.free & FIRST_BUCKET, self.free & !FIRST_BUCKET);
        let used = BUCKET_ENTRIES - first.count_ones() as usize;
        let better = used > FIRST_BUCKET_LIKED && second.count_ones() > first.count_ones();
        let of = if better { second } else { first };
        (of != 0).then(|| of.trailing_zeros() as usize)
    }
}

impl<'r> Conntrack<'r> {
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
            words.write_ports(&flow);
            let reply = flow.reply();
            match self.reserve_key(&reply, self.hash(&reply), Direction::Reply, slot) {
                Key::Reserved => result = Ok(()),
                Key::NoRoom => result = Err(Refused::Full),
                Key::Live | Key::Busy => continue,
            }
            break;
        }
        words.write_deltas(&flow);
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

    /// Fetches the index lines of a reply's key, to be reserved soon.
    pub fn prefetch_reply(&self, reply: &Tuple) {
        for bucket in self.region.home(self.hash(reply)).buckets {
            prefetch(&self.region.bucket(bucket)[0]);
        }
    }

    /// Sets the next hop of a pending connection's first packet: see [`Conntrack::cache_hop`].
    pub fn set_hop(&self, pending: &Pending, routes_generation: u64, hop: NextHopId) {
        let word = hops_empty(pending.state >> 32) | hop_half(routes_generation, hop);
        self.region.slot(pending.slot).0[HOPS].store(word, Ordering::Relaxed);
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
            hops: self.region.slot(pending.slot).word(HOPS),
        })
    }

    /// Gives up a pending connection.
    pub fn abort(&self, pending: Pending) {
        self.clear_key(&pending.flow.original(), Direction::Original, pending.slot);
        self.clear_key(&pending.flow.reply(), Direction::Reply, pending.slot);
        self.region.free(pending.slot);
    }

    fn reserve_key(&self, tuple: &Tuple, hash: u64, direction: Direction, slot: u32) -> Key {
        let home = self.region.home(hash);
        let entry = entry(home.tag, slot, direction);
        for _ in 0..INSERT_TRIES {
            let seen = self.scan(&home);
            if seen.same != 0 {
                match self.rival(&home, tuple, None) {
                    Some((_, _, state)) if state & STATE_MASK == LIVE => return Key::Live,
                    Some(_) => return Key::Busy,
                    None => {}
                }
            }
            let Some(place) = seen.free_place() else { return Key::NoRoom };
            let word = self.place(&home, place);
            if word.compare_exchange(0, entry, PUBLISH, Ordering::Relaxed).is_err() {
                continue;
            }
            // Publish first, look second: of two workers doing this at least one sees the other.
            publish_fence();
            if self.scan(&home).same & !(1 << place) == 0 {
                return Key::Reserved;
            }
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

    /// Looks at all places of a key at once, without a branch.
    #[inline]
    fn scan(&self, home: &Home) -> Seen {
        let mut seen = Seen { same: 0, free: 0 };
        for (i, bucket) in home.buckets.into_iter().enumerate() {
            for (j, entry) in self.region.bucket(bucket).iter().enumerate() {
                let (entry, bit) = (entry.load(LOOK), i * BUCKET_ENTRIES + j);
                seen.free |= u32::from(entry == 0) << bit;
                seen.same |= u32::from(((entry >> 32) as u32 == home.tag) & (entry != 0)) << bit;
            }
        }
        if home.buckets[0] == home.buckets[1] {
            seen = Seen { same: seen.same & FIRST_BUCKET, free: seen.free & FIRST_BUCKET };
        }
        seen
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
            let entry = self.place(home, place).load(LOOK);
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

    /// Places 0..8 are the first bucket's, 8..16 the second's.
    fn place(&self, home: &Home, place: usize) -> &'r AtomicU64 {
        &self.region.bucket(home.buckets[place / BUCKET_ENTRIES])[place % BUCKET_ENTRIES]
    }

    /// Takes a slot's entry for this key out of the index.
    pub(super) fn clear_key(&self, tuple: &Tuple, direction: Direction, slot: u32) {
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
