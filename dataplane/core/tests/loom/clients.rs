//! The flows that are counted for a client, under every interleaving that loom finds.

use nomagic_core::conntrack::{ClientCount, Conntrack, CountedClient, Direction, Flow, Hit, Phase};
use nomagic_core::tuple::Proto;
use nomagic_core::wire::tcp;

use crate::table::{Words, flow, model, race, start, table, view};

fn client(table: &Conntrack<'_>) -> CountedClient {
    table.clients().client(7, [0, 5], false)
}

fn open(table: &Conntrack<'_>, client_port: u16) -> Hit {
    let counted = client(table);
    assert_eq!(table.clients().take(counted, 9), ClientCount::Counted);
    let mut flow = Flow { proto: Proto::Tcp, counted: Some(counted), ..flow(client_port, 1) };
    let (hash, port) = (table.hash(&flow.original()), flow.source_port);
    let Ok(pending) = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, tcp::SYN), 0, std::iter::once(port)) else { panic!("room") };
    table.commit(pending).expect("nobody else")
}

/// The backend resets a connection.
fn reset(table: &Conntrack<'_>, hit: &Hit) {
    table.touch(hit, hit.phase.after(Direction::Reply, tcp::RST, true), 0);
}

/// The backend's reset comes while another worker ends the flow, and perhaps makes a new one in its slot.
#[test]
fn a_flow_that_closes_while_it_ends_gives_back_once() {
    model(|| {
        let words = table(1);
        let hit = open(&view(&words), 1000);
        let closer = move |table: &Conntrack<'_>| reset(table, &hit);
        let ender = move |table: &Conntrack<'_>| {
            assert!(table.end(&hit).is_some());
            open(table, 2000);
        };
        race(&words, closer, ender);
        let table = view(&words);
        assert_eq!((table.live(), table.clients().flows(client(&table))), (1, 1));
    });
}

/// The client continues a closed connection, which no longer counts, while another worker ends it.
#[test]
fn a_flow_that_goes_on_while_it_ends_leaves_no_count() {
    model(|| {
        let words = table(1);
        let hit = open(&view(&words), 1000);
        reset(&view(&words), &hit);
        let table = view(&words);
        let original = Flow { proto: Proto::Tcp, ..flow(1000, 1) }.original();
        let closed = table.lookup(&original, table.hash(&original)).expect("it is still there");
        assert_eq!(table.clients().flows(client(&table)), 0);
        let goes_on = move |table: &Conntrack<'_>| table.touch(&closed, closed.phase.after(Direction::Reply, tcp::ACK, true), 0);
        race(&words, goes_on, move |table| assert!(table.end(&closed).is_some()));
        let table = view(&words);
        assert_eq!((table.live(), table.clients().flows(client(&table))), (0, 0));
    });
}

#[test]
fn two_resets_give_back_once() {
    model(|| {
        let words = table(2);
        let hit = open(&view(&words), 1000);
        open(&view(&words), 2000);
        race(&words, move |table| reset(table, &hit), move |table| reset(table, &hit));
        assert_eq!(view(&words).clients().flows(client(&view(&words))), 1);
    });
}

/// The only flow of a client ends while others begin: the counter is freed and made again.
#[test]
fn a_count_is_not_lost_when_its_counter_is_freed() {
    model(|| {
        let words = table(1);
        let counts = |words: &Words| view(words).clients().flows(client(&view(words)));
        view(&words).clients().take(client(&view(&words)), 9);
        let taker = start(&words, |table| table.clients().take(client(table), 9));
        let giver = start(&words, |table| table.clients().give_back(client(table)));
        giver.join().unwrap();
        assert_eq!(taker.join().unwrap(), ClientCount::Counted);
        assert_eq!(counts(&words), 1);
    });
}

/// Two workers, one connection left to the client.
#[test]
fn two_workers_do_not_share_the_last_connection() {
    model(|| {
        let words = table(1);
        view(&words).clients().take(client(&view(&words)), 2);
        let take = |table: &Conntrack<'_>| table.clients().take(client(table), 2) == ClientCount::Counted;
        let (a, b) = race(&words, take, take);
        assert!(a != b);
        assert_eq!(view(&words).clients().flows(client(&view(&words))), 2);
    });
}
