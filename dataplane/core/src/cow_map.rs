//! A copy-on-write map: copies share unchanged parts. Changing one address in a copy of a table of 100,000 takes microseconds.
//!
//! Entries lie in parts of about [`PART_ENTRIES`], each behind an [`Arc`]. A copy clones the list of parts; a change clones the part it touches,
//! if another copy still uses that. A look-up takes one step more than in an ordinary map.

use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::Arc;

use crate::hash::{WordHasher, WordMap};

/// Average entries a part above which the map grows.
const PART_ENTRIES: usize = 64;
/// Factor by which the number of parts grows.
const GROWTH: usize = 8;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct CowMap<K, V> {
    /// A power of two of them.
    parts: Vec<Arc<WordMap<K, V>>>,
    len: usize,
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> CowMap<K, V> {
        CowMap { parts: vec![Arc::default()], len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> CowMap<K, V> {
    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.parts[self.part(key)].get(key)
    }

    /// Whether the map has the key.
    #[inline]
    pub fn contains(&self, key: &K) -> bool {
        self.parts[self.part(key)].contains_key(key)
    }

    /// Sets the value of a key and returns the previous one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let part = self.part(&key);
        let before = Arc::make_mut(&mut self.parts[part]).insert(key, value);
        self.len += usize::from(before.is_none());
        if self.len > self.parts.len() * PART_ENTRIES {
            self.grow();
        }
        before
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let part = self.part(key);
        if !self.parts[part].contains_key(key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(&mut self.parts[part]).remove(key)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The keys whose values may differ from another copy's, in no order: `(key, here, there)`. Shared parts are skipped.
    pub fn differences<'m>(&'m self, other: &'m CowMap<K, V>) -> impl Iterator<Item = (&'m K, Option<&'m V>, Option<&'m V>)> {
        let same_parts = self.parts.len() == other.parts.len();
        let own = move |place: usize, a: &CowMap<K, V>, b: &CowMap<K, V>| !same_parts || !Arc::ptr_eq(&a.parts[place], &b.parts[place]);
        let here = (0..self.parts.len()).filter(move |place| own(*place, self, other)).flat_map(|place| self.parts[place].iter());
        let there = (0..other.parts.len()).filter(move |place| own(*place, other, self)).flat_map(|place| other.parts[place].iter());
        let here = here.map(|(key, value)| (key, Some(value), other.get(key)));
        here.chain(there.filter(|(key, _)| !self.contains(key)).map(|(key, value)| (key, None, Some(value))))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// By the hash's upper bits; the lower ones choose the place within the part.
    #[inline]
    fn part(&self, key: &K) -> usize {
        let hash = BuildHasherDefault::<WordHasher>::default().hash_one(key);
        (hash >> 32) as usize & (self.parts.len() - 1)
    }

    fn grow(&mut self) {
        let wanted = self.parts.len() * GROWTH;
        let mut grown = CowMap { parts: (0..wanted).map(|_| Arc::default()).collect(), len: 0 };
        for (key, value) in self.iter() {
            let part = grown.part(key);
            Arc::make_mut(&mut grown.parts[part]).insert(key.clone(), value.clone());
        }
        grown.len = self.len;
        *self = grown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::splitmix64;
    use std::collections::BTreeMap;

    /// Several copies, changed independently, compared with ordinary maps.
    #[test]
    fn copies_are_independent_and_like_plain_maps() {
        let mut random = 1;
        let mut next = |n: u64| splitmix64(&mut random) % n;
        let mut copies: Vec<(CowMap<u64, u64>, BTreeMap<u64, u64>)> = vec![Default::default()];
        for step in 0..60_000 {
            let at = next(copies.len() as u64) as usize;
            if step % 10_000 == 0 {
                let copy = copies[at].clone();
                copies.push(copy);
            }
            let (map, plain) = &mut copies[at];
            let key = next(2_000);
            if next(3) == 0 {
                assert_eq!(map.remove(&key), plain.remove(&key));
            } else {
                assert_eq!(map.insert(key, step), plain.insert(key, step));
            }
            assert_eq!((map.get(&key), map.len(), map.is_empty()), (plain.get(&key), plain.len(), plain.is_empty()));
        }
        for (map, plain) in &copies {
            assert_eq!(map.iter().map(|(k, v)| (*k, *v)).collect::<BTreeMap<_, _>>(), *plain);
            assert!((0..2_000).all(|key| map.contains(&key) == plain.contains_key(&key)));
        }
        assert!(copies.len() > 5 && copies.iter().any(|(map, _)| map.parts.len() > 1));
    }

    #[test]
    fn a_change_copies_one_part() {
        let mut map = CowMap::default();
        for key in 0..10_000u64 {
            map.insert(key, key);
        }
        let before = map.clone();
        map.insert(7, 0);
        map.remove(&8_888);
        let changed = map.parts.iter().zip(&before.parts).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!((1..=2).contains(&changed), "{changed} of {}", map.parts.len());
        assert!(map.parts.iter().all(|part| part.len() < 8 * PART_ENTRIES), "they are even");
        assert_eq!((before.len(), map.len(), before.get(&7)), (10_000, 9_999, Some(&7)));
        map.remove(&8_888);
        assert_eq!(map.len(), 9_999);
        let differ = |a: &CowMap<u64, u64>, b: &CowMap<u64, u64>| {
            a.differences(b).map(|(k, x, y)| (*k, x.copied(), y.copied())).filter(|(_, x, y)| x != y).count()
        };
        // Also when one of them has more parts.
        assert_eq!((differ(&map, &before), differ(&before, &map), map.differences(&map).count()), (2, 2, 0));
        assert_eq!((differ(&map, &CowMap::default()), differ(&CowMap::default(), &map)), (9_999, 9_999));
    }
}
