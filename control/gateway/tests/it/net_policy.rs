//! The mirror follows rules, tables, next hop objects and MTUs of routes, with a real kernel. Random ones are in `routing.rs`.

use nomagic::net::{Mirror, MirrorLimits};
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{Resolution, RouteQuery, Routes};
use nomagic_core::tuple::{Proto, addr_words};

use crate::net::{Net, asks, ip, nowhere, until};

/// The way of a packet from 10.1.0.2 that came in by `a0`.
fn way_from_a(routes: &Routes, dst: &str) -> Resolution {
    let ((src, v6), (dst, _)) = (addr_words(ip("10.1.0.2")), addr_words(ip(dst)));
    let query = RouteQuery { src, dst, v6, port: PortId(0), proto: Proto::Udp, sport: 1_000, dport: 53 };
    routes.resolve_with(&query, || 0).0
}

#[test]
fn the_mirror_follows_rules_and_their_tables() {
    let net = Net::new("rules");
    let steps = |words: &str| net.gw.ip(words).unwrap();
    steps("route add default via 10.1.0.2");
    steps("route add default via 10.2.0.2 table 100");
    let by_a = |wanted: Resolution| move |routes: &Routes, _| way_from_a(routes, "9.9.9.9") == wanted;
    let ask = |port, addr: &str| Resolution::Ask(Wanted { port: PortId(port), addr: ip(addr) });
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            until(&mut mirror, "9.9.9.9", by_a(ask(0, "10.1.0.2"))).await;
            steps("rule add iif a0 lookup 100 pref 1000");
            until(&mut mirror, "9.9.9.9", by_a(ask(1, "10.2.0.2"))).await;
            // Of a packet that did not come in by a0.
            until(&mut mirror, "9.9.9.9", asks(0, "10.1.0.2")).await;
            steps("route replace unreachable default table 100");
            until(&mut mirror, "9.9.9.9", by_a(Resolution::Nowhere(Reason::Unreachable))).await;
            assert!(mirror.left_to_kernel().is_empty());
            steps("rule add from 10.1.0.0/24 tos 0x10 lookup 100 pref 900");
            until(&mut mirror, "9.9.9.9", by_a(Resolution::Kernel { captured: true })).await;
            let left = mirror.left_to_kernel();
            assert!(left.len() == 1 && left[0].starts_with("`ip rule` 900 has a selector that nomagic cannot evaluate"), "{left:?}");
            steps("rule del pref 900");
            steps("rule del pref 1000");
            until(&mut mirror, "9.9.9.9", by_a(ask(0, "10.1.0.2"))).await;
            assert_eq!(mirror.counters().malformed, 0);
        })
        .unwrap();
}

#[test]
fn the_mirror_follows_next_hop_objects_and_route_mtus() {
    let net = Net::new("nexthops");
    let steps = |words: &str| net.gw.ip(words).unwrap();
    steps("nexthop add id 1 via 10.1.0.2 dev a0");
    steps("nexthop add id 2 via 10.2.0.2 dev b0");
    steps("nexthop add id 10 group 1/2");
    steps("route add 10.60.0.0/16 nhid 10");
    steps("route add 10.61.0.0/16 via 10.1.0.2 metric 200");
    steps("route add 10.61.0.0/16 nhid 2 metric 10");
    steps("route add 10.62.0.0/16 via 10.2.0.2 mtu 1400");
    steps("neigh replace 10.2.0.2 lladdr 02:00:00:00:00:77 dev b0 nud permanent");
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            let mtu = |dst: &'static str, mtu| {
                move |routes: &Routes, _| match routes.resolve(ip(dst), 0) {
                    Resolution::Hop(id) => routes.hop(id).is_some_and(|hop| hop.mtu == mtu),
                    _ => false,
                }
            };
            until(&mut mirror, "10.61.0.1", mtu("10.61.0.1", 1_500)).await;
            until(&mut mirror, "10.62.0.1", mtu("10.62.0.1", 1_400)).await;
            // The kernel deletes routes by this object, and takes it out of its group, without telling so.
            steps("nexthop del id 2");
            until(&mut mirror, "10.61.0.1", asks(0, "10.1.0.2")).await;
            let all_by_a = |routes: &Routes, _| {
                (0..64).all(|i| {
                    routes.resolve(ip("10.60.0.1"), i << 58 | i << 26) == Resolution::Ask(Wanted { port: PortId(0), addr: ip("10.1.0.2") })
                })
            };
            until(&mut mirror, "10.60.0.1", all_by_a).await;
            steps("nexthop replace id 1 via 10.1.0.9 dev a0");
            until(&mut mirror, "10.60.0.1", asks(0, "10.1.0.9")).await;
            steps("nexthop flush");
            until(&mut mirror, "10.60.0.1", nowhere(Reason::NoRoute)).await;
            assert_eq!(mirror.counters().malformed, 0);
        })
        .unwrap();
}
