//! Addresses that only Services have: what would go round between here and the router is refused, pings are answered by choice.

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Policy, Port, RouteKind, Routes, Rule, RuleAction};
use nomagic_core::services::{OnlyHere, TcpReject, UnusedPorts};
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

/// Load balancer IPs behind the clients' router, which leads them here, and one on the clients' link.
const OUTER: [&str; 2] = ["203.0.113.10", "fd00:1b::10"];
const ON_LINK: &str = "10.0.0.77";
/// The clients' router.
const ROUTER: [&str; 2] = ["10.0.0.254", "fe80::254"];

fn via(port: PortId, gateway: &str) -> Leg {
    Leg { port: Some(port), captured: false, gateway: Some(ip(gateway)), weight: 1, mtu: None }
}

fn routes(generation: u64, default: &[Leg], rules: Vec<Rule>) -> Routes {
    let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
    let near: Vec<_> = NEIGHBOURS.iter().map(|&(port, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) }).collect();
    let v4 = vec![
        route("0.0.0.0/0", RouteKind::Unicast(default.to_vec())),
        route("10.0.0.0/24", on_link(CLIENTS)),
        route("192.168.0.0/16", on_link(PODS)),
        route("10.0.0.1/32", RouteKind::Local),
    ];
    let v6 = vec![route("::/0", RouteKind::Unicast(vec![via(CLIENTS, ROUTER[1])])), route("fd00:b::/64", on_link(PODS))];
    let internal = Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
    let policies = [Policy { tables: vec![v4], rules }, Policy { tables: vec![v6], rules: Vec::new() }];
    Routes::with_policies(generation, ports, internal, policies, &near).0
}

fn world() -> World {
    let mut s = services();
    for addr in OUTER.into_iter().chain([ON_LINK]) {
        let pod = if addr.contains(':') { "fd00:b::1" } else { "192.168.1.1" };
        for proto in [Proto::Tcp, Proto::Udp] {
            add_service(&mut s, addr, 80, proto, &[backend(pod, 8080)], true);
        }
        make_outer(&mut s, addr);
    }
    let mut w = World::new(s, 64);
    w.routes = routes(1, &[via(CLIENTS, ROUTER[0])], Vec::new());
    w
}

fn client(addr: &str) -> &'static str {
    if addr.contains(':') { "[2001:db8::7]:40000" } else { "198.51.100.7:40000" }
}

fn to(proto: &str, addr: &str, port: u16, flags: u8) -> Spec {
    let dst = if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") };
    spec(proto, client(addr), &dst, flags)
}

fn ping(addr: &str, payload: &[u8]) -> Vec<u8> {
    let v6 = addr.contains(':');
    let from = ip(if v6 { "2001:db8::7" } else { "198.51.100.7" });
    IcmpSpec { from, to: ip(addr), kind: if v6 { 128 } else { 8 }, code: 0, rest: [1, 2, 3, 4] }.frame(payload)
}

/// A packet of a protocol without ports.
fn of_protocol(addr: &str, number: u8) -> Vec<u8> {
    let mut frame = to("udp", addr, 81, 0).frame();
    if addr.contains(':') {
        frame[20] = number;
    } else {
        frame[23] = number;
        set_ipv4_checksum(&mut frame, 14);
    }
    frame
}

/// Packets that no Service takes, and whose sender is told.
fn unserved(addr: &str) -> Vec<Vec<u8>> {
    let mut list = vec![
        to("tcp", addr, 81, SYN).frame(),
        to("udp", addr, 81, 0).frame(),
        ping(addr, &[0; 56]),
        of_protocol(addr, 50),
        of_protocol(addr, 47),
    ];
    if !addr.contains(':') {
        list.push(sctp_frame(client(addr), &format!("{addr}:80"), 1, 32));
        let mut first = to("udp", addr, 81, 0).frame();
        first[20] = 0x20;
        set_ipv4_checksum(&mut first, 14);
        list.push(first);
    }
    list
}

#[test]
fn what_would_come_back_is_refused() {
    for addr in OUTER {
        for frame in unserved(addr) {
            let mut w = world();
            let done = w.run(CLIENTS, &frame);
            assert_eq!(done.verdict, Verdict::Drop(Reason::UnusedExternalPort), "{frame:02x?}");
            let [made] = &done.made[..] else { panic!("{} frames made for {frame:02x?}", done.made.len()) };
            let error = read_error(made).unwrap();
            let code = if addr.contains(':') { (1, 4) } else { (3, 3) };
            assert_eq!(((error.spec.kind, error.spec.code), error.spec.from), (code, ip(addr)), "port unreachable, by the address");
            assert_eq!((error.src_mac, error.dst_mac), (PORT_MACS[0], CLIENT_MAC));
            assert_eq!(&error.quote, &frame[14..]);
            assert_eq!((w.live(), w.announced()), (0, 0));
            w.reconciled();
        }
        for proto in ["tcp", "udp"] {
            assert!(matches!(world().run(CLIENTS, &to(proto, addr, 80, SYN).frame()).verdict, Verdict::Forward(PODS, _)), "a used port");
        }
    }
}

#[test]
fn connections_are_refused_as_those_to_cluster_ips() {
    let (syn, middle) = (to("tcp", OUTER[0], 81, SYN).frame(), to("tcp", OUTER[0], 81, ACK).frame());
    for (reject, frame, reset) in [
        (TcpReject::PortUnreachable, &syn, false),
        (TcpReject::Reset, &syn, true),
        // An open connection whose Service port has gone.
        (TcpReject::PortUnreachable, &middle, true),
    ] {
        let mut w = world();
        w.services.tcp_reject = reject;
        let made = w.run(CLIENTS, frame).made;
        assert_eq!(made.len(), 1);
        assert_eq!(made[0][23] == 6, reset, "{reject:?}");
    }
}

#[test]
fn the_configuration_decides() {
    for frame in unserved(OUTER[0]) {
        let mut w = world();
        w.services.unused_ports = UnusedPorts::Drop;
        let done = w.run(CLIENTS, &frame);
        assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::UnusedExternalPort), 0));
        w.services.unused_ports = UnusedPorts::Kernel;
        let done = w.run(CLIENTS, &frame);
        assert!(matches!(done.verdict, Verdict::Kernel(_)), "{:?}", done.verdict);
        assert_eq!((done.made.len(), &done.bytes[6..]), (0, &frame[6..]));
    }
}

#[test]
fn what_does_not_come_back_is_the_kernels() {
    let frames = || OUTER.into_iter().flat_map(unserved).chain(unserved(ON_LINK));
    let kernel = |w: &mut World, port, frame: &[u8], why: &str| {
        let done = w.run(port, frame);
        assert!(matches!(done.verdict, Verdict::Kernel(_)), "{why}: {:?}", done.verdict);
        assert_eq!((done.made.len(), &done.bytes[6..]), (0, &frame[6..]), "{why}");
    };
    for frame in frames() {
        // By another port than the route's, from behind redirect ports, and from the node itself.
        kernel(&mut world(), PODS, &frame, "another port");
        kernel(&mut world(), INTERNAL, &frame, "a redirect port");
        let mut own = frame.clone();
        own[..6].copy_from_slice(&KERNEL_MAC);
        kernel(&mut world(), INTERNAL, &own, "the node");
        // The kernel has the address.
        let mut w = world();
        w.services.kernel_ips.extend(OUTER.into_iter().chain([ON_LINK]).map(ip));
        kernel(&mut w, CLIENTS, &frame, "the node's own");
    }
    // In a VLAN, but not with a priority tag.
    for (vlan, back) in [(7, false), (0, true)] {
        let mut frame = to("udp", OUTER[0], 81, 0).frame();
        frame.splice(12..12, [0x81, 0, 0xe0, vlan]);
        assert_eq!(world().run(CLIENTS, &frame).verdict == Verdict::Drop(Reason::UnusedExternalPort), back, "VLAN {vlan}");
    }
    for frame in unserved(ON_LINK) {
        kernel(&mut world(), CLIENTS, &frame, "a host on the clients' link");
    }
    // Of an address that Services do not have.
    for frame in unserved("203.0.113.11") {
        kernel(&mut world(), CLIENTS, &frame, "no Service's");
    }
    for (default, back) in [
        (vec![via(PODS, "192.168.1.1")], false),
        // The address itself is the gateway.
        (vec![via(CLIENTS, OUTER[0])], false),
        (vec![Leg { port: None, ..via(CLIENTS, ROUTER[0]) }], false),
        (vec![Leg { gateway: None, ..via(CLIENTS, ROUTER[0]) }], false),
        (vec![via(PODS, "192.168.1.1"), via(CLIENTS, ROUTER[0])], true),
    ] {
        let mut w = world();
        w.routes = routes(2, &default, Vec::new());
        let verdict = w.run(CLIENTS, &to("udp", OUTER[0], 81, 0).frame()).verdict;
        assert_eq!(verdict == Verdict::Drop(Reason::UnusedExternalPort), back, "{default:?}: {verdict:?}");
    }
}

/// A host on the clients' link may use this node as its router on the way to an address that another host, further on, has as well.
#[test]
fn what_a_host_on_the_link_sends_does_not_come_back_but_what_its_router_sends_does() {
    let from = |source: &str, mac: [u8; 6]| {
        let mut frame = spec("tcp", &format!("{source}:4000"), "203.0.113.10:81", SYN).frame();
        frame[6..12].copy_from_slice(&mac);
        world().run(CLIENTS, &frame).verdict
    };
    let (router, other) = (mac_of(ROUTER[0]), [2, 9, 9, 9, 9, 9]);
    for (source, mac, back) in [
        ("10.0.0.2", mac_of("10.0.0.2"), false),
        ("10.0.0.9", other, false),
        ("10.0.0.2", router, true),
        (ROUTER[0], router, true),
        // Of what comes from further away, somebody is a router.
        ("198.51.100.7", other, true),
        ("198.51.100.7", router, true),
    ] {
        let verdict = from(source, mac);
        let expected = if back { Verdict::Drop(Reason::UnusedExternalPort) } else { Verdict::Kernel(Reason::NotOurs) };
        assert_eq!(verdict, expected, "{source} from {mac:x?}");
    }
}

#[test]
fn rules_decide_by_what_is_known_of_the_packet() {
    let lookup = Rule::all(RuleAction::Lookup { table: 0, suppressed: None });
    let clients = "198.51.100.0/24".parse().unwrap();
    let kernel = Rule { from: Some(clients), opaque: true, ..Rule::all(RuleAction::Kernel) };
    let dead = Rule { from: Some(clients), ..Rule::all(RuleAction::Blackhole) };
    for (first, back) in [(lookup.clone(), true), (kernel, false), (dead, false)] {
        let mut w = world();
        w.routes = routes(2, &[via(CLIENTS, ROUTER[0])], vec![first.clone(), lookup.clone()]);
        for frame in unserved(OUTER[0]) {
            let verdict = w.run(CLIENTS, &frame).verdict;
            assert_eq!(verdict == Verdict::Drop(Reason::UnusedExternalPort), back, "{first:?}: {verdict:?}");
        }
    }
}

/// Where the routers do not know the client, an answer would go round in its place.
#[test]
fn answers_that_come_back_are_dropped() {
    for addr in OUTER.into_iter().chain(["10.96.0.1"]) {
        let mut returns = 0;
        for frame in unserved(addr) {
            let mut w = world();
            // A cluster IP's SCTP is carried.
            let Some(mut returned) = w.run(CLIENTS, &frame).made.pop() else { continue };
            returns += 1;
            returned[..12].rotate_left(6);
            let done = w.run(CLIENTS, &returned);
            assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::ServiceSource), 0), "{frame:02x?}");
            // Another gateway's, on its way to a client behind this one.
            assert!(matches!(world().run(PODS, &returned).verdict, Verdict::Kernel(_)));
        }
        assert!(returns >= 5, "{addr}: {returns}");
        let mut w = world();
        w.services.answer_ping = true;
        let mut reply = w.run(CLIENTS, &ping(addr, &[0; 8])).bytes;
        reply[..12].rotate_left(6);
        assert_eq!(w.run(CLIENTS, &reply).verdict, Verdict::Drop(Reason::ServiceSource));
    }
}

/// What comes back and may not be told about: later fragments, ICMP errors, source routes.
#[test]
fn nobody_is_told_about_errors_and_fragments() {
    let mut later = to("udp", OUTER[0], 81, 0).frame();
    later[21] = 9;
    set_ipv4_checksum(&mut later, 14);
    let quote = &spec("udp", "203.0.113.10:81", "198.51.100.7:9", 0).frame()[14..];
    let error = IcmpSpec { from: ip("198.51.100.7"), to: ip(OUTER[0]), kind: 3, code: 3, rest: [0; 4] };
    let other = IcmpSpec { kind: 13, ..error };
    let routed = with_ipv4_options(&to("udp", OUTER[0], 80, 0).frame(), &[131, 7, 4, 10, 0, 0, 9, 0]);
    let near = spec("udp", "169.254.1.1:5", "203.0.113.10:80", 0).frame();
    for (frame, reason) in [
        (error.frame(quote), Reason::Icmp),
        (error.frame(&quote[..27]), Reason::IcmpQuote),
        (other.frame(&[0; 12]), Reason::Icmp),
        (routed, Reason::Ipv4Options),
        (near, Reason::LinkLocalSource),
    ] {
        let mut w = world();
        let done = w.run(CLIENTS, &frame);
        assert_eq!((done.verdict, done.made.len(), &done.bytes), (Verdict::Drop(reason), 0, &frame));
        w.reconciled();
        w.services.unused_ports = UnusedPorts::Kernel;
        assert_eq!(w.run(CLIENTS, &frame).verdict, Verdict::Kernel(reason));
    }
    // A fragment whose first one does not come in time.
    let mut w = world();
    assert!(matches!(w.run(CLIENTS, &later).verdict, Verdict::Hold(_)));
    let done = w.run_overdue(CLIENTS, &later);
    assert_eq!((done.verdict, done.made.len(), &done.bytes), (Verdict::Drop(Reason::FragmentTimeout), 0, &later));
    w.services.unused_ports = UnusedPorts::Kernel;
    assert_eq!(w.run_overdue(CLIENTS, &later).verdict, Verdict::Kernel(Reason::FragmentTimeout));
}

/// Cluster IPs can be led here by a router as well.
#[test]
fn protocols_without_ports_come_back_from_cluster_ips_too() {
    for (addr, reason, told) in [("10.96.0.1", Reason::UnusedServicePort, 1), ("10.96.9.9", Reason::UnallocatedServiceAddress, 0)] {
        for frame in [ping(addr, &[1; 8]), of_protocol(addr, 50)] {
            let done = world().run(CLIENTS, &frame);
            assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(reason), told), "{addr}");
            assert!(matches!(world().run(PODS, &frame).verdict, Verdict::Kernel(_)), "{addr}: by another port");
        }
    }
}

#[test]
fn pings_are_answered_by_choice() {
    for addr in OUTER.into_iter().chain([ON_LINK, "10.96.0.1", "fd00:96::1"]) {
        for len in [0, 1, 56, 57, 1_400] {
            let payload: Vec<u8> = (0..len).map(|i: u32| (i * 7) as u8).collect();
            for (ttl, port) in [(64, CLIENTS), (1, CLIENTS), (255, PODS), (64, INTERNAL)] {
                let mut frame = ping(addr, &payload);
                let v6 = addr.contains(':');
                frame[if v6 { 21 } else { 22 }] = ttl;
                if !v6 {
                    set_ipv4_checksum(&mut frame, 14);
                }
                let mut w = world();
                w.services.answer_ping = true;
                let done = w.run(port, &frame);
                assert!(matches!(done.verdict, Verdict::Forward(p, _) if p == port), "{addr}: {:?}", done.verdict);
                let answer = read_error(&done.bytes).unwrap();
                let asked = read_error(&frame).unwrap();
                let kind = if v6 { 129 } else { 0 };
                assert_eq!(answer.spec, IcmpSpec { from: asked.spec.to, to: asked.spec.from, kind, ..asked.spec });
                assert_eq!((answer.ttl, answer.quote), (64, payload.clone()));
                let from_here = (PORT_MACS[usize::from(port.0)], KERNEL_MAC);
                let swapped = (asked.dst_mac, asked.src_mac);
                assert_eq!((answer.src_mac, answer.dst_mac), if port == INTERNAL { from_here } else { swapped });
                assert_eq!((w.counters.path.pings_answered.get(), w.live(), done.made.len()), (1, 0, 0));
                w.reconciled();
            }
        }
    }
}

#[test]
fn a_ping_in_two_segments_is_answered() {
    let mut w = world();
    w.services.answer_ping = true;
    let frame = ping(OUTER[0], &[5; 1_000]);
    let (head, tail) = frame.split_at(100);
    let done = w.run_segments(CLIENTS, head, &[tail]);
    assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)));
    assert_eq!(read_error(&[&done.bytes[..], tail].concat()).unwrap().quote, [5; 1_000]);
}

#[test]
fn other_pings_are_not_answered() {
    let kernels = |w: &mut World, frame: &[u8], why: &str| {
        let done = w.run(PODS, frame);
        assert_eq!((done.verdict, done.made.len()), (Verdict::Kernel(Reason::Icmp), 0), "{why}");
        assert_eq!(&done.bytes[6..], &frame[6..], "{why}");
    };
    kernels(&mut world(), &ping(OUTER[0], &[0; 56]), "by default");
    let asked = || {
        let mut w = world();
        w.services.answer_ping = true;
        w
    };
    for addr in ["10.0.0.1", "10.0.0.2", "10.96.9.9", "203.0.113.11"] {
        kernels(&mut asked(), &ping(addr, &[0; 56]), "the node's, a host's, an unallocated or a foreign address");
    }
    let mut w = asked();
    w.services.kernel_ips.insert(ip(OUTER[0]));
    kernels(&mut w, &ping(OUTER[0], &[0; 56]), "the node has it");
    let error = IcmpSpec { from: ip("198.51.100.7"), to: ip(OUTER[0]), kind: 8, code: 1, rest: [0; 4] };
    kernels(&mut asked(), &error.frame(&[0; 56]), "another code");
    kernels(&mut asked(), &IcmpSpec { kind: 0, code: 0, ..error }.frame(&[0; 56]), "a reply");
    kernels(&mut asked(), &with_ipv4_options(&ping(OUTER[0], &[0; 56]), &[7, 7, 4, 0, 0, 0, 0, 1]), "options");
    let mut piece = ping(OUTER[0], &[0; 56]);
    piece[20] = 0x20;
    set_ipv4_checksum(&mut piece, 14);
    kernels(&mut asked(), &piece, "a fragment");
    for (from, reason) in [("10.0.0.1", Reason::OwnSource), (OUTER[0], Reason::ServiceSource), ("10.96.0.1", Reason::ServiceSource)] {
        let spoofed = IcmpSpec { from: ip(from), to: ip(OUTER[0]), kind: 8, code: 0, rest: [0; 4] }.frame(&[0; 56]);
        assert_eq!(asked().run(CLIENTS, &spoofed).verdict, Verdict::Drop(reason), "{from}");
    }
}

/// LAND: a packet from the Service to itself, by any port.
#[test]
fn nothing_comes_from_the_address_that_it_is_for() {
    for proto in ["tcp", "udp"] {
        for (source, dst) in [(80, 80), (4_000, 80), (80, 81), (4_000, 81)] {
            for addr in OUTER {
                let host = if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() };
                let packet = spec(proto, &format!("{host}:{source}"), &format!("{host}:{dst}"), SYN).frame();
                for port in [CLIENTS, PODS, INTERNAL] {
                    let mut w = world();
                    let done = w.run(port, &packet);
                    assert_eq!(
                        (done.verdict, done.made.len(), w.live()),
                        (Verdict::Drop(Reason::ServiceSource), 0, 0),
                        "{proto} {source} {dst}"
                    );
                }
            }
        }
    }
    // A host that another Service names may be a client.
    let client = spec("tcp", &format!("{ON_LINK}:4000"), "203.0.113.10:80", SYN).frame();
    assert!(matches!(world().run(CLIENTS, &client).verdict, Verdict::Forward(PODS, _)));
}

#[test]
fn an_address_is_outer_while_a_port_is_there() {
    let mut s = world().services;
    let outer = |s: &nomagic_core::services::Services| s.only_here(ip(OUTER[0]));
    assert_eq!((outer(&s), s.outer().iter().count()), (Some(OnlyHere::Outer), 3));
    let before = s.outer().clone();
    let again = s.frontend(ip(OUTER[0]), 80, Proto::Tcp).unwrap().clone();
    assert!(s.add_frontend(ip(OUTER[0]), 80, Proto::Tcp, again.clone()).is_err(), "taken");
    s.set_frontend(ip(OUTER[0]), 80, Proto::Tcp, Some(again));
    s.set_frontend(ip(OUTER[0]), 80, Proto::Tcp, None);
    assert_eq!((outer(&s), before.differences(s.outer()).count()), (Some(OnlyHere::Outer), 0));
    s.set_frontend(ip(OUTER[0]), 80, Proto::Udp, None);
    s.set_frontend(ip(OUTER[0]), 80, Proto::Udp, None);
    assert_eq!((outer(&s), s.outer().contains(&ip(OUTER[0]))), (None, false));
    assert_eq!(before.differences(s.outer()).collect::<Vec<_>>(), [ip(OUTER[0])]);
}
