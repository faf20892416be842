//! The reply filter: tells the XDP program which replies to capture.
//!
//! Replies of a flow without SNAT go to the client's own address, so no capture rule matches them. Before such a flow's first frame is
//! sent, the worker writes a 32-bit fingerprint of the reply tuple into an array that the XDP program reads (a BPF array mapped into this
//! process), and clears it when the flow ends. One bucket is one cache line. A fingerprint that matches by chance costs a detour: the
//! worker finds no flow and returns the frame to the kernel.
//!
//! Hash and layout are shared with `dataplane/xsk/bpf/filter.c`; [`slot_of`] is the definition.

use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;

use crate::prefetch::prefetch;
use crate::tuple::Tuple;

/// Fingerprints in a bucket: 16 x 4 bytes are one cache line.
pub const BUCKET_SLOTS: usize = 16;

/// Odd constants with well-spread bits: 2^64 divided by the golden ratio, and a multiplier of David Stafford's 64-bit mixers.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const FINISH: u64 = 0x94d0_49bb_1331_11eb;

/// A view of the filter: `buckets * BUCKET_SLOTS` words, with a power of two of buckets. 0 is an empty place.
#[derive(Clone, Copy)]
pub struct ReplyFilter<'r> {
    words: &'r [AtomicU32],
    seed: u32,
}

/// `(bucket hash, fingerprint)` of a reply's tuple: the two halves of one 64-bit hash, cheap in BPF as well. They are independent, so
/// among a million announced replies in 2^18 buckets a foreign packet is taken once in a billion.
///
/// 64-bit words in this order, all read as big endian. IPv4: source and destination address; IPv6: the source address's two halves, the
/// destination address's two halves; then `sport << 48 | dport << 32 | protocol`.
pub fn slot_of(reply: &Tuple, seed: u32) -> (u32, u32) {
    let mut h = u64::from(seed) ^ MIX;
    let mut word = |w: u64| {
        h = (h ^ w).wrapping_mul(MIX);
        h ^= h >> 32;
    };
    if reply.v6 {
        [reply.src, reply.dst].iter().flatten().for_each(|w| word(*w));
    } else {
        word(reply.src[1] << 32 | reply.dst[1]);
    }
    word(u64::from(reply.sport) << 48 | u64::from(reply.dport) << 32 | reply.proto as u64);
    h = h.wrapping_mul(FINISH);
    h ^= h >> 29;
    let fingerprint = (h >> 32) as u32;
    // 0 means empty.
    (h as u32, if fingerprint == 0 { 1 } else { fingerprint })
}

impl<'r> ReplyFilter<'r> {
    /// A view of shared memory. `None` unless the length is a power of two of whole buckets.
    pub fn new(words: &'r [AtomicU32], seed: u32) -> Option<ReplyFilter<'r>> {
        let buckets = words.len() / BUCKET_SLOTS;
        (buckets.is_power_of_two() && words.len() == buckets * BUCKET_SLOTS).then_some(ReplyFilter { words, seed })
    }

    fn bucket(&self, hash: u32) -> &'r [AtomicU32] {
        let buckets = self.words.len() / BUCKET_SLOTS;
        let first = (hash as usize & (buckets - 1)) * BUCKET_SLOTS;
        &self.words[first..first + BUCKET_SLOTS]
    }

    /// Prefetches the bucket of a reply.
    pub fn prefetch(&self, reply: &Tuple) {
        prefetch(&self.bucket(slot_of(reply, self.seed).0)[0]);
    }

    /// Announces a reply. False when its bucket is full. Equal fingerprints of two flows take a place each.
    pub fn insert(&self, reply: &Tuple) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.seed);
        self.bucket(hash)
            .iter()
            .any(|w| w.load(Ordering::Relaxed) == 0 && w.compare_exchange(0, fingerprint, Ordering::Release, Ordering::Relaxed).is_ok())
    }

    /// Withdraws one announcement of a reply. False when there was none.
    pub fn remove(&self, reply: &Tuple) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.seed);
        self.bucket(hash).iter().any(|w| {
            w.load(Ordering::Relaxed) == fingerprint && w.compare_exchange(fingerprint, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    /// Whether the XDP program would capture this frame.
    pub fn contains(&self, reply: &Tuple) -> bool {
        let (hash, fingerprint) = slot_of(reply, self.seed);
        self.bucket(hash).iter().any(|w| w.load(Ordering::Relaxed) == fingerprint)
    }

    /// Makes it announce exactly what another filter of the same size does. Common announcements stay visible throughout, since the XDP
    /// program reads concurrently.
    pub fn become_like(&self, wanted: &ReplyFilter<'_>) {
        for (bucket, wanted) in self.words.chunks_exact(BUCKET_SLOTS).zip(wanted.words.chunks_exact(BUCKET_SLOTS)) {
            let mut missing: ArrayVec<u32, BUCKET_SLOTS> = wanted.iter().map(|w| w.load(Ordering::Relaxed)).filter(|&w| w != 0).collect();
            let mut surplus: ArrayVec<&AtomicU32, BUCKET_SLOTS> = ArrayVec::new();
            for word in bucket {
                match missing.iter().position(|&w| w == word.load(Ordering::Relaxed)) {
                    Some(known) => drop(missing.swap_remove(known)),
                    None => surplus.push(word),
                }
            }
            surplus.into_iter().for_each(|word| word.store(missing.pop().unwrap_or(0), Ordering::Release));
        }
    }

    /// Empties the filter.
    pub fn clear(&self) {
        self.words.iter().for_each(|w| w.store(0, Ordering::Relaxed));
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
mod tests {
    use super::*;
    use crate::tuple::Proto;

    fn tuple(i: u32) -> Tuple {
        let src = std::net::Ipv4Addr::from(0x0a00_0000 | (i >> 12));
        Tuple::new(Proto::Tcp, src.into(), 1024 + (i & 0xfff) as u16, "192.168.0.5".parse().unwrap(), 80).unwrap()
    }

    fn words(buckets: usize) -> Vec<AtomicU32> {
        (0..buckets * BUCKET_SLOTS).map(|_| AtomicU32::new(0)).collect()
    }

    #[test]
    fn sizes_are_powers_of_two_of_buckets() {
        assert!(ReplyFilter::new(&words(3), 0).is_none());
        assert!(ReplyFilter::new(&words(4)[..40], 0).is_none());
        assert!(ReplyFilter::new(&[], 0).is_none());
        assert!(ReplyFilter::new(&words(4), 0).is_some());
    }

    #[test]
    fn announced_until_withdrawn_and_counted_per_connection() {
        let memory = words(64);
        let f = ReplyFilter::new(&memory, 7).unwrap();
        assert!(f.insert(&tuple(1)) && f.insert(&tuple(1)));
        assert_eq!(f.len(), 2);
        assert!(f.remove(&tuple(1)));
        assert!(f.contains(&tuple(1)));
        assert!(f.remove(&tuple(1)) && !f.remove(&tuple(1)));
        assert!(f.is_empty() && !f.contains(&tuple(1)));
    }

    #[test]
    fn a_full_bucket_refuses() {
        let memory = words(1);
        let f = ReplyFilter::new(&memory, 7).unwrap();
        assert!((0..16).all(|i| f.insert(&tuple(i))));
        assert!(!f.insert(&tuple(16)));
        f.clear();
        assert!(f.insert(&tuple(16)));
    }

    #[test]
    fn it_becomes_like_another_whatever_was_in_it() {
        let (ours, theirs) = (words(64), words(64));
        let (f, wanted) = (ReplyFilter::new(&ours, 7).unwrap(), ReplyFilter::new(&theirs, 7).unwrap());
        // Some are in both, one of them twice here and once there, one the other way round.
        (0..500).for_each(|i| assert!(f.insert(&tuple(i))));
        (300..700).for_each(|i| assert!(wanted.insert(&tuple(i))));
        assert!(f.insert(&tuple(310)) && wanted.insert(&tuple(320)));
        f.become_like(&wanted);
        assert_eq!(f.len(), 401);
        assert!((300..700).all(|i| f.remove(&tuple(i))) && f.remove(&tuple(320)) && f.is_empty());
        // Full buckets of other things.
        ours.iter().for_each(|w| w.store(0xdead, Ordering::Relaxed));
        f.become_like(&wanted);
        assert_eq!(f.len(), 401);
        f.become_like(&ReplyFilter::new(&words(64), 7).unwrap());
        assert!(f.is_empty());
    }

    #[test]
    fn what_stays_announced_is_never_gone() {
        let (ours, theirs) = (words(16), words(16));
        let (f, wanted) = (ReplyFilter::new(&ours, 7).unwrap(), ReplyFilter::new(&theirs, 7).unwrap());
        (0..40).for_each(|i| assert!(f.insert(&tuple(i)) && wanted.insert(&tuple(i))));
        let (before, after) = (words(16), words(16));
        let (before, after) = (ReplyFilter::new(&before, 7).unwrap(), ReplyFilter::new(&after, 7).unwrap());
        (0..60).for_each(|i| assert!(before.insert(&tuple(i))));
        (0..50).for_each(|i| assert!(after.insert(&tuple(i % 40))));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..2_000 {
                    f.become_like(if round % 2 == 0 { &before } else { &wanted });
                }
                stop.store(true, Ordering::Relaxed);
            });
            while !stop.load(Ordering::Relaxed) {
                assert!((0..40).all(|i| f.contains(&tuple(i))));
            }
        });
    }

    #[test]
    fn chance_matches_are_rare_and_buckets_fill_evenly() {
        let memory = words(16_384);
        let f = ReplyFilter::new(&memory, 99).unwrap();
        let n = 16_384 * 8;
        let refused = (0..n).filter(|&i| !f.insert(&tuple(i))).count();
        assert!(refused < 300, "half full, Poisson: about 0.1 % overflow; {refused} of {n}");
        let strangers = (n..2 * n).filter(|&i| f.contains(&tuple(i))).count();
        assert!(strangers < 20, "{strangers} of {n} strangers taken");
    }
}
