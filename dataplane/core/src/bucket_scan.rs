//! Searches the entries of an index bucket for a tag, or for a free entry.
//!
//! On x86_64 four vector loads (SSE2, which every such processor has) read all eight entries at once. A concurrent write makes the result a hint,
//! with one guarantee: each half of an entry is read whole, as any aligned four bytes are, so a tag published earlier is found.
#![allow(unsafe_code, reason = "vector loads of words that others write")]

use crate::sync::{AtomicU64, Ordering};

/// Entries of a bucket: one cache line. An entry is `tag << 32 | something`; it is free when the lower half is 0.
pub const BUCKET_ENTRIES: usize = 8;

/// Places in a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places(u32);

/// Bits of [`Places`] for each place.
const BITS: u32 = 2;

impl Places {
    /// Number of places.
    #[inline(always)]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether the set is empty.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first place; an arbitrary one when the set is empty.
    #[inline(always)]
    pub fn first(self) -> usize {
        (self.0.trailing_zeros() / BITS) as usize % BUCKET_ENTRIES
    }

    /// The set without this place.
    #[inline(always)]
    pub fn without(self, place: usize) -> Places {
        Places(self.0 & !(0b11 << (BITS * place as u32)))
    }
}

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let place = self.first();
        let some = !self.is_empty();
        self.0 &= self.0.wrapping_sub(1);
        some.then_some(place)
    }
}

/// The places of entries with this tag. (Free entries have tag 0 too.)
#[inline(always)]
pub fn tagged(bucket: &[AtomicU64; BUCKET_ENTRIES], tag: u32) -> Places {
    Places(equal_halves(bucket, tag) & 0xaaaa)
}

/// The free places.
#[inline(always)]
pub fn free(bucket: &[AtomicU64; BUCKET_ENTRIES]) -> Places {
    Places(equal_halves(bucket, 0) & 0x5555)
}

/// Two bits for each entry: its lower half equals `n`, its upper half equals `n`.
#[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
#[inline(always)]
fn equal_halves(bucket: &[AtomicU64; BUCKET_ENTRIES], n: u32) -> u32 {
    let equal: u32;
    // SAFETY: the loads read the 64 bytes of the borrowed bucket and nothing else, at any alignment. Other threads may write the entries
    // as atomics meanwhile: these are the processor's own loads, for which concurrent stores are defined.
    unsafe {
        std::arch::asm!(
            "movd {n}, {n32:e}",
            "pshufd {n}, {n}, 0",
            "movdqu {a}, [{bucket}]",
            "movdqu {b}, [{bucket} + 16]",
            "pcmpeqd {a}, {n}",
            "pcmpeqd {b}, {n}",
            "packssdw {a}, {b}",
            "movdqu {b}, [{bucket} + 32]",
            "movdqu {c}, [{bucket} + 48]",
            "pcmpeqd {b}, {n}",
            "pcmpeqd {c}, {n}",
            "packssdw {b}, {c}",
            "packsswb {a}, {b}",
            "pmovmskb {equal:e}, {a}",
            n = out(xmm_reg) _,
            n32 = in(reg) n,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            bucket = in(reg) bucket.as_ptr(),
            equal = out(reg) equal,
            options(readonly, nostack, preserves_flags),
        );
    }
    equal
}

#[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
fn equal_halves(bucket: &[AtomicU64; BUCKET_ENTRIES], n: u32) -> u32 {
    one_by_one(bucket, n)
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(miri), not(loom)))))]
fn one_by_one(bucket: &[AtomicU64; BUCKET_ENTRIES], n: u32) -> u32 {
    bucket.iter().enumerate().fold(0, |bits, (i, entry)| {
        let entry = entry.load(crate::sync::LOOK);
        bits | ((u32::from(entry as u32 == n) | (u32::from((entry >> 32) as u32 == n) << 1)) << (BITS * i as u32))
    })
}

/// The entry at a place.
#[inline(always)]
pub fn entry_at(bucket: &[AtomicU64; BUCKET_ENTRIES], place: usize) -> u64 {
    bucket[place % BUCKET_ENTRIES].load(Ordering::Acquire)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::tuple::splitmix64;

    #[test]
    fn as_one_by_one() {
        let mut random = 1;
        for _ in 0..10_000u32 {
            let tag = splitmix64(&mut random) as u32 % 4;
            let half = |random: &mut u64| splitmix64(random) % 4;
            let values: [u64; BUCKET_ENTRIES] = std::array::from_fn(|_| (half(&mut random) << 32) | half(&mut random));
            let bucket = values.map(AtomicU64::new);
            assert_eq!(equal_halves(&bucket, tag), one_by_one(&bucket, tag));
            let places = |is: &dyn Fn(u64) -> bool| (0..BUCKET_ENTRIES).filter(|&i| is(values[i])).collect::<Vec<_>>();
            let (expected, expected_free) = (places(&|v| (v >> 32) as u32 == tag), places(&|v| v as u32 == 0));
            let (found, found_free) = (tagged(&bucket, tag), free(&bucket));
            assert_eq!((found.len() as usize, found_free.is_empty()), (expected.len(), expected_free.is_empty()));
            assert_eq!((found.collect::<Vec<_>>(), found_free.collect::<Vec<_>>()), (expected.clone(), expected_free));
            if let Some((first, rest)) = expected.split_first() {
                assert_eq!((found.first(), found.without(*first).collect::<Vec<_>>()), (*first, rest.to_vec()));
            }
        }
    }

    #[test]
    fn at_any_alignment() {
        let words: Vec<AtomicU64> = (0..64).map(|i| AtomicU64::new((i << 32) | 1)).collect();
        for (first, bucket) in words.windows(BUCKET_ENTRIES).enumerate() {
            let bucket = bucket.first_chunk().unwrap();
            let places = tagged(bucket, first as u32 + 5);
            assert_eq!((places.len(), entry_at(bucket, places.first())), (1, ((first as u64 + 5) << 32) | 1));
        }
    }
}
