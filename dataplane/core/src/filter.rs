//! The reply filter: tells the XDP program which replies to capture.
//!
//! Replies go to the client's own address or, with SNAT, to one of the node's, so no capture rule matches them. Before a flow's first frame is
//! sent, the worker writes a 32-bit fingerprint of the reply tuple into an array that the XDP program reads (a BPF array mapped into this
//! process), and clears it when the flow ends. One bucket is one cache line. A fingerprint that matches by chance costs a detour: the
//! worker finds no flow and returns the frame to the kernel.
//!
//! Clients choose their addresses and ports, forged ones too, and so half of the tuple: the hash has a secret key, without which nobody can
//! aim at a bucket. Hash and layout are shared with `dataplane/xsk/bpf/filter.c`; [`slot_of`] is the definition.
//!
//! Beside the fingerprints there is an array of owners, which only this process reads: the connection table's slot for each announcement. By
//! these a full bucket makes room (`pipeline::evict`). An owner is written after its fingerprint and never cleared, so it may name a slot
//! that holds another flow by now, or none: readers check.

pub mod direct;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;

use crate::prefetch::prefetch;
use crate::siphash::siphash;
use crate::tuple::{AddrWords, Tuple};

/// Fingerprints in a bucket: 16 x 4 bytes are one cache line.
pub const BUCKET_SLOTS: usize = 16;

/// The secret of a reply filter: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReplyKey(pub [u64; 2]);

impl std::fmt::Debug for ReplyKey {
    /// It stays out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReplyKey(..)")
    }
}

/// A view of the filter: `buckets * BUCKET_SLOTS` words, with a power of two of buckets. 0 is an empty place.
#[derive(Clone, Copy)]
pub struct ReplyFilter<'r> {
    words: &'r [AtomicU32],
    /// Of each place: the slot of the flow in the connection table, plus one. 0: there never was one.
    owners: &'r [AtomicU32],
    /// The connections that pass by: see [`direct`].
    direct: &'r [AtomicU32],
    /// By [`source_place`]: not 0 if replies of such a source were announced. Empty or [`REPLY_SOURCES`] long.
    sources: &'r [AtomicU64],
    key: ReplyKey,
}

/// Places for the sources of replies, see [`ReplyFilter::with_sources`].
pub const REPLY_SOURCES: usize = 1 << 16;

/// The place of a reply's source. `dataplane/xsk/bpf/filter.c` has the same.
pub fn source_place(src: AddrWords) -> usize {
    let folded = src.iter().fold(0, |folded, word| folded ^ (word >> 32) as u32 ^ *word as u32);
    (folded.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

/// `(bucket hash, fingerprint)` of a reply's tuple: the two halves of one 64-bit hash. They are independent, so among a million announced
/// replies in 2^18 buckets a foreign packet is taken once in a billion.
///
/// SipHash-1-3 of these 64-bit words, whose fields are read as big endian. IPv4: `source << 32 | destination`; IPv6: the source address's
/// two halves, the destination address's two halves; then `length << 56 | sport << 24 | dport << 8 | protocol`, where the length in bytes (15
/// or 39) is SipHash's own and tells the families apart.
pub fn slot_of(reply: &Tuple, key: ReplyKey) -> (u32, u32) {
    let ports = u64::from(reply.sport) << 24 | u64::from(reply.dport) << 8 | reply.proto as u64;
    let h = if reply.v6 {
        siphash::<1, 3>(key.0, [reply.src[0], reply.src[1], reply.dst[0], reply.dst[1], 39 << 56 | ports])
    } else {
        siphash::<1, 3>(key.0, [reply.src[1] << 32 | reply.dst[1], 15 << 56 | ports])
    };
    let fingerprint = (h >> 32) as u32;
    // 0 means empty.
    (h as u32, if fingerprint == 0 { 1 } else { fingerprint })
}

impl<'r> ReplyFilter<'r> {
    /// A view of shared memory, and of as many owners, whatever is in those. `None` unless the length is a power of two of whole buckets.
    pub fn new(words: &'r [AtomicU32], owners: &'r [AtomicU32], key: ReplyKey) -> Option<ReplyFilter<'r>> {
        let buckets = words.len() / BUCKET_SLOTS;
        let whole = buckets.is_power_of_two() && words.len() == buckets * BUCKET_SLOTS && owners.len() == words.len();
        whole.then_some(ReplyFilter { words, owners, direct: &[], sources: &[], key })
    }

    /// The same filter, which notes the sources of announced replies here as well. A later fragment of a reply has no ports, so the XDP program can only
    /// ask whether its source is one of these. They stay noted when the flow ends: a match costs a detour, and only for fragments whose first one has
    /// not come.
    pub fn with_sources(self, sources: &'r [AtomicU64]) -> ReplyFilter<'r> {
        ReplyFilter { sources, ..self }
    }

    /// Notes the source of a reply.
    pub fn note_source(&self, reply: &Tuple) {
        if let Some(place) = self.sources.get(source_place(reply.src)).filter(|place| place.load(Ordering::Relaxed) == 0) {
            place.store(1, Ordering::Relaxed);
        }
    }

    /// The number of a reply's bucket.
    pub fn bucket_of(&self, reply: &Tuple) -> u32 {
        slot_of(reply, self.key).0 & (self.words.len() / BUCKET_SLOTS - 1) as u32
    }

    /// The places of the bucket that a hash names.
    fn places(&self, hash: u32) -> Range<usize> {
        let buckets = self.words.len() / BUCKET_SLOTS;
        let first = (hash as usize & (buckets - 1)) * BUCKET_SLOTS;
        first..first + BUCKET_SLOTS
    }

    fn bucket(&self, hash: u32) -> &'r [AtomicU32] {
        &self.words[self.places(hash)]
    }

    /// Prefetches the bucket of a reply, and its owners when they are `written` soon.
    pub fn prefetch(&self, reply: &Tuple, written: bool) {
        let first = self.places(slot_of(reply, self.key).0).start;
        prefetch(&self.words[first]);
        if written {
            prefetch(&self.owners[first]);
        }
    }

    /// Announces the reply of the flow in this slot of the connection table. False when its bucket is full. Equal fingerprints of two flows
    /// take a place each.
    pub fn insert(&self, reply: &Tuple, slot: u32) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.key);
        self.note_source(reply);
        let taken = self.places(hash).find(|&place| {
            let word = &self.words[place];
            word.load(Ordering::Relaxed) == 0 && word.compare_exchange(0, fingerprint, Ordering::Release, Ordering::Relaxed).is_ok()
        });
        if let Some(place) = taken {
            self.owners[place].store(slot.wrapping_add(1), Ordering::Relaxed);
        }
        taken.is_some()
    }

    /// The slots whose flows seem to be announced in a bucket, at most one for each place. They may be out of date: the
    /// caller must check that a slot holds a live flow that is announced in this bucket.
    pub fn owners(&self, bucket: u32) -> impl Iterator<Item = u32> + use<'r> {
        self.owners[self.places(bucket)].iter().filter_map(|owner| owner.load(Ordering::Relaxed).checked_sub(1))
    }

    /// Withdraws one announcement of a reply. False when there was none.
    pub fn remove(&self, reply: &Tuple) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.key);
        self.bucket(hash).iter().any(|w| {
            w.load(Ordering::Relaxed) == fingerprint && w.compare_exchange(fingerprint, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    /// Whether the XDP program would capture this frame.
    pub fn contains(&self, reply: &Tuple) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.key);
        self.bucket(hash).iter().any(|w| w.load(Ordering::Relaxed) == fingerprint)
    }

    /// Makes it announce exactly what another filter of the same size and key does, for the same owners. Common announcements stay visible
    /// throughout, since the XDP program reads concurrently; nothing else may write meanwhile.
    pub fn become_like(&self, wanted: &ReplyFilter<'_>) {
        for first in (0..self.words.len().min(wanted.words.len())).step_by(BUCKET_SLOTS) {
            let places = first..first + BUCKET_SLOTS;
            let theirs = places.clone().map(|place| [&wanted.words[place], &wanted.owners[place]].map(|w| w.load(Ordering::Relaxed)));
            let mut missing: ArrayVec<[u32; 2], BUCKET_SLOTS> = theirs.filter(|&[word, _]| word != 0).collect();
            let mut surplus: ArrayVec<usize, BUCKET_SLOTS> = ArrayVec::new();
            for place in places {
                let word = self.words[place].load(Ordering::Relaxed);
                match missing.iter().position(|&[wanted, _]| wanted == word) {
                    Some(known) => self.owners[place].store(missing.swap_remove(known)[1], Ordering::Relaxed),
                    None => surplus.push(place),
                }
            }
            for place in surplus {
                let [word, owner] = missing.pop().unwrap_or([0; 2]);
                self.owners[place].store(owner, Ordering::Relaxed);
                self.words[place].store(word, Ordering::Release);
            }
        }
    }

    /// Empties the filter.
    pub fn clear(&self) {
        self.words.iter().for_each(|w| w.store(0, Ordering::Relaxed));
    }

    /// All places.
    pub fn capacity(&self) -> usize {
        self.words.len()
    }

    /// Occupied places.
    pub fn len(&self) -> usize {
        self.words.iter().filter(|w| w.load(Ordering::Relaxed) != 0).count()
    }

    /// Whether nothing is announced.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
