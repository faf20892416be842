//! Taking over the table of an earlier process, however that process ended.
//!
//! A process can die between any two stores. An unfinished creation leaves a slot pending or aborted, with none, one or both of its index
//! entries; an unfinished ending leaves it dying. Either may leave a slot that is neither in use nor on the free list, a share that nobody
//! holds, counts that are one too high. Only a live flow is complete: it was written before it went live, and later changes are single
//! words. So the flows are the truth, and everything else is rebuilt from them. This also survives arbitrary words: the rebuilt table is
//! consistent, and no slot is lost.
//!
//! Affinity and fragments are kept, since their readers verify what they read. Next hops are cleared, since the routes' generations start
//! again.

use super::clients::with_counted;
use super::create::Reservation;
use super::flow::{SEEN, STATE, TARGET, created_of, phase_of};
use super::region::{FREE, LIVE, Region, RegionError, STATE_MASK, W_LIVE};
use super::{ClientCount, Conntrack, Direction, Flow, entry_direction, entry_slot};
use crate::services::PortLimits;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::Tuple;
use arrayvec::ArrayVec;

/// The table that a process looks for in a region.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Connections at the most.
    pub capacity: u32,
    /// This boot of the machine: times in the table are of its clock.
    pub boot_id: [u64; 2],
}

/// What was found in a region that was taken over.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Recovered {
    /// The last process left it in order, see [`Conntrack::detach`].
    pub detached: bool,
    /// Flows that continue.
    pub connections: u32,
    /// Incomplete flows: half created, half ended, or damaged.
    pub not_whole: u32,
    /// Complete flows that the caller ended.
    pub unwanted: u32,
}

/// How many slots ahead index lines are prefetched.
const AHEAD: u32 = 8;

/// Buckets searched for a free place before a flow counts as not whole.
const SEARCHED_MAX: usize = 64;

/// What becomes of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It had no flow.
    Free,
    GoesOn,
    NotWhole,
    Unwanted,
}

/// Takes over the table in a region that nobody else uses. `judge` returns the place of each flow's statistics from now on (see
/// [`crate::services::Backend::stats`]), or `None` to end it. The caller must announce or withdraw the replies. Last-seen times after
/// `now_ms` are set to `now_ms`.
///
/// # Errors
/// When the region holds no such table. Nothing has changed then.
pub fn recover<'r>(
    words: &'r [AtomicU64],
    expected: Expected,
    now_ms: u64,
    mut judge: impl FnMut(&Flow) -> Option<u32>,
) -> Result<(Conntrack<'r>, Recovered), RegionError> {
    let region = Region::attach(words)?;
    if region.capacity != expected.capacity {
        return Err(RegionError::OtherCapacity { found: region.capacity, wanted: expected.capacity });
    }
    if region.boot_id() != expected.boot_id {
        return Err(RegionError::OtherBoot);
    }
    let table = Recovery { table: Conntrack { region } };
    let mut recovered = Recovered { detached: region.begin_use(), ..Recovered::default() };
    region.forget_what_follows_from_flows();
    // Backwards: the first live slot found gives the high-water mark, and the free list begins with the lowest slot.
    for slot in (0..region.capacity).rev() {
        if let Some(ahead) = slot.checked_sub(AHEAD) {
            table.fetch_places(ahead);
        }
        let fate = table.revive(slot, now_ms, &mut judge);
        let count = match fate {
            Fate::Free => None,
            Fate::GoesOn => Some(&mut recovered.connections),
            Fate::NotWhole => Some(&mut recovered.not_whole),
            Fate::Unwanted => Some(&mut recovered.unwanted),
        };
        count.into_iter().for_each(|n| *n += 1);
        if matches!(fate, Fate::NotWhole | Fate::Unwanted) {
            region.retire(slot);
        }
        match (fate, recovered.connections) {
            (Fate::GoesOn, 1) => region.set_high_water(slot + 1),
            (Fate::GoesOn, _) | (_, 0) => {}
            _ => region.link(slot),
        }
    }
    region.header(W_LIVE).store(u64::from(recovered.connections), Relaxed);
    Ok((table.table, recovered))
}

/// A table whose index is rebuilt.
struct Recovery<'r> {
    table: Conntrack<'r>,
}

impl Recovery<'_> {
    /// Prefetches the index lines of a slot's flow.
    fn fetch_places(&self, slot: u32) {
        let words = self.table.region.slot(slot);
        if words.word(STATE) & STATE_MASK == LIVE {
            let flow = words.read();
            self.table.prefetch_key(&flow.reply());
            self.table.prefetch_key(&flow.original());
        }
    }

    /// Enters a slot's flow in the index and the counts, if it is complete.
    fn revive(&self, slot: u32, now_ms: u64, judge: &mut impl FnMut(&Flow) -> Option<u32>) -> Fate {
        let words = self.table.region.slot(slot);
        let state = words.word(STATE);
        match state & STATE_MASK {
            FREE => return Fate::Free,
            LIVE if words.is_flow() => {}
            _ => return Fate::NotWhole,
        }
        let mut flow = words.read();
        match judge(&flow) {
            Some(stats) => flow.stats = stats,
            None => return Fate::Unwanted,
        }
        let target = words.word(TARGET);
        words.write(&flow, phase_of(target), words.word(SEEN).min(now_ms), created_of(target));
        words.write_ports(&flow);
        if !self.put(&flow.reply(), Direction::Reply, slot) {
            return Fate::NotWhole;
        }
        if !self.put(&flow.original(), Direction::Original, slot) {
            self.table.clear_key(&flow.reply(), Direction::Reply, slot);
            return Fate::NotWhole;
        }
        if flow.replaces_source() {
            // Cannot fail without a limit.
            let _ = self.table.snat_ports().take(&flow, PortLimits::NONE);
        }
        if let Some(client) = flow.counted.filter(|_| !phase_of(target).is_over())
            && self.table.clients().take(client, u64::MAX) != ClientCount::Counted
        {
            words.0[STATE].store(with_counted(state, None), Relaxed);
        }
        Fate::GoesOn
    }

    /// Enters a key in the index. False when another flow has it already, or there is no room.
    fn put(&self, key: &Tuple, direction: Direction, slot: u32) -> bool {
        let hash = self.table.hash(key);
        match self.table.reserve_key(key, hash, direction, slot) {
            Reservation::Reserved => true,
            // The keys fit before, in another order: make room.
            Reservation::NoRoom => {
                self.make_room(hash) && matches!(self.table.reserve_key(key, hash, direction, slot), Reservation::Reserved)
            }
            Reservation::Live | Reservation::Busy => false,
        }
    }

    /// Frees a place in the full buckets of a key: moves entries, each into the other bucket of its own key, along the shortest chain of
    /// buckets that ends at a free place. The keys fit before, so there is one; it is found in every table of at most [`SEARCHED_MAX`]
    /// buckets, and in a larger one before that many buckets in a row are full.
    fn make_room(&self, hash: u64) -> bool {
        let mut searched = ArrayVec::<SearchedBucket<'_>, SEARCHED_MAX>::new();
        searched.extend(self.table.region.home(hash).buckets.map(|bucket| SearchedBucket { bucket, leads_here: None }));
        let mut at = 0;
        while let Some(bucket) = searched.get(at).map(|s| s.bucket) {
            for place in self.table.region.bucket(bucket) {
                let other = self.other_bucket(place.load(Relaxed), bucket);
                if searched.iter().any(|s| s.bucket == other) {
                    continue;
                }
                if let Some(free) = self.table.region.bucket(other).iter().find(|free| free.load(Relaxed) == 0) {
                    move_along(&searched, Some((at, place)), free);
                    return true;
                }
                if searched.try_push(SearchedBucket { bucket: other, leads_here: Some((at, place)) }).is_err() {
                    return false;
                }
            }
            at += 1;
        }
        false
    }

    /// The other bucket where an entry may be.
    fn other_bucket(&self, entry: u64, bucket: u32) -> u32 {
        let flow = self.table.region.slot(entry_slot(entry)).read();
        let key = if entry_direction(entry) == Direction::Reply { flow.reply() } else { flow.original() };
        let [first, second] = self.table.region.home(self.table.hash(&key)).buckets;
        if bucket == first { second } else { first }
    }
}

/// A full bucket that [`Recovery::make_room`] has reached.
struct SearchedBucket<'r> {
    bucket: u32,
    /// The searched bucket and the place in it whose entry can move to this bucket; none for a bucket of the key itself.
    leads_here: Option<(usize, &'r AtomicU64)>,
}

/// Moves the entry at a place to the free one, and those before it in the chain one bucket on each.
fn move_along<'r>(searched: &[SearchedBucket<'r>], mut last: Option<(usize, &'r AtomicU64)>, mut free: &'r AtomicU64) {
    while let Some((at, place)) = last {
        free.store(place.load(Relaxed), Relaxed);
        free = place;
        last = searched[at].leads_here;
    }
    free.store(0, Relaxed);
}

#[cfg(test)]
mod tests;
