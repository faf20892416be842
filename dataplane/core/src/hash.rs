//! A quick hash for tables that the control plane fills: Services, routes, neighbours.
//!
//! Senders of packets cannot choose the keys of these tables, so the hash need not be secret, and whoever may fill the tables has better
//! ways to slow nomagic down. The connection table has a keyed hash, see [`crate::tuple::Tuple::hash`].

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::tuple::HashSeed;

/// A map with [`WordHasher`].
pub type WordMap<K, V> = HashMap<K, V, BuildHasherDefault<WordHasher>>;
/// A set with [`WordHasher`].
pub type WordSet<K> = HashSet<K, BuildHasherDefault<WordHasher>>;

/// A number for these texts, the same in every process.
pub fn identity_of(kind: u64, texts: &[&str]) -> u64 {
    let mut words = vec![kind];
    for text in texts {
        words.push(text.len() as u64);
        words.extend(text.as_bytes().chunks(8).map(|c| c.iter().fold(0, |w, b| (w << 8) | u64::from(*b))));
    }
    HashSeed::new(0).hash_words(&words)
}

/// One multiplication for every eight bytes. Unsuitable for values that consist of a length only.
#[derive(Default, Clone, Copy)]
pub struct WordHasher(u64);

impl Hasher for WordHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|w| self.write_u64(u64::from_le_bytes(*w)));
        if !rest.is_empty() {
            self.write_u64(rest.iter().fold(0, |w, b| (w << 8) | u64::from(*b)));
        }
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        let p = u128::from(self.0 ^ n ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        self.0 = (p as u64) ^ ((p >> 64) as u64);
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        // Lengths and variant numbers: the value that follows is multiplied, which mixes both.
        self.0 = (self.0 ^ n as u64).rotate_left(23);
    }

    #[inline]
    fn write_isize(&mut self, n: isize) {
        self.write_usize(n.cast_unsigned());
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn addresses_in_a_row_spread_evenly() {
        let hash = BuildHasherDefault::<WordHasher>::default();
        let mut counts = [0u32; 128];
        for i in 0..32_000u32 {
            let v4 = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i));
            let v6 = IpAddr::from(Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(i)));
            // hashbrown takes the place from the low bits and a tag from the high ones.
            counts[hash.hash_one(v4) as usize % 128] += 1;
            counts[(hash.hash_one(v6) >> 57) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (350..650).contains(c)), "{counts:?}");
    }
}
