use super::super::region::{ABORTED, PENDING};
use super::super::tests::{create, find, flow, region};
use super::super::*;
use super::*;
use crate::tuple::Proto;
use crate::tuple::splitmix64;
use crate::wire::tcp;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

const BOOT: [u64; 2] = [7, 8];

fn expected(capacity: u32) -> Expected {
    Expected { capacity, boot_id: BOOT }
}

fn recover_all(words: &[AtomicU64], capacity: u32, now_ms: u64) -> (Conntrack<'_>, Recovered) {
    recover(words, expected(capacity), now_ms, |flow| Some(flow.stats)).unwrap()
}

/// Flow `i` with another source: half of them towards one Service, half towards another.
fn snat(i: u32) -> Flow {
    let own = if i % 2 == 1 { [0xfd00 << 48, 99] } else { [0, 0x0a00_0063] };
    Flow { source: own, service_port: 80 + (i as u16 >> 1 & 1), ..flow(i) }
}

/// The table is a map, no place is lost, and it can be emptied: the counts are right.
fn assert_sound(table: &Conntrack<'_>, now_ms: u64) {
    let mut keys = HashSet::new();
    let mut flows = Vec::new();
    table.for_each(|hit, f| flows.push((*hit, *f)));
    assert_eq!(table.live(), flows.len() as u64);
    for (hit, f) in &flows {
        assert!(keys.insert(f.original()) && keys.insert(f.reply()), "two flows of one key: {f:?}");
        for key in [f.original(), f.reply()] {
            let found = find(table, &key).unwrap_or_else(|| panic!("not found by {key}"));
            assert_eq!((table.flow(&found), found.cached_hop(1)), (Some(*f), None));
            assert_eq!(found.deltas.l4 ^ if found.direction == Direction::Reply { 0xffff } else { 0 }, f.deltas().1);
        }
        assert!(hit.seen_ms <= now_ms);
    }
    // A sweep in between: the cursor is sane.
    table.sweep(2 * table.capacity(), 1, |_| false, |_, _, _| panic!("nothing ends"));
    // New connections take all places that are left, and not one more.
    let strangers = fill(table, 0);
    assert_eq!(strangers.len() + flows.len(), table.capacity() as usize);
    assert!(strangers.iter().all(|f| find(table, &f.reply()).is_some()));
    assert!(flows.iter().all(|(_, f)| find(table, &f.original()).is_some()));
    table.for_each(|hit, _| assert!(table.end(hit).is_some()));
    assert_eq!(
        (table.live(), table.snat_ports().in_use(), table.snat_ports().largest_shares().service, table.snat_ports().fullest_endpoint()),
        (0, 0, 0, 0)
    );
    let buckets = table.region.header(3).load(Relaxed) as u32;
    let entries = (0..buckets).flat_map(|b| table.region.bucket(b)).filter(|entry| entry.load(Relaxed) != 0).count();
    assert_eq!(entries, 0, "entries that name nobody");
    assert_eq!(fill(table, 1_000).len(), table.capacity() as usize, "no place was lost or given twice");
}

/// Creates connections until every place is taken. Some find no room in the index of so small a table; others do.
fn fill(table: &Conntrack<'_>, first: u64) -> Vec<Flow> {
    let stranger = |i: u64| Flow { client: [0, 0xac10_0000 + i], source: [0, 0xac10_0000 + i], v6: false, ..flow(6) };
    let tries = first..first + 4 * u64::from(table.capacity());
    let created: Vec<Flow> = tries.map(stranger).filter(|f| create(table, *f, 0).is_ok()).collect();
    assert_eq!(table.live(), u64::from(table.capacity()));
    created
}

#[test]
fn a_table_that_was_left_in_order_goes_on_as_it_was() {
    let words = region(64);
    let table = Conntrack::format(&words, 64, 5, BOOT).unwrap();
    for i in 0..40 {
        let f = if i < 20 { flow(i) } else { snat(i) };
        let hit = create(&table, f, 1_000 + u64::from(i)).unwrap();
        table.touch(&hit, hit.phase.after(Direction::Reply, tcp::SYN | tcp::ACK, true), 2_000);
        table.cache_hop(&hit, 1, NextHopId(3));
        assert!(!f.replaces_source() || table.snat_ports().take(&f, PortLimits::NONE).is_ok());
    }
    let mut before = Vec::new();
    table.for_each(|hit, f| before.push((*hit, *f)));
    let shares = (table.snat_ports().in_use(), table.snat_ports().largest_shares().service, table.snat_ports().fullest_endpoint());
    table.detach();
    let (table, recovered) = recover(&words, expected(64), 5_000, |f| Some(f.stats + 100)).unwrap();
    assert_eq!(recovered, Recovered { detached: true, connections: 40, not_whole: 0, unwanted: 0 });
    for (hit, f) in before {
        let now = find(&table, &f.original()).unwrap();
        assert_eq!((now.phase, now.seen_ms, now.new, now.deltas), (hit.phase, 2_000, hit.new, hit.deltas));
        let is_stream = |now_ms| table.sequences().phase_after(&now, 0, None, now_ms).kind() == PhaseKind::Stream;
        assert_eq!((is_stream(2_900), is_stream(3_200)), (false, f.proto == Proto::Udp), "its age is known");
        assert_eq!((now.stats, table.flow(&now).unwrap().stats), (f.stats + 100, f.stats + 100), "statistics are named anew");
        assert!(find(&table, &f.reply()).unwrap().cached_hop(1).is_none() && now.cached_hop(1).is_none());
    }
    assert_eq!(
        (table.seed(), table.snat_ports().in_use(), table.snat_ports().largest_shares().service, table.snat_ports().fullest_endpoint()),
        (5, shares.0, shares.1, shares.2)
    );
    assert!(shares.0 == 20 && shares.1 >= 4 && shares.2 > 4, "{shares:?}");
    let (table, again) = recover_all(&words, 64, 5_000);
    assert_eq!(again, Recovered { detached: false, connections: 40, not_whole: 0, unwanted: 0 });
    assert_sound(&table, 5_000);
}

#[test]
fn unwanted_connections_end() {
    let words = region(64);
    let table = Conntrack::format(&words, 64, 5, BOOT).unwrap();
    (0..64).for_each(|i| assert!(create(&table, snat(i), 0).is_ok() && table.snat_ports().take(&snat(i), PortLimits::NONE).is_ok()));
    let (table, recovered) = recover(&words, expected(64), 0, |f| (f.client_port % 4 == 0).then_some(0)).unwrap();
    assert_eq!((recovered.connections, recovered.unwanted, recovered.not_whole), (16, 48, 0));
    assert_eq!((table.live(), table.snat_ports().in_use()), (16, 16));
    assert_sound(&table, 0);
}

/// Every step at which a process can die while it creates or ends a connection.
#[test]
fn half_made_and_half_ended_connections_are_cleared_away() {
    let words = region(32);
    let table = Conntrack::format(&words, 32, 5, BOOT).unwrap();
    let kept: Vec<Flow> = (0..8).map(flow).collect();
    kept.iter().for_each(|f| {
        create(&table, *f, 0).unwrap();
    });
    let phase = Phase::first(Proto::Udp, 0);
    let pending = |i: u32| {
        let mut f = flow(i);
        let (hash, port) = (table.hash(&f.original()), std::iter::once(f.source_port));
        let _pending = table.reserve(&mut f, hash, phase, 0, port).unwrap();
        // Nothing was freed yet: it is the last slot ever used.
        table.region.high_water() - 1
    };
    let set = |slot: u32, state: u64| {
        let word = &table.region.slot(slot).0[STATE];
        word.store((word.load(Relaxed) & !STATE_MASK) | state, Relaxed);
    };
    let clear = |i: u32, original: bool, reply: bool, slot: u32| {
        if original {
            table.clear_key(&flow(i).original(), Direction::Original, slot);
        }
        if reply {
            table.clear_key(&flow(i).reply(), Direction::Reply, slot);
        }
    };
    // Pending or aborted, or dying, with each set of entries.
    for (i, state) in [(8, PENDING), (12, ABORTED), (16, DYING)] {
        for (j, (original, reply)) in (0..).zip([(false, false), (true, false), (false, true), (true, true)]) {
            let slot = pending(i + j);
            set(slot, state);
            clear(i + j, original, reply, slot);
        }
    }
    // Live, but of a protocol that nobody has.
    let slot = pending(20);
    set(slot, LIVE);
    table.region.slot(slot).0[3].fetch_xor(0x4000, Relaxed);
    // Counted but not live; off the free list but not pending; retired but not on it.
    table.region.header(W_LIVE).fetch_add(1, Relaxed);
    table.snat_ports().take(&snat(21), PortLimits::NONE).unwrap();
    let (popped, freed) = (table.region.allocate(None).unwrap(), table.region.allocate(None).unwrap());
    set(popped, FREE);
    table.region.retire(freed);
    let (table, recovered) = recover_all(&words, 32, 0);
    assert_eq!(recovered, Recovered { detached: false, connections: 8, not_whole: 13, unwanted: 0 });
    assert!(kept.iter().all(|f| find(&table, &f.original()).is_some() && find(&table, &f.reply()).is_some()));
    assert!((8..21).all(|i| find(&table, &flow(i).original()).is_none() && find(&table, &flow(i).reply()).is_none()));
    assert_sound(&table, 0);
}

/// In another order than they came in, some find no room in the index by themselves.
#[test]
fn a_full_table_loses_nothing() {
    for seed in 0..300 {
        let words = region(256);
        let table = Conntrack::format(&words, 256, seed, BOOT).unwrap();
        let flows = fill(&table, 0);
        let (table, recovered) = recover_all(&words, 256, 0);
        assert_eq!((recovered.connections, recovered.not_whole), (256, 0), "seed {seed}");
        assert!(flows.iter().all(|f| find(&table, &f.original()).is_some() && find(&table, &f.reply()).is_some()), "seed {seed}");
    }
}

/// All keys in three buckets, every place of them taken. In the other order many keys fit only after several others have moved.
#[test]
fn full_buckets_lose_nothing() {
    for seed in 0..200 {
        let words = region(16);
        let table = Conntrack::format(&words, 16, seed, BOOT).unwrap();
        let crowded = |key: Tuple| table.region.home(table.hash(&key)).buckets.iter().all(|bucket| *bucket < 3);
        let candidates = (0..).map(flow).filter(|f| crowded(f.original()) && crowded(f.reply()));
        let flows: Vec<Flow> = candidates.filter(|f| create(&table, *f, 0).is_ok()).take(12).collect();
        let (table, recovered) = recover_all(&words, 16, 0);
        assert_eq!((recovered.connections, recovered.not_whole), (12, 0), "seed {seed}");
        assert!(flows.iter().all(|f| find(&table, &f.original()).is_some() && find(&table, &f.reply()).is_some()), "seed {seed}");
        assert_sound(&table, 0);
    }
}

#[test]
fn what_is_not_the_expected_table_is_refused_and_left_as_it_is() {
    let words = region(16);
    let cases: [(usize, u64, RegionError); 4] =
        [(0, 0, RegionError::Foreign), (1, 4, RegionError::Version { found: 4 }), (4, 6, RegionError::Header), (7, 0, RegionError::Header)];
    for (word, value, error) in cases {
        Conntrack::format(&words, 16, 5, BOOT).unwrap().detach();
        words[word].store(value, Relaxed);
        let before: Vec<u64> = words.iter().map(|w| w.load(Relaxed)).collect();
        assert_eq!(recover(&words, expected(16), 0, |_| Some(0)).err(), Some(error), "word {word}");
        assert!(words.iter().zip(before).all(|(w, b)| w.load(Relaxed) == b));
    }
    Conntrack::format(&words, 16, 5, BOOT).unwrap().detach();
    let refused = |words: &[AtomicU64], expected| recover(words, expected, 0, |_| Some(0)).err();
    assert_eq!(refused(&words, expected(17)), Some(RegionError::OtherCapacity { found: 16, wanted: 17 }));
    assert_eq!(refused(&words, Expected { boot_id: [7, 9], ..expected(16) }), Some(RegionError::OtherBoot));
    assert_eq!(refused(&words[..200], expected(16)), Some(RegionError::TooSmall));
    assert_eq!(refused(&[], expected(16)), Some(RegionError::Foreign));
    assert!(refused(&words, expected(16)).is_none());
}

#[test]
fn clients_keep_their_endpoints_and_nobody_was_seen_in_the_future() {
    let words = region(64);
    let table = Conntrack::format(&words, 64, 5, BOOT).unwrap();
    let sticky = Sticky { id: 3, client: [0, 9], v6: false, timeout_s: 100 };
    assert_eq!(table.affinity().stick(&sticky, 1_000, |_| true, 77).0, 77);
    let hit = create(&table, flow(1), 1_000).unwrap();
    table.region.slot(hit.slot).0[SEEN].store(u64::MAX, Relaxed);
    let (table, _) = recover_all(&words, 64, 2_000);
    assert_eq!(table.affinity().stick(&sticky, 3_000, |_| true, 78).0, 77);
    assert_eq!(find(&table, &flow(1).original()).unwrap().seen_ms, 2_000);
}

/// The memory as it is at some moment, taken word by word while others write: worse than any kill, which stops all of them at once.
#[test]
fn a_copy_taken_while_workers_create_and_end() {
    let words = region(512);
    let table = Conntrack::format(&words, 512, 5, BOOT).unwrap();
    (0..200).for_each(|i| {
        create(&table, flow(i), 0).unwrap();
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let stop = &stop;
            scope.spawn(move || {
                let mut state = thread;
                while !stop.load(Relaxed) {
                    let f = flow(200 + splitmix64(&mut state) as u32 % 250);
                    match find(&table, &f.original()) {
                        Some(hit) => drop(table.end(&hit)),
                        None => drop(create(&table, f, 0)),
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for _ in 0..200 {
            let copy: Vec<AtomicU64> = words.iter().map(|w| AtomicU64::new(w.load(Relaxed))).collect();
            let (copy, recovered) = recover_all(&copy, 512, 0);
            assert!(recovered.connections >= 200);
            assert!((0..200).all(|i| find(&copy, &flow(i).original()).is_some() && find(&copy, &flow(i).reply()).is_some()));
            assert_sound(&copy, 0);
        }
    });
}

/// Also when an assertion fails.
struct StopAtEnd<'s>(&'s AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the words behind the header's first line: recovery ends, and leaves a sound table.
    #[test]
    fn any_damage_is_borne(seed: u64, flows in 0u32..=64, damage in 0usize..400, high_water in any::<bool>()) {
        let words = region(64);
        let table = Conntrack::format(&words, 64, seed, BOOT).unwrap();
        for i in 0..flows {
            let f = if i % 3 == 0 { snat(i) } else { flow(i) };
            // A table as small as this and nearly full has no room in the index for some.
            let created = create(&table, f, u64::from(i)).is_ok();
            prop_assert!(!created || !f.replaces_source() || table.snat_ports().take(&f, PortLimits::NONE).is_ok());
        }
        let flows = table.live() as u32;
        let mut random = seed;
        let mut draw = |n: usize| splitmix64(&mut random) as usize % n;
        for _ in 0..damage {
            // Half of it among the flows' words, where it hurts most.
            let flows_at = table.region.slot(0).0.as_ptr() as usize - words.as_ptr() as usize;
            let place = if draw(2) == 0 { 8 + draw(words.len() - 8) } else { flows_at / 8 + draw(64 * flow::FLOW_WORDS) };
            let value = match draw(5) {
                0 => draw(usize::MAX) as u64,
                1 => words[8 + draw(words.len() - 8)].load(Relaxed),
                2 => words[place].load(Relaxed) ^ (1 << draw(64)),
                3 => draw(6) as u64,
                _ => u64::MAX,
            };
            words[place].store(value, Relaxed);
            // A whole flow twice.
            if draw(8) == 0 {
                let (from, to) = (table.region.slot(draw(64) as u32), table.region.slot(draw(64) as u32));
                from.0.iter().zip(to.0).for_each(|(a, b)| b.store(a.load(Relaxed), Relaxed));
            }
        }
        if high_water {
            words[16].store(u64::MAX, Relaxed);
        }
        let (table, recovered) = recover_all(&words, 64, 1_000);
        prop_assert!(damage > 0 || recovered.connections == flows, "{recovered:?} of {flows}");
        prop_assert!(recovered.connections + recovered.not_whole <= 64);
        assert_sound(&table, 1_000);
    }
}
