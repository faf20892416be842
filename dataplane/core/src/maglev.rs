//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4), with weights.
//!
//! The table depends only on the backends' addresses, ports, weights and the seed: every gateway of a cluster computes the same.

use crate::backend::Backend;
use crate::tuple::{HashSeed, addr_words, fast_range};

/// Table sizes: primes in coarse steps, so that a changing number of backends seldom changes the size.
const SIZES: [u32; 4] = [1_021, 16_381, 65_537, 1_000_003];
/// Slots a backend should have at the least: bounds the unevenness to about one percent.
const SLOTS_PER_BACKEND: u64 = 100;

/// A finished lookup table: slot to index of the backend.
#[derive(Debug, PartialEq, Eq)]
pub struct Maglev {
    slots: Slots,
}

#[derive(Debug, PartialEq, Eq)]
enum Slots {
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

/// One backend while the table is filled.
struct Turn {
    next: u32,
    skip: u32,
    weight: u64,
    credit: u64,
}

impl Maglev {
    /// The table's size for a number of backends: a pure function of it.
    pub fn size_for(backends: usize) -> u32 {
        let wanted = backends as u64 * SLOTS_PER_BACKEND;
        SIZES.into_iter().find(|&s| u64::from(s) >= wanted).unwrap_or(SIZES[3])
    }

    /// Fills a table. `backends` must be sorted by address and port, without duplicates, as those of a [`crate::services::Pool`] are: their order breaks
    /// ties, and every gateway must break them the same way. `None` when there are none or more than the largest table has slots.
    pub fn build(backends: &[Backend], seed: &HashSeed) -> Option<Maglev> {
        Maglev::with_size(backends, seed, Maglev::size_for(backends.len()))
    }

    /// [`Maglev::build`] with another number of slots, which must be a prime.
    pub fn with_size(backends: &[Backend], seed: &HashSeed, size: u32) -> Option<Maglev> {
        debug_assert!(backends.is_sorted_by(|a, b| (a.addr, a.port) < (b.addr, b.port)), "another gateway may have them in another order");
        if backends.is_empty() || backends.len() > size as usize {
            return None;
        }
        let mut filled = vec![u32::MAX; size as usize];
        let mut turns: Vec<Turn> = backends.iter().map(|b| Turn::new(b, seed, size)).collect();
        let weight_max = turns.iter().map(|t| t.weight).max().unwrap_or(1);
        // Half a turn of credit at the start: shares are rounded instead of cut off.
        turns.iter_mut().for_each(|t| t.credit = weight_max / 2);
        let mut left = size;
        'rounds: loop {
            for (index, turn) in turns.iter_mut().enumerate() {
                turn.credit += turn.weight;
                if turn.credit < weight_max {
                    continue;
                }
                turn.credit -= weight_max;
                while filled[turn.next as usize] != u32::MAX {
                    turn.advance(size);
                }
                filled[turn.next as usize] = index as u32;
                turn.advance(size);
                left -= 1;
                if left == 0 {
                    break 'rounds;
                }
            }
        }
        let slots = if backends.len() <= usize::from(u16::MAX) {
            Slots::Narrow(filled.iter().map(|&i| i as u16).collect())
        } else {
            Slots::Wide(filled.into())
        };
        Some(Maglev { slots })
    }

    /// Slots in the table.
    pub fn size(&self) -> u32 {
        match &self.slots {
            Slots::Narrow(s) => s.len() as u32,
            Slots::Wide(s) => s.len() as u32,
        }
    }

    /// `(slot, index of the backend)` for a flow's hash.
    #[inline]
    pub fn pick(&self, hash: u64) -> (u32, u32) {
        match &self.slots {
            Slots::Narrow(s) => {
                let slot = fast_range((hash >> 32) as u32, s.len() as u32);
                (slot, u32::from(s[slot as usize]))
            }
            Slots::Wide(s) => {
                let slot = fast_range((hash >> 32) as u32, s.len() as u32);
                (slot, s[slot as usize])
            }
        }
    }

    /// The index of the backend that a slot belongs to.
    pub fn backend(&self, slot: u32) -> u32 {
        match &self.slots {
            Slots::Narrow(s) => u32::from(s[slot as usize]),
            Slots::Wide(s) => s[slot as usize],
        }
    }

    /// How many slots each backend has, for `explain` and tests.
    pub fn shares(&self, backends: usize) -> Vec<u32> {
        let mut shares = vec![0; backends];
        let mut count = |i: usize| shares[i] += 1;
        match &self.slots {
            Slots::Narrow(s) => s.iter().for_each(|&i| count(usize::from(i))),
            Slots::Wide(s) => s.iter().for_each(|&i| count(i as usize)),
        }
        shares
    }
}

impl Turn {
    /// Offset and skip of the backend's permutation, from its identity.
    fn new(backend: &Backend, seed: &HashSeed, size: u32) -> Turn {
        let (words, v6) = addr_words(backend.addr);
        let hash = seed.hash_words(&[words[0], words[1], (u64::from(backend.port) << 1) | u64::from(v6)]);
        Turn {
            next: fast_range(hash as u32, size),
            skip: 1 + fast_range((hash >> 32) as u32, size - 1),
            weight: u64::from(backend.weight.max(1)),
            credit: 0,
        }
    }

    fn advance(&mut self, size: u32) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(weights: &[u16]) -> Vec<Backend> {
        let addr = |i: usize| format!("192.168.{}.{}", i / 250, i % 250 + 1).parse().unwrap();
        weights.iter().enumerate().map(|(i, &weight)| Backend { addr: addr(i), port: 80, weight, stats: 0 }).collect()
    }

    fn assignment(m: &Maglev) -> Vec<u32> {
        match &m.slots {
            Slots::Narrow(s) => s.iter().map(|&i| u32::from(i)).collect(),
            Slots::Wide(s) => s.to_vec(),
        }
    }

    #[test]
    fn sizes_go_in_coarse_steps() {
        let sizes = [1, 10, 11, 163, 164, 655, 656, 100_000].map(Maglev::size_for);
        assert_eq!(sizes, [1_021, 1_021, 16_381, 16_381, 65_537, 65_537, 1_000_003, 1_000_003]);
    }

    #[test]
    fn none_and_one() {
        let seed = HashSeed::new(1);
        assert!(Maglev::build(&[], &seed).is_none());
        let one = Maglev::build(&backends(&[1]), &seed).unwrap();
        assert_eq!(one.shares(1), vec![1_021]);
    }

    #[test]
    fn a_hundred_equal_backends_share_evenly_and_losing_one_moves_little() {
        let seed = HashSeed::new(42);
        let all = backends(&[1; 100]);
        let full = Maglev::build(&all, &seed).unwrap();
        let (max, min) = (full.shares(100).into_iter().max().unwrap(), full.shares(100).into_iter().min().unwrap());
        assert!(max - min <= 1, "unweighted shares differ by at most one slot: {min}..{max}");

        let mut moved_most = 0.0_f64;
        for gone in [0, 17, 99] {
            let fewer: Vec<_> = all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, b)| b.clone()).collect();
            let table = Maglev::build(&fewer, &seed).unwrap();
            let (before, after) = (assignment(&full), assignment(&table));
            let moved = before.iter().zip(&after).filter(|&(&b, &a)| b != gone as u32 && all[b as usize].addr != fewer[a as usize].addr);
            moved_most = moved_most.max(moved.count() as f64 / before.len() as f64);
        }
        assert!(moved_most < 0.03, "{moved_most}");
    }

    #[test]
    fn another_seed_is_another_table() {
        let b = backends(&[1; 3]);
        assert_ne!(Maglev::build(&b, &HashSeed::new(1)), Maglev::build(&b, &HashSeed::new(2)));
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(1u16..100, 1..40)) {
            let table = Maglev::build(&backends(&weights), &HashSeed::new(9)).unwrap();
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (share, &w) in table.shares(weights.len()).into_iter().zip(&weights) {
                let exact = f64::from(table.size()) * f64::from(w) / total as f64;
                prop_assert!((f64::from(share) - exact).abs() <= 2.0, "share {share}, exact {exact}, weights {weights:?}");
            }
        }

        #[test]
        fn every_pick_is_a_backend(n in 1usize..300, hash in any::<u64>()) {
            let table = Maglev::build(&backends(&vec![1; n]), &HashSeed::new(5)).unwrap();
            let (slot, index) = table.pick(hash);
            prop_assert!(slot < table.size() && (index as usize) < n);
        }
    }
}
