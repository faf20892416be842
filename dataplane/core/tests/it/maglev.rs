//! Maglev tables of random pools: how even they are, how much moves when a pool changes, and that every gateway makes the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::maglev::Maglev;
use nomagic_core::services::{Backend, Pool};
use nomagic_core::tuple::{HashSeed, Proto, Tuple, splitmix64};

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        (splitmix64(&mut self.0) >> 8) % n
    }

    fn addr(&mut self, v6: bool) -> IpAddr {
        let n = splitmix64(&mut self.0);
        if v6 {
            Ipv6Addr::from((0xfd00 << 112) | u128::from(n)).into()
        } else {
            Ipv4Addr::from(0x0a00_0000 | (n as u32 & 0x00ff_ffff)).into()
        }
    }

    /// Different backends, of one family, all of weight 1.
    fn backends(&mut self, n: usize) -> Vec<Backend> {
        let v6 = self.below(2) == 1;
        let mut all: Vec<Backend> = Vec::new();
        while all.len() < n {
            let backend = Backend { addr: self.addr(v6), port: 1 + self.below(9_999) as u16, weight: 1, stats: 0 };
            if all.iter().all(|b| (b.addr, b.port) != (backend.addr, backend.port)) {
                all.push(backend);
            }
        }
        all
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        (1..all.len()).for_each(|i| all.swap(i, self.below(i as u64 + 1) as usize));
    }
}

fn pool(backends: &[Backend], seed: u64) -> Pool {
    Pool::new(backends.to_vec(), &HashSeed::new(seed)).unwrap()
}

/// Whose each slot is.
fn slots(pool: &Pool) -> Vec<(IpAddr, u16)> {
    (0..pool.maglev.size()).map(|slot| &pool.backends[pool.maglev.backend(slot) as usize]).map(|b| (b.addr, b.port)).collect()
}

/// The part of the slots that belong to others now, without those that had to change hands. Both tables are of one size.
fn moved(before: &Pool, after: &Pool, had_to: impl Fn((IpAddr, u16), (IpAddr, u16)) -> bool) -> f64 {
    let (before, after) = (slots(before), slots(after));
    assert_eq!(before.len(), after.len());
    before.iter().zip(&after).filter(|&(&b, &a)| b != a && !had_to(b, a)).count() as f64 / before.len() as f64
}

/// Random backends in numbers that keep clear of the steps in size by one, and a seed.
fn random_pools(count: u64) -> impl Iterator<Item = (Vec<Backend>, u64, Random)> {
    (0..count).map(|i| {
        let mut random = Random(i);
        let most = if i % 4 == 0 { 640 } else { 60 };
        let clear = |n: &usize| Maglev::size_for(n - 1) == Maglev::size_for(n + 1);
        let n = std::iter::repeat_with(|| 2 + random.below(most) as usize).find(clear).unwrap();
        (random.backends(n), random.below(1 << 40), random)
    })
}

/// The most of all slots that may change hands without need: a small table is moved about more by each change.
fn bound(pool: &Pool) -> f64 {
    if pool.maglev.size() == Maglev::size_for(1) { 0.05 } else { 0.02 }
}

#[test]
fn equal_backends_have_equal_shares() {
    for (backends, seed, _) in random_pools(40) {
        let shares = pool(&backends, seed).maglev.shares(backends.len());
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{} backends, seed {seed}: {least} to {most} slots", backends.len());
        // At a hundred slots a backend, one slot is one percent.
        assert!(f64::from(*most) <= 1.01 * f64::from(shares.iter().sum::<u32>()) / backends.len() as f64 + 1.0);
    }
}

#[test]
fn connections_spread_as_evenly_as_chance_allows() {
    let (backends, seed) = (Random(1).backends(100), HashSeed::new(2));
    let pool = Pool::new(backends, &seed).unwrap();
    let mut counts = [0u32; 100];
    for i in 0..100_000u32 {
        let client = Ipv4Addr::from(0x0a00_0000 + i / 1_000).into();
        let flow = Tuple::new(Proto::Tcp, client, 1_024 + (i % 1_000) as u16, Ipv4Addr::new(10, 96, 0, 1).into(), 80).unwrap();
        counts[pool.maglev.pick(flow.hash(&seed)).1 as usize] += 1;
    }
    // 1,000 each, with a standard deviation of 32.
    assert!(counts.iter().all(|n| (850..1_150).contains(n)), "{counts:?}");
}

#[test]
fn when_a_backend_goes_or_comes_the_others_keep_nearly_all() {
    let mut sum = 0.0;
    for (backends, seed, mut random) in random_pools(60) {
        let mut fewer = backends.clone();
        let one = fewer.remove(random.below(backends.len() as u64) as usize);
        let id = (one.addr, one.port);
        let (with, without) = (pool(&backends, seed), pool(&fewer, seed));
        // All that it had changes hands, and that is its share.
        let needed = slots(&with).iter().filter(|&&of| of == id).count() as f64 / f64::from(with.maglev.size());
        assert!((needed - 1.0 / backends.len() as f64).abs() < 0.001);
        let (goes, comes) = (moved(&with, &without, |was, _| was == id), moved(&without, &with, |_, is| is == id));
        assert!(goes == comes && goes < bound(&with), "{} backends, seed {seed}: {goes} moved without need", backends.len());
        sum += goes;
    }
    assert!(sum / 60.0 < 0.015, "on average {}", sum / 60.0);
}

#[test]
fn when_a_weight_changes_the_others_keep_nearly_all() {
    for (mut backends, seed, mut random) in random_pools(40) {
        let equal = pool(&backends, seed);
        let one = random.below(backends.len() as u64) as usize;
        let id = (backends[one].addr, backends[one].port);
        backends[one].weight = 2;
        let double = pool(&backends, seed);
        let unneeded = moved(&equal, &double, |_, is| is == id);
        assert!(unneeded < bound(&equal), "{} backends, seed {seed}: {unneeded} moved for a weight of 2", backends.len());

        backends.iter_mut().for_each(|b| b.weight = 10);
        assert_eq!(pool(&backends, seed).maglev, equal.maglev, "only how weights compare counts");
        backends[one].weight = 9;
        let unneeded = moved(&equal, &pool(&backends, seed), |was, _| was == id);
        assert!(unneeded < bound(&equal), "{} backends, seed {seed}: {unneeded} moved for nine tenths", backends.len());
    }
}

#[test]
fn the_order_in_which_backends_come_does_not_matter() {
    for (mut backends, seed, mut random) in random_pools(40) {
        backends.iter_mut().for_each(|b| b.weight = 1 + random.below(3) as u16);
        // Some are named twice, with another weight: the greatest counts.
        let twice = backends.iter().step_by(3).map(|b| Backend { weight: b.weight + 1, ..b.clone() });
        let mut named: Vec<Backend> = backends.iter().cloned().chain(twice).collect();
        let first = pool(&named, seed);
        assert_eq!(first.backends.len(), backends.len());
        for _ in 0..3 {
            random.shuffle(&mut named);
            let again = pool(&named, seed);
            assert_eq!((&again.maglev, &again.backends), (&first.maglev, &first.backends));
        }
    }
}

/// FNV-1a.
fn checksum(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Gateways of different versions share traffic while they are upgraded: they must agree on whose a slot is, and on which slot is a
/// connection's. Whoever changes these numbers breaks connections at each gateway's upgrade.
#[test]
fn tables_and_choices_are_those_of_the_versions_before() {
    let mut seen = Vec::new();
    for (n, v6, weights) in [(1, false, 1), (3, false, 1), (10, true, 1), (11, false, 4), (100, true, 3), (600, false, 1), (700, true, 1)] {
        let addr = |i: u32| {
            if v6 { IpAddr::from(Ipv6Addr::from((0xfd00 << 112) + u128::from(i))) } else { Ipv4Addr::from(0x0a00_0100 + i).into() }
        };
        let backends = (0..n).map(|i| Backend { addr: addr(i), port: 8_080, weight: 1 + (i % weights) as u16, stats: 0 }).collect();
        let seed = HashSeed::new(42);
        let pool = Pool::new(backends, &seed).unwrap();
        let table = checksum((0..pool.maglev.size()).flat_map(|slot| pool.maglev.backend(slot).to_le_bytes()));
        let flow = |i: u32| Tuple::new(Proto::Udp, addr(1_000 + i), 1_024 + i as u16, addr(2_000), 53).unwrap();
        let choices = checksum((0..1_000).flat_map(|i| pool.maglev.pick(flow(i).hash(&seed)).0.to_le_bytes()));
        seen.push((n, table, choices));
    }
    let known = [
        (1, 0x2a4d_8735_b775_aeb5, 0x7940_bea1_cbfb_fed3),
        (3, 0xd6a5_33d5_d31c_d3e5, 0x7940_bea1_cbfb_fed3),
        (10, 0xdfa5_dbdf_78e9_c725, 0x4db9_2918_b8dd_3de5),
        (11, 0x7da0_dfaf_c07b_ddc4, 0x5cbf_0a25_17de_a51f),
        (100, 0x6e63_026f_70ed_12aa, 0x39e7_2901_4786_7a0d),
        (600, 0x5b4c_faae_742f_2bf5, 0x8fc4_54ca_c4d2_9b8b),
        (700, 0x7ce8_dbfe_8ea4_4d55, 0xb5c4_0699_4bf7_6d52),
    ];
    assert_eq!(seen, known, "{seen:#x?}");
}

/// The price of coarse steps: at a step nearly every connection that is not remembered would go to another backend.
#[test]
fn at_a_step_of_the_size_nearly_all_moves() {
    for (n, kept) in [(10, 0.10), (163, 0.02), (655, 0.01)] {
        assert!(Maglev::size_for(n) < Maglev::size_for(n + 1));
        let backends = Random(3).backends(n + 1);
        let (before, after) = (pool(&backends[..n], 7), pool(&backends, 7));
        let of = |pool: &Pool, hash| {
            let backend = &pool.backends[pool.maglev.pick(hash).1 as usize];
            (backend.addr, backend.port)
        };
        let mut state = 5;
        let stayed =
            (0..20_000).map(|_| splitmix64(&mut state)).filter(|&hash| of(&before, hash) == of(&after, hash)).count() as f64 / 20_000.0;
        // Two tables that have nothing to do with each other agree once in so many backends.
        assert!((stayed - kept).abs() < 0.01, "from {n} backends to one more {stayed} stayed");
    }
}

#[test]
fn more_backends_than_slots_are_no_table() {
    let backends = pool(&Random(4).backends(6), 1).backends;
    assert!(Maglev::with_size(&backends, &HashSeed::new(1), 5).is_none());
    assert!(Maglev::with_size(&backends[..5], &HashSeed::new(1), 5).is_some());
}
