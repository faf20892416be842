//! Connections of one client port to a Service and to its endpoint itself.

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::*;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// The Service, its endpoint, and the client.
const ENDS: [[&str; 3]; 2] =
    [["10.96.0.6:80", "192.168.1.1:80", "10.0.0.2:40000"], ["[fd00:96::6]:80", "[fd00:b::1]:80", "[fd00:a::2]:40000"]];

fn world() -> World {
    let mut s = services();
    for proto in [Proto::Tcp, Proto::Udp] {
        add_service(&mut s, "10.96.0.6", 80, proto, &[backend("192.168.1.1", 80)], false);
        add_service(&mut s, "fd00:96::6", 80, proto, &[backend("fd00:b::1", 80)], false);
    }
    let mut w = World::new(s, 64);
    w.replies.watch_direct();
    w
}

/// The tuple of a frame that was sent on.
fn sent(w: &mut World, port: PortId, frame: &[u8]) -> Option<Tuple> {
    let done = w.run(port, frame);
    matches!(done.verdict, Verdict::Forward(..)).then(|| read(&done.bytes).expect("a sound packet").tuple)
}

#[test]
fn a_flow_leaves_the_source_port_of_a_direct_connection() {
    for [service, endpoint, client] in ENDS {
        for proto in ["tcp", "udp"] {
            let mut w = world();
            let direct = spec(proto, endpoint, client, 0).tuple();
            w.replies.filter().note_direct(&direct);
            let new = sent(&mut w, CLIENTS, &spec(proto, client, service, SYN).frame()).expect("carried");
            assert_eq!((new.src, new.dst, new.dport), (direct.dst, direct.src, 80), "{proto} {client}");
            assert_ne!(new.sport, 40_000, "{proto} {client}");
            // Its answers are its own, and come from the Service to the client's port.
            assert!(w.replies.filter().contains(&new.reversed()) && !w.replies.filter().contains(&direct));
            let answer = spec(proto, endpoint, &client.replace("40000", &new.sport.to_string()), SYN_ACK);
            assert_eq!(sent(&mut w, PODS, &answer.frame()), Some(spec(proto, service, client, 0).tuple()));
            assert_eq!(sent(&mut w, CLIENTS, &spec(proto, client, service, ACK).frame()), Some(new));
            // Another client port is not affected.
            let other = spec(proto, &client.replace("40000", "40001"), service, SYN);
            assert_eq!(sent(&mut w, CLIENTS, &other.frame()).map(|t| t.sport), Some(40_001));
        }
    }
}

#[test]
fn answers_forged_for_all_ports_keep_nobody_from_the_endpoint() {
    for [service, endpoint, client] in ENDS {
        let mut w = world();
        let answer = |port: u16| spec("tcp", endpoint, &client.replace("40000", &port.to_string()), 0).tuple();
        let filter = w.replies.filter();
        (1..=u16::MAX).for_each(|port| filter.note_direct(&answer(port)));
        let known = (1..=u16::MAX).filter(|port| filter.passes(&answer(*port))).count();
        assert!(known > 65_000, "{known}");
        // The client keeps its port: none of the others that are tried is better.
        let new = sent(&mut w, CLIENTS, &spec("tcp", client, service, SYN).frame());
        assert_eq!(new, Some(answer(40_000).reversed()));
    }
}

#[test]
fn the_middle_of_a_connection_keeps_its_port() {
    let mut w = world();
    let [service, endpoint, client] = ENDS[0];
    w.replies.filter().note_direct(&spec("tcp", endpoint, client, 0).tuple());
    // After a restart without the table: another port would end it for certain.
    let picked_up = sent(&mut w, CLIENTS, &spec("tcp", client, service, ACK).frame());
    assert_eq!(picked_up.map(|t| t.sport), Some(40_000));
}

#[test]
fn a_direct_connection_leaves_the_source_port_of_a_flow() {
    for [service, endpoint, client] in ENDS {
        let mut w = world();
        assert_eq!(sent(&mut w, CLIENTS, &spec("tcp", client, service, SYN).frame()).map(|t| t.sport), Some(40_000));
        let opening = spec("tcp", client, endpoint, SYN);
        let new = sent(&mut w, CLIENTS, &opening.frame()).expect("a flow of its own");
        assert_eq!((new.src, new.dst, new.dport), (opening.tuple().src, opening.tuple().dst, 80));
        assert_ne!(new.sport, 40_000);
        // Its packets of both directions are announced; the other flow's answers are its own.
        let filter = w.replies.filter();
        let announced = [&opening.tuple(), &new.reversed(), &opening.tuple().reversed()].map(|tuple| filter.contains(tuple));
        assert_eq!((announced, filter.len()), ([true; 3], 3));
        let answer = spec("tcp", endpoint, &client.replace("40000", &new.sport.to_string()), SYN_ACK);
        assert_eq!(sent(&mut w, PODS, &answer.frame()), Some(opening.tuple().reversed()));
        assert_eq!(sent(&mut w, CLIENTS, &spec("tcp", client, endpoint, ACK).frame()), Some(new));
        let of_service = spec("tcp", endpoint, client, SYN_ACK);
        assert_eq!(sent(&mut w, PODS, &of_service.frame()), Some(spec("tcp", service, client, 0).tuple()));
        // Nothing stays announced when it ends.
        w.now_ms += 10 * 24 * 3_600 * 1_000;
        w.sweep_all();
        assert_eq!((w.replies.filter().len(), w.live()), (0, 0));
    }
}

#[test]
fn nothing_else_opens_a_direct_flow() {
    let [service, endpoint, client] = ENDS[0];
    let kernel = |w: &mut World, frame: Vec<u8>| {
        let verdict = w.run(CLIENTS, &frame).verdict;
        assert_eq!(verdict, Verdict::Kernel(Reason::NotOurs));
    };
    let mut w = world();
    kernel(&mut w, spec("tcp", client, endpoint, SYN).frame());
    w.run(CLIENTS, &spec("tcp", client, service, SYN).frame());
    for flags in [ACK, SYN_ACK, RST, SYN | 0x01] {
        kernel(&mut w, spec("tcp", client, endpoint, flags).frame());
    }
    w.run(CLIENTS, &spec("udp", client, service, 0).frame());
    kernel(&mut w, spec("udp", client, endpoint, 0).frame());
    assert_eq!(w.live(), 2);
    // A closed flow makes room for the client's next connection.
    w.run(PODS, &spec("tcp", endpoint, client, RST).frame());
    kernel(&mut w, spec("tcp", client, endpoint, SYN).frame());
    assert_eq!((w.live(), w.replies.filter().len()), (1, 1));
}
