//! The connection table under every interleaving that loom finds (up to a number of preemptions): `make loom`.
#![cfg(loom)]

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use nomagic_core::conntrack::{Conntrack, Flow, Hit, Phase, Refused};
use nomagic_core::tuple::{Proto, Tuple};

/// Preemptions of a run at the most: most bugs need one or two.
const PREEMPTIONS: usize = 2;
/// How long a model is explored at the most: the reader's has more interleavings than anybody waits for.
const TIME_MAX: Duration = Duration::from_secs(20);

type Words = Arc<Vec<AtomicU64>>;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 100_000;
    builder.max_duration = Some(TIME_MAX);
    builder.check(test);
}

fn table(capacity: u32) -> Words {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect();
    Conntrack::format(&words, capacity, 1, [0, 0]).unwrap();
    Arc::new(words)
}

fn flow(client_port: u16, stats: u32) -> Flow {
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
    }
}

fn create(table: &Conntrack<'_>, mut flow: Flow) -> Result<Hit, Refused> {
    let phase = Phase::first(flow.proto, 0);
    let (hash, ports) = (table.hash(&flow.original()), std::iter::once(flow.source_port));
    let pending = table.reserve(&mut flow, hash, phase, 0, ports)?;
    table.commit(pending)
}

fn find(table: &Conntrack<'_>, tuple: &Tuple) -> Option<Hit> {
    table.lookup(tuple, table.hash(tuple))
}

#[test]
fn two_creations_of_one_connection_end_with_at_most_one() {
    model(|| {
        let words = table(2);
        let creator = |stats| {
            let words = words.clone();
            thread::spawn(move || create(&Conntrack::attach(&words).unwrap(), flow(1000, stats)).is_ok())
        };
        let (a, b) = (creator(1), creator(2));
        let created = usize::from(a.join().unwrap()) + usize::from(b.join().unwrap());
        let table = Conntrack::attach(&words).unwrap();
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
        let writer = {
            let words = words.clone();
            thread::spawn(move || {
                let table = Conntrack::attach(&words).unwrap();
                let first = create(&table, flow(1000, 1)).unwrap();
                assert!(table.end(&first).is_some());
                // The same slot, another connection.
                create(&table, flow(2000, 2)).unwrap();
            })
        };
        let reader = {
            let words = words.clone();
            thread::spawn(move || {
                let table = Conntrack::attach(&words).unwrap();
                let f = flow(1000, 1);
                if let Some(hit) = find(&table, &f.original()) {
                    assert_eq!((hit.new, hit.stats), (f.reply().reversed(), 1), "torn, or another's");
                }
            })
        };
        reader.join().unwrap();
        writer.join().unwrap();
        let table = Conntrack::attach(&words).unwrap();
        assert!(find(&table, &flow(1000, 1).original()).is_none());
        assert!(find(&table, &flow(2000, 2).reply()).is_some());
    });
}

#[test]
fn two_ends_of_one_connection_end_it_once() {
    model(|| {
        let words = table(1);
        let hit = create(&Conntrack::attach(&words).unwrap(), flow(1000, 1)).unwrap();
        let ender = |words: Words| thread::spawn(move || Conntrack::attach(&words).unwrap().end(&hit).is_some());
        let (a, b) = (ender(words.clone()), ender(words.clone()));
        assert!(a.join().unwrap() != b.join().unwrap());
        let table = Conntrack::attach(&words).unwrap();
        assert_eq!(table.live(), 0);
        assert!(create(&table, flow(2000, 2)).is_ok(), "the slot is free again, once");
        assert_eq!(create(&table, flow(3000, 3)).err(), Some(Refused::Full));
    });
}
