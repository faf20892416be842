//! Source ports towards one endpoint: as long as one is free a newcomer gets one, and when none is that is what it is told.

use nomagic_core::conntrack::{Direction, Flow, Phase};
use nomagic_core::frame::Verdict;
use nomagic_core::pipeline::WorkerState;
use nomagic_core::reason::Reason;
use nomagic_core::services::PortLimits;
use nomagic_core::tuple::{Proto, Tuple, addr_words};
use nomagic_core::wire::tcp;
use nomagic_core_fixtures::*;

const FIRST: u16 = 61_000;
const LAST: u16 = 65_535;
const SERVICE: &str = "10.96.0.7:80";
const ENDPOINT: &str = "192.168.1.1";

fn world() -> World {
    let mut s = services();
    (s.snat.port_first, s.snat.port_last) = (FIRST, LAST);
    add_service(&mut s, "10.96.0.7", 80, Proto::Tcp, &[backend(ENDPOINT, 80)], true);
    World::new(s, 8_192)
}

/// A connection of somebody else's that has this source port.
fn holder(port: u16) -> Flow {
    let addr = |s: &str| addr_words(ip(s)).0;
    Flow {
        proto: Proto::Tcp,
        v6: false,
        announced: false,
        client: addr("10.0.0.77"),
        client_port: port,
        service: addr("10.96.0.7"),
        service_port: 80,
        backend: addr(ENDPOINT),
        backend_port: 80,
        source: addr("10.0.0.1"),
        source_port: port,
        stats: 1,
        counted: None,
    }
}

fn take(w: &mut World, ports: impl Iterator<Item = u16>) {
    w.with(|ctx| {
        for port in ports {
            let mut flow = holder(port);
            ctx.table.snat_ports().take(&flow, PortLimits::NONE).unwrap();
            let established = [(Direction::Reply, tcp::SYN | tcp::ACK), (Direction::Original, tcp::ACK)];
            let phase = established.into_iter().fold(Phase::first(flow.proto, tcp::SYN), |phase, (d, flags)| phase.after(d, flags, true));
            let hash = ctx.table.hash(&flow.original());
            let pending = ctx.table.reserve(&mut flow, hash, phase, ctx.now_ms, std::iter::once(port));
            ctx.table.commit(pending.expect("a free port")).expect("nobody else");
        }
    });
}

fn give_back(w: &mut World, port: u16) {
    w.with(|ctx| {
        let key = holder(port).original();
        let hit = ctx.table.lookup(&key, ctx.table.hash(&key)).expect("a holder");
        assert!(ctx.table.end(&hit).is_some());
    });
}

/// The source port of newcomer number `i`, or why it gets none.
fn newcomer(w: &mut World, i: u16) -> Result<u16, Reason> {
    match w.connect(&spec("tcp", &format!("10.0.0.2:{}", 1_024 + i), SERVICE, SYN)) {
        Ok(seen) => Ok(seen.tuple.sport),
        Err(Verdict::Drop(reason)) => Err(reason),
        Err(verdict) => panic!("{verdict:?}"),
    }
}

/// What to end, when newcomer number `i` is to go.
fn key(i: u16) -> Tuple {
    spec("tcp", &format!("10.0.0.2:{}", 1_024 + i), SERVICE, SYN).tuple()
}

#[test]
fn a_long_run_of_taken_ports_is_no_obstacle() {
    let mut w = world();
    // Four fifths, all in one piece.
    let free = LAST - (LAST - FIRST) / 5;
    take(&mut w, FIRST..free);
    for i in 0..200 {
        let port = newcomer(&mut w, i);
        assert!(port.is_ok_and(|port| port >= free), "newcomer {i}: {port:?}");
    }
}

#[test]
fn a_connection_that_has_to_search_is_counted() {
    let mut w = world();
    let first_choice = newcomer(&mut w, 0).unwrap();
    assert_eq!(w.counters.conntrack.snat_searched.get(), 0);
    let mut w = world();
    take(&mut w, std::iter::once(first_choice));
    assert_ne!(newcomer(&mut w, 0), Ok(first_choice));
    assert_eq!((w.counters.conntrack.snat_searched.get(), w.counters.conntrack.created.get()), (1, 1));
}

#[test]
fn the_only_free_port_is_found() {
    for free in [FIRST, FIRST + 1, 63_000, LAST] {
        let mut w = world();
        take(&mut w, (FIRST..=LAST).filter(|port| *port != free));
        for worker in 0..3 {
            w.worker = WorkerState::new(worker);
            assert_eq!(newcomer(&mut w, worker), Ok(free));
            w.with(|ctx| {
                let key = key(worker);
                let hit = ctx.table.lookup(&key, ctx.table.hash(&key)).expect("the newcomer");
                assert!(ctx.table.end(&hit).is_some());
            });
        }
    }
}

#[test]
fn exhausted_is_said_when_all_are_taken_and_until_one_is_given_back() {
    let mut w = world();
    take(&mut w, FIRST..=LAST);
    assert_eq!(w.with(|ctx| (ctx.table.snat_ports().in_use(), ctx.table.snat_ports().fullest_endpoint())), (4_536, 4_536));
    let mut next = 0;
    for freed in [62_345, FIRST, LAST] {
        for worker in [0, 1, 0] {
            w.worker = WorkerState::new(worker);
            assert_eq!(newcomer(&mut w, next), Err(Reason::SnatPortsExhausted));
            next += 1;
        }
        assert_eq!(
            w.with(|ctx| (ctx.table.snat_ports().in_use(), ctx.table.snat_ports().fullest_endpoint())),
            (4_536, 4_536),
            "refusals count nowhere"
        );
        give_back(&mut w, freed);
        assert_eq!(newcomer(&mut w, next), Ok(freed));
        next += 1;
    }
    // More than anybody remembers one by one.
    (61_100..61_200).for_each(|port| give_back(&mut w, port));
    let mut again: Vec<u16> = (0..100).map(|i| newcomer(&mut w, next + i).expect("one of those given back")).collect();
    again.sort_unstable();
    assert_eq!(again, (61_100..61_200).collect::<Vec<_>>());
    assert_eq!(newcomer(&mut w, next + 100), Err(Reason::SnatPortsExhausted));
    assert_eq!(w.counters.reasons.read().drop[Reason::SnatPortsExhausted], 10);
}

#[test]
fn what_ends_by_itself_gives_its_port_back() {
    let mut w = world();
    take(&mut w, FIRST..=LAST);
    assert_eq!(newcomer(&mut w, 0), Err(Reason::SnatPortsExhausted));
    w.now_ms += 86_400_000;
    w.sweep_all();
    newcomer(&mut w, 0).unwrap();
    assert_eq!(w.with(|ctx| (ctx.table.snat_ports().in_use(), ctx.table.snat_ports().fullest_endpoint())), (1, 1));
}

#[test]
fn other_endpoints_are_not_concerned() {
    let mut w = world();
    take(&mut w, FIRST..=LAST);
    assert_eq!(newcomer(&mut w, 0), Err(Reason::SnatPortsExhausted));
    for service in ["10.96.0.2:80", "[fd00:96::2]:80"] {
        for proto in ["tcp", "udp"] {
            let client = if service.starts_with('[') { "[fd00:a::2]:7000" } else { "10.0.0.2:7000" };
            let verdict = w.run(CLIENTS, &spec(proto, client, service, SYN).frame()).verdict;
            assert!(matches!(verdict, Verdict::Forward(..)), "{proto} {service}: {verdict:?}");
        }
    }
}
