//! Taking over the table that an earlier process has left, however that one ended.
//!
//! A process can die between any two stores. A creation leaves a slot that is pending (or aborted), with none, one or both of its index
//! entries; an ending leaves one that is dying; either may leave a slot that is neither in use nor on the free list, a share that is counted for
//! nobody, counts that are one too high. Only a live flow is whole: it was written before it went live, and what changes later is
//! one word at a time. So the flows are the truth, and everything else is made from them again. That also bears with words that nobody
//! wrote: whatever is in them, the table that comes out is a map, and no place is lost.
//!
//! Kept as they are: affinity and fragments, whose readers never trust what they read. Forgotten: next hops, since the routes'
//! generations start again.

use super::create::Key;
use super::flow::{SEEN, STATE, TARGET, created_of, phase_of};
use super::region::{FREE, LIVE, Region, RegionError, STATE_MASK, W_LIVE};
use super::{Conntrack, Direction, Flow, entry_direction, entry_slot};
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::Tuple;

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
    /// Connections that go on.
    pub connections: u32,
    /// Connections that were not whole: half made, half ended, or damaged.
    pub not_whole: u32,
    /// Connections that were whole but not wanted any more.
    pub unwanted: u32,
}

/// Slots looked at ahead: the index lines of their flows are fetched meanwhile.
const AHEAD: u32 = 8;

/// What becomes of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It had no flow.
    Free,
    GoesOn,
    NotWhole,
    Unwanted,
}

/// Takes over the table in a region that nobody else uses. `judge` says for each connection where its statistics are from now on
/// (see [`crate::services::Backend::stats`]), or `None` to end it; replies that were announced are still to be announced, or
/// withdrawn, by the caller. `now_ms`: what was seen later than that was not.
///
/// # Errors
/// When there is no such table in the region. Nothing has been changed then.
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
    // From the last slot on: the first live one says how many have been used, and the free list will begin with the lowest.
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

/// A table whose index is being made again.
struct Recovery<'r> {
    table: Conntrack<'r>,
}

impl Recovery<'_> {
    /// Fetches the index lines that a slot's flow will go to.
    fn fetch_places(&self, slot: u32) {
        let words = self.table.region.slot(slot);
        if words.word(STATE) & STATE_MASK == LIVE {
            let flow = words.read();
            self.table.prefetch_key(&flow.reply());
            self.table.prefetch_key(&flow.original());
        }
    }

    /// Puts a slot's flow back in its places, if it is a whole one.
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
        words.0[STATE].store((state & !u64::from(u32::MAX)) | LIVE, Relaxed);
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
            // There is no limit, so it is counted.
            let _ = self.table.snat_ports().take(&flow, u64::MAX);
        }
        Fate::GoesOn
    }

    /// Enters a key in the index. False when another flow has it already, or there is no room.
    fn put(&self, key: &Tuple, direction: Direction, slot: u32) -> bool {
        let hash = self.table.hash(key);
        match self.table.reserve_key(key, hash, direction, slot) {
            Key::Reserved => true,
            // In this order they do not find room by themselves, but in another one all of them had some.
            Key::NoRoom => self.make_room(hash) && matches!(self.table.reserve_key(key, hash, direction, slot), Key::Reserved),
            Key::Live | Key::Busy => false,
        }
    }

    /// Moves one entry out of the full buckets of a key, into the other bucket of its own key.
    fn make_room(&self, hash: u64) -> bool {
        self.table.region.home(hash).buckets.into_iter().any(|bucket| {
            self.table.region.bucket(bucket).iter().any(|place| {
                let entry = place.load(Relaxed);
                let flow = self.table.region.slot(entry_slot(entry)).read();
                let key = if entry_direction(entry) == Direction::Reply { flow.reply() } else { flow.original() };
                let others = self.table.region.home(self.table.hash(&key)).buckets.into_iter().filter(|other| *other != bucket);
                let free = others.flat_map(|other| self.table.region.bucket(other)).find(|free| free.load(Relaxed) == 0);
                free.is_some_and(|free| {
                    free.store(entry, Relaxed);
                    place.store(0, Relaxed);
                    true
                })
            })
        })
    }
}

#[cfg(test)]
mod tests;
