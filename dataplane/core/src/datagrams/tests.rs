use super::*;
use crate::conntrack::Conntrack;
use crate::sync::AtomicU64;
use crate::tuple::{Proto, Tuple};
use proptest::prelude::*;

/// A datagram for each number.
fn datagrams(count: u32) -> Vec<Datagram> {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(1)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, 1, 1, [0, 0]).unwrap();
    let tuple = Tuple::new(Proto::Udp, [10, 0, 0, 1].into(), 0, [10, 0, 0, 2].into(), 0).unwrap();
    (0..count).map(|id| table.fragments().datagram(&tuple, id)).collect()
}

fn one() -> Datagram {
    datagrams(1)[0]
}

/// What came of a datagram, byte by byte.
#[derive(Default)]
struct Naive {
    bytes: std::collections::BTreeSet<u16>,
    len: Option<u16>,
    spoiled: bool,
}

impl Naive {
    fn add(&mut self, (begin, end): (u16, u16), last: bool) -> Coverage {
        let new: Vec<u16> = (begin..end).filter(|byte| !self.bytes.contains(byte)).collect();
        let beyond = |len: u16| self.bytes.last().is_some_and(|byte| *byte >= len) || end > len;
        let known = self.len;
        let contradicts = known.is_some_and(|len| beyond(len) || (last && end != len)) || (last && beyond(end));
        // A part of one run of bytes repeats it; more than that overlaps.
        if self.spoiled || contradicts || !(new.is_empty() || new.len() == usize::from(end - begin)) {
            self.spoiled = true;
            return Coverage::Overlaps;
        }
        self.len = self.len.or(last.then_some(end));
        self.bytes.extend(&new);
        if new.is_empty() { Coverage::Repeated } else { Coverage::New }
    }

    fn is_complete(&self) -> bool {
        !self.spoiled && self.len.is_some_and(|len| self.bytes.len() == usize::from(len))
    }
}

proptest! {
    #[test]
    fn agrees_with_a_set_of_bytes(pieces in proptest::collection::vec((0u16..20, 1u16..6, any::<u8>()), 1..24)) {
        let (mut datagrams, mut naive, datagram) = (Datagrams::default(), Naive::default(), one());
        for (begin, len, what) in pieces {
            let (range, last) = ((begin * 8, (begin + len) * 8), what % 8 == 0);
            prop_assert_eq!(datagrams.add(datagram, range, last, None, 0), naive.add(range, last));
            if naive.is_complete() {
                prop_assert!(datagrams.finish(datagram));
                naive = Naive::default();
            }
            prop_assert!(!datagrams.finish(datagram));
        }
    }

    /// Whatever the order, cut and owner of the first one: complete after the last one, and not before.
    #[test]
    fn a_datagram_is_complete_when_all_has_come(sizes in proptest::collection::vec(1u16..20, 2..60), seed: u64, elsewhere: bool) {
        let mut begin = 0;
        let mut pieces: Vec<(u16, u16)> = sizes.iter().map(|size| { begin += size * 8; (begin - size * 8, begin) }).collect();
        let (first, end) = (pieces[0], begin);
        let mut random = seed;
        (1..pieces.len()).rev().for_each(|i| pieces.swap(i, crate::tuple::splitmix64(&mut random) as usize % (i + 1)));
        let (mut datagrams, datagram) = (Datagrams::default(), one());
        let first_end = elsewhere.then_some(first.1);
        pieces.retain(|piece| !elsewhere || *piece != first);
        for piece in pieces {
            prop_assert!(!datagrams.finish(datagram));
            prop_assert_eq!(datagrams.add(datagram, piece, piece.1 == end, first_end, 0), Coverage::New);
        }
        prop_assert!(datagrams.finish(datagram));
    }
}

#[test]
fn a_held_fragment_keeps_its_datagram() {
    let (mut datagrams, datagram) = (Datagrams::default(), one());
    assert_eq!(datagrams.add(datagram, (800, 900), true, None, 0), Coverage::New);
    datagrams.hold(datagram);
    assert_eq!(datagrams.add(datagram, (0, 800), false, None, 0), Coverage::New);
    assert!(!datagrams.finish(datagram));
    assert_eq!(datagrams.release(datagram, Some(800)), Coverage::New);
    assert!(datagrams.finish(datagram));
    assert_eq!(datagrams.release(datagram, None), Coverage::New, "another worker's");
}

#[test]
fn a_first_fragment_elsewhere_that_overlaps_spoils_the_held_ones() {
    let (mut datagrams, datagram) = (Datagrams::default(), one());
    assert_eq!(datagrams.add(datagram, (792, 900), true, None, 0), Coverage::New);
    assert_eq!(datagrams.release(datagram, Some(800)), Coverage::Overlaps);
    assert_eq!(datagrams.add(datagram, (800, 808), false, None, 0), Coverage::Overlaps);
}

#[test]
fn the_number_of_gaps_is_limited() {
    let (mut datagrams, datagram) = (Datagrams::default(), one());
    let piece = |i: usize| (16 * i as u16, 16 * i as u16 + 8);
    let coverages: Vec<_> = (0..=RANGES_MAX).map(|i| datagrams.add(datagram, piece(i), false, None, 0)).collect();
    assert_eq!((coverages[RANGES_MAX - 1], coverages[RANGES_MAX]), (Coverage::New, Coverage::Scattered));
    assert_eq!(datagrams.add(datagram, (8, 16), false, None, 0), Coverage::New, "closes a gap");
    assert_eq!(datagrams.add(datagram, piece(RANGES_MAX), false, None, 0), Coverage::New);
}

#[test]
fn the_number_of_datagrams_and_their_age_are_limited() {
    let (mut datagrams, all) = (Datagrams::default(), datagrams(10 * DATAGRAMS_MAX as u32));
    for (now_ms, datagram) in all.iter().enumerate() {
        assert_eq!(datagrams.add(*datagram, (8, 16), false, None, now_ms as u64), Coverage::New);
        assert_eq!(datagrams.add(*datagram, (8, 16), false, None, now_ms as u64), Coverage::Repeated, "the newest is known");
    }
    let known: usize = datagrams.sets.iter().map(|set| set.len()).sum();
    assert_eq!(known, DATAGRAMS_MAX);
    let newest = all[all.len() - 1];
    assert_eq!(datagrams.add(newest, (8, 16), false, None, all.len() as u64 + AGE_MAX_MS - 1), Coverage::Repeated);
    assert_eq!(datagrams.add(newest, (8, 16), false, None, all.len() as u64 + AGE_MAX_MS), Coverage::New, "used again");
}
