//! Clients that forge their addresses: they never see an answer, so they cannot know the endpoint's sequence number. What they can send costs
//! others nothing: not a place in the table, not a source port, not a connection.

use nomagic_core::conntrack::PhaseKind;
use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, RouteKind, Routes};
use nomagic_core::services::Services;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

use crate::talk::{DNAT, SNAT, Talk, tcp};

const CAPACITY: u32 = 512;

fn world() -> World {
    let mut w = World::new(services(), CAPACITY);
    w.replies = Replies::new(CAPACITY as usize);
    w
}

/// What a spoofer sends, and what the endpoint answers, in the words of [`Talk::send`].
const FORGERIES: [&str; 12] = [
    "syn",
    "syn <synack ack!",
    "syn <synack ack! fin! ack!",
    "syn <synack fin!",
    "syn <synack synack!",
    "syn <synack rst! ack! fin!",
    "syn rst! ack! fin! ack!",
    "syn ack! fin! <synack ack! fin!",
    "ack!",
    "ack! fin!",
    "ack! fin! rst! ack! fin!",
    "syn rst! fin!",
];

/// Sends `count` forged conversations, one a millisecond, each from another address.
fn forge(w: &mut World, line: &str, proto: Proto, service: &str, first: u32, count: u32) {
    for i in first..first + count {
        let mut talk = Talk::new(proto, &format!("203.0.113.{}:{}", i % 250 + 1, 1_024 + i / 250), service);
        w.now_ms += 1;
        for word in line.split_whitespace() {
            // The endpoint answers what it has heard.
            if !word.starts_with('<') || talk.seen.is_some() {
                talk.send(w, word);
            }
        }
    }
}

/// Honest clients, one after the other; each packet takes a few milliseconds. True: all of them are connected afterwards.
fn newcomers(w: &mut World, service: &str, first_port: u16, count: u16) -> Vec<Talk> {
    let connect = |port| {
        let mut talk = tcp(port, service);
        for word in ["syn", "<synack", "ack"] {
            w.now_ms += 2;
            let verdict = talk.send(w, word);
            assert!(matches!(verdict, Verdict::Forward(..)), "{word} of {port}: {verdict:?}");
        }
        assert_eq!(talk.kind(w), Some(PhaseKind::Established));
        talk
    };
    (first_port..first_port + count).map(connect).collect()
}

#[test]
fn forged_conversations_keep_nobody_out_and_end_nothing() {
    for service in [DNAT, SNAT] {
        for line in FORGERIES {
            let mut w = world();
            let mut connected = newcomers(&mut w, service, 1_000, 50);
            forge(&mut w, line, Proto::Tcp, service, 0, 3 * CAPACITY);
            connected.extend(newcomers(&mut w, service, 2_000, 50));
            for talk in &mut connected {
                assert_eq!(talk.kind(&mut w), Some(PhaseKind::Established), "{service} {line}");
                talk.say(&mut w, "ack <ack");
            }
        }
    }
}

/// Forged questions are answered once each. One question with its answer is no reason to keep anybody out.
#[test]
fn answered_questions_keep_nobody_out() {
    let mut w = world();
    let mut connected = newcomers(&mut w, DNAT, 1_000, 50);
    let mut talking = Talk::new(Proto::Udp, "10.0.0.2:999", DNAT);
    talking.say(&mut w, "udp <udp udp");
    forge(&mut w, "udp <udp", Proto::Udp, DNAT, 0, 3 * CAPACITY);
    connected.extend(newcomers(&mut w, DNAT, 2_000, 50));
    for port in 3_000..3_050 {
        let mut question = Talk::new(Proto::Udp, &format!("10.0.0.2:{port}"), DNAT);
        for word in ["udp", "<udp"] {
            assert!(matches!(question.send(&mut w, word), Verdict::Forward(..)));
        }
    }
    assert!(connected.iter().all(|talk| talk.kind(&mut w) == Some(PhaseKind::Established)));
    assert_eq!(talking.kind(&mut w), Some(PhaseKind::Confirmed), "who goes on after an answer stays");
}

/// Services with ports for 64 connections with SNAT to each endpoint.
fn few_ports(share_percent: u8, client_share_percent: u8) -> Services {
    let mut services = services();
    services.snat.port_first = 61_000;
    services.snat.port_last = 61_063;
    services.snat.share_percent = share_percent;
    services.snat.client_share_percent = client_share_percent;
    services
}

#[test]
fn unconfirmed_and_closed_connections_give_their_source_ports_to_newcomers() {
    for line in FORGERIES.into_iter().filter(|line| line.starts_with("syn")) {
        for (share, client_share) in [(0, 0), (90, 25)] {
            let mut w = World::new(few_ports(share, client_share), 4_096);
            let mut connected = newcomers(&mut w, SNAT, 1_000, 10);
            forge(&mut w, line, Proto::Tcp, SNAT, 0, 1_000);
            connected.extend(newcomers(&mut w, SNAT, 2_000, 10));
            assert!(connected.iter().all(|talk| talk.kind(&mut w) == Some(PhaseKind::Established)), "{line}");
        }
    }
}

/// One client opens connections one after the other and closes them: far more than there are ports, or than its share.
#[test]
fn short_connections_never_use_the_source_ports_up() {
    for (proto, line) in [(Proto::Tcp, "syn <synack ack fin <ack <fin ack"), (Proto::Tcp, "syn <synack ack rst"), (Proto::Udp, "udp <udp")]
    {
        for (share, client_share) in [(0, 0), (90, 25)] {
            let mut w = World::new(few_ports(share, client_share), 4_096);
            for port in 1_024..3_024 {
                let mut talk = Talk::new(proto, &format!("10.0.0.2:{port}"), SNAT);
                for word in line.split_whitespace() {
                    let verdict = talk.send(&mut w, word);
                    assert!(matches!(verdict, Verdict::Forward(..)), "{word} of {port}: {verdict:?}");
                }
            }
        }
    }
}

/// A client that really shakes hands stops at its share, well below that of the Service: others get through.
#[test]
fn one_client_leaves_ports_to_others() {
    let mut w = World::new(few_ports(90, 25), 4_096);
    for port in 1_024..2_024 {
        let mut talk = tcp(port, SNAT);
        if matches!(talk.send(&mut w, "syn"), Verdict::Forward(..)) {
            talk.send(&mut w, "<synack");
            talk.send(&mut w, "ack");
        }
    }
    // A quarter of 64 ports towards each of three endpoints.
    assert_eq!(w.live(), 3 * 16);
    for port in 3_000..3_010 {
        let mut other = Talk::new(Proto::Tcp, &format!("203.0.113.9:{port}"), SNAT);
        for word in ["syn", "<synack", "ack"] {
            assert!(matches!(other.send(&mut w, word), Verdict::Forward(..)));
        }
    }
}

/// The routes of the test world, with pods behind these ports.
fn pods_behind(generation: u64, ports: &[PortId]) -> Routes {
    let legs = ports.iter().map(|port| Leg { port: Some(*port), captured: false, gateway: None, weight: 1, mtu: None }).collect();
    let port = |mac| Port { mac, mtu: 1500, up: true };
    let routes = vec![route("10.0.0.0/24", on_link(CLIENTS)), route("192.168.0.0/16", RouteKind::Unicast(legs))];
    let neighbours: Vec<Neighbour> = [CLIENTS, PODS]
        .into_iter()
        .flat_map(|port| NEIGHBOURS.map(|(_, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) }))
        .collect();
    let internal = Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
    Routes::build(generation, PORT_MACS.map(port).into(), internal, routes, &neighbours).0
}

/// A client that forges an endpoint's address sends from its own side. Its answers and resets are nobody's.
#[test]
fn replies_count_only_if_they_come_in_by_a_port_that_leads_to_the_endpoint() {
    for (proto, opening) in [("udp", &["udp"][..]), ("tcp", &["syn", "<synack", "ack"])] {
        for service in [DNAT, SNAT] {
            let forged_verdict = Verdict::Drop(Reason::ReplyPort);
            let mut w = world();
            let proto_number = if proto == "udp" { Proto::Udp } else { Proto::Tcp };
            let mut talk = Talk::new(proto_number, "10.0.0.2:40000", service);
            opening.iter().for_each(|word| assert!(matches!(talk.send(&mut w, word), Verdict::Forward(..))));
            let kind = talk.kind(&mut w);
            let seen = talk.seen.unwrap().reversed();
            let (src, dst) = (format!("{}:{}", seen.src_addr(), seen.sport), format!("{}:{}", seen.dst_addr(), seen.dport));
            let reply = |w: &mut World, port, flags| w.run(port, &spec(proto, &src, &dst, flags).frame()).verdict;
            for flags in [ACK, RST, SYN_ACK] {
                assert_eq!(reply(&mut w, CLIENTS, flags), forged_verdict, "{proto} {service}");
            }
            assert_eq!(talk.kind(&mut w), kind, "nothing has changed");
            // Twice, so that the second one may take the fast path. Then a forged one again.
            for _ in 0..2 {
                assert!(matches!(reply(&mut w, PODS, ACK), Verdict::Forward(CLIENTS, _)));
            }
            assert_eq!(reply(&mut w, CLIENTS, ACK), forged_verdict);
            assert_eq!(reply(&mut w, INTERNAL, ACK), forged_verdict);

            // The route to the endpoint ends with its link. A reply that was on its way must not reach the client as it is.
            w.routes = pods_behind(4, &[]);
            assert_eq!(reply(&mut w, PODS, ACK), forged_verdict);
            // It moves to the other port, then to both.
            w.routes = pods_behind(2, &[CLIENTS]);
            assert_eq!(reply(&mut w, PODS, ACK), forged_verdict);
            assert!(matches!(reply(&mut w, CLIENTS, ACK), Verdict::Forward(CLIENTS, _)));
            w.routes = pods_behind(3, &[CLIENTS, PODS]);
            for port in [PODS, CLIENTS, PODS, PODS] {
                assert!(matches!(reply(&mut w, port, ACK), Verdict::Forward(CLIENTS, _)), "{port:?}");
            }
            w.reconciled();
        }
    }
}
