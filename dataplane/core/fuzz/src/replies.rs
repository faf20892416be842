//! The reply filter against a naive multiset.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use nomagic_core::filter::{BUCKET_SLOTS, slot_of};
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::{REPLY_KEY, Replies};

use crate::input::Input;

const STEPS_MAX: u32 = 2_000;

/// How often each fingerprint is in each bucket.
#[derive(Clone, Default)]
struct Naive {
    places: HashMap<(u32, u32), usize>,
}

impl Naive {
    fn in_bucket(&self, bucket: u32) -> usize {
        self.places.iter().filter(|((b, _), _)| *b == bucket).map(|(_, n)| n).sum()
    }

    fn insert(&mut self, place: (u32, u32)) -> bool {
        let room = self.in_bucket(place.0) < BUCKET_SLOTS;
        if room {
            *self.places.entry(place).or_default() += 1;
        }
        room
    }

    fn remove(&mut self, place: (u32, u32)) -> bool {
        let Some(n) = self.places.get_mut(&place) else { return false };
        *n -= 1;
        if *n == 0 {
            self.places.remove(&place);
        }
        true
    }

    fn contains(&self, place: (u32, u32)) -> bool {
        self.places.contains_key(&place)
    }

    fn len(&self) -> usize {
        self.places.values().sum()
    }
}

/// One of a few hundred replies, so that they meet again.
fn reply(input: &mut Input<'_>) -> Tuple {
    let (n, kind) = (u64::from(input.byte()), input.byte());
    let v6 = kind & 1 == 1;
    let high = if v6 { 0xfd00 << 48 } else { 0 };
    let proto = [Proto::Tcp, Proto::Udp, Proto::Sctp][usize::from(kind >> 1) % 3];
    Tuple { src: [high, 0x0a00_0001], dst: [high, 0x0a00_0002 + (n >> 4)], sport: 80, dport: 40_000 + n as u16 % 16, proto, v6 }
}

/// What each bucket announces, and for whom.
fn announcements(replies: &Replies) -> Vec<Vec<(u32, u32)>> {
    let places: Vec<_> = replies.words.iter().zip(&replies.owners).map(|(word, owner)| (word.load(Relaxed), owner.load(Relaxed))).collect();
    let taken = |bucket: &[(u32, u32)]| {
        let mut taken: Vec<_> = bucket.iter().copied().filter(|(word, _)| *word != 0).collect();
        taken.sort_unstable();
        taken
    };
    places.chunks(BUCKET_SLOTS).map(taken).collect()
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let buckets = input.one(&[1, 2, 4, 16]);
    let memory = [0, 1].map(|_| Replies::new(buckets as usize));
    let filters = [0, 1].map(|which| memory[which].filter());
    let mut naive = [Naive::default(), Naive::default()];
    for slot in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let op = input.byte();
        // Most steps are the first filter's.
        let which = usize::from(op & 0xc0 == 0xc0);
        let (filter, naive_one) = (filters[which], &mut naive[which]);
        let tuple = reply(&mut input);
        let (hash, fingerprint) = slot_of(&tuple, REPLY_KEY);
        let place = (hash & (buckets - 1), fingerprint);
        match op & 0x3f {
            0..=27 => {
                let inserted = filter.insert(&tuple, slot);
                assert_eq!(inserted, naive_one.insert(place), "insert {tuple}");
                assert!(!inserted || filter.owners(place.0).any(|owner| owner == slot), "{tuple} without an owner");
            }
            28..=55 => assert_eq!(filter.remove(&tuple), naive_one.remove(place), "remove {tuple}"),
            56..=60 => {
                filters[0].become_like(&filters[1]);
                naive[0] = naive[1].clone();
                assert_eq!(announcements(&memory[0]), announcements(&memory[1]));
            }
            61 => {
                filter.clear();
                *naive_one = Naive::default();
            }
            _ => filter.prefetch(&tuple, op & 1 == 1),
        }
        for (filter, naive) in filters.iter().zip(&naive) {
            assert_eq!((filter.contains(&tuple), filter.len(), filter.is_empty()), (naive.contains(place), naive.len(), naive.len() == 0));
        }
    }
    // Everything that was announced can be withdrawn, and nothing else is there.
    for n in 0..=u8::MAX {
        for kind in 0..6 {
            let tuple = reply(&mut Input::new(&[n, kind]));
            while filters[0].remove(&tuple) {}
        }
    }
    assert!(filters[0].is_empty(), "an announcement that nobody has made");
}
