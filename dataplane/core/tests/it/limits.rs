//! Limits of a Service's flows: new ones a second, and those of one client at a time. What is refused is dropped, counted and forgotten, and
//! established flows notice nothing.

use std::sync::Arc;

use nomagic_core::conntrack::{Expected, PhaseKind, recover};
use nomagic_core::frame::Verdict;
use nomagic_core::pipeline::WorkerState;
use nomagic_core::reason::Reason;
use nomagic_core::services::{ClientLimit, ConnectionsPerClient, ConnectionsPerSecond, Limits, RateLimit, ServicePort, Services};
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

use crate::talk::{DNAT, SNAT, Talk, tcp};

const CAPACITY: u32 = 4_096;
const RATE_LIMITED: Verdict = Verdict::Drop(Reason::ServiceRateLimited);
const AT_CLIENT_LIMIT: Verdict = Verdict::Drop(Reason::ClientConnectionLimit);

fn per_second(n: u64) -> Limits {
    Limits { rate: Some(RateLimit::new(ConnectionsPerSecond::new(n).unwrap())), per_client: None }
}

/// A limit of each client's flows to all of the test world's Services together.
fn per_client(n: u64) -> Limits {
    Limits { rate: None, per_client: Some(ClientLimit::new(ConnectionsPerClient::new(n).unwrap(), "test", "s")) }
}

fn limit(services: &mut Services, limits: &Limits) {
    change(services, |frontend| frontend.port = Arc::new(ServicePort { limits: limits.clone(), ..(*frontend.port).clone() }));
}

fn world(limits: &Limits) -> World {
    let mut w = World::new(services(), CAPACITY);
    limit(&mut w.services, limits);
    w
}

/// First packets of new connections of a client from these ports. How many went on? The others meet this verdict.
fn open(w: &mut World, proto: Proto, client: &str, service: &str, ports: std::ops::Range<u16>, refused: Verdict) -> usize {
    let went_on = ports.filter(|port| {
        let (src, dst) = (format!("{client}:{port}"), service.to_owned());
        let frame = match proto {
            Proto::Tcp => spec("tcp", &src, &dst, SYN).frame(),
            Proto::Udp => spec("udp", &src, &dst, 0).frame(),
            Proto::Sctp => sctp_frame(&src, &dst, 1, 16),
        };
        let done = w.run(CLIENTS, &frame);
        let went_on = matches!(done.verdict, Verdict::Forward(..));
        if !went_on {
            assert_eq!((done.verdict, done.made.len(), &done.bytes), (refused, 0, &frame), "dropped in silence, and unchanged");
        }
        went_on
    });
    went_on.count()
}

/// Each protocol, family, and kind of source.
const SERVICES: [(Proto, &str, &str); 8] = [
    (Proto::Tcp, "10.0.0.2", DNAT),
    (Proto::Tcp, "10.0.0.2", SNAT),
    (Proto::Udp, "10.0.0.2", DNAT),
    (Proto::Udp, "10.0.0.2", SNAT),
    (Proto::Sctp, "10.0.0.2", DNAT),
    (Proto::Tcp, "[fd00:a::2]", "[fd00:96::1]:80"),
    (Proto::Udp, "[fd00:a::2]", "[fd00:96::2]:80"),
    (Proto::Udp, "[fd00:a::2]", "[fd00:96::1]:80"),
];

#[test]
fn a_service_port_takes_so_many_new_flows_a_second() {
    for (proto, client, service) in SERVICES {
        let mut w = world(&per_second(20));
        assert_eq!(open(&mut w, proto, client, service, 1_000..1_100, RATE_LIMITED), 20, "{proto} {service}");
        w.now_ms += 500;
        assert_eq!(open(&mut w, proto, client, service, 2_000..2_100, RATE_LIMITED), 10, "{proto} {service}");
        w.now_ms += 60_000;
        assert_eq!(open(&mut w, proto, client, service, 3_000..3_100, RATE_LIMITED), 20, "{proto} {service}");
        let drops = w.counters.reasons.drop.of(Reason::ServiceRateLimited).get();
        assert_eq!((w.live(), w.counters.target(1).flows.get()), (50, 50));
        assert_eq!((drops, w.counters.target(1).rate_limited.get(), w.counters.target(1).client_limited.get()), (250, 250, 0));
        w.reconciled();
    }
}

#[test]
fn one_client_has_so_many_flows_at_a_time() {
    for (proto, client, service) in SERVICES {
        let mut w = world(&per_client(20));
        assert_eq!(open(&mut w, proto, client, service, 1_000..1_100, AT_CLIENT_LIMIT), 20, "{proto} {service}");
        w.now_ms += 1_000;
        assert_eq!(open(&mut w, proto, client, service, 2_000..2_100, AT_CLIENT_LIMIT), 0, "time alone changes nothing");
        let other = if client.starts_with('[') { "[fd00:a:0:1::2]" } else { "203.0.113.9" };
        assert_eq!(open(&mut w, proto, other, service, 1_000..1_100, AT_CLIENT_LIMIT), 20, "another client");
        let drops = w.counters.reasons.drop.of(Reason::ClientConnectionLimit).get();
        assert_eq!((drops, w.counters.target(1).client_limited.get(), w.counters.target(1).rate_limited.get()), (260, 260, 0));
        // The sweep ends them, so the client may come again.
        w.now_ms += 3_600_000;
        w.sweep_all();
        assert_eq!((w.live(), open(&mut w, proto, client, service, 3_000..3_100, AT_CLIENT_LIMIT)), (0, 20));
        w.reconciled();
    }
}

#[test]
fn an_ipv6_client_is_its_64_bit_prefix() {
    let mut w = world(&per_client(3));
    let service = "[fd00:96::1]:80";
    assert_eq!(open(&mut w, Proto::Udp, "[fd00:a::2]", service, 1..3, AT_CLIENT_LIMIT), 2);
    assert_eq!(open(&mut w, Proto::Udp, "[fd00:a::3]", service, 1..3, AT_CLIENT_LIMIT), 1);
}

#[test]
fn established_flows_do_not_notice() {
    for limits in [per_second(2), per_client(2)] {
        let mut w = world(&limits);
        let mut talks = [tcp(1_000, DNAT), tcp(1_001, SNAT)];
        talks.iter_mut().for_each(|talk| {
            for word in ["syn", "<synack", "ack"] {
                assert!(matches!(talk.send(&mut w, word), Verdict::Forward(..)));
            }
        });
        // A lower limit changes nothing for them either, nor does a Service whose rate is used up.
        let lower = if limits.rate.is_some() { per_second(1) } else { per_client(1) };
        limit(&mut w.services, &lower);
        for _ in 0..100 {
            assert!(matches!(tcp(2_000, DNAT).send(&mut w, "syn"), Verdict::Forward(..) | Verdict::Drop(_)));
            for talk in &mut talks {
                for word in ["ack", "<ack"] {
                    assert!(matches!(talk.send(&mut w, word), Verdict::Forward(..)));
                }
            }
        }
        assert!(talks.iter().all(|talk| talk.kind(&mut w) == Some(PhaseKind::Established)));
    }
}

#[test]
fn a_repeated_first_packet_counts_once() {
    let mut w = world(&Limits { per_client: per_client(1).per_client, ..per_second(1) });
    let mut talk = tcp(1_000, DNAT);
    (0..5).for_each(|_| assert!(matches!(talk.send(&mut w, "syn"), Verdict::Forward(..))));
    // A client at its limit takes nothing of the rate that others may have.
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", DNAT, 2_000..2_010, AT_CLIENT_LIMIT), 0);
    w.now_ms += 1_000;
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", DNAT, 3_000..3_010, AT_CLIENT_LIMIT), 0);
    assert_eq!(open(&mut w, Proto::Tcp, "203.0.113.9", DNAT, 1_000..1_010, AT_CLIENT_LIMIT), 1);
    assert_eq!(open(&mut w, Proto::Tcp, "203.0.113.8", DNAT, 1_000..1_010, RATE_LIMITED), 0);
    // Those that the rate refused do not count for their client.
    w.now_ms += 1_000;
    assert_eq!(open(&mut w, Proto::Tcp, "203.0.113.8", DNAT, 2_000..2_001, RATE_LIMITED), 1);
}

#[test]
fn a_closed_connection_makes_room_for_the_next_one_of_its_client() {
    for (proto, service, line) in [
        (Proto::Tcp, DNAT, "syn <synack ack fin <fin ack"),
        (Proto::Tcp, SNAT, "syn <synack ack fin <ack <fin ack"),
        (Proto::Tcp, DNAT, "syn <rst"),
        (Proto::Tcp, DNAT, "syn <synack ack <rst"),
        (Proto::Sctp, DNAT, "init <abort"),
    ] {
        let mut w = world(&per_client(1));
        for port in 1_000..1_050 {
            let mut talk = Talk::new(proto, &format!("10.0.0.2:{port}"), service);
            for word in line.split_whitespace() {
                let verdict = talk.send(&mut w, word);
                assert!(matches!(verdict, Verdict::Forward(..)), "{word} of {line}, port {port}: {verdict:?}");
            }
        }
        // One at a time.
        assert!(matches!(tcp(2_000, service).send(&mut w, "syn"), Verdict::Forward(..)));
        assert_eq!(tcp(2_001, service).send(&mut w, "syn"), AT_CLIENT_LIMIT, "{line}");
    }
}

/// What a client can do alone does not take it out of its count: an RST that the backend ignores, and data after it.
#[test]
fn a_client_cannot_exceed_its_limit_by_resets() {
    for line in ["syn rst! ack", "syn <synack rst! ack", "syn <synack ack rst! ack", "syn <synack ack rst ack", "syn <synack ack fin! ack"]
    {
        let mut w = world(&per_client(5));
        let mut living = 0;
        for port in 1_000..1_100 {
            let mut talk = tcp(port, DNAT);
            living += u32::from(matches!(talk.send(&mut w, "syn"), Verdict::Forward(..)));
            if talk.seen.is_some() {
                line.split_whitespace().skip(1).for_each(|word| _ = talk.send(&mut w, word));
            }
        }
        assert_eq!((living, w.live()), (5, 5), "{line}");
    }
}

#[test]
fn eviction_gives_back() {
    let mut w = World::new(services(), 64);
    limit(&mut w.services, &per_client(10));
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", DNAT, 1_000..1_020, AT_CLIENT_LIMIT), 10);
    // Others fill the table, so that the first client's half-open connections have to go.
    for n in 0..30u8 {
        w.now_ms += 10;
        assert_eq!(open(&mut w, Proto::Tcp, &format!("203.0.113.{n}"), DNAT, 1_000..1_005, AT_CLIENT_LIMIT), 5);
    }
    assert_eq!(w.live(), 64);
    w.now_ms += 10;
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", DNAT, 2_000..2_020, AT_CLIENT_LIMIT), 10, "none of them is left to count");
}

#[test]
fn a_flow_that_cannot_be_created_counts_nothing() {
    let mut w = World::new(services(), CAPACITY);
    limit(&mut w.services, &Limits { per_client: per_client(1_000).per_client, ..per_second(10) });
    // No source port is left for the Service with SNAT.
    (w.services.snat.port_first, w.services.snat.port_last) = (2, 1);
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", SNAT, 1_000..1_100, Verdict::Drop(Reason::SnatPortsExhausted)), 0);
    assert_eq!(open(&mut w, Proto::Tcp, "10.0.0.2", DNAT, 1_000..1_100, RATE_LIMITED), 10, "all tokens are still there");
    let service = per_client(1).per_client.unwrap().service;
    assert_eq!(w.with(|ctx| ctx.table.clients().flows(ctx.table.clients().client(service, [0, 0x0a00_0002], false))), 10);
}

#[test]
fn all_workers_count_together() {
    for (limits, refused) in [(per_second(30), RATE_LIMITED), (per_client(30), AT_CLIENT_LIMIT)] {
        let mut w = world(&limits);
        let mut went_on = 0;
        for worker in 0..4 {
            w.worker = WorkerState::new(worker);
            went_on += open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 1_000 + 100 * worker..1_020 + 100 * worker, refused);
        }
        assert_eq!(went_on, 30);
    }
}

#[test]
fn a_new_table_with_the_same_port_continues_the_rate() {
    let limits = per_second(10);
    let mut w = world(&limits);
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 1_000..1_100, RATE_LIMITED), 10);
    w.services = services();
    limit(&mut w.services, &limits);
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 2_000..2_100, RATE_LIMITED), 0);
}

#[test]
fn the_next_process_counts_what_it_takes_over() {
    let mut w = world(&per_client(10));
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 1_000..1_008, AT_CLIENT_LIMIT), 8);
    let mut closed = tcp(500, DNAT);
    ["syn", "<rst"].into_iter().for_each(|word| _ = closed.send(&mut w, word));
    for _ in 0..2 {
        let expected = Expected { capacity: CAPACITY, boot_id: [0, 0] };
        recover(&w.table_words, expected, w.now_ms, |flow| w.services.takes_over(flow)).expect("the table of this process");
    }
    assert_eq!(w.live(), 9);
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", SNAT, 2_000..2_100, AT_CLIENT_LIMIT), 2);
    w.now_ms += 3_600_000;
    w.sweep_all();
    assert_eq!((w.live(), open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 3_000..3_100, AT_CLIENT_LIMIT)), (0, 10));
}

/// Flows from before the limit do not count, and those that count still do so after it was lifted and set again.
#[test]
fn a_limit_counts_the_flows_that_are_opened_under_it() {
    let mut w = World::new(services(), CAPACITY);
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 1_000..1_010, AT_CLIENT_LIMIT), 10);
    limit(&mut w.services, &per_client(5));
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 2_000..2_010, AT_CLIENT_LIMIT), 5);
    limit(&mut w.services, &Limits::default());
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 3_000..3_010, AT_CLIENT_LIMIT), 10);
    limit(&mut w.services, &per_client(6));
    assert_eq!(open(&mut w, Proto::Udp, "10.0.0.2", DNAT, 4_000..4_010, AT_CLIENT_LIMIT), 1);
}

/// A flood from forged addresses uses up what those addresses may have, and nobody else's.
#[test]
fn forged_addresses_do_not_keep_others_out() {
    let mut w = World::new(services(), CAPACITY);
    limit(&mut w.services, &per_client(2));
    for n in 0..3 * CAPACITY {
        w.now_ms += u64::from(n % 8 == 0);
        let forged = format!("172.20.{}.{}", n >> 8 & 0xff, n & 0xff);
        open(&mut w, Proto::Tcp, &forged, DNAT, 1_000..1_001, AT_CLIENT_LIMIT);
    }
    assert_eq!(w.live(), u64::from(CAPACITY));
    let refused = (0..200u8).filter(|n| open(&mut w, Proto::Tcp, &format!("203.0.113.{n}"), DNAT, 1_000..1_002, AT_CLIENT_LIMIT) < 2);
    assert_eq!(refused.count(), 0);
    w.reconciled();
}
