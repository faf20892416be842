//! Finding a tag among the entries of an index bucket.
//!
//! On x86_64 all eight are compared by four vector instructions, which every such processor has (SSE2). What they read while others write is only
//! a hint of where to look; the entry itself is loaded as an atomic.
#![allow(unsafe_code)]

use crate::sync::{AtomicU64, Ordering};

/// Entries of a bucket: one cache line.
pub const BUCKET_ENTRIES: usize = 8;

/// An entry of the bucket whose upper half is `tag`, the last or the first one if there are several; 0 if there seems to be none. No branch depends
/// on where it is.
#[inline(always)]
pub fn tagged(bucket: &[AtomicU64; BUCKET_ENTRIES], tag: u32) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
    {
        let places: u32;
        // SAFETY: reads the 64 bytes of the bucket, which is borrowed, and nothing else; loads of any alignment. Other threads may write the
        // entries meanwhile, as atomics; then the result is of the old or the new bytes, and no more than a hint.
        unsafe {
            std::arch::asm!(
                "movd {tag}, {tag32:e}",
                "pshufd {tag}, {tag}, 0",
                "movdqu {a}, [{bucket}]",
                "movdqu {b}, [{bucket} + 16]",
                "pcmpeqd {a}, {tag}",
                "pcmpeqd {b}, {tag}",
                "packssdw {a}, {b}",
                "movdqu {b}, [{bucket} + 32]",
                "movdqu {c}, [{bucket} + 48]",
                "pcmpeqd {b}, {tag}",
                "pcmpeqd {c}, {tag}",
                "packssdw {b}, {c}",
                "packsswb {a}, {b}",
                "pmovmskb {places:e}, {a}",
                tag = out(xmm_reg) _,
                tag32 = in(reg) tag,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                bucket = in(reg) bucket.as_ptr(),
                places = out(reg) places,
                options(readonly, nostack, preserves_flags),
            );
        }
        // Two bits an entry, the upper one for its upper half.
        let upper = places & 0xaaaa;
        if upper == 0 { 0 } else { bucket[(upper.trailing_zeros() >> 1) as usize & (BUCKET_ENTRIES - 1)].load(Ordering::Acquire) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
    one_by_one(bucket, tag)
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(miri), not(loom)))))]
fn one_by_one(bucket: &[AtomicU64; BUCKET_ENTRIES], tag: u32) -> u64 {
    let same = |entry: &u64| (entry >> 32) as u32 == tag && *entry as u32 != 0;
    bucket.iter().map(|entry| entry.load(Ordering::Acquire)).find(same).unwrap_or(0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::tuple::splitmix64;

    #[test]
    fn as_one_by_one_wherever_it_is() {
        let mut random = 1;
        for round in 0..10_000u32 {
            let place = round as usize % (BUCKET_ENTRIES + 1);
            let tag = splitmix64(&mut random) as u32 | 1;
            let entry = |i: usize, random: &mut u64| {
                let tag = if i == place { tag } else { tag.wrapping_add(1 + splitmix64(random) as u32 % 5) };
                // The tag in the lower half is no match.
                (u64::from(tag) << 32) | u64::from(if round % 3 == 0 { tag } else { 1 + i as u32 })
            };
            let bucket: [AtomicU64; BUCKET_ENTRIES] = std::array::from_fn(|i| AtomicU64::new(entry(i, &mut random)));
            let found = tagged(&bucket, tag);
            assert_eq!(found, one_by_one(&bucket, tag), "place {place}");
            assert_eq!(found == 0, place == BUCKET_ENTRIES);
        }
    }

    #[test]
    fn at_any_alignment() {
        let words: Vec<AtomicU64> = (0..64).map(|i| AtomicU64::new((i << 32) | 1)).collect();
        for (first, bucket) in words.windows(BUCKET_ENTRIES).enumerate() {
            let bucket = bucket.first_chunk().unwrap();
            assert_eq!(tagged(bucket, first as u32 + 5), ((first as u64 + 5) << 32) | 1);
        }
    }
}
