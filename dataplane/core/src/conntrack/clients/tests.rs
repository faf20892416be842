use super::super::Phase;
use super::super::tests::{create, find, flow, region};
use super::super::{Conntrack, Direction, Expected, Flow, PhaseKind, copy, recover};
use super::*;
use crate::tuple::Proto;
use crate::wire::tcp;

const CAPACITY: u32 = 1_024;
const SERVICE: u64 = 7;

fn table(words: &[AtomicU64]) -> Conntrack<'_> {
    Conntrack::format(words, CAPACITY, 5, [7, 8]).unwrap()
}

/// Client `n` over IPv4.
fn client(table: &Conntrack<'_>, n: u64) -> CountedClient {
    table.clients().client(SERVICE, [0, n], false)
}

/// Counts a flow of client `n` and creates it, as the pipeline does.
fn open(table: &Conntrack<'_>, i: u32, n: u64, most: u64) -> Result<Flow, ClientCount> {
    let counted = client(table, n);
    match table.clients().take(counted, most) {
        ClientCount::Counted => {}
        other => return Err(other),
    }
    let f = Flow { proto: Proto::Tcp, counted: Some(counted), ..flow(i) };
    create(table, f, 0).expect("room");
    Ok(f)
}

fn counters_in_use(table: &Conntrack<'_>) -> usize {
    table.region.client_counters().iter().flatten().filter(|counter| counter.load(Relaxed) != 0).count()
}

#[test]
fn a_client_gets_as_many_flows_as_it_may_have_and_each_end_gives_one_back() {
    let words = region(CAPACITY);
    let table = table(&words);
    let flows: Vec<Flow> = (0..3).map(|i| open(&table, i, 1, 3).unwrap()).collect();
    assert_eq!(open(&table, 3, 1, 3), Err(ClientCount::AtLimit));
    assert!(open(&table, 4, 2, 3).is_ok(), "another client");
    let elsewhere = table.clients().client(SERVICE + 1, [0, 1], false);
    assert_eq!(table.clients().take(elsewhere, 1), ClientCount::Counted, "another Service");
    let hit = find(&table, &flows[0].original()).unwrap();
    assert_eq!((table.flow(&hit), table.end(&hit), table.end(&hit)), (Some(flows[0]), Some(flows[0]), None));
    assert_eq!((table.clients().flows(client(&table, 1)), open(&table, 5, 1, 3).is_ok()), (2, true));
    assert_eq!(open(&table, 6, 1, 3), Err(ClientCount::AtLimit));
    assert!(open(&table, 7, 1, 4).is_ok(), "a higher limit counts at once");
    assert_eq!(open(&table, 8, 1, 2), Err(ClientCount::AtLimit), "so does a lower one");
    table.sweep(2 * CAPACITY, 1, |_| true, |_, _, _| {});
    table.clients().give_back(elsewhere);
    assert_eq!((table.live(), counters_in_use(&table)), (0, 0), "nothing is left of clients without flows");
    table.clients().give_back(elsewhere);
    assert_eq!(counters_in_use(&table), 0, "nothing is given back twice");
}

#[test]
fn a_client_is_an_address_or_64_bits_of_it() {
    let words = region(CAPACITY);
    let clients = table(&words).clients();
    let of = |address: [u64; 2], v6| clients.client(SERVICE, address, v6);
    assert_ne!(of([0, 1], false), of([0, 2], false));
    assert_eq!(of([9, 1], true), of([9, 2], true));
    assert_ne!(of([9, 1], true), of([8, 1], true));
    assert_ne!(of([1, 0], true), of([0, 1], false));
}

/// A packet of a connection: `<` of the backend, `!` with numbers that do not fit.
fn follow(table: &Conntrack<'_>, f: &Flow, word: &str) {
    let (key, direction) = match word.strip_prefix('<') {
        Some(_) => (f.reply(), Direction::Reply),
        None => (f.original(), Direction::Original),
    };
    let flags = match word.trim_matches(['<', '!']) {
        "synack" => tcp::SYN | tcp::ACK,
        "ack" => tcp::ACK,
        "fin" => tcp::FIN | tcp::ACK,
        "rst" => tcp::RST,
        other => panic!("{other}"),
    };
    let hit = find(table, &key).expect("it is live");
    table.touch(&hit, hit.phase.after(direction, flags, !word.ends_with('!')), 0);
}

#[test]
fn a_flow_counts_until_its_backend_has_closed_it() {
    for (line, counts) in [
        ("<synack ack", 1),
        ("<synack ack fin <ack", 1),
        ("<synack ack fin <ack <fin", 0),
        ("<synack ack fin <ack <fin ack", 0),
        ("<synack ack <fin ack", 1),
        ("<synack ack <fin ack fin", 0),
        ("<rst", 0),
        ("<synack ack <rst", 0),
        // What a client can send and the backend may ignore.
        ("rst!", 1),
        ("<synack rst!", 1),
        ("<synack ack rst", 1),
        ("<synack ack rst!", 1),
        ("<synack ack <rst!", 1),
        // The connection goes on after an RST that was forged.
        ("<synack ack <rst <ack", 1),
        ("<synack ack <rst <ack ack", 1),
        ("<synack ack <rst <ack ack <rst", 0),
        // Over, then reset by the client: it may be a new connection's for all that is known.
        ("<synack ack fin <ack <fin ack rst", 1),
    ] {
        let words = region(CAPACITY);
        let table = table(&words);
        let f = open(&table, 0, 1, 1).unwrap();
        line.split_whitespace().for_each(|word| follow(&table, &f, word));
        assert_eq!(table.clients().flows(client(&table, 1)), counts, "{line}");
        assert_eq!(open(&table, 1, 1, 1).is_ok(), counts == 0, "{line}");
        table.for_each(|hit, _| assert!(table.end(hit).is_some()));
        assert_eq!(counters_in_use(&table), 0, "{line}: its end gives back what still counts");
    }
}

/// A worker that wants to change the phase of a flow that another one has ended changes nothing.
#[test]
fn a_late_change_of_the_phase_counts_nothing() {
    let words = region(CAPACITY);
    let table = table(&words);
    let f = open(&table, 0, 1, 9).unwrap();
    follow(&table, &f, "<synack");
    let hit = find(&table, &f.reply()).unwrap();
    let closed = hit.phase.after(Direction::Reply, tcp::RST, true);
    table.end(&hit).unwrap();
    table.touch(&hit, closed, 0);
    open(&table, 0, 1, 9).unwrap();
    table.touch(&hit, closed, 0);
    assert_eq!((table.clients().flows(client(&table, 1)), closed.kind()), (1, PhaseKind::Closed));
}

#[test]
fn recovery_counts_what_is_live() {
    let words = region(CAPACITY);
    let table = table(&words);
    for i in 0..60 {
        open(&table, i, u64::from(i % 4), 20).unwrap();
    }
    // One is over, one ends; a flow that is not counted stays so.
    follow(&table, &Flow { proto: Proto::Tcp, ..flow(0) }, "<rst");
    table.end(&find(&table, &Flow { proto: Proto::Tcp, ..flow(1) }.original()).unwrap()).unwrap();
    create(&table, Flow { proto: Proto::Tcp, ..flow(99) }, 0).unwrap();
    let counts = |table: &Conntrack<'_>| [0, 1, 2, 3].map(|n| table.clients().flows(client(table, n)));
    assert_eq!(counts(&table), [14, 14, 15, 15]);
    // The process died between a flow and its count.
    table.clients().give_back(client(&table, 3));
    table.clients().take(client(&table, 4), 9);
    let (table, recovered) = recover(&words, Expected { capacity: CAPACITY, boot_id: [7, 8] }, 0, |f| Some(f.stats)).unwrap();
    assert_eq!((recovered.connections, counts(&table), table.clients().flows(client(&table, 4))), (60, [14, 14, 15, 15], 0));
    // The next process ends some of them.
    let (table, _) = recover(&words, Expected { capacity: CAPACITY, boot_id: [7, 8] }, 0, |f| (f.stats % 4 != 2).then_some(0)).unwrap();
    assert_eq!(counts(&table), [14, 14, 0, 15]);
    table.for_each(|hit, _| assert!(table.end(hit).is_some()));
    assert_eq!(counters_in_use(&table), 0);
}

/// In a damaged file any number may stand in a state word: more of them than there is room for.
#[test]
fn recovery_without_room_for_a_counter_does_not_count() {
    const SMALL: u32 = 64;
    let words = region(SMALL);
    let table = Conntrack::format(&words, SMALL, 5, [7, 8]).unwrap();
    (0..SMALL).for_each(|i| _ = create(&table, flow(i), 0).unwrap());
    for slot in 0..SMALL {
        let state = &table.region.slot(slot).0[super::super::flow::STATE];
        state.store(with_counted(state.load(Relaxed), counted_of(u64::from(1 + slot * 4_099) << NUMBER_AT)), Relaxed);
    }
    let (table, recovered) = recover(&words, Expected { capacity: SMALL, boot_id: [7, 8] }, 0, |f| Some(f.stats)).unwrap();
    let mut counted = 0;
    table.for_each(|_, f| counted += usize::from(f.counted.is_some()));
    assert_eq!((recovered.connections, counted), (SMALL, counters_in_use(&table)));
    table.for_each(|hit, _| assert!(table.end(hit).is_some()));
    assert_eq!((table.live(), counters_in_use(&table)), (0, 0));
}

/// The claims of the module's documentation: how many clients share a number, and how many find no room in a full table.
#[test]
fn few_clients_share_a_counter_or_find_no_room() {
    const LARGE: u32 = 1 << 16;
    let words = region(LARGE);
    let table = Conntrack::format(&words, LARGE, 5, [7, 8]).unwrap();
    let clients = table.clients();
    let (mut shared, mut no_room) = (0, 0);
    for n in 0..u64::from(LARGE) {
        match clients.take(client(&table, n), 1) {
            ClientCount::Counted => {}
            ClientCount::AtLimit => shared += 1,
            ClientCount::NoRoom => no_room += 1,
        }
    }
    // 65,536^2 / 2 / 2^24 are 128.
    assert!((80..180).contains(&shared), "{shared}");
    assert!(no_room < LARGE / 2_000, "{no_room}");
}

#[test]
fn several_workers_never_exceed_the_limit_by_more_than_their_number() {
    const WORKERS: u64 = 4;
    let words = region(CAPACITY);
    let table = table(&words);
    for _ in 0..200 {
        let took: u64 = std::thread::scope(|scope| {
            let attempt = || (0..20).filter(|_| table.clients().take(client(&table, 1), 20) == ClientCount::Counted).count() as u64;
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(attempt)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!((20..20 + WORKERS).contains(&took), "{took}");
        assert_eq!(table.clients().flows(client(&table, 1)), took);
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let share = took / WORKERS + u64::from(worker < took % WORKERS);
                let table = &table;
                scope.spawn(move || (0..share).for_each(|_| table.clients().give_back(client(table, 1))));
            }
        });
        assert_eq!(counters_in_use(&table), 0);
    }
}

#[test]
fn a_clients_count_is_copied() {
    let (living, scratch) = (region(CAPACITY), region(16));
    let (living, scratch) = (table(&living), Conntrack::format(&scratch, 16, 5, [0, 0]).unwrap());
    let flows: Vec<Flow> = (0..3).map(|i| open(&living, i, 1, 9).unwrap()).collect();
    let one = client(&living, 1);
    copy::copy_client_count(&living, one, &scratch);
    assert_eq!((scratch.clients().take(one, 3), scratch.clients().take(one, 4)), (ClientCount::AtLimit, ClientCount::Counted));
    copy::copy_client_count(&living, one, &scratch);
    assert_eq!(scratch.clients().flows(one), 3);
    // A copied flow counts, and may end in the copy.
    let hit = find(&living, &flows[0].original()).unwrap();
    assert_eq!(copy::copy_flow(&living, &hit, &scratch), Some(flows[0]));
    copy::copy_client_count(&living, one, &scratch);
    scratch.end(&find(&scratch, &flows[0].original()).unwrap()).unwrap();
    assert_eq!((scratch.clients().flows(one), living.clients().flows(one)), (2, 3));
    assert_eq!(Phase::first(Proto::Tcp, tcp::SYN), hit.phase);
}
