//! Events are shown in the order of their times, and filters select them by flow, type and reason.

use super::*;
use nomagic_api::flows::{FlowFilter, FlowState};
use nomagic_core::conntrack::PhaseKind;
use nomagic_core::events::Event as Recorded;
use nomagic_core::tuple::{HashSeed, Proto};

fn tuple(proto: Proto, src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Option<Tuple> {
    Tuple::new(proto, src.into(), sport, dst.into(), dport)
}

/// Two workers and the control plane: a flow with SNAT from its beginning to its end, a rejected packet, and a frame that cannot be read.
fn rings() -> [Arc<EventRing>; 3] {
    let rings: [Arc<EventRing>; 3] = std::array::from_fn(|_| Arc::new(EventRing::new(8)));
    let packet = tuple(Proto::Tcp, [192, 0, 2, 1], 4000, [10, 96, 0, 1], 80);
    let rewritten = tuple(Proto::Tcp, [10, 0, 0, 1], 61_000, [172, 16, 0, 5], 8080);
    let of_flow = |at_ms, kind| Recorded { at_ms, kind, packet, rewritten, port: PortId(1), bytes: 74 };
    rings[0].record(&of_flow(1_000, EventKind::New(PhaseKind::SynSent)));
    rings[1].record(&of_flow(1_001, EventKind::Changed(PhaseKind::SynReceived)));
    rings[0].record(&of_flow(1_002, EventKind::Changed(PhaseKind::Established)));
    let other = tuple(Proto::Udp, [192, 0, 2, 2], 5000, [10, 96, 0, 2], 53);
    let rejected = EventKind::Rejected { reason: Reason::NoEndpoints, told: Told::Icmp, sent: true };
    rings[1].record(&Recorded { at_ms: 1_003, kind: rejected, packet: other, rewritten: None, port: PortId(0), bytes: 60 });
    let unread = EventKind::Dropped(Reason::Ipv4Malformed);
    rings[1].record(&Recorded { at_ms: 1_004, kind: unread, packet: None, rewritten: None, port: PortId::NONE, bytes: 20 });
    rings[2].record(&of_flow(1_005, EventKind::Ended(EndCause::Command, PhaseKind::Established)));
    rings
}

fn read(filter: &EventFilter, from: &EventsFrom) -> EventsPage {
    let (rings, services, ports) = (rings(), Services::empty(HashSeed::new(1)), ["eth0".to_owned(), "eth1".to_owned()]);
    let source = EventSource { rings: &rings, workers: 2, services: &services, ports: &ports, clock: WallClock::now() };
    source.page(&EventSelection::parse(filter).unwrap(), from)
}

#[test]
fn all_events_in_the_order_of_their_times() {
    let page = read(&EventFilter::default(), &EventsFrom::Oldest);
    let told: Vec<(Option<u32>, &str)> = page.events.iter().map(|event| (event.worker, event.text.as_str())).collect();
    assert_eq!(
        told,
        [
            (Some(0), "new flow to 172.16.0.5:8080 from 10.0.0.1:61000, SYN_SENT"),
            (Some(1), "flow to 172.16.0.5:8080 is SYN_RECV"),
            (Some(0), "flow to 172.16.0.5:8080 is ESTABLISHED"),
            (Some(1), "rejected, the sender gets an ICMP error: the Service has no usable endpoint"),
            (Some(1), "dropped: the IPv4 header contradicts itself or the frame's length"),
            (None, "flow to 172.16.0.5:8080 ended in ESTABLISHED: by command"),
        ]
    );
    assert_eq!((page.next, page.more, page.missed), (vec![2, 3, 1], false, 0));
    let first = &page.events[0];
    assert_eq!((first.source.as_deref(), first.destination.as_deref()), (Some("192.0.2.1:4000"), Some("10.96.0.1:80")));
    assert_eq!((first.interface.as_deref(), first.bytes, first.state), (Some("eth1"), 74, Some(FlowState::SynSent)));
    let rejected = &page.events[3];
    assert_eq!(
        (rejected.answer.as_deref(), rejected.answered, rejected.reason.as_deref()),
        (Some("icmp"), Some(true), Some("no_endpoints"))
    );
    assert_eq!((page.events[4].source.clone(), page.events[5].cause.as_deref()), (None, Some("command")));
}

#[test]
fn reading_goes_on_where_it_stopped() {
    let page = read(&EventFilter::default(), &EventsFrom::Newest);
    assert_eq!((page.events.len(), page.next), (0, vec![2, 3, 1]));
    let page = read(&EventFilter::default(), &EventsFrom::Cursor(vec![1, 2, 1]));
    let at: Vec<&str> = page.events.iter().map(|event| event.kind.name()).collect();
    assert_eq!((at, page.next), (vec!["changed", "dropped"], vec![2, 3, 1]));
    // A cursor of a gateway with fewer workers.
    assert_eq!(read(&EventFilter::default(), &EventsFrom::Cursor(vec![])).events.len(), 6);
}

#[test]
fn filters_select_by_flow_type_and_reason() {
    let flow = |flow: FlowFilter| EventFilter { flow, ..EventFilter::default() };
    let client = |text: &str| FlowFilter { client: Some(text.into()), ..FlowFilter::default() };
    let backend = |text: &str| FlowFilter { backend: Some(text.into()), ..FlowFilter::default() };
    for (filter, expected) in [
        (flow(client("192.0.2.1")), 4),
        (flow(client("192.0.2.0/24")), 5),
        // The flow's client is known; the other packet may be a reply.
        (flow(client("10.96.0.0/16")), 1),
        (flow(backend("172.16.0.5:8080")), 4),
        (flow(backend("172.16.0.5:80")), 0),
        (flow(FlowFilter { port: Some(80), ..FlowFilter::default() }), 4),
        (flow(FlowFilter { proto: Some("udp".into()), ..FlowFilter::default() }), 1),
        (flow(FlowFilter { state: Some(FlowState::Established), ..FlowFilter::default() }), 2),
        (flow(FlowFilter { service: Some("default/none".into()), ..FlowFilter::default() }), 0),
        (EventFilter { types: vec![EventType::New, EventType::Ended], ..EventFilter::default() }, 2),
        (EventFilter { reason: Some("no_endpoints".into()), ..EventFilter::default() }, 1),
        (EventFilter { reason: Some("ipv4_malformed".into()), types: vec![EventType::Rejected], ..EventFilter::default() }, 0),
    ] {
        assert_eq!(read(&filter, &EventsFrom::Oldest).events.len(), expected, "{filter:?}");
    }
    let unknown = EventFilter { reason: Some("bad\nluck".into()), ..EventFilter::default() };
    assert!(EventSelection::parse(&unknown).unwrap_err().contains("reason `bad\\nluck`: no such reason"));
}
