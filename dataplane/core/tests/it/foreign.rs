//! What is another's or the kernel's: sources that nobody outside has, source routes, options that cannot be read.

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Neighbour, Policy, Port, ReversePath, RouteKind, Routes, Rule, RuleAction};
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

/// With addresses of the node that are no SNAT addresses.
fn world() -> World {
    let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
    let local = ["10.0.0.1/32", "10.0.0.77/32", "203.0.113.64/26", "fd00:a::77/128", "fe80::/10", "fd00:aa::/32"];
    let mut routes: Vec<_> = local.map(|prefix| route(prefix, RouteKind::Local)).into();
    for (prefix, port) in [("10.0.0.0/24", CLIENTS), ("203.0.113.0/24", CLIENTS), ("192.168.0.0/16", PODS), ("fd00:b::/64", PODS)] {
        routes.push(route(prefix, on_link(port)));
    }
    let near: Vec<_> = NEIGHBOURS.iter().map(|&(port, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) }).collect();
    let mut w = World::new(services(), 64);
    w.routes = Routes::build(1, ports, Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC }), routes, &near).0;
    w
}

const OWN: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.77",
    "203.0.113.64",
    "203.0.113.127",
    // Where nomagic is the source itself.
    "169.254.78.78",
    "fd00:a::1",
    "fd00:a::77",
    "fd00:aa::1:2:3",
];
const LINK_LOCAL: [&str; 6] = ["169.254.0.0", "169.254.1.1", "169.254.255.255", "fe80::1", "fe80::1234:5678:9abc", "febf:ffff::1"];
/// Next to those in number.
const HONEST: [&str; 8] =
    ["10.0.0.2", "203.0.113.63", "203.0.113.128", "169.253.255.255", "169.255.0.0", "fec0::1", "fe7f::1", "fd00:ab::1"];

/// From a source to the Services without and with SNAT, to a port that none has, and to the SNAT ports.
fn packets(source: &str) -> Vec<Spec> {
    let (src, hosts) = match source.contains(':') {
        true => (format!("[{source}]:40000"), ["[fd00:96::1]:80", "[fd00:96::2]:80", "[fd00:96::1]:81", "[fd00:a::1]:61005"]),
        false => (format!("{source}:40000"), ["10.96.0.1:80", "10.96.0.2:80", "10.96.0.1:81", "10.0.0.1:61005"]),
    };
    hosts.iter().flat_map(|dst| ["tcp", "udp"].map(|proto| spec(proto, &src, dst, SYN))).collect()
}

#[test]
fn nobody_outside_has_the_nodes_addresses() {
    for source in OWN {
        for packet in packets(source) {
            // A pod behind a redirect port comes in by the internal port as well, but is not addressed to the kernel's end.
            for port in [CLIENTS, PODS, INTERNAL] {
                let mut w = world();
                let done = w.run(port, &packet.frame());
                assert_eq!(done.verdict, Verdict::Drop(Reason::OwnSource), "{packet:?} by {port:?}");
                assert_eq!((w.live(), w.announced(), done.made.len()), (0, 0, 0), "{packet:?}");
                w.reconciled();
            }
        }
    }
}

#[test]
fn link_local_sources_are_the_kernels() {
    for source in LINK_LOCAL {
        for packet in packets(source) {
            for port in [CLIENTS, PODS, INTERNAL] {
                let mut w = world();
                let done = w.run(port, &packet.frame());
                assert_eq!(done.verdict, Verdict::Kernel(Reason::LinkLocalSource), "{packet:?} by {port:?}");
                assert_eq!((&done.bytes[..6], &done.bytes[6..]), (&KERNEL_MAC[..], &packet.frame()[6..]), "unchanged");
                assert_eq!((w.live(), w.announced(), done.made.len()), (0, 0, 0), "{packet:?}");
            }
        }
    }
}

#[test]
fn no_service_is_a_client_of_another_or_of_itself() {
    let world = || {
        let mut w = world();
        add_service(&mut w.services, "203.0.113.7", 80, Proto::Udp, &[backend("192.168.1.1", 80)], false);
        // A load balancer's address is an address of a host, too: of one that sends from other ports.
        w.services.cluster_ips.remove(&ip("203.0.113.7"));
        w
    };
    for source in ["10.96.0.1:80", "10.96.0.1:40000", "10.96.0.2:80", "203.0.113.7:80"] {
        for dst in ["10.96.0.1:80", "203.0.113.7:80"] {
            let mut w = world();
            let done = w.run(CLIENTS, &spec("udp", source, dst, 0).frame());
            assert_eq!((done.verdict, w.live()), (Verdict::Drop(Reason::ServiceSource), 0), "{source} to {dst}");
        }
    }
    let mut w = world();
    for (proto, source) in [("udp", "203.0.113.7:81"), ("tcp", "203.0.113.7:80")] {
        assert!(
            matches!(w.run(CLIENTS, &spec(proto, source, "10.96.0.1:80", SYN).frame()).verdict, Verdict::Forward(..)),
            "{proto} {source}"
        );
    }
}

/// As the kernel's `rp_filter`: each source by each port, without the check, and whether it passes the strict and the loose one.
#[test]
fn sources_are_compared_with_the_routes_to_them() {
    use ReversePath::{Loose, Off, Strict};
    let checked = |check: ReversePath| {
        let mut w = world();
        let routes = std::mem::take(&mut w.routes);
        w.routes = routes.with_reverse_path([check; 3]);
        w
    };
    let cases: [(&str, PortId, bool, bool); 9] = [
        ("10.0.0.2", CLIENTS, true, true),
        ("10.0.0.2", PODS, false, true),
        ("192.168.9.9", PODS, true, true),
        ("192.168.9.9", CLIENTS, false, true),
        // Without a route.
        ("198.51.100.7", CLIENTS, false, false),
        ("198.51.100.7", PODS, false, false),
        // There is no such check for IPv6.
        ("fd00:b::9", CLIENTS, true, true),
        ("fd00:ab::1", PODS, true, true),
        ("2001:db8::1", CLIENTS, true, true),
    ];
    for (source, port, strict, loose) in cases {
        for packet in packets(source).into_iter().filter(|packet| packet.dst.port() != 61_005) {
            for (check, passes) in [(Off, true), (Strict, strict), (Loose, loose)] {
                let mut w = checked(check);
                let done = w.run(port, &packet.frame());
                assert_eq!(
                    done.verdict != Verdict::Drop(Reason::ReversePath),
                    passes,
                    "{packet:?} by {port:?}, {check:?}: {:?}",
                    done.verdict
                );
                assert!(passes || (w.live(), done.made.len()) == (0, 0), "nobody is told");
                w.reconciled();
            }
        }
    }
    // Nobody knows by which interface a pod's packet came that was redirected to the internal port. Ports without an entry are not checked.
    let packet = spec("udp", "198.51.100.7:40000", "10.96.0.1:80", 0);
    let mut w = world();
    let routes = std::mem::take(&mut w.routes);
    w.routes = routes.with_reverse_path([Off, Strict]);
    assert!(matches!(w.run(INTERNAL, &packet.frame()).verdict, Verdict::Forward(..)));
    // In a VLAN it came by another interface.
    let mut tagged = packet.frame();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    assert!(matches!(checked(Strict).run(CLIENTS, &tagged).verdict, Verdict::Forward(..)));
    // Open connections go on, whatever happens to the routes.
    let mut w = world();
    let syn = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN);
    w.connect(&syn).unwrap();
    let routes = std::mem::take(&mut w.routes);
    w.routes = routes.with_reverse_path([Strict; 3]);
    assert!(matches!(w.run(PODS, &Spec { flags: ACK, ..syn }.frame()).verdict, Verdict::Forward(..)));
}

/// Rules see the source as the destination of a packet of the Service.
#[test]
fn rules_decide_about_sources_too() {
    let lookup = |table| RuleAction::Lookup { table, suppressed: None };
    let to_client = || Some("198.51.100.0/24".parse().unwrap());
    let rules = |first: Rule| vec![first, Rule::all(lookup(0))];
    let from_service = Rule { from: Some("10.96.0.0/16".parse().unwrap()), ..Rule::all(lookup(1)) };
    for (first, passes) in [
        (Rule::all(lookup(0)), false),
        (from_service, true),
        (Rule { to: to_client(), ..Rule::all(RuleAction::Kernel) }, true),
        (Rule { to: to_client(), opaque: true, ..Rule::all(RuleAction::Blackhole) }, true),
        (Rule { to: to_client(), ..Rule::all(RuleAction::Blackhole) }, false),
    ] {
        let mut w = world();
        let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
        let near = vec![Neighbour { port: PODS, addr: ip("192.168.1.1"), mac: [7; 6] }];
        let main = vec![route("192.168.0.0/16", on_link(PODS)), route("10.0.0.0/24", on_link(CLIENTS))];
        let other = vec![route("198.51.100.0/24", on_link(CLIENTS)), route("192.168.0.0/16", on_link(PODS))];
        let v4 = Policy { tables: vec![main, other], rules: rules(first.clone()) };
        let internal = Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
        w.routes = Routes::with_policies(2, ports, internal, [v4, Policy::default()], &near).0.with_reverse_path([ReversePath::Strict; 2]);
        let verdict = w.run(CLIENTS, &spec("udp", "198.51.100.7:40000", "10.96.0.1:80", 0).frame()).verdict;
        assert_eq!(verdict != Verdict::Drop(Reason::ReversePath), passes, "{first:?}: {verdict:?}");
    }
}

#[test]
fn the_node_itself_and_everybody_else_goes_on() {
    for source in OWN.into_iter().chain(LINK_LOCAL) {
        for packet in &packets(source)[..4] {
            let mut frame = packet.frame();
            frame[..6].copy_from_slice(&KERNEL_MAC);
            let mut w = world();
            assert!(matches!(w.run(INTERNAL, &frame).verdict, Verdict::Forward(..)), "{packet:?} from this node");
        }
    }
    for source in HONEST {
        for packet in &packets(source)[..4] {
            for port in [CLIENTS, PODS, INTERNAL] {
                let mut w = world();
                assert!(matches!(w.run(port, &packet.frame()).verdict, Verdict::Forward(..)), "{packet:?} by {port:?}");
            }
        }
    }
}

#[test]
fn options_are_carried_but_source_routes_and_unreadable_ones() {
    // Record route, timestamp, router alert, NOP; the end of the list, after which anything may come; an unknown one.
    let carried: &[&[u8]] = &[
        &[1; 40],
        &[0, 0, 0, 0],
        &[0, 131, 7, 4],
        &[1, 1, 0, 137],
        &[7, 7, 4, 0, 0, 0, 0, 1],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[148, 4, 0, 0],
        &[148, 4, 0, 0, 1, 148, 2, 0],
        &[99, 4, 131, 137],
        &[200, 12, 131, 3, 4, 137, 3, 4, 0, 0, 0, 0],
    ];
    let refused: &[&[u8]] = &[
        &[131, 3, 4, 0],
        &[137, 7, 4, 10, 0, 0, 9, 0],
        &[1, 1, 1, 131],
        &[1, 148, 4, 0, 0, 137, 3, 4],
        // Shorter than itself, longer than the list, cut off before its length.
        &[148, 0, 0, 0],
        &[148, 1, 0, 0],
        &[148, 5, 0, 0],
        &[7, 255, 4, 0],
        &[1, 1, 1, 148],
    ];
    for proto in ["tcp", "udp"] {
        let plain = spec(proto, "10.0.0.2:40000", "10.96.0.1:80", SYN);
        for options in carried {
            let frame = with_ipv4_options(&plain.frame(), options);
            let done = world().run(CLIENTS, &frame);
            assert!(matches!(done.verdict, Verdict::Forward(..)), "{options:?}: {:?}", done.verdict);
            let seen = read(&done.bytes).unwrap();
            assert_eq!(
                (seen.payload, &done.bytes[34..34 + options.len()]),
                (read(&plain.frame()).unwrap().payload, *options),
                "as they came"
            );
        }
        for options in refused {
            let mut w = world();
            let done = w.run(CLIENTS, &with_ipv4_options(&plain.frame(), options));
            assert_eq!((done.verdict, w.live()), (Verdict::Kernel(Reason::Ipv4Options), 0), "{options:?}");
        }
    }
}
