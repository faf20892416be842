//! The reply filter's secret key, which lives as long as the array that is filled with it.
//!
//! After the buckets the array has an entry that holds the key, and then the buckets of connections that pass by
//! ([`nomagic_core::filter::direct`]). So the next process finds both or neither, and what an
//! earlier process has announced is what the next one would: while programs of both are attached, both know all replies. An array of an
//! earlier version, whose fingerprints had another hash, has no such entry, and so another size.

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::{Array, Map, MapData, MapInfo};
use nomagic_core::filter::{BUCKET_SLOTS, ReplyKey, direct};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{EdgeError, is_shortage, os_error};
use crate::pins::Pins;

const ARRAY: &str = "replies";
/// Bytes of an entry.
const ENTRY: usize = BUCKET_SLOTS * size_of::<u32>();

/// Entries of an array with so many buckets.
pub(crate) fn entries(buckets: u32) -> u32 {
    buckets + 1 + direct::BUCKETS as u32
}

/// The key of the pinned array. One that does not fit, or has no key, is unpinned, and the key is a new one: the loader makes a new array,
/// while programs that are still attached keep the old one.
pub(crate) fn take_over(pins: &Pins, buckets: u32) -> Result<ReplyKey, EdgeError> {
    if let Some(key) = pinned(pins, buckets)? {
        return Ok(key);
    }
    pins.remove(&pins.shared(ARRAY))?;
    random().map_err(|e| EdgeError::io("random bytes for the reply filter's key", e))
}

fn pinned(pins: &Pins, buckets: u32) -> Result<Option<ReplyKey>, EdgeError> {
    let path = pins.shared(ARRAY);
    let failed = |e| EdgeError::map(ARRAY, &e);
    match MapInfo::from_pin(&path) {
        Ok(info) if info.max_entries() == entries(buckets) && info.value_size() as usize == ENTRY => {}
        // A shortage says nothing about the array: it stays.
        Err(e) if os_error(&e).is_some_and(is_shortage) => return Err(failed(e)),
        _ => return Ok(None),
    }
    let map = Map::Array(MapData::from_pin(&path).map_err(failed)?);
    let array = Array::<_, [u8; ENTRY]>::try_from(map).map_err(failed)?;
    let entry = array.get(&buckets, 0).map_err(failed)?;
    let (words, _) = entry.as_chunks();
    let key = [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])];
    // Zero: the process before ended between making the array and writing its key.
    Ok((key != [0; 2]).then_some(ReplyKey(key)))
}

/// Leaves the key in the array's last entry, for the next process.
pub(crate) fn leave(key: ReplyKey, last: &[AtomicU32]) {
    let bytes = key.0.map(u64::to_ne_bytes);
    let halves = bytes.as_flattened().as_chunks().0;
    last.iter().zip(halves).for_each(|(word, half)| word.store(u32::from_ne_bytes(*half), Relaxed));
}

/// 128 bits of the system's random source.
fn random() -> io::Result<ReplyKey> {
    let mut bytes = [0; 16];
    // So few are never cut short; it waits until the source is seeded.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let (words, _) = bytes.as_chunks();
    Ok(ReplyKey([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_random() {
        let keys: HashSet<[u64; 2]> = (0..100).map(|_| random().unwrap().0).collect();
        assert_eq!(keys.len(), 100);
        let seen = keys.iter().fold([0; 2], |seen, key| [seen[0] | key[0], seen[1] | key[1]]);
        assert_eq!(seen, [u64::MAX; 2], "in every bit");
    }

    #[test]
    fn what_is_left_is_the_key_in_memory_order() {
        let last: Vec<AtomicU32> = (0..16).map(|_| AtomicU32::new(9)).collect();
        leave(ReplyKey([0x0102_0304_0506_0708, 0x1112_1314_1516_1718]), &last);
        let bytes: Vec<u8> = last[..4].iter().flat_map(|w| w.load(Relaxed).to_ne_bytes()).collect();
        let words = bytes.as_chunks().0;
        assert_eq!([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])], [0x0102_0304_0506_0708, 0x1112_1314_1516_1718]);
        assert_eq!(last[4].load(Relaxed), 9);
    }
}
