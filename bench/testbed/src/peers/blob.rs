//! Deterministic bytes, so that both ends can check a transfer byte for byte.

use nomagic_core::tuple::splitmix64;

/// `len` bytes that depend only on their position. All 8-byte words differ, so that a lost, duplicated or swapped segment is detected.
pub fn blob(len: usize) -> Vec<u8> {
    let mut state = 0x6e6f_6d61_6769_6321;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&splitmix64(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// FNV-1a, 64 bits: a short name for a body in messages. Comparisons use the bytes themselves.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_prefixes_of_each_other_and_do_not_repeat() {
        let long = blob(100_003);
        assert_eq!(long.len(), 100_003);
        assert_eq!(blob(777), long[..777]);
        assert!(blob(0).is_empty());
        let words: std::collections::HashSet<&[u8]> = long.chunks_exact(8).collect();
        assert_eq!(words.len(), long.len() / 8);
    }

    #[test]
    fn fnv1a_agrees_with_its_published_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
