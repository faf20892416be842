//! The connection table under every interleaving that loom finds.
//!
//! Two things about loom: a thread that starts another goes on until it waits, so those who are to race are both started; and
//! an index of two buckets (the smallest) is all that it can look at in reasonable time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use loom::sync::atomic::AtomicU64;
use loom::thread;
use nomagic_core::conntrack::{Conntrack, Direction, Fate, Flow, Hit, Phase, PhaseKind, Refused, Sticky};
use nomagic_core::frame::NextHopId;
use nomagic_core::tuple::{Proto, Tuple};

/// Preemptions of a run at the most: most bugs need one or two.
const PREEMPTIONS: usize = 2;
/// How long a model is explored at the most: some have more interleavings than anybody waits for.
const TIME_MAX: Duration = Duration::from_secs(15);

const SOURCE_PORTS: std::ops::Range<u16> = 61_000..61_002;

pub type Words = Arc<Vec<AtomicU64>>;

pub fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 100_000;
    builder.max_duration = Some(TIME_MAX);
    builder.check(test);
}

pub fn table(capacity: u32) -> Words {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect();
    Conntrack::format(&words, capacity, 1, [0, 0]).unwrap();
    Arc::new(words)
}

pub fn view(words: &Words) -> Conntrack<'_> {
    Conntrack::attach(words).unwrap()
}

pub fn start<T: 'static>(words: &Words, part: impl FnOnce(&Conntrack<'_>) -> T + 'static) -> thread::JoinHandle<T> {
    let words = words.clone();
    thread::spawn(move || part(&view(&words)))
}

/// Two workers at one table; what each of them returned.
pub fn race<A: 'static, B: 'static>(
    words: &Words,
    a: impl FnOnce(&Conntrack<'_>) -> A + 'static,
    b: impl FnOnce(&Conntrack<'_>) -> B + 'static,
) -> (A, B) {
    let (a, b) = (start(words, a), start(words, b));
    (a.join().unwrap(), b.join().unwrap())
}

pub fn flow(client_port: u16, stats: u32) -> Flow {
    Flow {
        proto: Proto::Udp,
        v6: false,
        announced: false,
        client: [0, 5],
        client_port,
        service: [0, 1],
        service_port: 80,
        backend: [0, 2],
        backend_port: 8080,
        source: [0, 5],
        source_port: client_port,
        stats,
        counted: None,
    }
}

/// A client whose source is replaced: all of them want the same two source ports.
fn behind(client_port: u16) -> Flow {
    Flow { source: [0, 9], source_port: SOURCE_PORTS.start, ..flow(client_port, 1) }
}

fn create_with(table: &Conntrack<'_>, mut flow: Flow, ports: impl Iterator<Item = u16>) -> Result<Hit, Refused> {
    let (hash, phase) = (table.hash(&flow.original()), Phase::first(flow.proto, 0));
    let pending = table.reserve(&mut flow, hash, phase, 0, ports)?;
    table.commit(pending)
}

fn create(table: &Conntrack<'_>, flow: Flow) -> Result<Hit, Refused> {
    create_with(table, flow, std::iter::once(flow.source_port))
}

/// The source port that a client got.
fn create_behind(table: &Conntrack<'_>, client_port: u16) -> Result<u16, Refused> {
    create_with(table, behind(client_port), SOURCE_PORTS).map(|hit| hit.new.sport)
}

fn find(table: &Conntrack<'_>, tuple: &Tuple) -> Option<Hit> {
    table.lookup(tuple, table.hash(tuple))
}

#[test]
fn two_creations_of_one_connection_end_with_at_most_one() {
    model(|| {
        let words = table(2);
        let (a, b) = race(&words, |table| create(table, flow(1000, 1)).is_ok(), |table| create(table, flow(1000, 2)).is_ok());
        let created = usize::from(a) + usize::from(b);
        let table = view(&words);
        assert!(created <= 1, "two of one connection");
        assert_eq!(table.live(), created as u64);
        assert_eq!(find(&table, &flow(1000, 0).original()).is_some(), created == 1);
        assert_eq!(find(&table, &flow(1000, 0).reply()).is_some(), created == 1);
        // Whoever lost has left nothing behind: both places are free to use.
        if created == 0 {
            assert!(create(&table, flow(1000, 3)).is_ok());
        }
        assert!(create(&table, flow(2000, 4)).is_ok(), "a place was lost");
    });
}

#[test]
fn a_reader_finds_a_whole_connection_or_none() {
    model(|| {
        let words = table(1);
        let writer = |table: &Conntrack<'_>| {
            let first = create(table, flow(1000, 1)).unwrap();
            assert!(table.end(&first).is_some());
            // The same slot, another connection.
            create(table, flow(2000, 2)).unwrap();
        };
        let reader = |table: &Conntrack<'_>| {
            let f = flow(1000, 1);
            if let Some(hit) = find(table, &f.original()) {
                assert_eq!((hit.new, hit.stats), (f.reply().reversed(), 1), "torn, or another's");
            }
        };
        race(&words, reader, writer);
        let table = view(&words);
        assert!(find(&table, &flow(1000, 1).original()).is_none());
        assert!(find(&table, &flow(2000, 2).reply()).is_some());
    });
}

/// One worker ends the connection, another one takes its slot.
#[test]
fn a_reader_is_not_deceived_by_two_workers_either() {
    model(|| {
        let words = table(1);
        let f = flow(1000, 1);
        let hit = create(&view(&words), f).unwrap();
        let ender = start(&words, move |table| table.end(&hit).is_some());
        let creator = start(&words, |table| create(table, flow(2000, 2)).map(|_| ()));
        let reader = start(&words, move |table| find(table, &f.original()));
        if let Some(hit) = reader.join().unwrap() {
            assert_eq!((hit.new, hit.stats), (f.reply().reversed(), 1), "torn, or another's");
        }
        assert!(ender.join().unwrap());
        let created = creator.join().unwrap();
        assert!(matches!(created, Ok(()) | Err(Refused::Full)));
        assert_eq!(find(&view(&words), &flow(2000, 2).reply()).is_some(), created.is_ok());
    });
}

/// A creation that is given up (its answers cannot be announced) is out of the way altogether, or met as a rival for the connection: never only as
/// somebody who has the source port.
#[test]
fn a_creation_that_is_given_up_takes_no_source_port() {
    model(|| {
        let words = table(2);
        let gives_up = start(&words, |table| {
            let mut f = flow(1000, 1);
            let (hash, port) = (table.hash(&f.original()), f.source_port);
            let pending = table.reserve(&mut f, hash, Phase::first(Proto::Udp, 0), 0, std::iter::once(port));
            if let Ok(pending) = pending {
                table.abort(pending);
            }
        });
        let creator = start(&words, |table| create(table, flow(1000, 2)).err());
        gives_up.join().unwrap();
        let refused = creator.join().unwrap();
        assert!(matches!(refused, None | Some(Refused::Busy)), "{refused:?}");
    });
}

#[test]
fn two_ends_of_one_connection_end_it_once() {
    model(|| {
        let words = table(1);
        let hit = create(&view(&words), flow(1000, 1)).unwrap();
        let (a, b) = race(&words, move |table| table.end(&hit).is_some(), move |table| table.end(&hit).is_some());
        assert!(a != b);
        let table = view(&words);
        assert_eq!(table.live(), 0);
        assert!(create(&table, flow(2000, 2)).is_ok(), "the slot is free again, once");
        assert_eq!(create(&table, flow(3000, 3)).err(), Some(Refused::Full));
    });
}

#[test]
fn a_connection_that_expires_and_is_made_again_is_one_or_the_other() {
    model(|| {
        let words = table(2);
        create(&view(&words), flow(1000, 1)).unwrap();
        let sweeper = start(&words, |table| {
            let mut ended = 0;
            table.sweep(2, 0, |hit| hit.stats == 1, |flow, _, _| ended += flow.stats);
            ended
        });
        let creator = start(&words, |table| {
            if let Some(hit) = find(table, &flow(1000, 0).original()) {
                assert!(hit.stats == 1);
                table.end(&hit);
            }
            create(table, flow(1000, 2)).unwrap();
        });
        let reader = start(&words, |table| {
            [flow(1000, 0).original(), flow(1000, 0).reply()].map(|key| find(table, &key).map_or(0, |hit| hit.stats))
        });
        let seen = reader.join().unwrap();
        assert!(!matches!(seen, [2, 1]), "the dead came back: {seen:?}");
        creator.join().unwrap();
        assert!(sweeper.join().unwrap() <= 1);
        let table = view(&words);
        assert_eq!((table.live(), find(&table, &flow(1000, 0).reply()).map(|hit| hit.stats)), (1, Some(2)));
        assert!(create(&table, flow(2000, 3)).is_ok(), "a place was lost");
    });
}

#[test]
fn two_clients_that_want_one_source_port_get_different_ones() {
    model(|| {
        let (a, b) = race(&table(2), |table| create_behind(table, 1000), |table| create_behind(table, 2000));
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
        assert_ne!(a, b);
    });
}

/// Its first source port is taken, so the keys are written again after the original's was published.
#[test]
fn a_reader_sees_the_source_port_that_was_got() {
    model(|| {
        let words = table(2);
        assert_eq!(create_behind(&view(&words), 2000), Ok(SOURCE_PORTS.start));
        let reader = |table: &Conntrack<'_>| find(table, &behind(1000).original());
        let (got, hit) = race(&words, |table| create_behind(table, 1000), reader);
        assert_eq!(got, Ok(SOURCE_PORTS.start + 1));
        if let Some(hit) = hit {
            let flow = Flow { source_port: SOURCE_PORTS.start + 1, ..behind(1000) };
            assert_eq!((hit.new, hit.deltas.l4), (flow.reply().reversed(), flow.deltas().1));
        }
    });
}

/// A worker is about to take a free place, which others meanwhile take and give back, after another one that stays in use.
#[test]
fn a_free_place_is_taken_once() {
    model(|| {
        let words = table(3);
        let old = [1, 2].map(|i| create(&view(&words), flow(i, 1)).unwrap());
        old.iter().for_each(|hit| assert!(view(&words).end(hit).is_some()));
        let busy = |table: &Conntrack<'_>| {
            let first = create(table, flow(1000, 1)).unwrap();
            create(table, flow(2000, 2)).unwrap();
            assert!(table.end(&first).is_some());
        };
        race(&words, |table| assert!(create(table, flow(3000, 3)).is_ok()), busy);
        let table = view(&words);
        assert!(create(&table, flow(4000, 4)).is_ok());
        let stats = [2000, 3000, 4000].map(|port| find(&table, &flow(port, 0).reply()).map(|hit| hit.stats));
        assert_eq!(stats, [Some(2), Some(3), Some(4)]);
        assert_eq!(create(&table, flow(5000, 5)).err(), Some(Refused::Full));
    });
}

/// A client's port whose connection, when it ends, makes room in the index, so that the second of two that compete for a key is further front.
fn in_front_of(first: Flow, second: Flow) -> u16 {
    let found = Arc::new(AtomicU16::new(0));
    let port = found.clone();
    model(move || {
        let front = (3000..3100).find(|&client_port| {
            let words = table(3);
            let table = view(&words);
            let bystander = create(&table, flow(client_port, 9)).unwrap();
            let (mut first, ports) = (first, std::iter::once(first.source_port));
            let (hash, phase) = (table.hash(&first.original()), Phase::first(first.proto, 0));
            let pending = table.reserve(&mut first, hash, phase, 0, ports).unwrap();
            assert!(table.end(&bystander).is_some());
            create(&table, second).is_ok() && table.commit(pending).is_err()
        });
        port.store(front.unwrap(), Relaxed);
    });
    found.load(Relaxed)
}

/// The second one finds a place further front, where a bystander has just ended.
#[test]
fn who_creates_further_front_wins_and_wins_alone() {
    let front = in_front_of(flow(1000, 1), flow(1000, 2));
    let aborted = Arc::new(AtomicUsize::new(0));
    let seen = aborted.clone();
    model(move || {
        let words = table(3);
        let bystander = create(&view(&words), flow(front, 9)).unwrap();
        let second = move |table: &Conntrack<'_>| {
            assert!(table.end(&bystander).is_some());
            create(table, flow(1000, 2)).map(|_| ())
        };
        let (first, second) = race(&words, |table| create(table, flow(1000, 1)).map(|_| ()), second);
        seen.fetch_add(usize::from(second.is_ok() && first == Err(Refused::Busy)), Relaxed);
        assert!(!(second.is_ok() && first.is_ok()), "two of one connection");
        let table = view(&words);
        let stats = find(&table, &flow(1000, 0).reply()).map(|hit| hit.stats);
        assert_eq!(stats, first.map(|()| 1).or(second.map(|()| 2)).ok());
        assert_eq!(table.live(), u64::from(stats.is_some()));
        (0..2).for_each(|i| assert!(create(&table, flow(2000 + i, 4)).is_ok(), "a place was lost"));
    });
    assert!(aborted.load(Relaxed) > 0, "nobody was aborted");
}

#[test]
fn a_client_whose_source_port_is_taken_further_front_gets_another_one_next_time() {
    let front = in_front_of(behind(1000), behind(2000));
    let aborted = Arc::new(AtomicUsize::new(0));
    let seen = aborted.clone();
    model(move || {
        let words = table(3);
        let bystander = create(&view(&words), flow(front, 9)).unwrap();
        let second = move |table: &Conntrack<'_>| {
            assert!(table.end(&bystander).is_some());
            create_behind(table, 2000)
        };
        let (first, second) = race(&words, |table| create_behind(table, 1000), second);
        seen.fetch_add(usize::from(first == Err(Refused::Busy)), Relaxed);
        assert_ne!(first, second, "both have the same, or none");
        let table = view(&words);
        let again = |port: Result<u16, Refused>, client_port| port.or_else(|_| create_behind(&table, client_port)).unwrap();
        assert_ne!(again(first, 1000), again(second, 2000));
    });
    assert!(aborted.load(Relaxed) > 0, "nobody was aborted");
}

/// A connection ends, and its slot goes to another one, while somebody creates the first one again.
#[test]
fn a_creation_fails_only_because_of_one_with_the_same_key() {
    let front = in_front_of(flow(1000, 1), flow(1000, 2));
    model(move || {
        let words = table(3);
        let table = view(&words);
        let bystander = create(&table, flow(front, 9)).unwrap();
        let old = create(&table, flow(1000, 1)).unwrap();
        assert!(table.end(&bystander).is_some());
        let other = move |table: &Conntrack<'_>| {
            assert!(table.end(&old).is_some());
            create(table, flow(2000, 3)).map(|_| ())
        };
        let (again, other) = race(&words, |table| create(table, flow(1000, 2)).is_ok(), other);
        assert_eq!(other, Ok(()), "nobody else creates it");
        assert_eq!(again, find(&table, &flow(1000, 0).original()).is_some());
    });
}

#[test]
fn late_notes_about_a_connection_do_not_change_the_next_one() {
    model(|| {
        let words = table(1);
        let old = create(&view(&words), flow(1000, 1)).unwrap();
        let late = move |table: &Conntrack<'_>| {
            table.touch(&old, old.phase.after(Direction::Reply, 0, true), 1_000);
            table.cache_hop(&old, 1, NextHopId(7));
            table.end(&old).is_some()
        };
        let next = move |table: &Conntrack<'_>| {
            let ended = table.end(&old).is_some();
            // The same phase and the same statistics: only the slot's generation tells them apart.
            let next = create(table, flow(2000, 1)).map(|_| ());
            assert!(next.is_ok() || (!ended && next == Err(Refused::Full)));
            ended
        };
        let (first, second) = race(&words, late, next);
        assert!(first != second, "ended once");
        if let Some(now) = find(&view(&words), &flow(2000, 1).original()) {
            assert_eq!((now.phase.kind(), now.stats, now.cached_hop(1)), (PhaseKind::Unreplied, 1, None));
        }
    });
}

/// Two connections between the same addresses, one after the other in one slot.
#[test]
fn a_later_fragment_goes_where_its_connection_goes_or_nowhere() {
    model(|| {
        let words = table(1);
        let table = view(&words);
        let reply = flow(1000, 1).reply();
        let first = create(&table, flow(1000, 1)).unwrap();
        let datagram = table.fragments().datagram(&reply, 5);
        table.fragments().remember(datagram, &find(&table, &reply).unwrap(), 800, 0);
        let writer = move |table: &Conntrack<'_>| {
            assert!(table.end(&first).is_some());
            create(table, flow(2000, 2)).unwrap();
        };
        let (fate, ()) = race(&words, move |table| table.fragments().lookup(datagram, &reply, 0), writer);
        if let Some(fate) = fate {
            let Fate::Flow(hit, 800) = fate else { panic!("{fate:?}") };
            assert_eq!((hit.stats, hit.new), (1, flow(1000, 1).original().reversed()), "another's");
        }
        assert!(table.fragments().lookup(datagram, &reply, 0).is_none());
    });
}

/// The bucket is full of others, who were there long ago.
#[test]
fn two_workers_remember_one_endpoint_for_a_client() {
    const LONG_AFTER_MS: u64 = 8_000_000_000;
    fn stick(table: &Conntrack<'_>, client: u64, chosen: u64, now_ms: u64) -> u64 {
        let sticky = Sticky { id: 1, client: [0, client], v6: false, timeout_s: 100 };
        table.affinity().stick(&sticky, now_ms, |identity| (1..9).contains(&identity), chosen).0
    }
    for client in 0..4 {
        model(move || {
            let words = table(1);
            (10..14).for_each(|other| assert_eq!(stick(&view(&words), other, 8, 1_000), 8));
            let worker = |chosen| move |table: &Conntrack<'_>| stick(table, client, chosen, LONG_AFTER_MS);
            let (a, b) = race(&words, worker(1), worker(2));
            assert_eq!(a, b);
            assert_eq!(stick(&view(&words), client, 3, LONG_AFTER_MS), a);
        });
    }
}
