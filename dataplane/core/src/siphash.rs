//! SipHash over whole words: a keyed hash for tables whose keys strangers choose.
//!
//! Without the key nobody can tell which inputs collide, however many of them were tried: every step mixes the whole state, which the
//! key has filled. It needs nothing but 64-bit additions, rotations and exclusive ors, so that BPF has it as well. The connection table's
//! hash ([`crate::tuple::Tuple::hash`]) is quicker, but multiplies to 128 bits, which BPF cannot.
//!
//! Written here, since the standard library's has no keys in its stable form, and hashes bytes.

/// SipHash-C-D (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012): C rounds for each word, D at the end.
///
/// The last word must tell how many there are, as the algorithm's last word does with its highest byte.
#[inline]
pub(crate) fn siphash<const C: usize, const D: usize>(key: [u64; 2], words: impl IntoIterator<Item = u64>) -> u64 {
    let [k0, k1] = key;
    // "somepseudorandomlygeneratedbytes"
    let mut v = [k0 ^ 0x736f_6d65_7073_6575, k1 ^ 0x646f_7261_6e64_6f6d, k0 ^ 0x6c79_6765_6e65_7261, k1 ^ 0x7465_6462_7974_6573];
    for word in words {
        v[3] ^= word;
        (0..C).for_each(|_| round(&mut v));
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    (0..D).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    let [mut v0, mut v1, mut v2, mut v3] = *v;
    v0 = v0.wrapping_add(v1);
    v2 = v2.wrapping_add(v3);
    v1 = v1.rotate_left(13) ^ v0;
    v3 = v3.rotate_left(16) ^ v2;
    v0 = v0.rotate_left(32).wrapping_add(v3);
    v2 = v2.wrapping_add(v1);
    v3 = v3.rotate_left(21) ^ v0;
    v1 = v1.rotate_left(17) ^ v2;
    v2 = v2.rotate_left(32);
    *v = [v0, v1, v2, v3];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::splitmix64;
    use std::hash::{DefaultHasher, Hasher};

    /// So many bytes as the algorithm reads them: little endian, the rest in a last word with the length as its highest byte.
    fn words(bytes: &[u8]) -> Vec<u64> {
        let (whole, rest) = bytes.as_chunks();
        let last = rest.iter().rfold(0, |w, b| (w << 8) | u64::from(*b)) | ((bytes.len() as u64 & 0xff) << 56);
        whole.iter().map(|w| u64::from_le_bytes(*w)).chain([last]).collect()
    }

    fn bytes(len: usize, random: &mut u64) -> Vec<u8> {
        (0..len).map(|_| splitmix64(random) as u8).collect()
    }

    #[test]
    fn the_example_of_the_paper() {
        // Appendix A: SipHash-2-4 of 15 bytes.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash::<2, 4>(key, words(&(0..15).collect::<Vec<u8>>())), 0xa129_ca61_49be_45e5);
    }

    #[test]
    #[allow(deprecated, reason = "the standard library's only one with keys")]
    fn the_standard_library_says_the_same() {
        let mut random = 1;
        for len in 0..80 {
            let input = bytes(len, &mut random);
            let mut known = DefaultHasher::new();
            known.write(&input);
            assert_eq!(siphash::<1, 3>([0; 2], words(&input)), known.finish(), "{len} bytes");
            let key = [splitmix64(&mut random), splitmix64(&mut random)];
            let mut known = std::hash::SipHasher::new_with_keys(key[0], key[1]);
            known.write(&input);
            assert_eq!(siphash::<2, 4>(key, words(&input)), known.finish(), "{len} bytes");
        }
    }
}
