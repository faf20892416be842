//! The mirrored tables, fed with constructed messages.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{Leg, Resolution, RouteKind};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteLwEnCapType, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
};

use super::node::usable;
use super::state::{Effect, MirrorLimits, NetState};

const CL0: u32 = 2;
const PODS0: u32 = 3;
const OTHER: u32 = 9;

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn ports() -> Vec<String> {
    vec!["cl0".into(), "pods0".into()]
}

fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
    let mut m = LinkMessage::default();
    m.header.index = index;
    m.header.flags = flags;
    m.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]), LinkAttribute::Mtu(1500)];
    m
}

fn up() -> LinkFlags {
    LinkFlags::Up | LinkFlags::LowerUp
}

fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn address(a: IpAddr) -> RouteAddress {
    match a {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

/// A unicast route of the main table: `prefix [via gateway] dev link`.
fn route(prefix: &str, via: Option<&str>, link: u32) -> RouteMessage {
    let (addr, len) = prefix.split_once('/').unwrap();
    let mut m = RouteMessage::default();
    m.header.address_family = family(ip(addr));
    m.header.destination_prefix_length = len.parse().unwrap();
    m.header.table = 254;
    m.header.kind = RouteType::Unicast;
    if !ip(addr).is_unspecified() {
        m.attributes.push(RouteAttribute::Destination(address(ip(addr))));
    }
    m.attributes.push(RouteAttribute::Oif(link));
    m.attributes.extend(via.map(|g| RouteAttribute::Gateway(address(ip(g)))));
    m
}

fn local(prefix: &str) -> RouteMessage {
    let mut m = route(prefix, None, 1);
    (m.header.table, m.header.kind) = (255, RouteType::Local);
    m
}

fn neighbour(link: u32, addr: &str, mac: u8, state: NeighbourState) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = family(ip(addr));
    m.header.ifindex = link;
    m.header.state = state;
    m.attributes =
        vec![NeighbourAttribute::Destination(NeighbourAddress::from(ip(addr))), NeighbourAttribute::LinkLayerAddress(vec![mac; 6])];
    m
}

/// Two ports and one other interface, all up.
fn state() -> NetState {
    let mut state = NetState::new(MirrorLimits::default());
    for (index, name) in [(CL0, "cl0"), (PODS0, "pods0"), (OTHER, "eth9")] {
        assert_eq!(state.apply(&Message::NewLink(link(index, name, up())), false), Effect::Changed);
    }
    state
}

fn add(state: &mut NetState, m: RouteMessage) -> Effect {
    state.apply(&Message::NewRoute(m), false)
}

fn way(state: &NetState, dst: &str) -> Resolution {
    state.inputs(&ports(), &BTreeSet::new()).build(1, None).0.resolve(ip(dst), 0)
}

fn ask(port: u16, addr: &str) -> Resolution {
    Resolution::Ask(Wanted { port: PortId(port), addr: ip(addr) })
}

#[test]
fn routes_of_every_kind_are_resolved() {
    let mut s = state();
    for m in [route("0.0.0.0/0", Some("10.0.0.254"), CL0), route("192.168.0.0/16", None, PODS0), route("172.16.0.0/12", None, OTHER)] {
        assert_eq!(add(&mut s, m), Effect::Changed);
    }
    add(&mut s, route("::/0", Some("fe80::1"), PODS0));
    let kinds = [
        (RouteType::BlackHole, Reason::RouteBlackhole),
        (RouteType::Unreachable, Reason::Unreachable),
        (RouteType::Prohibit, Reason::RouteProhibited),
        (RouteType::Throw, Reason::NoRoute),
    ];
    for (i, (kind, reason)) in kinds.into_iter().enumerate() {
        let mut m = route(&format!("10.{i}.0.0/16"), None, 1);
        m.header.kind = kind;
        add(&mut s, m);
        assert_eq!(way(&s, &format!("10.{i}.1.1")), Resolution::Nowhere(reason));
    }
    let mut via = route("10.77.0.0/16", None, PODS0);
    via.attributes.push(RouteAttribute::Via(RouteVia::from(ip("fe80::7"))));
    add(&mut s, via);
    assert_eq!(way(&s, "8.8.8.8"), ask(0, "10.0.0.254"));
    assert_eq!(way(&s, "192.168.1.1"), ask(1, "192.168.1.1"));
    assert_eq!(way(&s, "2001:db8::1"), ask(1, "fe80::1"));
    assert_eq!(way(&s, "10.77.1.1"), ask(1, "fe80::7"));
    assert_eq!(way(&s, "172.16.0.1"), Resolution::Kernel { captured: false }, "an interface that is not a port");
    for scoped in ["fe80::99", "ff02::1", "224.0.0.5"] {
        assert_eq!(way(&s, scoped), Resolution::Kernel { captured: false }, "{scoped} is link-scoped");
    }
}

#[test]
fn multipath_keeps_weights_and_skips_dead_legs() {
    let hop = |link, gateway: &str, hops, flags| {
        let mut hop = RouteNextHop::default();
        (hop.interface_index, hop.hops, hop.flags) = (link, hops, flags);
        hop.attributes.push(RouteAttribute::Gateway(address(ip(gateway))));
        hop
    };
    let mut m = route("10.9.0.0/16", None, CL0);
    m.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)));
    m.attributes.push(RouteAttribute::MultiPath(vec![
        hop(CL0, "10.0.0.1", 0, RouteNextHopFlags::empty()),
        hop(PODS0, "10.0.1.1", 9, RouteNextHopFlags::Linkdown),
        hop(OTHER, "10.0.2.1", 1, RouteNextHopFlags::Dead),
    ]));
    let mut s = state();
    add(&mut s, m);
    let leg =
        |port, gateway: &str, weight| Leg { port: Some(PortId(port)), captured: false, gateway: Some(ip(gateway)), weight, mtu: None };
    let found = s
        .inputs(&ports(), &BTreeSet::new())
        .policies
        .into_iter()
        .flat_map(|policy| policy.tables)
        .flatten()
        .find(|r| r.prefix.to_string() == "10.9.0.0/16")
        .unwrap();
    assert_eq!(found.kind, RouteKind::Unicast(vec![leg(0, "10.0.0.1", 1), leg(1, "10.0.1.1", 10)]));
}

#[test]
fn a_dead_route_falls_back_to_the_next_metric() {
    let mut s = state();
    let mut first = route("10.9.0.0/16", Some("10.0.0.1"), CL0);
    first.attributes.push(RouteAttribute::Priority(10));
    let mut second = route("10.9.0.0/16", Some("10.0.0.2"), PODS0);
    second.attributes.push(RouteAttribute::Priority(20));
    add(&mut s, second);
    add(&mut s, first.clone());
    assert_eq!(way(&s, "10.9.0.1"), ask(0, "10.0.0.1"));
    first.header.flags = RouteFlags::Dead;
    assert_eq!(s.apply(&Message::NewRoute(first), true), Effect::Changed);
    assert_eq!(way(&s, "10.9.0.1"), ask(1, "10.0.0.2"));
}

#[test]
fn the_local_table_precedes_longer_prefixes_of_main() {
    let mut s = state();
    add(&mut s, local("10.8.0.0/16"));
    add(&mut s, route("10.8.1.0/24", None, CL0));
    add(&mut s, route("10.9.0.0/16", None, CL0));
    let mut broadcast = local("10.9.255.255/32");
    broadcast.header.kind = RouteType::Broadcast;
    add(&mut s, broadcast);
    assert_eq!(way(&s, "10.8.1.1"), Resolution::Kernel { captured: false });
    assert_eq!(way(&s, "10.9.1.1"), ask(0, "10.9.1.1"));
    assert_eq!(way(&s, "10.9.255.255"), Resolution::Kernel { captured: false });
}

#[test]
fn routes_with_other_selectors_are_left_to_the_kernel() {
    let mut s = state();
    let mut tos = route("10.9.0.0/16", None, CL0);
    tos.header.tos = 8;
    let mut source = route("fd09::/64", None, CL0);
    source.header.source_prefix_length = 64;
    let mut without_interface = route("10.8.0.0/16", None, CL0);
    without_interface.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)));
    assert!(s.left_to_kernel().is_empty());
    for (m, dst) in [(tos, "10.9.0.1"), (source, "fd09::1"), (without_interface, "10.8.0.1")] {
        assert_eq!(add(&mut s, m), Effect::Changed);
        assert_eq!(way(&s, dst), Resolution::Kernel { captured: true });
    }
    let left = s.left_to_kernel();
    assert!(left.len() == 1 && left[0].starts_with("routes to 10.8.0.0/16 (and 2 more) have a TOS"), "{left:?}");
    let mut other_table = route("10.10.0.0/16", None, CL0);
    other_table.attributes.push(RouteAttribute::Table(1000));
    assert_eq!(add(&mut s, other_table), Effect::Changed);
    assert_eq!(way(&s, "10.10.0.1"), Resolution::Nowhere(Reason::NoRoute), "no rule leads to its table");
    let mut own_table = route("10.13.0.0/16", None, CL0);
    own_table.attributes.push(RouteAttribute::Table(super::local::SERVICES_TABLE));
    let mut cached = route("10.11.0.0/16", None, CL0);
    cached.header.flags = RouteFlags::Cloned;
    for m in [own_table, cached] {
        assert_eq!(add(&mut s, m), Effect::Nothing);
    }
    let mut tunnel = route("10.12.0.0/16", None, CL0);
    tunnel.attributes.push(RouteAttribute::EncapType(RouteLwEnCapType::Mpls));
    add(&mut s, tunnel);
    assert_eq!(way(&s, "10.12.0.1"), Resolution::Kernel { captured: false }, "only the kernel can add the tunnel header");
}

#[test]
fn ambiguous_notifications_require_a_new_dump() {
    let mut s = state();
    let (a, b, c) =
        (route("10.9.0.0/16", Some("10.0.0.1"), CL0), route("10.9.0.0/16", Some("10.0.0.2"), CL0), route("10.9.0.0/16", None, CL0));
    assert_eq!(add(&mut s, a.clone()), Effect::Changed);
    assert_eq!(add(&mut s, a.clone()), Effect::Nothing);
    assert_eq!(s.apply(&Message::NewRoute(b.clone()), true), Effect::Changed, "replaced");
    assert_eq!(add(&mut s, a.clone()), Effect::ReadRoutes, "appended or prepended");
    assert_eq!(s.apply(&Message::DelRoute(c), false), Effect::ReadRoutes, "one leg of several");
    let listing = [Message::NewRoute(a.clone()), Message::NewRoute(b.clone())];
    assert_eq!(s.replace_routes(&listing), Effect::Changed);
    assert_eq!(s.replace_routes(&listing), Effect::Nothing);
    assert_eq!(way(&s, "10.9.0.1"), ask(0, "10.0.0.1"), "the kernel uses the first one");
    assert_eq!(s.apply(&Message::DelRoute(a), false), Effect::ReadRoutes);
    assert_eq!(s.replace_routes(&[Message::NewRoute(b.clone())]), Effect::Changed);
    assert_eq!(s.apply(&Message::DelRoute(b.clone()), false), Effect::Changed);
    assert_eq!(s.apply(&Message::DelRoute(b), false), Effect::Nothing);
    assert_eq!(way(&s, "10.9.0.1"), Resolution::Nowhere(Reason::NoRoute));
}

#[test]
fn interfaces_are_removed_and_recreated() {
    let mut s = state();
    add(&mut s, route("10.9.0.0/16", None, CL0));
    s.apply(&Message::NewNeighbour(neighbour(CL0, "10.9.0.1", 7, NeighbourState::Reachable)), false);
    assert_eq!(s.apply(&Message::NewLink(link(CL0, "cl0", up())), false), Effect::Nothing);
    assert_eq!(s.apply(&Message::NewLink(link(CL0, "cl0", LinkFlags::Up)), false), Effect::ReadRoutes, "no carrier");
    assert_eq!(way(&s, "10.9.0.1"), Resolution::Nowhere(Reason::PortDown));
    let mut bridge_port = link(CL0, "cl0", up());
    bridge_port.header.interface_family = AddressFamily::Bridge;
    assert_eq!(s.apply(&Message::DelLink(bridge_port), false), Effect::Nothing, "it only left a bridge");
    assert_eq!(s.apply(&Message::DelLink(link(CL0, "cl0", up())), false), Effect::ReadRoutes);
    let inputs = s.inputs(&ports(), &BTreeSet::new());
    assert!(!inputs.ports[0].up && inputs.ports[1].up && inputs.neighbours.is_empty());
    // Re-created with another index.
    s.apply(&Message::NewLink(link(77, "cl0", up())), false);
    s.replace_routes(&[Message::NewRoute(route("10.9.0.0/16", None, 77))]);
    assert_eq!(way(&s, "10.9.0.1"), ask(0, "10.9.0.1"));
}

#[test]
fn routine_neighbour_transitions_are_not_changes() {
    let mut s = state();
    add(&mut s, route("10.9.0.0/16", None, CL0));
    let mut tell = |state, mac| s.apply(&Message::NewNeighbour(neighbour(CL0, "10.9.0.1", mac, state)), false);
    assert_eq!(tell(NeighbourState::Incomplete, 0), Effect::Nothing);
    assert_eq!(tell(NeighbourState::Reachable, 7), Effect::Changed);
    for state in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe, NeighbourState::Reachable, NeighbourState::Permanent]
    {
        assert_eq!(tell(state, 7), Effect::Nothing, "{state:?}");
    }
    assert_eq!(tell(NeighbourState::Stale, 8), Effect::Changed, "another MAC address");
    assert_eq!(s.stale(&ports(), 9), [Wanted { port: PortId(0), addr: ip("10.9.0.1") }]);
    assert!(s.stale(&ports(), 0).is_empty());
    let (routes, left_out) = s.inputs(&ports(), &BTreeSet::new()).build(1, None);
    assert_eq!(left_out, 0);
    let Resolution::Hop(hop) = routes.resolve(ip("10.9.0.1"), 0) else { panic!("not resolved") };
    assert_eq!((routes.hop(hop).unwrap().dst_mac(), routes.hop(hop).unwrap().src_mac()), ([8; 6], [2, 0, 0, 0, 0, CL0 as u8]));
    let mut failed = |state| s.apply(&Message::NewNeighbour(neighbour(CL0, "10.9.0.1", 8, state)), false);
    assert_eq!(failed(NeighbourState::Failed), Effect::Changed);
    assert_eq!(failed(NeighbourState::Failed), Effect::Nothing);
    assert_eq!(way(&s, "10.9.0.1"), ask(0, "10.9.0.1"));
}

#[test]
fn entries_that_are_not_neighbours_are_ignored() {
    let mut s = state();
    let mut proxy = neighbour(CL0, "10.9.0.1", 7, NeighbourState::Permanent);
    proxy.header.flags = NeighbourFlags::Proxy;
    let mut forwarding = neighbour(CL0, "10.9.0.1", 7, NeighbourState::Permanent);
    forwarding.attributes.remove(0);
    let mut infiniband = neighbour(CL0, "10.9.0.1", 7, NeighbourState::Permanent);
    infiniband.attributes[1] = NeighbourAttribute::LinkLayerAddress(vec![7; 20]);
    let mut multicast = neighbour(CL0, "224.0.0.5", 7, NeighbourState::Noarp);
    multicast.attributes[1] = NeighbourAttribute::LinkLayerAddress(vec![1, 0, 0x5e, 0, 0, 5]);
    for m in [proxy, forwarding, infiniband, multicast] {
        s.apply(&Message::NewNeighbour(m), false);
    }
    assert!(s.inputs(&ports(), &BTreeSet::new()).neighbours.is_empty());
}

#[test]
fn every_table_is_limited() {
    let mut s = NetState::new(MirrorLimits { routes_max: 2, neighbours_max: 1, links_max: 1, ..MirrorLimits::default() });
    s.apply(&Message::NewLink(link(CL0, "cl0", up())), false);
    assert_eq!(s.apply(&Message::NewLink(link(PODS0, "pods0", up())), false), Effect::Nothing);
    for n in 0..4 {
        add(&mut s, route(&format!("10.{n}.0.0/16"), None, CL0));
        s.apply(&Message::NewNeighbour(neighbour(CL0, &format!("10.0.0.{n}"), 7, NeighbourState::Reachable)), false);
    }
    assert_eq!((s.left_out.routes, s.left_out.neighbours, s.left_out.links), (2, 3, 1));
    assert_eq!(s.inputs(&ports(), &BTreeSet::new()).neighbours.len(), 1);
    assert_eq!(way(&s, "10.3.0.1"), Resolution::Nowhere(Reason::NoRoute));
    assert_eq!(s.apply(&Message::DelRoute(route("10.0.0.0/16", None, CL0)), false), Effect::ReadRoutes, "below the limit again");
    let listing: Vec<_> = (1..4).map(|n| Message::NewRoute(route(&format!("10.{n}.0.0/16"), None, CL0))).collect();
    s.replace_routes(&listing);
    assert_eq!(way(&s, "10.2.0.1"), ask(0, "10.2.0.1"));
    assert_eq!(s.left_out.routes, 3);
}

#[test]
fn own_addresses_are_those_reachable_from_other_nodes() {
    let mut s = state();
    let own = |index, addr: &str, scope, flags: u8| {
        let mut m = AddressMessage::default();
        (m.header.index, m.header.scope) = (index, scope);
        m.header.flags = rtnetlink::packet_route::address::AddressHeaderFlags::from_bits_retain(flags);
        m.attributes.push(AddressAttribute::Address(ip(addr)));
        m
    };
    let mut point_to_point = own(OTHER, "10.5.0.2", AddressScope::Universe, 0x80);
    point_to_point.attributes.push(AddressAttribute::Local(ip("10.5.0.1")));
    let told = [
        own(1, "127.0.0.1", AddressScope::Host, 0x80),
        own(1, "127.0.0.53", AddressScope::Universe, 0x80),
        own(CL0, "10.0.0.2", AddressScope::Universe, 0x81),
        own(CL0, "10.0.0.1", AddressScope::Universe, 0x80),
        own(CL0, "fe80::1", AddressScope::Link, 0x80),
        own(CL0, "fd00::1", AddressScope::Universe, 0x80),
        own(CL0, "fd00::2", AddressScope::Universe, 0xc0),
        point_to_point,
    ];
    for m in &told {
        assert_eq!(s.apply(&Message::NewAddress(m.clone()), false), Effect::Changed);
    }
    assert_eq!(usable(&s), ["10.0.0.1", "fd00::1", "10.5.0.1", "10.0.0.2"].map(ip));
    assert_eq!(
        s.apply(&Message::NewAddress(own(CL0, "fd00::2", AddressScope::Universe, 0x80)), false),
        Effect::Changed,
        "no longer tentative"
    );
    assert!(usable(&s).contains(&ip("fd00::2")));
    assert_eq!(s.apply(&Message::DelAddress(told[3].clone()), false), Effect::ReadRoutes);
    assert!(!usable(&s).contains(&ip("10.0.0.1")));
    assert_eq!(s.apply(&Message::DelAddress(told[3].clone()), false), Effect::Nothing);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn serving_interfaces_have_node_addresses_or_routes_to_pods() {
    let mut s = state();
    let (lo, nm0, cali, down, tun, pods1) = (1, 20, 21, 22, 23, 24);
    for (index, name, flags) in [(lo, "lo", up()), (nm0, "nm0", up()), (cali, "cali1", up()), (down, "eth3", LinkFlags::empty())] {
        s.apply(&Message::NewLink(link(index, name, flags)), false);
    }
    s.apply(&Message::NewLink(link(pods1, "pods1", up())), false);
    let mut tunnel = link(tun, "tunl0", up());
    tunnel.attributes[1] = LinkAttribute::Address(vec![10, 0, 0, 1]);
    s.apply(&Message::NewLink(tunnel), false);
    let mut own = |index, addr: &str, scope| {
        let mut m = AddressMessage::default();
        (m.header.index, m.header.scope) = (index, scope);
        m.attributes.push(AddressAttribute::Address(ip(addr)));
        s.apply(&Message::NewAddress(m), false);
    };
    for (index, addr) in [(CL0, "10.0.0.1"), (CL0, "fd00::1"), (lo, "10.0.0.7"), (nm0, "10.0.0.8"), (down, "10.0.0.9"), (tun, "10.244.0.1")]
    {
        own(index, addr, AddressScope::Universe);
    }
    own(OTHER, "10.9.9.9", AddressScope::Universe);
    own(PODS0, "10.0.0.10", AddressScope::Link);
    let all: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.0.10", "10.244.0.1"].map(ip).into();
    let found = |s: &NetState, own: &[IpAddr], pods: &[&str]| {
        let prefix = |p: &&str| nomagic_table::objects::addr::parse_cidr(p).unwrap();
        s.serving_interfaces(own, &pods.iter().map(prefix).collect::<Vec<_>>(), &["nm0", "nm1"]).join(" ")
    };
    assert_eq!(found(&s, &all, &[]), "cl0", "up, Ethernet, not nomagic's, and with an address reachable from other nodes");
    assert_eq!(found(&s, &[ip("10.9.9.9")], &[]), "eth9");
    assert_eq!(found(&s, &[], &["10.244.0.0/16"]), "", "no route leads there");

    let two_legs = {
        let mut m = route("10.244.8.0/24", None, PODS0);
        let hop = |link, gateway: &str| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = link;
            hop.attributes.push(RouteAttribute::Gateway(address(ip(gateway))));
            hop
        };
        m.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)));
        m.attributes.push(RouteAttribute::MultiPath(vec![hop(PODS0, "10.0.1.1"), hop(pods1, "10.0.2.1")]));
        m
    };
    let backup = {
        let mut m = route("10.244.3.0/24", Some("10.0.2.9"), pods1);
        m.attributes.push(RouteAttribute::Priority(500));
        m
    };
    // Route, the interfaces that lead to 10.244.0.0/16 and fd44::/48 with it alone.
    let table = [
        (route("10.244.1.0/24", Some("10.0.0.3"), CL0), "cl0"),
        (route("10.244.1.0/24", None, PODS0), "pods0"),
        (route("10.244.0.0/16", None, PODS0), "pods0"),
        (route("0.0.0.0/0", Some("10.0.0.254"), OTHER), "eth9"),
        (route("::/0", Some("fe80::1"), OTHER), "eth9"),
        (route("fd44:0:0:7::/64", None, PODS0), "pods0"),
        (route("10.245.0.0/24", None, PODS0), ""),
        (route("fd45::/64", None, PODS0), ""),
        (route("10.244.1.5/32", None, cali), ""),
        (route("10.244.1.5/32", Some("10.0.0.3"), CL0), "cl0"),
        (route("10.244.2.0/24", None, tun), ""),
        (route("10.244.2.0/24", None, down), ""),
        (route("10.244.2.0/24", None, nm0), ""),
        (local("10.244.2.1/32"), ""),
        (two_legs, "pods0 pods1"),
        (backup, "pods1"),
    ];
    for (m, want) in table {
        s.replace_routes(&[Message::NewRoute(m.clone())]);
        assert_eq!(found(&s, &[], &["10.244.0.0/16", "fd44::/48"]), want, "{m:?}");
    }
    let both =
        [route("0.0.0.0/0", Some("10.0.0.254"), OTHER), route("10.0.0.0/8", Some("10.0.0.3"), CL0), route("10.244.7.0/24", None, PODS0)];
    s.replace_routes(&both.map(Message::NewRoute));
    assert_eq!(found(&s, &[], &["10.244.0.0/16"]), "cl0 pods0", "the rest of the range uses the longest covering route");
    assert_eq!(found(&s, &all, &["10.244.0.0/16"]), "cl0 pods0", "each once");
}
