//! Creating a flow: take a slot, write it, reserve both keys, set it live.
//!
//! Two workers that create the same flow at the same time cannot both succeed. Each publishes its index entry, then looks for another entry
//! of the same key. A worker that sees a live one gives up. Of two pending entries the one further back loses: the worker in front sets the
//! other's state from pending to aborted, so that it can no longer go live.

use super::flow::{HOPS, Rewritten, STATE, TARGET, created_at, hops_empty};
use super::region::{ABORTED, Home, LIVE, PENDING, STATE_MASK, W_LIVE};
use super::{Conntrack, Direction, Flow, FlowRef, Hit, Phase, entry, entry_direction, entry_slot, hop_half};
use crate::bucket_scan::{BUCKET_ENTRIES, entry_at, free, tagged};
use crate::frame::NextHopId;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, LOOK, Ordering, PUBLISH, fence, publish_fence};
use crate::tuple::Tuple;
use arrayvec::ArrayVec;

/// Attempts to claim an index entry before the creation counts as busy.
const INSERT_TRIES: u32 = 16;
/// Source ports whose index lines are prefetched together.
const PORTS_FETCHED: usize = 8;
/// With fewer free places in the first bucket than this, the emptier bucket is used.
const FIRST_BUCKET_SPARE: u32 = 3;

/// Why a flow could not be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No free slot.
    Full,
    /// Both index buckets of this direction's key are full: see [`Conntrack::neighbours`].
    Crowded(Direction),
    /// Another worker is creating it right now.
    Busy,
    /// It exists already: look it up.
    Exists,
    /// The reply keys of all source ports are taken.
    ReplyTaken,
}

/// A flow that is written and reserved but not live yet.
#[must_use = "a pending connection must be committed or aborted"]
pub struct Pending<'f> {
    slot: u32,
    state: u64,
    /// The flow, with the reserved source port.
    pub flow: &'f Flow,
    phase: Phase,
    now_ms: u64,
}

impl Pending<'_> {
    /// The number of the flow's slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// The outcome of a key's reservation.
pub(super) enum Reservation {
    Reserved,
    Live,
    Busy,
    NoRoom,
}

impl<'r> Conntrack<'r> {
    /// Writes and reserves a flow. `source_ports` are tried in turn until the reply's key is free, and the flow gets that one. Usually the
    /// first is free; it should be the one that the flow has already.
    pub fn reserve<'f>(
        &self,
        flow: &'f mut Flow,
        original_hash: u64,
        phase: Phase,
        now_ms: u64,
        source_ports: impl Iterator<Item = u16>,
    ) -> Result<Pending<'f>, Refused> {
        let slot = self.region.allocate(flow.counted).ok_or(Refused::Full)?;
        let words = self.region.slot(slot);
        let state = words.word(STATE);
        words.write(flow, phase, now_ms, created_at(now_ms));
        words.write_ports(flow);
        // The original key first: two creations of one flow collide here, before either tries another source port.
        let reserved = match self.reserve_key(&flow.original(), original_hash, Direction::Original, slot) {
            Reservation::Reserved => self
                .reserve_reply(flow, slot, state, source_ports)
                .inspect_err(|_| self.clear_key(&flow.original(), Direction::Original, slot)),
            Reservation::NoRoom => Err(Refused::Crowded(Direction::Original)),
            Reservation::Live => Err(Refused::Exists),
            Reservation::Busy => Err(Refused::Busy),
        };
        match reserved {
            Ok(()) => Ok(Pending { slot, state, flow, phase, now_ms }),
            Err(refused) => {
                self.region.free(slot);
                Err(refused)
            }
        }
    }

    /// Tries source ports until the reply's key is free, and reserves that.
    fn reserve_reply(&self, flow: &mut Flow, slot: u32, state: u64, mut source_ports: impl Iterator<Item = u16>) -> Result<(), Refused> {
        let Some(first) = source_ports.next() else { return Err(Refused::ReplyTaken) };
        let hash = self.hash(&Tuple { dport: first, ..flow.reply() });
        match self.reserve_port(flow, first, hash, slot, state) {
            Ok(false) => self.reserve_another(flow, slot, state, source_ports),
            reserved => reserved.map(|_| ()),
        }
    }

    /// The same when the first port is taken. Tags in the index tell which others are taken, too; they are checked in growing groups, whose
    /// memory is prefetched together.
    #[inline(never)]
    fn reserve_another(&self, flow: &mut Flow, slot: u32, state: u64, mut source_ports: impl Iterator<Item = u16>) -> Result<(), Refused> {
        for fetched in 1.. {
            let hashed = source_ports.by_ref().take(fetched.min(PORTS_FETCHED)).map(|port| {
                let reply = Tuple { dport: port, ..flow.reply() };
                self.prefetch_key(&reply);
                (port, self.hash(&reply))
            });
            let ports: ArrayVec<(u16, u64), PORTS_FETCHED> = hashed.collect();
            if ports.is_empty() {
                break;
            }
            for (port, hash) in ports {
                if !self.seems_taken(hash) && self.reserve_port(flow, port, hash, slot, state)? {
                    return Ok(());
                }
            }
        }
        Err(if self.region.slot(slot).word(STATE) == state { Refused::ReplyTaken } else { Refused::Busy })
    }

    /// Reserves the reply's key with this source port. False: it is taken.
    fn reserve_port(&self, flow: &mut Flow, port: u16, hash: u64, slot: u32, state: u64) -> Result<bool, Refused> {
        let words = self.region.slot(slot);
        if port != flow.source_port {
            flow.source_port = port;
            words.write_ports(flow);
        }
        match self.reserve_key(&flow.reply(), hash, Direction::Reply, slot) {
            Reservation::Reserved => Ok(true),
            Reservation::NoRoom => Err(Refused::Crowded(Direction::Reply)),
            // This slot was aborted: the other entry may be the same flow.
            Reservation::Live | Reservation::Busy if words.word(STATE) != state => Err(Refused::Busy),
            Reservation::Live | Reservation::Busy => Ok(false),
        }
    }

    /// Whether the key's buckets hold an entry with its tag. With a probability of one in billions it belongs to another key.
    fn seems_taken(&self, hash: u64) -> bool {
        let home = self.region.home(hash);
        home.buckets.into_iter().any(|bucket| {
            let bucket = self.region.bucket(bucket);
            tagged(bucket, home.tag).any(|place| entry_at(bucket, place) as u32 != 0)
        })
    }

    /// The live flows in the index buckets of a key.
    pub fn neighbours(&self, key: &Tuple) -> impl Iterator<Item = FlowRef> {
        let home = self.region.home(self.hash(key));
        let entries = (0..2 * BUCKET_ENTRIES).map(move |place| self.place(&home, place).load(Ordering::Relaxed));
        entries.filter(|entry| *entry != 0).filter_map(|entry| self.flow_ref(entry_slot(entry)))
    }

    /// Prefetches the index lines of a key that is reserved or cleared soon.
    #[inline(always)]
    pub fn prefetch_key(&self, key: &Tuple) {
        for bucket in self.region.home(self.hash(key)).buckets {
            prefetch(&self.region.bucket(bucket)[0]);
        }
    }

    /// Sets the original direction's next hop of a pending flow: see [`Conntrack::cache_hop`].
    pub fn set_hop(&self, pending: &Pending<'_>, routes_generation: u64, hop: NextHopId) {
        let word = hops_empty(pending.state >> 32) | hop_half(routes_generation, hop);
        self.region.slot(pending.slot).0[HOPS].store(word, Ordering::Relaxed);
    }

    /// Sets a pending flow live. Fails when another worker's creation of the same flow won.
    #[inline(always)]
    pub fn commit(&self, pending: Pending<'_>) -> Result<Hit, Refused> {
        let words = self.region.slot(pending.slot);
        let live = (pending.state & !STATE_MASK) | LIVE;
        // Read before going live: afterwards another worker may end the flow and reuse the slot.
        let Rewritten { new, new_ports, deltas } = words.rewritten(pending.flow.v6, Direction::Original);
        let (hops, target) = (words.word(HOPS), words.word(TARGET));
        // Counted first, so that the count never falls below zero.
        self.region.header(W_LIVE).fetch_add(1, Ordering::Relaxed);
        if words.0[STATE].compare_exchange(pending.state, live, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            self.region.header(W_LIVE).fetch_sub(1, Ordering::Relaxed);
            self.abort(pending);
            return Err(Refused::Busy);
        }
        Ok(Hit {
            slot: pending.slot,
            state: live,
            direction: Direction::Original,
            new,
            new_ports,
            stats: pending.flow.stats,
            deltas,
            phase: pending.phase,
            seen_ms: pending.now_ms,
            hops,
            target,
        })
    }

    /// Gives up a pending flow. The original key is cleared last: another creation of the same flow then fails as busy at that key, not
    /// because of a source port that seems taken.
    pub fn abort(&self, pending: Pending<'_>) {
        self.clear_key(&pending.flow.reply(), Direction::Reply, pending.slot);
        self.clear_key(&pending.flow.original(), Direction::Original, pending.slot);
        self.region.free(pending.slot);
    }

    /// Publishes a slot's entry for a key, unless the key is taken.
    pub(super) fn reserve_key(&self, tuple: &Tuple, hash: u64, direction: Direction, slot: u32) -> Reservation {
        let home = self.region.home(hash);
        let entry = entry(home.tag, slot, direction);
        for _ in 0..INSERT_TRIES {
            let Some(place) = self.free_place(&home) else {
                return match self.rival(&home, tuple, None) {
                    Some((_, _, state)) if state & STATE_MASK == LIVE => Reservation::Live,
                    Some(_) => Reservation::Busy,
                    None => Reservation::NoRoom,
                };
            };
            let word = self.place(&home, place);
            if word.compare_exchange(0, entry, PUBLISH, Ordering::Relaxed).is_err() {
                continue;
            }
            // Publish first, look second: of two workers doing this at least one sees the other.
            publish_fence();
            if self.alone(&home, place) {
                return Reservation::Reserved;
            }
            return match self.settle(&home, tuple, place) {
                Reservation::Reserved => Reservation::Reserved,
                lost => {
                    word.store(0, Ordering::Release);
                    lost
                }
            };
        }
        Reservation::Busy
    }

    /// A free place: in the first bucket while that has room to spare, else in the emptier bucket.
    #[inline]
    fn free_place(&self, home: &Home) -> Option<usize> {
        let first = free(self.region.bucket(home.buckets[0]));
        if first.len() >= FIRST_BUCKET_SPARE {
            return Some(first.first());
        }
        let second = free(self.region.bucket(home.buckets[1]));
        match second.len() > first.len() {
            true => Some(BUCKET_ENTRIES + second.first()),
            false => (!first.is_empty()).then(|| first.first()),
        }
    }

    /// Whether only the entry at this place has the key's tag.
    #[inline]
    fn alone(&self, home: &Home, mine: usize) -> bool {
        let [first, second] = home.buckets.map(|bucket| tagged(self.region.bucket(bucket), home.tag));
        match mine < BUCKET_ENTRIES {
            true => first.without(mine).is_empty() & second.is_empty(),
            false => first.is_empty() & second.without(mine - BUCKET_ENTRIES).is_empty(),
        }
    }

    /// Decides between the entry just published at `mine` and others of the same key.
    fn settle(&self, home: &Home, tuple: &Tuple, mine: usize) -> Reservation {
        while let Some((place, slot, state)) = self.rival(home, tuple, Some(mine)) {
            if state & STATE_MASK == LIVE {
                return Reservation::Live;
            }
            if place < mine {
                return Reservation::Busy;
            }
            let aborted = (state & !STATE_MASK) | ABORTED;
            let _ = self.region.slot(slot).0[STATE].compare_exchange(state, aborted, Ordering::AcqRel, Ordering::Relaxed);
        }
        Reservation::Reserved
    }

    /// The first entry of this key that is live or pending, except at `mine`: `(place, slot, state)`.
    fn rival(&self, home: &Home, tuple: &Tuple, mine: Option<usize>) -> Option<(usize, u32, u64)> {
        (0..2 * BUCKET_ENTRIES).filter(|&p| Some(p) != mine).find_map(|place| {
            let entry = self.place(home, place).load(LOOK);
            if entry == 0 || (entry >> 32) as u32 != home.tag {
                return None;
            }
            let slot = self.region.slot(entry_slot(entry));
            let state = slot.0[STATE].load(Ordering::Acquire);
            let counts = matches!(state & STATE_MASK, LIVE | PENDING) && slot.has_key(&tuple.key(), tuple.v6, entry_direction(entry));
            fence(Ordering::Acquire);
            // If the state changed meanwhile, its owner is the one who must look again.
            (counts && slot.word(STATE) & !STATE_MASK == state & !STATE_MASK).then_some((place, entry_slot(entry), state))
        })
    }

    /// Places 0..8 are the first bucket's, 8..16 the second's.
    fn place(&self, home: &Home, place: usize) -> &'r AtomicU64 {
        &self.region.bucket(home.buckets[place / BUCKET_ENTRIES])[place % BUCKET_ENTRIES]
    }

    /// Removes a slot's entry for this key from the index.
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
