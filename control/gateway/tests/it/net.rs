//! The mirror, neighbour resolution, the internal port and the node's checks with a real kernel, in separate namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use nomagic::net::{Mirror, MirrorLimits, NetError, ResolveOutcome, internal, node};
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Resolution};
use nomagic_core::tuple::Prefix;
use nomagic_testbed::rig::{Netns, cable};
use nomagic_xsk::InterfaceName;

/// Addresses that the kernel sends into the internal pair.
const ROUTED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 78, 78)), IpAddr::V6(std::net::Ipv6Addr::new(0xfd4e, 0, 0, 0, 0, 0, 0, 0x78))];

pub(super) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// A gateway with `a0` and `b0`, each connected to a separate namespace.
pub(super) struct Net {
    pub(super) gw: Netns,
    a: Netns,
    b: Netns,
}

impl Net {
    pub(super) fn new(tag: &str) -> Net {
        let net = Net { gw: Netns::new(tag).unwrap(), a: Netns::new(tag).unwrap(), b: Netns::new(tag).unwrap() };
        cable(&net.gw, "a0", &net.a, "eth0", 1).unwrap();
        cable(&net.gw, "b0", &net.b, "eth0", 1).unwrap();
        for (ns, interface, v4, v6) in [
            (&net.gw, "a0", "10.1.0.1/24", "fd01::1/64"),
            (&net.gw, "b0", "10.2.0.1/24", "fd02::1/64"),
            (&net.a, "eth0", "10.1.0.2/24", "fd01::2/64"),
            (&net.b, "eth0", "10.2.0.2/24", "fd02::2/64"),
        ] {
            ns.ip(&format!("addr add {v4} dev {interface}")).unwrap();
            ns.ip(&format!("addr add {v6} dev {interface} nodad")).unwrap();
        }
        net
    }
}

fn ports() -> Vec<String> {
    vec!["a0".into(), "b0".into()]
}

/// Waits until a destination resolves as wanted.
pub(super) async fn until(mirror: &mut Mirror, dst: &str, want: impl Fn(&nomagic_core::routes::Routes, Resolution) -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let routes = mirror.routes(1, &ports(), &BTreeSet::new(), None);
        let way = routes.resolve(ip(dst), 0);
        if want(&routes, way) {
            return;
        }
        let left = end.saturating_duration_since(Instant::now());
        let heard = tokio::time::timeout(left, mirror.changed()).await;
        heard.unwrap_or_else(|_| panic!("{dst} still goes {way:?}: {:?}", mirror.counters())).unwrap();
    }
}

pub(super) fn asks(port: u16, addr: &str) -> impl Fn(&nomagic_core::routes::Routes, Resolution) -> bool {
    let want = Resolution::Ask(Wanted { port: PortId(port), addr: ip(addr) });
    move |_, way| way == want
}

pub(super) fn nowhere(reason: Reason) -> impl Fn(&nomagic_core::routes::Routes, Resolution) -> bool {
    move |_, way| way == Resolution::Nowhere(reason)
}

fn hop(port: u16, mac: [u8; 6]) -> impl Fn(&nomagic_core::routes::Routes, Resolution) -> bool {
    move |routes, way| match way {
        Resolution::Hop(id) => routes.hop(id).is_some_and(|h| (h.port, h.dst_mac()) == (PortId(port), mac)),
        _ => false,
    }
}

#[test]
fn the_mirror_follows_every_kind_of_route() {
    let net = Net::new("routes");
    let steps = |words: &str| net.gw.ip(words).unwrap();
    steps("route add 10.50.0.0/16 via 10.1.0.2");
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            until(&mut mirror, "10.50.0.1", asks(0, "10.1.0.2")).await;
            until(&mut mirror, "10.1.0.77", asks(0, "10.1.0.77")).await;
            until(&mut mirror, "10.1.0.1", |_, way| way == Resolution::Kernel { captured: false }).await;
            until(&mut mirror, "fd02::1", |_, way| way == Resolution::Kernel { captured: false }).await;
            until(&mut mirror, "9.9.9.9", nowhere(Reason::NoRoute)).await;
            steps("route replace 10.50.0.0/16 via 10.2.0.2");
            until(&mut mirror, "10.50.0.1", asks(1, "10.2.0.2")).await;
            steps("route add 10.50.7.0/24 via 10.1.0.2 metric 5");
            until(&mut mirror, "10.50.7.1", asks(0, "10.1.0.2")).await;
            steps("route add blackhole 10.50.7.128/25");
            until(&mut mirror, "10.50.7.200", nowhere(Reason::RouteBlackhole)).await;
            steps("route add unreachable 10.51.0.0/16");
            until(&mut mirror, "10.51.0.1", nowhere(Reason::Unreachable)).await;
            steps("route add prohibit 10.52.0.0/16");
            until(&mut mirror, "10.52.0.1", nowhere(Reason::RouteProhibited)).await;
            steps("route add 10.53.0.0/16 via inet6 fe80::99 dev b0");
            until(&mut mirror, "10.53.0.1", asks(1, "fe80::99")).await;
            steps("route add 10.54.0.0/16 via 10.99.0.9 dev a0 onlink");
            until(&mut mirror, "10.54.0.1", asks(0, "10.99.0.9")).await;
            steps("-6 route add default via fe80::42 dev b0");
            until(&mut mirror, "2001:db8::1", asks(1, "fe80::42")).await;
            steps("-6 route add blackhole fd77::/64");
            until(&mut mirror, "fd77::1", nowhere(Reason::RouteBlackhole)).await;
            steps("route add 10.50.7.0/24 via 10.2.0.2 metric 4");
            until(&mut mirror, "10.50.7.1", asks(1, "10.2.0.2")).await;
            steps("route del 10.50.7.0/24 metric 4");
            until(&mut mirror, "10.50.7.1", asks(0, "10.1.0.2")).await;
            steps("route del 10.50.7.0/24 metric 5");
            until(&mut mirror, "10.50.7.1", asks(1, "10.2.0.2")).await;
            steps("route del 10.50.0.0/16");
            until(&mut mirror, "10.50.0.1", nowhere(Reason::NoRoute)).await;
            assert_eq!(mirror.counters().malformed, 0);
        })
        .unwrap();
}

#[test]
fn the_mirror_follows_multipath_and_its_single_legs() {
    let net = Net::new("multipath");
    let steps = |words: &str| net.gw.ip(words).unwrap();
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            for (dst, prefix, via) in
                [("10.60.0.1", "10.60.0.0/16", ["10.1.0.2", "10.2.0.2"]), ("fd60::1", "fd60::/64", ["fd01::2", "fd02::2"])]
            {
                let family = if dst.contains(':') { "-6" } else { "-4" };
                steps(&format!("{family} route add {prefix} nexthop via {} weight 3 nexthop via {}", via[0], via[1]));
                let mut counts = [0u32; 2];
                until(&mut mirror, dst, |_, way| matches!(way, Resolution::Ask(_))).await;
                let routes = mirror.routes(1, &ports(), &BTreeSet::new(), None);
                let mut hash = 1;
                for _ in 0..4_000 {
                    match routes.resolve(ip(dst), nomagic_core::tuple::splitmix64(&mut hash)) {
                        Resolution::Ask(w) if w.addr == ip(via[usize::from(w.port.0)]) => counts[usize::from(w.port.0)] += 1,
                        other => panic!("{other:?}"),
                    }
                }
                assert!((2_850..3_150).contains(&counts[0]), "{counts:?}");
                // Remove one leg: it can be deleted from an IPv6 route; an IPv4 route must be replaced.
                match family {
                    "-6" => steps(&format!("-6 route del {prefix} via {}", via[0])),
                    _ => steps(&format!("route replace {prefix} via {}", via[1])),
                };
                until(&mut mirror, dst, asks(1, via[1])).await;
            }
        })
        .unwrap();
}

#[test]
fn the_mirror_follows_interfaces() {
    let net = Net::new("links");
    let steps = |words: &str| net.gw.ip(words).unwrap();
    steps("route add 10.50.0.0/16 via 10.1.0.2 metric 1");
    steps("route add 10.50.0.0/16 via 10.2.0.2 metric 2");
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            until(&mut mirror, "10.50.0.1", asks(0, "10.1.0.2")).await;
            // Down: the kernel deletes the IPv4 routes through a0 without a notification.
            steps("link set a0 down");
            until(&mut mirror, "10.50.0.1", asks(1, "10.2.0.2")).await;
            until(&mut mirror, "10.1.0.2", nowhere(Reason::NoRoute)).await;
            steps("link set a0 up");
            until(&mut mirror, "10.1.0.2", asks(0, "10.1.0.2")).await;
            steps("route add 10.50.0.0/16 via 10.1.0.2 metric 1");
            until(&mut mirror, "10.50.0.1", asks(0, "10.1.0.2")).await;
            // No carrier: the route stays, the port is down.
            net.a.ip("link set eth0 down").unwrap();
            until(&mut mirror, "10.50.0.1", nowhere(Reason::PortDown)).await;
            net.a.ip("link set eth0 up").unwrap();
            until(&mut mirror, "10.50.0.1", asks(0, "10.1.0.2")).await;
            steps("link set a0 mtu 1400");
            until(&mut mirror, "10.50.0.1", |routes, _| routes.port(PortId(0)).unwrap().mtu == 1400).await;
            let before = mirror.ifindex("a0");
            steps("link del a0");
            until(&mut mirror, "10.50.0.1", asks(1, "10.2.0.2")).await;
            assert_eq!(mirror.ifindex("a0"), None);
            cable(&net.gw, "a0", &net.a, "eth0", 1).unwrap();
            steps("addr add 10.1.0.1/24 dev a0");
            until(&mut mirror, "10.1.0.9", asks(0, "10.1.0.9")).await;
            assert_ne!(mirror.ifindex("a0"), before);
            // Deleting an address deletes the routes with this preferred source.
            steps("route add 10.70.0.0/16 via 10.1.0.2 src 10.2.0.1");
            until(&mut mirror, "10.70.0.1", asks(0, "10.1.0.2")).await;
            steps("addr del 10.2.0.1/24 dev b0");
            until(&mut mirror, "10.70.0.1", nowhere(Reason::NoRoute)).await;
            assert_eq!(mirror.local_addresses(), [ip("fd02::1"), ip("10.1.0.1")]);
        })
        .unwrap();
}

#[test]
fn neighbours_are_followed_and_quiet_changes_publish_nothing() {
    let net = Net::new("neigh");
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            net.gw.ip("neigh add 10.1.0.50 lladdr 02:00:00:00:00:50 dev a0 nud permanent").unwrap();
            until(&mut mirror, "10.1.0.50", hop(0, [2, 0, 0, 0, 0, 0x50])).await;
            net.gw.ip("neigh replace 10.1.0.50 lladdr 02:00:00:00:00:51 dev a0 nud reachable").unwrap();
            until(&mut mirror, "10.1.0.50", hop(0, [2, 0, 0, 0, 0, 0x51])).await;
            let internal = Some(InternalPort { port: PortId(1), kernel_mac: [9; 6] });
            assert!(mirror.routes_if_changed(2, &ports(), &BTreeSet::new(), internal).is_some(), "another internal port");
            assert!(mirror.routes_if_changed(3, &ports(), &BTreeSet::new(), internal).is_none());
            net.gw.ip("neigh replace 10.1.0.50 lladdr 02:00:00:00:00:51 dev a0 nud stale").unwrap();
            let heard = tokio::time::timeout(Duration::from_millis(100), mirror.changed()).await;
            assert!(heard.is_err(), "becoming stale is not a change");
            assert_eq!(mirror.stale(&ports(), 9), [Wanted { port: PortId(0), addr: ip("10.1.0.50") }]);
            // A change on another interface changes the mirror, but not these ports' routes.
            net.gw.ip("neigh add 127.0.0.9 lladdr 02:00:00:00:00:09 dev lo nud permanent").unwrap();
            tokio::time::timeout(Duration::from_secs(5), mirror.changed()).await.unwrap().unwrap();
            assert!(mirror.routes_if_changed(3, &ports(), &BTreeSet::new(), internal).is_none());
            net.gw.ip("neigh del 10.1.0.50 dev a0").unwrap();
            until(&mut mirror, "10.1.0.50", asks(0, "10.1.0.50")).await;
        })
        .unwrap();
}

#[test]
fn neighbours_are_resolved_and_dead_ones_deleted() {
    let net = Net::new("ask");
    let (a, b) = (net.a.link_mac("eth0").unwrap(), net.b.link_mac("eth0").unwrap());
    // A neighbour fails after one probe.
    for family in ["ipv4", "ipv6"] {
        net.gw.sysctl(&format!("net.{family}.neigh.a0.mcast_solicit"), "1").unwrap();
        net.gw.sysctl(&format!("net.{family}.neigh.a0.retrans_time_ms"), "200").unwrap();
    }
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits::default()).unwrap();
            for (port, addr, mac) in [(0, "10.1.0.2", a), (1, "fd02::2", b)] {
                let wanted = Wanted { port: PortId(port), addr: ip(addr) };
                assert_eq!(mirror.resolve_neighbour(&ports(), &wanted).unwrap(), ResolveOutcome::Resolving);
                assert_eq!(mirror.resolve_neighbour(&ports(), &wanted).unwrap(), ResolveOutcome::Recent);
                until(&mut mirror, addr, hop(port, mac)).await;
            }
            assert!(net.gw.ip("neigh show 10.1.0.2 dev a0").unwrap().contains("managed"), "kept alive by the kernel");
            let nobody = Wanted { port: PortId(0), addr: ip("10.1.0.99") };
            assert_eq!(mirror.resolve_neighbour(&ports(), &nobody).unwrap(), ResolveOutcome::Resolving);
            // The kernel gives up; the entry must be deleted and not probed forever.
            let end = Instant::now() + Duration::from_secs(5);
            while !net.gw.ip("neigh show 10.1.0.99 dev a0").unwrap().is_empty() {
                assert!(Instant::now() < end, "{}", net.gw.ip("neigh show").unwrap());
                let _ = tokio::time::timeout(Duration::from_millis(50), mirror.changed()).await;
            }
            assert_eq!(
                mirror.resolve_neighbour(&ports(), &Wanted { port: PortId(7), addr: ip("10.1.0.2") }).unwrap(),
                ResolveOutcome::NoPort
            );
        })
        .unwrap();
}

#[test]
fn ten_thousand_routes_and_an_overrun_lose_nothing() {
    let net = Net::new("many");
    net.gw
        .block_on(|| async {
            let mut mirror = Mirror::start(MirrorLimits { receive_buffer_bytes: 128 << 10, ..MirrorLimits::default() }).unwrap();
            let batch: String = (0..10_000).map(|n| format!("route add 10.{}.{}.0/24 via 10.1.0.2\n", 100 + n / 250, n % 250)).collect();
            // The notifications are not read meanwhile, so the socket's buffer overflows.
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), batch).unwrap();
            net.gw.exec("ip", &["-batch", file.path().to_str().unwrap()]).unwrap();
            until(&mut mirror, "10.139.249.1", asks(0, "10.1.0.2")).await;
            assert!(mirror.counters().overruns >= 1, "{:?}", mirror.counters());
            let routes = mirror.routes(1, &ports(), &BTreeSet::new(), None);
            for n in 0..10_000u32 {
                let dst = Ipv4Addr::new(10, (100 + n / 250) as u8, (n % 250) as u8, 1);
                assert_eq!(routes.resolve(dst.into(), 0), Resolution::Ask(Wanted { port: PortId(0), addr: ip("10.1.0.2") }));
            }
            // Rebuilding the table for one change takes milliseconds.
            let start = Instant::now();
            assert!(mirror.routes_if_changed(2, &ports(), &BTreeSet::new(), None).is_none());
            let compared = start.elapsed();
            mirror.routes(2, &ports(), &BTreeSet::new(), None);
            println!("10,000 routes: compared in {compared:?}, compared and built in {:?}", start.elapsed() - compared);
            // The mirror still follows.
            net.gw.ip("route del 10.139.249.0/24").unwrap();
            until(&mut mirror, "10.139.249.1", nowhere(Reason::NoRoute)).await;
        })
        .unwrap();
}

#[test]
fn the_internal_pair_is_created_once_and_removed() {
    let netns = Netns::new("internal").unwrap();
    let names = internal::PairNames::default();
    netns.sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    let (first, second) = netns.run(|| (internal::ensure(&names, 1500).unwrap(), internal::ensure(&names, 1600).unwrap())).unwrap();
    assert_eq!(first, second, "created once");
    assert_eq!(netns.link_mac("nm0").unwrap(), first.kernel.mac);
    for (key, value) in [
        ("net.ipv4.conf.nm0.rp_filter", "2"),
        ("net.ipv4.conf.nm0.accept_local", "1"),
        ("net.ipv4.conf.nm0.accept_source_route", "0"),
        ("net.ipv6.conf.nm0.disable_ipv6", "0"),
        ("net.ipv6.conf.nm1.disable_ipv6", "1"),
    ] {
        assert_eq!(netns.sysctl_get(key).unwrap(), value, "{key}");
    }
    let shown = netns.ip("-d link show nm1").unwrap();
    for word in ["NOARP", "UP", "mtu 1600", "numtxqueues 1", "numrxqueues 1"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    netns.run(|| ROUTED.iter().try_for_each(|addr| internal::route(&first.kernel, *addr, None))).unwrap().unwrap();
    let routes = netns.ip("route show dev nm0").unwrap() + &netns.ip("-6 route show dev nm0").unwrap();
    assert!(ROUTED.iter().all(|addr| routes.contains(&addr.to_string())), "{routes}");
    // Without a reverse path check on the node, this interface has none either.
    netns.sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
    netns.run(|| internal::ensure(&names, 1600)).unwrap().unwrap();
    assert_eq!(netns.sysctl_get("net.ipv4.conf.nm0.rp_filter").unwrap(), "0");
    // At most the link-local address that the reverse path check requires.
    let addresses = netns.ip("addr show nm0").unwrap();
    assert!(!addresses.replace("inet 169.254.", "").contains("inet"), "{addresses}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(netns.link_counters("nm0").unwrap().tx_packets, 0, "the kernel sends nothing by itself");
    assert_eq!(netns.link_counters("nm1").unwrap().tx_packets, 0);
    netns.run(|| internal::remove(&names).and_then(|()| internal::remove(&names))).unwrap().unwrap();
    netns.ip("link show nm0").unwrap_err();
}

#[test]
fn a_foreign_interface_with_the_internal_ports_name_is_not_touched() {
    let netns = Netns::new("stranger").unwrap();
    netns.ip("link add nm0 type bridge").unwrap();
    let names = internal::PairNames::default();
    let error = netns.run(|| internal::ensure(&names, 1500)).unwrap().unwrap_err();
    assert!(matches!(&error, NetError::InternalTaken { name, .. } if name == "nm0"), "{error}");
    assert!(error.to_string().contains("ip link del nm0"), "{error}");
    assert!(netns.run(|| internal::remove(&names)).unwrap().is_err());
    let other = internal::PairNames { kernel: InterfaceName::from_static("x"), edge: InterfaceName::from_static("nm0") };
    netns.run(|| internal::ensure(&other, 1500)).unwrap().unwrap_err();
    netns.ip("link show nm0").unwrap();
}

#[test]
fn ephemeral_ports_of_the_node_are_not_for_snat() {
    let netns = Netns::new("snat").unwrap();
    let excluded = |first, last| netns.run(|| node::ports_of_the_node(first, last)).unwrap();
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 60000").unwrap();
    assert_eq!(excluded(1_024, 65_535).unwrap(), Some(40_000..=60_000));
    assert_eq!(excluded(61_000, 65_535).unwrap(), None);
    let error = excluded(50_000, 51_000).unwrap_err().to_string();
    assert!(error.contains("sysctl -w net.ipv4.ip_local_reserved_ports=50000-51000"), "{error}");
    // The advice works.
    netns.sysctl("net.ipv4.ip_local_reserved_ports", "50000-51000").unwrap();
    assert_eq!(excluded(50_000, 51_000).unwrap(), None);
}

#[test]
fn serving_interfaces_have_node_addresses_or_routes_to_pods() {
    let net = Net::new("serving");
    net.gw.ip("link set lo up").unwrap();
    for (name, kind) in [("pods1", "veth peer name far1"), ("idle0", "veth peer name far0"), ("br9", "bridge")] {
        net.gw.ip(&format!("link add {name} type {kind}")).unwrap();
        if let Some((_, far)) = kind.split_once("name ") {
            net.gw.ip(&format!("link set {far} up")).unwrap();
        }
        net.gw.ip(&format!("link set {name} up")).unwrap();
    }
    for words in ["addr add 10.9.0.1/32 dev lo", "route add 10.244.0.0/24 dev pods1", "route add 10.244.1.0/24 via 10.2.0.2"] {
        net.gw.ip(words).unwrap();
    }
    net.gw
        .block_on(|| async {
            let names = internal::PairNames::default();
            internal::ensure(&names, 1500).unwrap();
            let mirror = Mirror::start(MirrorLimits::default()).unwrap();
            let pods = [Prefix::new(ip("10.244.0.0"), 16).unwrap()];
            let found = |own: &[IpAddr], pods: &[_]| mirror.serving_interfaces(own, pods, &[&names.kernel, &names.edge]).join(" ");
            assert_eq!(found(&mirror.local_addresses(), &[]), "a0 b0");
            assert_eq!(found(&[ip("fd01::1"), ip("10.9.0.1")], &[]), "a0");
            assert_eq!(found(&[ip("10.1.0.1")], &pods), "a0 b0 pods1");
            assert_eq!(found(&[], &[]), "");
        })
        .unwrap();
}
