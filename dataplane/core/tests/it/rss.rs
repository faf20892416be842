//! Source ports whose answers come in at the worker that chose them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::pipeline::WorkerState;
use nomagic_core::reason::Reason;
use nomagic_core::rss::{Kinds, Rss};
use nomagic_core::tuple::{Proto, Tuple, fast_range};
use nomagic_core_fixtures::*;

/// Microsoft's, which many drivers take.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b,
    0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// As most NICs are set by default: 128 entries in turn; and one queue for each of these workers.
fn rss(workers: u16) -> Rss {
    let kinds = [(Proto::Tcp, false), (Proto::Tcp, true), (Proto::Udp, false), (Proto::Udp, true)];
    let kinds = kinds.into_iter().fold(Kinds::default(), |kinds, (proto, v6)| kinds.with(proto, v6));
    let queues: Vec<u32> = (0..128).map(|entry| entry % u32::from(workers)).collect();
    Rss::new(&KEY, &queues, &(0..workers).collect::<Vec<_>>(), kinds).unwrap()
}

/// The queue that a packet comes in by, with the hash bit by bit.
fn queue(t: &Tuple, queues: u32) -> u32 {
    let mut input = Vec::new();
    for addr in [t.src_addr(), t.dst_addr()] {
        match addr {
            IpAddr::V4(a) => input.extend(a.octets()),
            IpAddr::V6(a) => input.extend(a.octets()),
        }
    }
    input.extend([t.sport, t.dport].iter().flat_map(|p| p.to_be_bytes()));
    let bit = |bytes: &[u8], i: usize| u32::from(bytes[i / 8] >> (7 - i % 8)) & 1;
    let window = |i: usize| (i..i + 32).fold(0, |w, i| (w << 1) | bit(&KEY, i));
    let hash = (0..8 * input.len()).filter(|&i| bit(&input, i) == 1).fold(0, |hash, i| hash ^ window(i));
    hash % 128 % queues
}

fn with_rss(mut w: World, port: PortId, rss: Option<Rss>) -> World {
    let mut ports = vec![None; 3];
    ports[usize::from(port.0)] = rss.map(Arc::new);
    w.routes = w.routes.with_rss(ports);
    w
}

/// New connection number `i` with a replaced source: every second one IPv6, TCP and UDP.
fn request(i: u16) -> Spec {
    let (client, service) = if i.is_multiple_of(2) { ("10.0.0.2", "10.96.0.2:80") } else { ("[fd00:a::2]", "[fd00:96::2]:80") };
    spec(if (i / 2).is_multiple_of(2) { "tcp" } else { "udp" }, &format!("{client}:{}", 1_024 + i), service, SYN)
}

/// The connection's packets towards its backend.
fn open(w: &mut World, request: &Spec) -> Tuple {
    let done = w.run(CLIENTS, &request.frame());
    assert!(matches!(done.verdict, Verdict::Forward(PODS, _)), "{:?}", done.verdict);
    read(&done.bytes).unwrap().tuple
}

#[test]
fn answers_come_in_at_the_worker_that_opened_the_connection() {
    for workers in [4, 8] {
        let mut w = with_rss(World::new(services(), 4_096), PODS, Some(rss(workers)));
        let (mut own, mut ports) = (0, HashMap::new());
        for i in 0..2_000 {
            let worker = i / 4 % workers;
            w.worker = WorkerState::new(worker);
            let t = open(&mut w, &request(i));
            own += u32::from(queue(&t.reversed(), u32::from(workers)) == u32::from(worker));
            *ports.entry(t.sport).or_insert(0u32) += 1;
        }
        println!("{workers} workers: {own} of 2000 at the worker that opened them");
        assert!(own >= 1_980, "{workers} workers: {own} of 2000");
        // 1,000 ports in ten parts: about 200 connections each, and none is left out.
        let of_part = |part: u16| ports.iter().filter(|(port, _)| (*port - 61_000) / 100 == part).map(|(_, n)| n).sum::<u32>();
        let parts: Vec<u32> = (0..10).map(of_part).collect();
        assert!(parts.iter().all(|n| (100..300).contains(n)), "{parts:?}");
        assert!(ports.len() > 800 && ports.values().all(|&n| n < 16), "{} ports", ports.len());
    }
}

#[test]
fn without_a_choice_the_ports_are_those_of_the_hint() {
    let no_ports = Kinds::default().with(Proto::Sctp, true);
    let one_worker = Rss::new(&KEY, &[0, 1, 2, 3], &[0; 4], no_ports.with(Proto::Tcp, false)).unwrap();
    let addresses_only = Rss::new(&KEY, &[0, 1, 2, 3], &[0, 1, 2, 3], no_ports).unwrap();
    let worlds = [
        ("nothing is known", World::new(services(), 1_024)),
        ("nothing is known of any port", with_rss(World::new(services(), 1_024), PODS, None)),
        ("one worker has all queues", with_rss(World::new(services(), 1_024), PODS, Some(one_worker))),
        ("the ports are not hashed", with_rss(World::new(services(), 1_024), PODS, Some(addresses_only))),
        ("the backends are behind another port", with_rss(World::new(services(), 1_024), CLIENTS, Some(rss(4)))),
        ("the worker has no queue", {
            let mut w = with_rss(World::new(services(), 1_024), PODS, Some(rss(4)));
            w.worker = WorkerState::new(4);
            w
        }),
    ];
    for (what, mut w) in worlds {
        let hint = if what.contains("no queue") { 4u32.wrapping_mul(0x9e37_79b9) } else { 0 };
        let mut taken = HashSet::new();
        for i in 0..300 {
            let request = request(i);
            let hash = w.with(|ctx| ctx.table.hash(&request.tuple()));
            let t = open(&mut w, &request);
            let (mut at, step) = (fast_range((hash as u32).wrapping_add(hint), 1_000), (hash >> 32) as u32 | 1);
            while at >= 1_000 || !taken.insert((t.proto, t.dst, 61_000 + at as u16)) {
                at = at.wrapping_add(step) % 1_024;
            }
            assert_eq!(t.sport, 61_000 + at as u16, "{what}, connection {i}");
        }
    }
}

#[test]
fn a_clients_own_port_stays_its_own() {
    let mut w = with_rss(World::new(services(), 1_024), PODS, Some(rss(4)));
    for port in 2_000..2_100 {
        let t = open(&mut w, &spec("tcp", &format!("10.0.0.2:{port}"), "10.96.0.1:80", SYN));
        assert_eq!(t.sport, port);
    }
}

#[test]
fn other_ports_follow_when_those_with_the_right_queue_are_taken() {
    let mut s = services();
    s.snat.port_last = s.snat.port_first + 99;
    add_service(&mut s, "10.96.0.7", 80, Proto::Tcp, &[backend("192.168.1.1", 80)], true);
    let mut w = with_rss(World::new(s, 256), PODS, Some(rss(4)));
    let to7 = |i: u16| spec("tcp", &format!("10.0.0.2:{}", 1_024 + i), "10.96.0.7:80", SYN);
    let ports: Vec<(u16, u32)> = (0..100).map(|i| w.connect(&to7(i)).unwrap().tuple).map(|t| (t.sport, queue(&t.reversed(), 4))).collect();
    assert_eq!(ports.iter().map(|(port, _)| *port).collect::<HashSet<_>>().len(), 100, "every port is used");
    let first_other = ports.iter().position(|(_, queue)| *queue != 0).unwrap();
    assert!(first_other >= 12, "about a quarter have the right queue, and they come first: {ports:?}");
    let done = w.run(CLIENTS, &to7(100).frame());
    assert_eq!(done.verdict, Verdict::Drop(Reason::SnatPortsExhausted));
}
