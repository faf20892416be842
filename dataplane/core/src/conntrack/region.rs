//! The memory of the table: one region of words, no pointers.
//!
//! ```text
//! words 0..64        header, a cache line each:
//!                    magic, version, capacity, buckets, seed, boot id (2), check of these and of where things are
//!                    free list; slots ever used; cursor of the sweep; live flows; flows with a source port of ours; use
//! words 64..         index: buckets of eight entries, one cache line each
//! then, aligned      flows: 16 words each
//! then               sequence numbers: a word for each flow, see `sequence`
//! then               fragments: 2 words each, see `fragments`
//! then, aligned      affinity: buckets of a cache line, see `affinity`
//! then               shares: a word each, see `shares`
//! then, aligned      endpoints: a cache line each, see `endpoints`
//! then, aligned      flows of clients: buckets of a cache line, see `clients`
//! ```
//!
//! An index entry is `tag << 32 | (slot + 1) << 1 | direction`; 0 is empty. The tag is the upper half of the key's hash; the lower
//! half names two different buckets, and a key is in one of them.
//!
//! A region may be a file and outlive the process; see `recovery`.

mod error;

use super::affinity::BUCKET_WORDS;
use super::clients::{CountedClient, with_counted};
use super::endpoints::ENDPOINT_WORDS;
use super::flow::{FLOW_WORDS, KEYS, STATE, Slot};
use crate::bucket_scan::BUCKET_ENTRIES;
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tuple::{HashSeed, fast_range};

pub use error::RegionError;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"nomagic\x01");
pub(super) const VERSION: u64 = 10;
const HEADER_WORDS: usize = 64;
/// Words of the header's first line that never change; their check follows them.
const FIXED_WORDS: usize = 7;
/// Load of the index when the table is full: 60 %.
const INDEX_LOAD: (usize, usize) = (3, 5);
/// Fragmented datagrams remembered; newer ones replace older ones of their bucket.
const FRAGMENTS: usize = if cfg!(loom) { 1 } else { 4_096 };
/// Of a bucket: one cache line.
const FRAGMENT_WAYS: usize = if cfg!(loom) { 1 } else { 4 };
const FRAGMENT_WORDS: usize = 2;
/// Connections at the most.
pub const CAPACITY_MAX: u32 = 1 << 26;

const W_SEED: usize = 4;
const W_BOOT_ID: [usize; 2] = [5, 6];
const W_FREE_HEAD: usize = 8;
const W_HIGH_WATER: usize = 16;
pub(super) const W_CURSOR: usize = 24;
pub(super) const W_LIVE: usize = 32;
pub(super) const W_SNAT: usize = 40;
const W_USE: usize = 48;

/// A process uses the region, or died while it did.
const IN_USE: u64 = 1;
/// The last process left it in order.
const DETACHED: u64 = 2;

pub(super) const FREE: u64 = 0;
pub(super) const PENDING: u64 = 1;
pub(super) const LIVE: u64 = 2;
pub(super) const DYING: u64 = 3;
pub(super) const ABORTED: u64 = 4;
pub(super) const STATE_MASK: u64 = 0xff;
const GENERATION_ONE: u64 = 1 << 32;
const GENERATION_MASK: u64 = !(GENERATION_ONE - 1);

/// Where things are in a region, and the words themselves.
#[derive(Clone, Copy)]
pub(super) struct Region<'r> {
    words: &'r [AtomicU64],
    pub(super) capacity: u32,
    buckets: u32,
    index: &'r [[AtomicU64; BUCKET_ENTRIES]],
    flows: &'r [[AtomicU64; FLOW_WORDS]],
    pub(super) seed: HashSeed,
}

/// The places where a key may be: two buckets, never the same.
#[derive(Clone, Copy)]
pub(super) struct Home {
    pub(super) tag: u32,
    pub(super) buckets: [u32; 2],
}

fn buckets_for(capacity: u32) -> usize {
    (2 * capacity as usize * INDEX_LOAD.1).div_ceil(BUCKET_ENTRIES * INDEX_LOAD.0).max(2)
}

fn flows_at(buckets: usize) -> usize {
    (HEADER_WORDS + buckets * BUCKET_ENTRIES).next_multiple_of(FLOW_WORDS)
}

fn sequences_at(buckets: usize, capacity: u32) -> usize {
    flows_at(buckets) + capacity as usize * FLOW_WORDS
}

fn fragments_at(capacity: u32) -> usize {
    sequences_at(buckets_for(capacity), capacity) + capacity as usize
}

fn affinity_at(capacity: u32) -> usize {
    (fragments_at(capacity) + FRAGMENTS * FRAGMENT_WORDS).next_multiple_of(BUCKET_WORDS)
}

/// A remembered client for every eight connections, four in a bucket.
fn affinity_buckets(capacity: u32) -> usize {
    (capacity as usize / 32).max(1)
}

fn shares_at(capacity: u32) -> usize {
    affinity_at(capacity) + affinity_buckets(capacity) * BUCKET_WORDS
}

/// Counters of source ports. As many in every table, so that holders share a counter in a copy of a table if they do in the table.
const SHARE_COUNTERS: usize = if cfg!(loom) { 2 } else { 1 << 16 };

fn endpoints_at(capacity: u32) -> usize {
    (shares_at(capacity) + SHARE_COUNTERS).next_multiple_of(ENDPOINT_WORDS)
}

/// An endpoint for every 64 connections.
fn endpoint_lines(capacity: u32) -> usize {
    (capacity as usize / 64).max(if cfg!(loom) { 1 } else { 8 })
}

fn clients_at(capacity: u32) -> usize {
    (endpoints_at(capacity) + endpoint_lines(capacity) * ENDPOINT_WORDS).next_multiple_of(BUCKET_ENTRIES)
}

/// Buckets of counters: five counters for every four connections.
fn client_buckets(capacity: u32) -> usize {
    (5 * capacity as usize).div_ceil(4 * BUCKET_ENTRIES).max(if cfg!(loom) { 1 } else { 8 })
}

/// Ties the header's first line together, and to where this program has things in a region.
fn check_of(fixed: &[u64; FIXED_WORDS], capacity: u32) -> u64 {
    let buckets = buckets_for(capacity);
    let places = [flows_at(buckets), sequences_at(buckets, capacity), fragments_at(capacity), affinity_at(capacity)];
    let places = places.into_iter().chain([shares_at(capacity)]).chain([
        endpoints_at(capacity),
        clients_at(capacity),
        Region::words_needed(capacity),
    ]);
    let words = fixed.iter().copied().chain(places.map(|place| place as u64));
    let seed = HashSeed::new(MAGIC);
    words.fold(0, |check, word| seed.hash_words(&[check, word]))
}

impl<'r> Region<'r> {
    pub(super) fn words_needed(capacity: u32) -> usize {
        clients_at(capacity) + client_buckets(capacity) * BUCKET_ENTRIES
    }

    pub(super) fn format(words: &'r [AtomicU64], capacity: u32, seed: u64, boot_id: [u64; 2]) -> Result<Region<'r>, RegionError> {
        let needed = Region::check_size(words, capacity)?;
        // Zeroing also maps every page now, not under traffic.
        words[..needed].iter().for_each(|w| w.store(0, Ordering::Relaxed));
        Region::format_zeroed(words, capacity, seed, boot_id)
    }

    fn check_size(words: &[AtomicU64], capacity: u32) -> Result<usize, RegionError> {
        if capacity == 0 || capacity > CAPACITY_MAX {
            return Err(RegionError::Capacity);
        }
        let needed = Region::words_needed(capacity);
        if words.len() < needed { Err(RegionError::TooSmall) } else { Ok(needed) }
    }

    pub(super) fn format_zeroed(words: &'r [AtomicU64], capacity: u32, seed: u64, boot_id: [u64; 2]) -> Result<Region<'r>, RegionError> {
        Region::check_size(words, capacity)?;
        let buckets = buckets_for(capacity);
        let fixed = [MAGIC, VERSION, u64::from(capacity), buckets as u64, seed, boot_id[0], boot_id[1]];
        for (word, value) in words.iter().zip(fixed).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        words[FIXED_WORDS].store(check_of(&fixed, capacity), Ordering::Relaxed);
        words[W_USE].store(IN_USE, Ordering::Relaxed);
        words[0].store(MAGIC, Ordering::Release);
        Ok(Region::view(words, capacity, buckets, seed))
    }

    /// A view of a region that [`Region::format`] made, in this process or another.
    pub(super) fn attach(words: &'r [AtomicU64]) -> Result<Region<'r>, RegionError> {
        let fixed: [u64; FIXED_WORDS] = std::array::from_fn(|i| words.get(i).map_or(0, |w| w.load(Ordering::Acquire)));
        let [magic, version, capacity, buckets, seed, ..] = fixed;
        if magic != MAGIC {
            return Err(RegionError::Foreign);
        }
        if version != VERSION {
            return Err(RegionError::Version { found: version });
        }
        let capacity = u32::try_from(capacity).ok().filter(|&c| c > 0 && c <= CAPACITY_MAX).ok_or(RegionError::Header)?;
        let check = words.get(FIXED_WORDS).map_or(0, |w| w.load(Ordering::Relaxed));
        if buckets != buckets_for(capacity) as u64 || check != check_of(&fixed, capacity) {
            return Err(RegionError::Header);
        }
        Region::check_size(words, capacity)?;
        Ok(Region::view(words, capacity, buckets as usize, seed))
    }

    /// The parts of a region of checked length.
    fn view(words: &'r [AtomicU64], capacity: u32, buckets: usize, seed: u64) -> Region<'r> {
        let index = words[HEADER_WORDS..][..buckets * BUCKET_ENTRIES].as_chunks().0;
        let flows = words[flows_at(buckets)..][..capacity as usize * FLOW_WORDS].as_chunks().0;
        Region { words, capacity, buckets: buckets as u32, index, flows, seed: HashSeed::new(seed) }
    }

    #[inline]
    pub(super) fn header(&self, word: usize) -> &'r AtomicU64 {
        &self.words[word]
    }

    #[inline(always)]
    pub(super) fn home(&self, hash: u64) -> Home {
        let (low, tag) = (hash as u32, (hash >> 32) as u32);
        let first = fast_range(low, self.buckets);
        let second = (low ^ tag.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca77);
        // One of the others: a key with one bucket only would find it full in a small table.
        let second = fast_range(second, self.buckets - 1);
        Home { tag, buckets: [first, second + u32::from(second >= first)] }
    }

    #[inline(always)]
    pub(super) fn bucket(&self, bucket: u32) -> &'r [AtomicU64; BUCKET_ENTRIES] {
        &self.index[bucket as usize]
    }

    #[inline(always)]
    pub(super) fn slot(&self, slot: u32) -> Slot<'r> {
        Slot(&self.flows[slot as usize])
    }

    /// The sequence numbers of the flow in a slot.
    pub(super) fn sequence(&self, slot: u32) -> &'r AtomicU64 {
        &self.words[sequences_at(self.buckets as usize, self.capacity) + slot as usize]
    }

    /// The places where a fragmented datagram with this hash may be remembered.
    pub(super) fn fragments(&self, hash: u64) -> &'r [[AtomicU64; FRAGMENT_WORDS]] {
        let all = self.words[fragments_at(self.capacity)..][..FRAGMENTS * FRAGMENT_WORDS].as_chunks().0;
        let bucket = fast_range(hash as u32, (FRAGMENTS / FRAGMENT_WAYS) as u32) as usize;
        &all[bucket * FRAGMENT_WAYS..][..FRAGMENT_WAYS]
    }

    /// The bucket where a client's endpoint is remembered.
    pub(super) fn affinity(&self, hash: u64) -> &'r [AtomicU64; BUCKET_WORDS] {
        let buckets = self.words[affinity_at(self.capacity)..][..affinity_buckets(self.capacity) * BUCKET_WORDS].as_chunks().0;
        &buckets[fast_range((hash >> 32) as u32, buckets.len() as u32) as usize]
    }

    /// The counters of source ports by client and Service.
    pub(super) fn shares(&self) -> &'r [AtomicU64] {
        &self.words[shares_at(self.capacity)..][..SHARE_COUNTERS]
    }

    /// What is known of the source ports towards each endpoint.
    pub(super) fn endpoints(&self) -> &'r [[AtomicU64; ENDPOINT_WORDS]] {
        self.words[endpoints_at(self.capacity)..][..endpoint_lines(self.capacity) * ENDPOINT_WORDS].as_chunks().0
    }

    /// The counters of clients' flows.
    pub(super) fn client_counters(&self) -> &'r [[AtomicU64; BUCKET_ENTRIES]] {
        self.words[clients_at(self.capacity)..][..client_buckets(self.capacity) * BUCKET_ENTRIES].as_chunks().0
    }

    /// The boot of the machine that the region is of.
    pub(super) fn boot_id(&self) -> [u64; 2] {
        W_BOOT_ID.map(|word| self.words[word].load(Ordering::Relaxed))
    }

    /// The number that the hash seed was expanded from.
    pub(super) fn seed_number(&self) -> u64 {
        self.words[W_SEED].load(Ordering::Relaxed)
    }

    /// Marks the region as in use. Returns whether the last process left it in order.
    pub(super) fn begin_use(&self) -> bool {
        self.words[W_USE].swap(IN_USE, Ordering::AcqRel) == DETACHED
    }

    /// Marks the region as left in order.
    pub(super) fn end_use(&self) {
        self.words[W_USE].store(DETACHED, Ordering::Release);
    }

    /// Clears everything that can be rebuilt from the flows: index, shares, endpoints, flows of clients, free list, counts. No slot counts as used.
    pub(super) fn forget_what_follows_from_flows(&self) {
        let index = self.index.iter().flatten();
        let counts = [W_FREE_HEAD, W_HIGH_WATER, W_CURSOR, W_LIVE, W_SNAT].map(|word| &self.words[word]);
        let of_ports = self.shares().iter().chain(self.endpoints().iter().flatten());
        let of_clients = self.client_counters().iter().flatten();
        index.chain(of_ports).chain(of_clients).chain(counts).for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Counts the slots below this one as used.
    pub(super) fn set_high_water(&self, slots: u32) {
        self.words[W_HIGH_WATER].store(u64::from(slots), Ordering::Relaxed);
    }

    /// Slots that have ever been used: the sweep's range.
    pub(super) fn high_water(&self) -> u32 {
        self.words[W_HIGH_WATER].load(Ordering::Relaxed).min(u64::from(self.capacity)) as u32
    }

    /// Takes a free slot and sets it pending, for a flow that is counted for this client. The caller owns it until it goes live or is freed.
    pub(super) fn allocate(&self, counted: Option<CountedClient>) -> Option<u32> {
        let slot = self.pop_free().or_else(|| self.take_unused())?;
        let state = &self.slot(slot).0[STATE];
        // A reader that sees it pending must also see that its former keys are gone: an old entry is no rival's.
        let pending = (state.load(Ordering::Relaxed) & GENERATION_MASK) | PENDING;
        state.store(with_counted(pending, counted), Ordering::Release);
        // Readers of the slot's former flow must see the state change before the new words (seqlock, writer side).
        fence(Ordering::Release);
        Some(slot)
    }

    fn take_unused(&self) -> Option<u32> {
        let high = &self.words[W_HIGH_WATER];
        let mut seen = high.load(Ordering::Relaxed);
        while seen < u64::from(self.capacity) {
            match high.compare_exchange_weak(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.prefetch_slot(seen as u32 + 1);
                    return Some(seen as u32);
                }
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Prefetches the slot that the next creation will probably take.
    fn prefetch_slot(&self, slot: u32) {
        if let Some(words) = self.flows.get(slot as usize) {
            prefetch(&words[0]);
            prefetch(&words[FLOW_WORDS / 2]);
        }
    }

    /// Pops the free list: a Treiber stack whose head carries a count against ABA.
    fn pop_free(&self) -> Option<u32> {
        let head = &self.words[W_FREE_HEAD];
        let mut seen = head.load(Ordering::Acquire);
        loop {
            let slot = (seen as u32).checked_sub(1)?;
            let next = self.slot(slot).word(KEYS) & 0xffff_ffff;
            let new = ((seen >> 32).wrapping_add(1) << 32) | next;
            match head.compare_exchange_weak(seen, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    self.prefetch_slot((next as u32).wrapping_sub(1));
                    return Some(slot);
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Frees a slot that no index entry names any more.
    pub(super) fn free(&self, slot: u32) {
        self.retire(slot);
        self.link(slot);
    }

    /// Retires a slot: readers that still look at its words notice.
    pub(super) fn retire(&self, slot: u32) {
        let state = &self.slot(slot).0[STATE];
        state.store((state.load(Ordering::Relaxed) & GENERATION_MASK).wrapping_add(GENERATION_ONE) | FREE, Ordering::Relaxed);
    }

    /// Puts a retired slot on the free list. The link is in a word that only the slot's owner writes.
    pub(super) fn link(&self, slot: u32) {
        let words = self.slot(slot).0;
        // As in `allocate`: a reader that sees the link in place of the ports must see that the slot is free.
        fence(Ordering::Release);
        words[KEYS + 1].store(0, Ordering::Relaxed);
        let head = &self.words[W_FREE_HEAD];
        let mut seen = head.load(Ordering::Relaxed);
        loop {
            words[KEYS].store(seen & 0xffff_ffff, Ordering::Relaxed);
            let new = ((seen >> 32).wrapping_add(1) << 32) | u64::from(slot + 1);
            match head.compare_exchange_weak(seen, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}
