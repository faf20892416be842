//! Packets whose way on is gone: their senders are told by whom a router would tell them, and what the kernel would say.

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;
use nomagic_core::routes::{InternalPort, Neighbour, Policy, Port, Route, RouteKind, Routes, Rule, RuleAction};
use nomagic_core::services::TcpReject;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

const HOST_UNREACHABLE: [u8; 2] = [3, 1];

/// A Service, its endpoint, the route there, the reason, and the type and code of the ICMP error.
type Dead = (&'static str, &'static str, RouteKind, Reason, Option<[u8; 2]>);

/// Services of both families, each with one endpoint behind another kind of route.
const WAYS: [Dead; 6] = [
    ("10.96.4.1", "192.168.1.9", RouteKind::Unreachable, Reason::Unreachable, Some(HOST_UNREACHABLE)),
    ("10.96.4.2", "192.168.1.9", RouteKind::Prohibit, Reason::RouteProhibited, Some([3, 13])),
    ("10.96.4.3", "192.168.1.9", RouteKind::Blackhole, Reason::RouteBlackhole, None),
    ("fd00:96::41", "fd00:b::9", RouteKind::Unreachable, Reason::Unreachable, Some([1, 0])),
    ("fd00:96::42", "fd00:b::9", RouteKind::Prohibit, Reason::RouteProhibited, Some([1, 1])),
    ("fd00:96::43", "fd00:b::9", RouteKind::Blackhole, Reason::RouteBlackhole, None),
];

fn world(service: &str, endpoint: &str) -> World {
    let mut s = services();
    for proto in [Proto::Tcp, Proto::Udp] {
        add_service(&mut s, service, 80, proto, &[backend(endpoint, 8080)], false);
    }
    World::new(s, 64)
}

/// The way to clients, and for everything else this kind of route.
fn routes(generation: u64, kind: Option<RouteKind>) -> Routes {
    let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
    let mut all = Vec::new();
    for (clients, rest) in [("10.0.0.0/24", "0.0.0.0/0"), ("fd00:a::/64", "::/0")] {
        all.push(Route { prefix: clients.parse().unwrap(), metric: 0, kind: on_link(CLIENTS) });
        all.extend(kind.clone().map(|kind| Route { prefix: rest.parse().unwrap(), metric: 0, kind }));
    }
    let near = ["10.0.0.2", "fd00:a::2"].map(|addr| Neighbour { port: CLIENTS, addr: ip(addr), mac: mac_of(addr) });
    Routes::build(generation, ports, Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC }), all, &near).0
}

fn client_of(service: &str) -> &'static str {
    if ip(service).is_ipv6() { "[fd00:a::2]:40000" } else { "10.0.0.2:40000" }
}

fn socket(service: &str) -> String {
    std::net::SocketAddr::new(ip(service), 80).to_string()
}

/// Type and code of the ICMP error that was sent, after checks: it is sound, from the gateway's own address, and for the client.
fn told(done: &Done) -> Option<[u8; 2]> {
    let made = done.made.first()?;
    let sound = etherparse::SlicedPacket::from_ethernet(made).expect("a sound frame");
    let (from, to, kind) = match (sound.net.unwrap(), sound.transport.unwrap()) {
        (etherparse::NetSlice::Ipv4(v4), etherparse::TransportSlice::Icmpv4(icmp)) => {
            let (from, to) = (v4.header().source_addr(), v4.header().destination_addr());
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), u16::from_be_bytes([made[36], made[37]]));
            (from.to_string(), to.to_string(), [icmp.type_u8(), icmp.code_u8()])
        }
        (etherparse::NetSlice::Ipv6(v6), etherparse::TransportSlice::Icmpv6(icmp)) => {
            let (from, to) = (v6.header().source_addr(), v6.header().destination_addr());
            assert!(icmp.is_checksum_valid(from.octets(), to.octets()));
            (from.to_string(), to.to_string(), [icmp.type_u8(), icmp.code_u8()])
        }
        other => panic!("no ICMP: {other:?}"),
    };
    assert!([("10.0.0.1", "10.0.0.2"), ("fd00:a::1", "fd00:a::2")].contains(&(from.as_str(), to.as_str())), "{from} to {to}");
    Some(kind)
}

#[test]
fn a_route_that_leads_nowhere_is_told_as_the_kernel_does() {
    for (service, endpoint, kind, reason, icmp) in WAYS {
        for proto in ["tcp", "udp"] {
            let mut w = world(service, endpoint);
            w.routes = routes(1, Some(kind.clone()));
            let flags = if proto == "tcp" { SYN } else { 0 };
            let done = w.run(CLIENTS, &spec(proto, client_of(service), &socket(service), flags).frame());
            assert_eq!((done.verdict, told(&done)), (Verdict::Drop(reason), icmp), "{service} {proto}");
        }
        let mut w = world(service, endpoint);
        w.routes = routes(1, None);
        let done = w.run(CLIENTS, &spec("tcp", client_of(service), &socket(service), SYN).frame());
        let net = if ip(service).is_ipv6() { [1, 0] } else { [3, 0] };
        assert_eq!((done.verdict, told(&done)), (Verdict::Drop(Reason::NoRoute), Some(net)), "{service}");
    }
}

#[test]
fn connections_that_lose_their_way_are_told_too_and_new_ones_may_be_reset() {
    let mut w = world("10.96.4.1", "192.168.1.1");
    let client = spec("tcp", "10.0.0.2:40000", "10.96.4.1:80", SYN);
    assert!(matches!(w.run(CLIENTS, &client.frame()).verdict, Verdict::Forward(..)));
    w.routes = routes(2, Some(RouteKind::Unreachable));
    let next = Spec { flags: ACK, ..client };
    let done = w.run(CLIENTS, &next.frame());
    assert_eq!((done.verdict, told(&done)), (Verdict::Drop(Reason::Unreachable), Some(HOST_UNREACHABLE)));
    w.services.tcp_reject = TcpReject::Reset;
    let done = w.run(CLIENTS, &next.frame());
    assert_eq!(told(&done), Some(HOST_UNREACHABLE), "a reset would end a connection whose route may be back in a moment");
    let done = w.run(CLIENTS, &spec("tcp", "10.0.0.2:40001", "10.96.4.1:80", SYN).frame());
    let reset = read(&done.made[0]).expect("a sound frame");
    assert_eq!((reset.tuple.src_addr(), reset.tuple.sport, reset.tuple.dport), (ip("10.96.4.1"), 80, 40_001));
}

/// A frame that was held for as long as the kernel asks for a neighbour.
#[test]
fn a_dead_next_hop_is_told_after_the_hold_and_not_before() {
    for (service, endpoint, icmp) in [("10.96.4.1", "192.168.1.99", HOST_UNREACHABLE), ("fd00:96::41", "fd00:b::99", [1, 3])] {
        let mut w = world(service, endpoint);
        let frame = spec("udp", client_of(service), &socket(service), 0).frame();
        let done = w.run(CLIENTS, &frame);
        assert!(matches!(done.verdict, Verdict::Hold(_)) && done.made.is_empty(), "{:?}", done.verdict);
        let done = w.run_overdue(CLIENTS, &frame);
        assert_eq!((done.verdict, told(&done)), (Verdict::Drop(Reason::NeighbourTimeout), Some(icmp)));
        assert_eq!(w.live(), 0, "no connection is opened");
    }
}

#[test]
fn these_errors_are_limited_like_other_rejects() {
    let mut w = world("10.96.4.1", "192.168.1.9");
    w.routes = routes(1, Some(RouteKind::Unreachable));
    let ask = |w: &mut World, port: u16| {
        let done = w.run(CLIENTS, &spec("udp", &format!("10.0.0.2:{port}"), "10.96.4.1:80", 0).frame());
        usize::from(told(&done).is_some())
    };
    let sent: usize = (0..1_000).map(|i| ask(&mut w, 1_000 + i)).sum();
    assert_eq!(sent as u64, Class::Unreachable.share().burst, "one sender's burst");
}

/// The client's packets are routed by its own address, whatever SNAT replaces it with; the answers by the endpoint's.
#[test]
fn rules_see_packets_after_dnat_and_before_snat() {
    let from = |prefix: &str, action| Rule { from: Some(prefix.parse().unwrap()), ..Rule::all(action) };
    let lookup = RuleAction::Lookup { table: 0, suppressed: None };
    let with = |w: &mut World, first: Rule| {
        let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
        let near = [(CLIENTS, "10.0.0.2"), (PODS, "192.168.1.1")].map(|(port, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) });
        let table = [("10.0.0.0/24", CLIENTS), ("192.168.0.0/16", PODS)];
        let table = table.map(|(prefix, port)| Route { prefix: prefix.parse().unwrap(), metric: 0, kind: on_link(port) }).to_vec();
        let policy = Policy { tables: vec![table], rules: vec![first, Rule::all(lookup)] };
        w.routes = Routes::with_policies(w.routes.generation + 1, ports, None, [policy, Policy::default()], &near).0;
    };
    let mut s = services();
    add_service(&mut s, "10.96.4.1", 80, Proto::Tcp, &[backend("192.168.1.1", 8080)], true);
    let mut w = World::new(s, 64);
    let request = spec("tcp", "10.0.0.2:40000", "10.96.4.1:80", SYN);
    let dropped = Verdict::Drop(Reason::RouteBlackhole);
    with(&mut w, from("10.0.0.2/32", RuleAction::Blackhole));
    assert_eq!(w.run(CLIENTS, &request.frame()).verdict, dropped, "the client's address, not the SNAT address");
    with(&mut w, from("10.0.0.1/32", RuleAction::Blackhole));
    let done = w.run(CLIENTS, &request.frame());
    assert_eq!(forwarded_by(done.verdict), Some(PODS), "the SNAT address is not routed by");
    let seen = read(&done.bytes).unwrap().tuple;
    let answer = Spec {
        src: (seen.dst_addr(), seen.dport).into(),
        dst: (seen.src_addr(), seen.sport).into(),
        flags: SYN_ACK,
        ..spec("tcp", "1.1.1.1:1", "1.1.1.1:1", 0)
    };
    with(&mut w, from("10.96.4.1/32", RuleAction::Blackhole));
    assert_eq!(forwarded_by(w.run(PODS, &answer.frame()).verdict), Some(CLIENTS), "the Service's address comes after routing");
    with(&mut w, from("192.168.1.1/32", RuleAction::Blackhole));
    assert_eq!(w.run(PODS, &answer.frame()).verdict, dropped, "the endpoint's address");
}

fn forwarded_by(verdict: Verdict) -> Option<PortId> {
    if let Verdict::Forward(port, _) = verdict { Some(port) } else { None }
}
