//! Connections between clients and endpoints that pass: their answers are remembered, and one that clashes with a flow is captured.

use nomagic_core::filter::direct::BUCKETS;
use nomagic_core::filter::{BUCKET_SLOTS, slot_of};

use super::*;

const TAKEN: (u32, &str) = (REDIRECT, "taken");
const PASSED: (u32, &str) = (PASS, "pass_not_ours");
/// An endpoint and a client.
const ENDS: [[&str; 2]; 2] = [["192.168.7.7:80", "10.0.0.9:40000"], ["[fd00:1::7]:80", "[fd00::9]:40000"]];
const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

/// A frame with these flags, if it is TCP's.
pub fn segment(t: &Tuple, dress: Dress, flags: u8) -> Vec<u8> {
    let mut frame = frame(t, dress);
    if t.proto == Proto::Tcp {
        let at = frame.len() - 7;
        frame[at] = flags;
    }
    frame
}

#[test]
fn answers_of_connections_that_pass_are_remembered() {
    let mut bench = Bench::new(false);
    let dresses = [Dress::default(), Dress { ipv4_options: 3, extensions: &[60], ..Dress::default() }];
    for ([endpoint, client], dress) in ENDS.into_iter().flat_map(|ends| dresses.map(|dress| (ends, dress))) {
        let answer = tuple(Proto::Tcp, endpoint, client);
        let after = |bench: &mut Bench, flags: u8| {
            assert_eq!(bench.outcome(&segment(&answer, dress, flags)), PASSED);
            bench.replies.passes(&answer)
        };
        let (push, end) = (tcp::ACK | 0x08, tcp::ACK | tcp::FIN);
        let flags = [push, tcp::SYN, SYN_ACK, SYN_ACK, push, end, push, SYN_ACK, tcp::RST, end, tcp::RST];
        let seen = flags.map(|flags| after(&mut bench, flags));
        assert_eq!(seen, [false, false, true, true, true, false, false, true, false, false, false], "{answer}");
        assert!(!bench.replies.passes(&answer.reversed()));
        // UDP and SCTP have no such flags.
        for proto in [Proto::Udp, Proto::Sctp] {
            let answer = tuple(proto, endpoint, client);
            assert_eq!(bench.outcome(&frame(&answer, dress)), PASSED);
            assert!(bench.replies.passes(&answer), "{answer}");
        }
    }
    assert!(bench.replies.is_empty(), "nothing of this is announced");
}

#[test]
fn newer_connections_take_the_places_of_older_ones() {
    let mut bench = Bench::new(false);
    let answer = |i: u32| {
        let client = format!("10.{}.{}.9:{}", i >> 16 & 0xff, i >> 8 & 0xff, 10_000 + (i & 0xff));
        tuple(Proto::Udp, "192.168.7.7:53", &client)
    };
    // Three times as many as there are places in their bucket.
    let bucket = |t: &Tuple| slot_of(t, KEY).0 as usize & (BUCKETS - 1);
    let all: Vec<Tuple> = (0..).map(answer).filter(|t| bucket(t) == 7).take(3 * BUCKET_SLOTS).collect();
    for (i, t) in all.iter().enumerate() {
        bench.run(&frame(t, Dress::default()));
        let known = all.iter().filter(|t| bench.replies.passes(t)).count();
        assert!(bench.replies.passes(t) && known == (i + 1).min(BUCKET_SLOTS), "{i}: {known}");
    }
}

#[test]
fn a_connection_whose_answers_would_be_those_of_a_flow_is_captured() {
    let mut bench = Bench::new(false);
    for [endpoint, client] in ENDS {
        let opening = tuple(Proto::Tcp, client, endpoint);
        let outcome = |bench: &mut Bench, flags: u8| bench.outcome(&segment(&opening, Dress::default(), flags));
        assert_eq!(outcome(&mut bench, tcp::SYN), PASSED);
        assert!(bench.replies.insert(&opening.reversed(), 0));
        let flags = [tcp::SYN, tcp::ACK, SYN_ACK, tcp::SYN | tcp::RST];
        assert_eq!(flags.map(|flags| outcome(&mut bench, flags)), [TAKEN, PASSED, PASSED, PASSED]);
        // nomagic announces the rest.
        assert!(bench.replies.insert(&opening, 0));
        assert_eq!(outcome(&mut bench, tcp::ACK), TAKEN);
    }
}
