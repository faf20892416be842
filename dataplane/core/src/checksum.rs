//! Internet checksums: in full (RFC 1071) and by difference (RFC 1624).

use crate::tuple::AddrWords;

/// Sums 16-bit big-endian words; an odd byte at the end counts as the high half of a word.
fn sum_bytes(mut sum: u64, data: &[u8]) -> u64 {
    let mut chunks = data.chunks_exact(8);
    for c in &mut chunks {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(c);
        let word = u64::from_be_bytes(bytes);
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut rest = chunks.remainder().chunks_exact(2);
    for c in &mut rest {
        sum += u64::from(u16::from_be_bytes([c[0], c[1]]));
    }
    if let [last] = rest.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

/// Folds a sum of 16- or 32-bit words to 16 bits in one's complement arithmetic.
#[inline]
pub fn fold(sum: u64) -> u16 {
    // At most 33, 18, 17 and 16 bits after the steps.
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// Whether `field` is [`fold`] of a sum, which is not 0: without folding, by the remainder in one's complement.
#[inline(always)]
pub fn is_fold_of(field: u16, sum: u64) -> bool {
    // A number is a multiple of an odd one exactly if its product with that one's inverse modulo 2^64 is a small number (H. Warren, Hacker's
    // Delight, 10-16): two steps where a division takes eight.
    const INVERSE: u64 = 0_u64.wrapping_sub(0x0001_0001_0001_0001);
    const _: () = assert!(INVERSE.wrapping_mul(0xffff) == 1);
    let difference = sum + 0xffff - u64::from(field);
    (field != 0) & (difference.wrapping_mul(INVERSE) <= u64::MAX / 0xffff)
}

/// The words of an address as a partial sum.
#[inline]
pub fn addr_sum(a: AddrWords) -> u64 {
    (a[0] >> 32) + (a[0] & 0xffff_ffff) + (a[1] >> 32) + (a[1] & 0xffff_ffff)
}

/// The pseudo header's sum (RFC 9293 3.1, RFC 8200 8.1), not folded.
#[inline]
pub fn pseudo_sum(src: AddrWords, dst: AddrWords, proto: u8, l4_len: u16) -> u64 {
    addr_sum(src) + addr_sum(dst) + u64::from(proto) + u64::from(l4_len)
}

/// What a transport checksum covers besides addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Covered {
    /// TCP's or UDP's number.
    pub protocol: u8,
    /// Bytes of the transport header and its payload.
    pub len: u16,
}

/// A running sum over pieces of any length, for segments that end on an odd byte.
#[derive(Default)]
pub struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    /// Starts from a partial sum (of an even number of bytes).
    pub fn new(sum: u64) -> Sum {
        Sum { sum: u64::from(fold(sum)), odd: false }
    }

    /// Adds a piece.
    pub fn add(&mut self, data: &[u8]) {
        let piece = fold(sum_bytes(0, data));
        // RFC 1071, 2(B): a piece that starts at an odd byte sums to the byte-swapped value.
        self.sum += u64::from(if self.odd { piece.swap_bytes() } else { piece });
        self.odd ^= data.len() % 2 == 1;
    }

    /// The checksum: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !fold(self.sum)
    }
}

/// The checksum of one piece.
pub fn checksum(data: &[u8]) -> u16 {
    !fold(sum_bytes(0, data))
}

/// What changes when words that sum to `old` become words that sum to `new` (RFC 1624, equation 3): add it with [`apply`]. Both sums are below
/// 2^40.
#[inline]
pub fn delta(old: u64, new: u64) -> u16 {
    // In one's complement a multiple of 0xffff is nothing, so that this one keeps the difference above zero.
    const NOTHING: u64 = 0xffff << 24;
    fold(new + NOTHING - old)
}

/// One's complement addition of two 16-bit words: the carry comes round.
#[inline(always)]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum field after two changes at once.
#[inline(always)]
pub fn apply_both(field: u16, first: u16, second: u16) -> u16 {
    !add(add(!field, first), second)
}

/// The checksum field after a change: `HC' = ~(~HC + delta)`.
#[inline(always)]
pub fn apply(field: u16, delta: u16) -> u16 {
    !add(!field, delta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: m = 0x5555 becomes m' = 0x3285 in a header whose checksum was 0xdd2f: it becomes 0x0000.
        assert_eq!(apply(0xdd2f, delta(0x5555, 0x3285)), 0x0000);
    }

    proptest! {
        #[test]
        fn in_full_as_the_definition(data in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(checksum(&data), naive(&data));
        }

        #[test]
        fn pieces_sum_as_the_whole(data in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0usize..200, 0..4)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).collect();
            cuts.sort_unstable();
            let mut sum = Sum::new(0);
            let mut from = 0;
            for to in cuts.into_iter().chain([data.len()]) {
                sum.add(&data[from..to]);
                from = to;
            }
            prop_assert_eq!(sum.finish(), naive(&data));
        }

        #[test]
        fn shortcuts_as_the_long_way(field in any::<u16>(), sum in 1u64..1 << 37, a in any::<u16>(), b in any::<u16>()) {
            prop_assert_eq!(is_fold_of(field, sum), field == fold(sum));
            prop_assert!(is_fold_of(fold(sum), sum));
            prop_assert!(is_fold_of(0xffff, 0xffff * (1 + sum % 1_000)) && !is_fold_of(0, 0xffff));
            prop_assert_eq!(apply_both(field, a, b), apply(apply(field, a), b));
        }

        #[test]
        fn by_difference_as_in_full(mut data in prop::collection::vec(any::<u8>(), 8..100), new in any::<[u8; 4]>(), at in 0usize..2) {
            // A checksum over data whose first word is never all zero, as in any real header.
            data[7] |= 1;
            let before = checksum(&data);
            let at = at * 2;
            let old = u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            data[at..at + 4].copy_from_slice(&new);
            let after = apply(before, delta(u64::from(old), u64::from(u32::from_be_bytes(new))));
            prop_assert_eq!(after, checksum(&data));
        }
    }
}
