//! The events that a worker records: one for each that people ask about, none for a packet that goes on.

use std::sync::Arc;

use nomagic_core::events::{EndCause, Event, EventKind, EventRing, HeldFor, Told};
use nomagic_core::frame::{BATCH_MAX, Outputs};
use nomagic_core::pipeline::{WorkerState, sweep};
use nomagic_core::reason::Reason;
use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

fn world(services: nomagic_core::services::Services) -> (World, Arc<EventRing>) {
    let ring = Arc::new(EventRing::new(64));
    let mut world = World::new(services, 64);
    world.worker = WorkerState::new(0).record_in(ring.clone());
    (world, ring)
}

fn events(ring: &EventRing) -> Vec<Event> {
    let mut events = Vec::new();
    ring.read(0, usize::MAX, |event| events.push(event));
    events
}

/// Kind, the packet and how it goes on.
fn told(ring: &EventRing) -> Vec<String> {
    let shown = |event: &Event| {
        let tuple = |tuple: Option<nomagic_core::tuple::Tuple>| tuple.map_or("-".into(), |tuple| tuple.to_string());
        format!("{:?}: {} => {}", event.kind, tuple(event.packet), tuple(event.rewritten))
    };
    events(ring).iter().map(shown).collect()
}

#[test]
fn a_connection_from_its_beginning_to_its_end() {
    let (mut w, ring) = world(services());
    let client = |flags| spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", flags).frame();
    w.run(CLIENTS, &client(SYN));
    let Some(rewritten) = events(&ring)[0].rewritten else { panic!("a new flow: {:?}", told(&ring)) };
    let endpoint = format!("{}:{}", rewritten.dst_addr(), rewritten.dport);
    let answer = |flags| spec("tcp", &endpoint, "10.0.0.2:1000", flags).frame();
    w.run(PODS, &answer(SYN_ACK));
    w.run(CLIENTS, &client(ACK));
    // Packets of the flow are no events.
    for _ in 0..10 {
        w.run(CLIENTS, &client(ACK));
        w.run(PODS, &answer(ACK));
    }
    w.run(PODS, &answer(RST));
    w.now_ms += 100_000_000;
    w.with(|ctx| sweep(ctx, 1_000, &mut Outputs::default()));
    let flow = format!("tcp 10.0.0.2:1000 -> 10.96.0.1:80 => tcp 10.0.0.2:1000 -> {endpoint}");
    let kinds = ["New(SynSent)", "Changed(SynReceived)", "Changed(Established)", "Changed(Closed)", "Ended(TimedOut, Closed)"];
    assert_eq!(told(&ring), kinds.map(|kind| format!("{kind}: {flow}")));
    let ports: Vec<_> = events(&ring).iter().map(|event| (event.port == CLIENTS, event.port == PODS, event.bytes > 0)).collect();
    assert_eq!(ports[..3], [(true, false, true), (false, true, true), (true, false, true)]);
    assert_eq!(ports[4], (false, false, false), "no frame ends it");
}

#[test]
fn a_replaced_and_an_evicted_flow() {
    let (mut w, ring) = world(services());
    let client = |port: u32, flags| spec("tcp", &format!("10.0.0.2:{port}"), "10.96.0.1:80", flags).frame();
    w.run(CLIENTS, &client(1_000, SYN));
    w.run(CLIENTS, &client(1_000, RST));
    w.run(CLIENTS, &client(1_000, SYN));
    let causes = |ring: &EventRing| {
        let cause = |event: Event| if let EventKind::Ended(cause, _) = event.kind { Some(cause) } else { None };
        events(ring).into_iter().filter_map(cause).collect::<Vec<_>>()
    };
    assert_eq!(causes(&ring), [EndCause::Replaced]);
    (0..100).for_each(|n| drop(w.run(CLIENTS, &client(2_000 + n, SYN))));
    assert!(causes(&ring).contains(&EndCause::Evicted), "{:?}", causes(&ring));
}

#[test]
fn packets_that_do_not_go_on() {
    let mut s = services();
    add_action(&mut s, "10.96.0.7", 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
    add_service(&mut s, "10.96.0.5", 80, Proto::Tcp, &[backend("192.168.9.9", 1)], false);
    let (mut w, ring) = world(s);
    for (to, expected) in [
        ("10.96.0.7:80", EventKind::Rejected { reason: Reason::NoEndpoints, told: Told::Icmp, sent: true }),
        ("10.96.9.9:80", EventKind::Dropped(Reason::UnallocatedServiceAddress)),
        ("10.96.0.5:80", EventKind::Held(HeldFor::Neighbour)),
        ("8.8.8.8:80", EventKind::Kernel(Reason::NotOurs)),
    ] {
        let frame = spec("tcp", "10.0.0.2:1000", to, SYN).frame();
        let from = ring.end();
        w.run(CLIENTS, &frame);
        let mut found = Vec::new();
        ring.read(from, BATCH_MAX, |event| found.push(event));
        let packet = found[0].packet.expect("it can be read").to_string();
        assert_eq!((found.len(), found[0].kind, packet), (1, expected, format!("tcp 10.0.0.2:1000 -> {to}")));
        assert_eq!((found[0].port, found[0].bytes as usize, found[0].at_ms), (CLIENTS, frame.len(), w.now_ms));
    }
    w.run(CLIENTS, &[0; 10]);
    let last = *events(&ring).last().unwrap();
    assert_eq!((last.kind, last.packet, last.bytes), (EventKind::Dropped(Reason::EthernetTruncated), None, 10));
}

#[test]
fn a_refused_packet_of_a_flow_names_the_flow() {
    let (mut w, ring) = world(services());
    let question = |ttl| Spec { ttl, ..spec("udp", "10.0.0.2:1000", "10.96.0.1:80", 0) }.frame();
    w.run(CLIENTS, &question(9));
    let opened = events(&ring)[0];
    let Some(rewritten) = opened.rewritten else { panic!("a new flow: {:?}", told(&ring)) };
    w.run(CLIENTS, &question(1));
    let endpoint = format!("{}:{}", rewritten.dst_addr(), rewritten.dport);
    w.run(PODS, &Spec { ttl: 1, ..spec("udp", &endpoint, "10.0.0.2:1000", 0) }.frame());
    let refused = EventKind::Rejected { reason: Reason::TtlExceeded, told: Told::Icmp, sent: true };
    for (event, port) in events(&ring)[1..].iter().zip([CLIENTS, PODS]) {
        assert_eq!((event.kind, event.port), (refused, port));
        assert_eq!((event.packet, event.rewritten), (opened.packet, Some(rewritten)), "{:?}", told(&ring));
    }
    assert_eq!(events(&ring).len(), 3);
}
