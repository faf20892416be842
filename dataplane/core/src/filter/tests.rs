use std::collections::HashSet;

use super::*;
use crate::tuple::{Proto, splitmix64};

const KEY: ReplyKey = ReplyKey([7, 8]);
/// Places whose owner does not matter.
const NOBODY: u32 = 0;

fn tuple(i: u32) -> Tuple {
    let src = std::net::Ipv4Addr::from(0x0a00_0000 | (i >> 12));
    Tuple::new(Proto::Tcp, src.into(), 1024 + (i & 0xfff) as u16, "192.168.0.5".parse().unwrap(), 80).unwrap()
}

/// A filter's memory.
struct Memory([Vec<AtomicU32>; 2]);

impl Memory {
    fn new(buckets: usize) -> Memory {
        Memory([0, 1].map(|_| (0..buckets * BUCKET_SLOTS).map(|_| AtomicU32::new(0)).collect()))
    }

    fn filter(&self) -> ReplyFilter<'_> {
        ReplyFilter::new(&self.0[0], &self.0[1], KEY).unwrap()
    }
}

#[test]
fn sizes_are_powers_of_two_of_buckets_with_an_owner_for_each_place() {
    let [words, owners] = Memory::new(4).0;
    let fits = |w: usize, o: usize| ReplyFilter::new(&words[..w], &owners[..o], KEY).is_some();
    assert!(fits(64, 64) && fits(32, 32) && fits(16, 16));
    assert!(!fits(48, 48) && !fits(40, 40) && !fits(0, 0));
    assert!(!fits(64, 63) && !fits(32, 64));
}

#[test]
fn announced_until_withdrawn_and_counted_per_connection() {
    let memory = Memory::new(64);
    let f = memory.filter();
    assert!(f.insert(&tuple(1), NOBODY) && f.insert(&tuple(1), NOBODY));
    assert_eq!(f.len(), 2);
    assert!(f.remove(&tuple(1)));
    assert!(f.contains(&tuple(1)));
    assert!(f.remove(&tuple(1)) && !f.remove(&tuple(1)));
    assert!(f.is_empty() && !f.contains(&tuple(1)));
}

#[test]
fn a_full_bucket_refuses_and_names_its_owners() {
    let memory = Memory::new(1);
    let f = memory.filter();
    assert_eq!(f.owners(0).count(), 0);
    assert!((0..16).all(|i| f.insert(&tuple(i), 100 + i)));
    assert!(!f.insert(&tuple(16), 116));
    assert!(f.owners(0).eq(100..116));
    assert!(f.remove(&tuple(5)) && f.insert(&tuple(16), 116));
    assert!(f.owners(0).eq((100..105).chain([116]).chain(106..116)));
    f.clear();
    assert!(f.insert(&tuple(16), 0));
}

#[test]
fn a_bucket_names_its_own_owners() {
    let memory = Memory::new(64);
    let f = memory.filter();
    assert!((0..200).all(|i| f.insert(&tuple(i), i)));
    for bucket in 0..64 {
        let owners: HashSet<u32> = f.owners(bucket).collect();
        assert_eq!(owners, (0..200).filter(|i| f.bucket_of(&tuple(*i)) == bucket).collect());
    }
}

#[test]
fn it_becomes_like_another_whatever_was_in_it() {
    let (ours, theirs) = (Memory::new(64), Memory::new(64));
    let (f, wanted) = (ours.filter(), theirs.filter());
    // Some are in both, one of them twice here and once there, one the other way round.
    (0..500).for_each(|i| assert!(f.insert(&tuple(i), 1_000 + i)));
    (300..700).for_each(|i| assert!(wanted.insert(&tuple(i), i)));
    assert!(f.insert(&tuple(310), NOBODY) && wanted.insert(&tuple(320), 320));
    f.become_like(&wanted);
    assert_eq!(f.len(), 401);
    for bucket in 0..64 {
        let sorted = |f: &ReplyFilter<'_>| {
            let mut owners: Vec<u32> = f.owners(bucket).collect();
            owners.sort_unstable();
            owners
        };
        assert_eq!(sorted(&f), sorted(&wanted), "each place has the owner of what it announces");
    }
    assert!((300..700).all(|i| f.remove(&tuple(i))) && f.remove(&tuple(320)) && f.is_empty());
    // Full buckets of other things.
    ours.0[0].iter().for_each(|w| w.store(0xdead, Ordering::Relaxed));
    f.become_like(&wanted);
    assert_eq!(f.len(), 401);
    f.become_like(&Memory::new(64).filter());
    assert!(f.is_empty() && (0..64).all(|bucket| f.owners(bucket).count() == 0));
}

#[test]
fn what_stays_announced_is_never_gone() {
    let (ours, theirs) = (Memory::new(16), Memory::new(16));
    let (f, wanted) = (ours.filter(), theirs.filter());
    (0..40).for_each(|i| assert!(f.insert(&tuple(i), NOBODY) && wanted.insert(&tuple(i), NOBODY)));
    let (before, after) = (Memory::new(16), Memory::new(16));
    let (before, after) = (before.filter(), after.filter());
    (0..60).for_each(|i| assert!(before.insert(&tuple(i), NOBODY)));
    (0..50).for_each(|i| assert!(after.insert(&tuple(i % 40), NOBODY)));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000 {
                f.become_like(if round % 2 == 0 { &before } else { &wanted });
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            assert!((0..40).all(|i| f.contains(&tuple(i))));
        }
    });
}

#[test]
fn chance_matches_are_rare_and_buckets_fill_evenly() {
    let memory = Memory::new(16_384);
    let f = memory.filter();
    let n = 16_384 * 8;
    let refused = (0..n).filter(|&i| !f.insert(&tuple(i), NOBODY)).count();
    assert!(refused < 300, "half full, Poisson: about 0.1 % overflow; {refused} of {n}");
    let strangers = (n..2 * n).filter(|&i| f.contains(&tuple(i))).count();
    assert!(strangers < 20, "{strangers} of {n} strangers taken");
}

#[test]
fn every_field_and_each_half_of_the_key_count() {
    let v4 = tuple(1);
    let v6 = Tuple { src: [0xfd00 << 48, 5], dst: [0xfd01 << 48, 6], v6: true, ..v4 };
    for t in [v4, v6] {
        let high = if t.v6 { 1 << 63 } else { 0 };
        let others = [
            Tuple { src: [t.src[0], t.src[1] ^ 1], ..t },
            Tuple { src: [t.src[0] ^ high, t.src[1] ^ 2], ..t },
            Tuple { dst: [t.dst[0], t.dst[1] ^ 1], ..t },
            Tuple { dst: [t.dst[0] ^ high, t.dst[1] ^ 2], ..t },
            Tuple { src: t.dst, dst: t.src, ..t },
            Tuple { sport: t.sport ^ 1, ..t },
            Tuple { dport: t.dport ^ 1, ..t },
            Tuple { sport: t.dport, dport: t.sport, ..t },
            Tuple { proto: Proto::Udp, ..t },
        ];
        let known =
            others.iter().map(|o| slot_of(o, KEY)).chain([slot_of(&t, KEY)]).chain([[7, 9], [8, 8]].map(|k| slot_of(&t, ReplyKey(k))));
        assert_eq!(known.collect::<HashSet<_>>().len(), 12, "{t}");
    }
    let mapped = Tuple { v6: true, ..v4 };
    assert_ne!(slot_of(&mapped, KEY), slot_of(&v4, KEY), "the same words in the other family");
}

/// 8,192 IPv6 clients of which, under a hash that multiplies by public numbers and has its seed in the first step only, 32 each have one
/// bucket and one fingerprint, whatever the seed: bits 56 to 60 of an address's upper half, and 24 to 31 with 56 to 63 of its lower half.
fn crafted_v6() -> impl Iterator<Item = Tuple> {
    let (pod, v6) = ([0xfd00_0000_0000_0001, 0x53], true);
    (0..256u64)
        .flat_map(move |q| (0..32u64).map(move |p| [0x2001_0db8_0000_0000 ^ p << 56, 1 ^ q << 56 ^ q << 24]))
        .map(move |client| Tuple { src: pod, dst: client, sport: 5353, dport: 40_000, proto: Proto::Udp, v6 })
}

/// As many IPv4 clients after the same pattern: the highest bits of the address vary, and address and port together.
fn crafted_v4() -> impl Iterator<Item = Tuple> {
    let pod = [0, 0xc0a8_0001];
    (0..256u64)
        .flat_map(|q| (0..32u64).map(move |p| (0xc633_6407 ^ p << 24 ^ q, 40_000 ^ (q as u16) << 8 ^ q as u16)))
        .map(move |(client, port)| Tuple { src: pod, dst: [0, client], sport: 5353, dport: port, proto: Proto::Udp, v6: false })
}

/// As many at random.
fn random(random: &mut u64, v6: bool) -> impl Iterator<Item = Tuple> {
    (0..8_192).map(move |_| {
        let [high, low, port] = [0; 3].map(|_| splitmix64(random));
        let dst = if v6 { [high, low] } else { [0, low & 0xffff_ffff] };
        Tuple { src: [0, 0xc0a8_0001], dst, sport: 5353, dport: port as u16, proto: Proto::Udp, v6 }
    })
}

/// How full the fullest of 4,096 buckets gets, and how many slots differ.
fn fullest(tuples: impl Iterator<Item = Tuple>, key: ReplyKey) -> (u32, usize) {
    let (mut buckets, mut slots) = (vec![0u32; 4_096], HashSet::new());
    for t in tuples {
        let slot = slot_of(&t, key);
        buckets[slot.0 as usize % 4_096] += 1;
        slots.insert(slot);
    }
    (buckets.into_iter().max().unwrap(), slots.len())
}

#[test]
fn crafted_tuples_gather_no_more_than_random_ones_whatever_the_key() {
    let mut seed = 3;
    let mut most = [[0; 2]; 2];
    for key in 0..32 {
        let key = ReplyKey(if key == 0 { [0; 2] } else { [splitmix64(&mut seed), splitmix64(&mut seed)] });
        for v6 in [false, true] {
            let crafted = if v6 { fullest(crafted_v6(), key) } else { fullest(crafted_v4(), key) };
            assert_eq!(crafted.1, 8_192, "no two have one slot");
            let [ours, theirs] = &mut most[usize::from(v6)];
            *ours = crafted.0.max(*ours);
            *theirs = fullest(random(&mut seed, v6), key).0.max(*theirs);
        }
    }
    println!("the fullest bucket of 32 keys, two in each on average: [crafted, random] IPv4 {:?}, IPv6 {:?}", most[0], most[1]);
    // One such bucket in 34 million has 14; here are half a million.
    assert!(most.into_iter().flatten().all(|n| n <= 13), "{most:?}");
}
