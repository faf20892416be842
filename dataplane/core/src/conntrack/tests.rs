use super::*;
use crate::reason::Reason;
use crate::tuple::Proto;
use proptest::prelude::*;
use std::collections::HashMap;

pub(super) fn region(capacity: u32) -> Vec<AtomicU64> {
    (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0xdead)).collect()
}

/// Flow `i`: a client port of its own towards one Service; IPv6 for odd numbers.
pub(super) fn flow(i: u32) -> Flow {
    let v6 = i % 2 == 1;
    let addr = |n: u64| if v6 { [0xfd00 << 48, n] } else { [0, 0x0a00_0000 + n] };
    let client = addr(u64::from(i >> 14) + 5);
    Flow {
        proto: if i.is_multiple_of(3) { Proto::Udp } else { Proto::Tcp },
        v6,
        announced: false,
        client,
        client_port: 1024 + (i & 0x3fff) as u16,
        service: addr(1),
        service_port: 80,
        backend: addr(2),
        backend_port: 8080,
        source: client,
        source_port: 1024 + (i & 0x3fff) as u16,
        stats: i,
        counted: None,
    }
}

pub(super) fn create(table: &Conntrack<'_>, mut f: Flow, now_ms: u64) -> Result<Hit, Refused> {
    let phase = Phase::first(f.proto, crate::wire::tcp::SYN);
    let (hash, ports) = (table.hash(&f.original()), std::iter::once(f.source_port));
    let pending = table.reserve(&mut f, hash, phase, now_ms, ports)?;
    table.commit(pending)
}

pub(super) fn find(table: &Conntrack<'_>, tuple: &Tuple) -> Option<Hit> {
    table.lookup(tuple, table.hash(tuple))
}

#[test]
fn both_keys_find_the_flow_until_it_ends() {
    let words = region(16);
    let table = Conntrack::format(&words, 16, 1, [0, 0]).unwrap();
    for i in 0..4 {
        let f = flow(i);
        let hit = create(&table, f, 1_000).unwrap();
        assert_eq!((table.flow(&hit), hit.direction), (Some(f), Direction::Original));
        assert_eq!(hit.new, f.reply().reversed());
        let original = find(&table, &f.original()).unwrap();
        let reply = find(&table, &f.reply()).unwrap();
        assert_eq!((table.flow(&original), original.direction, original.phase.kind()), (Some(f), Direction::Original, hit.phase.kind()));
        assert_eq!((original.new, reply.new), (f.reply().reversed(), f.original().reversed()));
        assert_eq!((table.flow(&reply), reply.direction), (Some(f), Direction::Reply));
        assert_eq!(reply.deltas, Deltas { l3: !original.deltas.l3, l4: !original.deltas.l4 });
        assert!(find(&table, &f.original().reversed()).is_none());
        assert_eq!(create(&table, f, 1_000).unwrap_err(), Refused::Exists);
    }
    assert_eq!(table.live(), 4);
    for i in 0..4 {
        let hit = find(&table, &flow(i).reply()).unwrap();
        assert!(table.end(&hit).is_some() && table.end(&hit).is_none() && table.flow(&hit).is_none());
        assert!(find(&table, &flow(i).original()).is_none() && find(&table, &flow(i).reply()).is_none());
    }
    assert_eq!(table.live(), 0);
}

#[test]
fn fills_to_its_capacity_and_then_says_so() {
    for capacity in [1, 2, 100, if cfg!(miri) { 200 } else { 20_000 }] {
        let words = region(capacity);
        let table = Conntrack::format(&words, capacity, 7, [0, 0]).unwrap();
        let refused = (0..capacity).filter(|&i| create(&table, flow(i), 0).is_err()).count();
        assert_eq!(refused, 0, "of {capacity}");
        assert_eq!(create(&table, flow(capacity), 0).unwrap_err(), Refused::Full);
        assert_eq!(table.live(), u64::from(capacity));
        assert!((0..capacity).all(|i| find(&table, &flow(i).original()).is_some()));
    }
}

#[test]
fn sizes_that_cannot_be() {
    let words = region(8);
    assert_eq!(Conntrack::format(&words, 0, 1, [0, 0]).err(), Some(RegionError::Capacity));
    assert_eq!(Conntrack::format(&words, CAPACITY_MAX + 1, 1, [0, 0]).err(), Some(RegionError::Capacity));
    assert_eq!(Conntrack::format(&words, 9, 1, [0, 0]).err(), Some(RegionError::TooSmall));
    assert!(Conntrack::words_needed(1_000_000) * 8 <= 178 * 1_000_000, "at most 178 bytes a connection");
}

#[test]
fn a_second_view_sees_the_same_table_and_foreign_memory_is_refused() {
    let words = region(16);
    assert_eq!(Conntrack::attach(&words).err(), Some(RegionError::Foreign));
    let table = Conntrack::format(&words, 16, 5, [0, 0]).unwrap();
    create(&table, flow(1), 0).unwrap();
    assert!(find(&Conntrack::attach(&words).unwrap(), &flow(1).reply()).is_some());
    assert_eq!(Conntrack::attach(&words[..100]).err(), Some(RegionError::TooSmall));
    assert_eq!(Conntrack::attach(&[]).err(), Some(RegionError::Foreign));
    for word in 1..8 {
        let old = words[word].swap(99, Ordering::Relaxed);
        let expected = if word == 1 { RegionError::Version { found: 99 } } else { RegionError::Header };
        assert_eq!(Conntrack::attach(&words).err(), Some(expected), "word {word}");
        words[word].store(old, Ordering::Relaxed);
    }
    Conntrack::attach(&words).unwrap();
}

#[test]
fn the_next_source_port_is_taken_when_the_reply_key_is_not_free() {
    let words = region(16);
    let table = Conntrack::format(&words, 16, 1, [0, 0]).unwrap();
    let source = [0, 0x0a00_0009];
    let snat = |i: u32| Flow { source, ..flow(2 * i) };
    let reserve = |i: u32| {
        let mut f = Flow { proto: Proto::Tcp, ..snat(i) };
        let (hash, phase) = (table.hash(&f.original()), Phase::first(f.proto, crate::wire::tcp::SYN));
        table.reserve(&mut f, hash, phase, 0, 61_000..=61_002).and_then(|p| table.commit(p))
    };
    let ports: Vec<u16> = (1..4).map(|i| reserve(i).unwrap().new.sport).collect();
    assert_eq!(ports, [61_000, 61_001, 61_002]);
    assert_eq!(reserve(4).unwrap_err(), Refused::ReplyTaken);
    // The same port serves another backend.
    let mut other = Flow { backend_port: 9090, proto: Proto::Tcp, ..snat(5) };
    let (hash, phase) = (table.hash(&other.original()), Phase::first(Proto::Tcp, crate::wire::tcp::SYN));
    assert_eq!(table.reserve(&mut other, hash, phase, 0, 61_000..=61_002).unwrap().flow.source_port, 61_000);
}

#[test]
fn an_aborted_creation_leaves_nothing() {
    let words = region(4);
    let table = Conntrack::format(&words, 4, 1, [0, 0]).unwrap();
    let f = flow(0);
    let phase = Phase::first(f.proto, 0);
    for _ in 0..20 {
        let mut first = f;
        let pending = table.reserve(&mut first, table.hash(&f.original()), phase, 0, std::iter::once(f.source_port)).unwrap();
        assert!(find(&table, &f.original()).is_none(), "pending is a miss");
        assert_eq!(create(&table, f, 0).unwrap_err(), Refused::Busy);
        table.abort(pending);
    }
    create(&table, f, 0).unwrap();
    assert_eq!(table.live(), 1);
}

#[test]
fn the_sweep_ends_what_timed_out_and_forgets_old_next_hops() {
    let words = region(64);
    let table = Conntrack::format(&words, 64, 1, [0, 0]).unwrap();
    let timeouts = Timeouts::default().table();
    for i in 0..60 {
        let hit = create(&table, flow(i), u64::from(i) * 1_000).unwrap();
        table.cache_hop(&hit, 5, NextHopId(3));
        let hit = find(&table, &flow(i).original()).unwrap();
        assert_eq!(hit.cached_hop(5), Some(NextHopId(3)));
        assert_eq!(Hit { direction: Direction::Reply, ..hit }.cached_hop(5), None);
        assert_eq!(hit.cached_hop(6), None);
    }
    let now = 100_000;
    let mut ended = Vec::new();
    for _ in 0..8 {
        table.sweep(8, 6, |h| now - h.seen_ms >= timeouts.of(h.phase), |f, _, _| ended.push(f));
    }
    // UDP is one-way for 30 s, a SYN for 120 s.
    assert_eq!(ended.len(), (0..60).filter(|i: &u32| i.is_multiple_of(3)).count());
    assert!(ended.iter().all(|f| f.proto == Proto::Udp && find(&table, &f.original()).is_none()));
    table.for_each(|h, _| assert_eq!(h.cached_hop(5), None));
}

#[test]
fn a_stale_hit_cannot_change_the_slots_next_flow() {
    let words = region(1);
    let table = Conntrack::format(&words, 1, 1, [0, 0]).unwrap();
    let stale = create(&table, flow(1), 0).unwrap();
    assert_eq!(table.revalidate(&stale.flow_ref()).map(|hit| hit.slot), Some(stale.slot));
    assert!(table.end(&stale).is_some());
    let fresh = create(&table, Flow { stats: 1, ..flow(7) }, 0).unwrap();
    assert_eq!((stale.slot, stale.phase), (fresh.slot, fresh.phase), "the same slot, the same words");
    table.touch(&stale, stale.phase.after(Direction::Reply, crate::wire::tcp::RST, true), 10_000);
    table.cache_hop(&stale, 1, NextHopId(9));
    assert!(
        table.end(&stale).is_none() && table.revalidate(&stale.flow_ref()).is_none() && table.prefetch_end(&stale.flow_ref()).is_none()
    );
    let now = find(&table, &flow(7).original()).unwrap();
    assert_eq!((now.phase, now.seen_ms, now.cached_hop(1)), (fresh.phase, 0, None));
}

#[test]
fn touch_moves_time_in_steps_and_phases_at_once() {
    let words = region(4);
    let table = Conntrack::format(&words, 4, 1, [0, 0]).unwrap();
    let f = flow(1);
    let hit = create(&table, f, 1_000).unwrap();
    table.touch(&hit, hit.phase, 1_100);
    assert_eq!(find(&table, &f.original()).unwrap().seen_ms, 1_000);
    table.touch(&hit, hit.phase.after(Direction::Reply, 0x12, true), 1_500);
    let now = find(&table, &f.original()).unwrap();
    assert_eq!((now.seen_ms, now.phase.kind()), (1_500, PhaseKind::SynReceived));
}

#[test]
fn what_a_worker_whose_clock_is_ahead_has_just_noted_is_new() {
    let words = region(4);
    let table = Conntrack::format(&words, 4, 1, [0, 0]).unwrap();
    let sticky = Sticky { id: 1, client: [0, 5], v6: false, timeout_s: 100 };
    assert_eq!(table.affinity().stick(&sticky, 100_000, |_| true, 1).0, 1);
    assert_eq!(table.affinity().stick(&sticky, 99_999, |_| true, 2).0, 1, "another second, and not a long time ago");
    assert_eq!(table.affinity().stick(&sticky, 250_000, |_| true, 3).0, 3, "over");

    let f = flow(0);
    let hit = create(&table, f, 100_000).unwrap();
    let (fragments, key) = (table.fragments(), f.original());
    let datagram = fragments.datagram(&key, 7);
    fragments.remember(datagram, &hit, 1_400, 100_000);
    let found = [99_999, 100_000, 105_999, 106_000, 97_000].map(|now_ms| fragments.lookup(datagram, &key, now_ms).is_some());
    assert_eq!(found, [true, true, true, false, false]);
    table.touch(&hit, hit.phase, 99_999);
    assert!(find(&table, &f.original()).is_some_and(|hit| hit.seen_ms >= 99_999));
}

#[test]
fn all_that_is_remembered_of_a_datagram_is_read_again() {
    let words = region(4);
    let table = Conntrack::format(&words, 4, 1, [0, 0]).unwrap();
    let f = flow(0);
    let hit = create(&table, f, 0).unwrap();
    let fragments = table.fragments();
    let waiting = |datagram, first| crate::frame::Waiting { datagram, sender: 0, first };
    for (key, id) in [(f.original(), 7), (f.reply(), 7), (f.original(), 8)] {
        let datagram = fragments.datagram(&key, id);
        let fate = |now_ms| fragments.lookup(datagram, &key, now_ms);
        assert!(fate(0).is_none() && !fragments.is_settled(&waiting(datagram, true), 0));
        for end in [8, 1_480, 65_528] {
            fragments.remember(
                datagram,
                &Hit { direction: if key == f.reply() { Direction::Reply } else { Direction::Original }, ..hit },
                end,
                0,
            );
            assert!(matches!(fate(0), Some(Fate::Flow(found, first_end)) if (found.slot, first_end) == (hit.slot, end)));
            assert!(fragments.is_settled(&waiting(datagram, false), 0));
        }
        fragments.leave_to_kernel(datagram, Reason::NotOurs, 0);
        assert!(matches!(fate(0), Some(Fate::Kernel(Reason::NotOurs))));
        fragments.drop(datagram, Reason::Shutdown, 0);
        assert!(matches!(fate(0), Some(Fate::Drop(Reason::Shutdown))));
        for len in [0, 1, 65_535] {
            fragments.note_length(datagram, len, 0);
            assert!(matches!(fate(0), Some(Fate::Length(known)) if known == len));
            assert_eq!([true, false].map(|first| fragments.is_settled(&waiting(datagram, first), 0)), [true, false]);
        }
        // An identification that is used again half an hour later.
        assert!(fate(2_000_000).is_none());
        fragments.forget(datagram);
        assert!(fate(0).is_none());
    }
}

/// Threads create, look up and end the same few flows; whatever is found must be the flow that was asked for, and there is never more than one.
#[test]
fn many_threads_one_truth() {
    let words = region(64);
    let table = Conntrack::format(&words, 64, 3, [0, 0]).unwrap();
    let created = AtomicU64::new(0);
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (created, ended) = (&created, &ended);
            scope.spawn(move || {
                let mut state = thread;
                for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
                    let r = crate::tuple::splitmix64(&mut state);
                    let f = flow((r >> 8) as u32 % 24);
                    match r % 4 {
                        0 | 1 => {
                            if create(&table, Flow { stats: r as u32, ..f }, 0).is_ok() {
                                created.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        2 => {
                            if let Some(hit) = find(&table, &f.reply()) {
                                assert_eq!(hit.new, f.original().reversed());
                            }
                        }
                        _ => {
                            if find(&table, &f.original()).is_some_and(|hit| table.end(&hit).is_some()) {
                                ended.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    let mut seen = HashMap::new();
    table.for_each(|_, flow| *seen.entry(flow.original()).or_insert(0) += 1);
    assert!(seen.values().all(|&n| n == 1), "one flow a key: {seen:?}");
    assert_eq!(table.live(), created.load(Ordering::Relaxed) - ended.load(Ordering::Relaxed));
    assert_eq!(table.live(), seen.len() as u64);
    // Nothing leaked: the table still takes as many as it has places.
    table.for_each(|hit, _| assert!(table.end(hit).is_some()));
    assert!((0..64).all(|i| create(&table, flow(1_000 + i), 0).is_ok()));
}

/// Miri has neither the time nor the files.
fn cases() -> ProptestConfig {
    if cfg!(miri) { ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() } } else { ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    /// Any order of creations and endings, against a map.
    #[test]
    fn behaves_as_a_map(ops in prop::collection::vec((any::<bool>(), 0u32..40), 1..300)) {
        let words = region(32);
        let table = Conntrack::format(&words, 32, 11, [0, 0]).unwrap();
        let mut model: HashMap<u32, Flow> = HashMap::new();
        for (insert, i) in ops {
            if insert {
                let created = create(&table, flow(i), 0).map(|_| ());
                // A key's two buckets may be full before the table is.
                if let Err(Refused::Crowded(direction)) = created {
                    let key = if direction == Direction::Original { flow(i).original() } else { flow(i).reply() };
                    prop_assert_eq!(table.neighbours(&key).count(), 16);
                    continue;
                }
                let expected = if model.contains_key(&i) && model.len() < 32 { Err(Refused::Exists) } else if model.len() == 32 { Err(Refused::Full) } else { Ok(()) };
                prop_assert_eq!(created, expected);
                if expected.is_ok() {
                    model.insert(i, flow(i));
                }
            } else {
                let hit = find(&table, &flow(i).original());
                prop_assert_eq!(hit.and_then(|h| table.end(&h)), model.remove(&i));
            }
            prop_assert_eq!(table.live(), model.len() as u64);
        }
    }
}

#[test]
fn a_keys_two_buckets_are_never_the_same() {
    for capacity in [1, 2, 4, 9, 32, 1_000] {
        let words = region(capacity);
        let table = Conntrack::format(&words, capacity, u64::from(capacity), [0, 0]).unwrap();
        for i in 0..1_000 {
            let [first, second] = table.region.home(table.hash(&flow(i).original())).buckets;
            assert_ne!(first, second, "flow {i} in a table for {capacity}");
        }
    }
}

#[test]
fn samples_lie_all_over_the_table_and_come_by_everywhere() {
    let words = region(1_000);
    let table = Conntrack::format(&words, 1_000, 1, [0, 0]).unwrap();
    assert_eq!(table.sample(0, 64).count(), 0);
    for i in 0..1_000 {
        create(&table, flow(i), 0).unwrap();
    }
    let mut met = std::collections::HashSet::new();
    for sample in 0..100 {
        let mut slots: Vec<u32> = table.sample(sample * 64, 64).map(|hit| hit.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots.len(), 64);
        let gaps = slots.windows(2).map(|pair| pair[1] - pair[0]).chain([slots[0], 1_000 - slots[63]]);
        assert!(gaps.max() < Some(50), "{slots:?}");
        met.extend(slots);
    }
    assert_eq!(met.len(), 1_000);
}
