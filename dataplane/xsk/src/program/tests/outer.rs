//! Load balancer and external IPs: what the kernel may send back is taken, and ICMP if pings are answered.

use nomagic_core::hash::WordSet;
use nomagic_core::routes::{Leg, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, Services, UnusedPorts};
use nomagic_core::tuple::HashSeed;
use nomagic_core_fixtures::{IcmpSpec, add_action, make_outer};

use super::*;
use crate::addressed::PortMacs;
use crate::filter::WayOut;
use crate::outer::OuterWays;

/// The kernel runs the program as if the frame had come by the loopback interface.
const LO: u32 = 1;
const TAKEN: (u32, &str) = (REDIRECT, "taken");
/// Of both families. A Service has port 80 of the first one.
const OUTER: [&str; 2] = ["203.0.113.10", "fd00:1b::10"];

fn client(addr: &str) -> &'static str {
    if addr.contains(':') { "[fd00::5]:1000" } else { "192.168.0.5:1000" }
}

fn to(addr: &str, port: u16) -> Tuple {
    let dst = if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") };
    tuple(Proto::Tcp, client(addr), &dst)
}

/// A packet to an unused port, and others whose ports are not known: ESP, a ping, an ICMP error about nothing, one cut short.
fn frames(addr: &str) -> [(Vec<u8>, &'static str); 5] {
    let v6 = addr.contains(':');
    let t = to(addr, 81);
    let mut esp = frame(&t, Dress::default());
    esp[if v6 { 20 } else { 23 }] = 50;
    if !v6 {
        set_ipv4_checksum(&mut esp, 14);
    }
    let ping = IcmpSpec { from: t.src_addr(), to: ip(addr), kind: if v6 { 128 } else { 8 }, code: 0, rest: [0; 4] };
    let error = IcmpSpec { kind: if v6 { 1 } else { 3 }, ..ping }.frame(&frame(&t.reversed(), Dress::default())[14..]);
    let mut short = frame(&t, Dress::default());
    short.truncate(14 + if v6 { 40 } else { 20 } + 3);
    [
        (frame(&t, Dress::default()), "pass_not_ours"),
        (esp, "pass_other_protocol"),
        (ping.frame(&[0; 8]), "pass_icmp"),
        (error, "pass_icmp"),
        (short, "pass_unreadable"),
    ]
}

fn bench(refuse_unused: bool, answer_ping: bool) -> Bench {
    let mut bench = Bench::with_constants(Constants { refuse_unused, answer_ping, ..Bench::constants() });
    let services = [(ip(OUTER[0]), 80, Proto::Tcp)].into();
    bench.maps.add(&FilterRules { services, ..rules() }).unwrap();
    bench
}

fn set(bench: &mut Bench, way: WayOut) {
    OUTER.iter().for_each(|addr| assert!(bench.maps.set_outer(ip(addr), way).unwrap()));
}

#[test]
fn what_may_be_sent_back_is_taken() {
    let mut bench = bench(true, false);
    for (way, back) in [
        (None, false),
        (Some(WayOut::Never), false),
        (Some(WayOut::By(LO)), true),
        (Some(WayOut::By(LO + 1)), false),
        (Some(WayOut::Several), true),
    ] {
        way.into_iter().for_each(|way| set(&mut bench, way));
        for (frame, passed) in OUTER.into_iter().flat_map(frames) {
            assert_eq!(bench.outcome(&frame), if back { TAKEN } else { (PASS, passed) }, "{way:?}: {frame:x?}");
        }
        assert_eq!(bench.outcome(&frame(&to(OUTER[0], 80), Dress::default())), TAKEN, "the Service's port");
        let strangers = frames("203.0.113.11").into_iter().chain(frames("fd00:1b::11"));
        strangers.for_each(|(frame, passed)| assert_eq!(bench.outcome(&frame), (PASS, passed), "{frame:x?}"));
    }
    let own: WordSet<_> = OUTER.map(ip).into_iter().collect();
    bench.maps.set_kernel_addresses(&own).unwrap();
    for (frame, passed) in OUTER.into_iter().flat_map(frames) {
        assert_eq!(bench.outcome(&frame), (PASS, passed), "the node's own");
    }
    bench.maps.set_kernel_addresses(&WordSet::default()).unwrap();
    OUTER.iter().for_each(|addr| bench.maps.forget_outer(ip(addr)).unwrap());
    for (frame, passed) in OUTER.into_iter().flat_map(frames) {
        assert_eq!(bench.outcome(&frame), (PASS, passed), "forgotten");
    }
    // A first fragment, and what follows it.
    set(&mut bench, WayOut::By(LO));
    let piece = |fragment| frame(&to(OUTER[0], 81), Dress { fragment, ..Dress::default() });
    assert_eq!([0x2000, 0x2009, 9].map(|fragment| bench.outcome(&piece(fragment))), [TAKEN; 3]);
}

/// Errors and pings from there, to a host.
#[test]
fn icmp_from_services_addresses_is_taken() {
    for refuse in [false, true] {
        let mut bench = bench(refuse, false);
        set(&mut bench, WayOut::Never);
        for addr in OUTER.into_iter().chain(["10.109.35.25", "10.110.7.7", "fd00:10::25", "203.0.113.11"]) {
            let t = to(addr, 81);
            for kind in if t.v6 { [1, 129] } else { [3, 0] } {
                let answer = IcmpSpec { from: ip(addr), to: t.src_addr(), kind, code: 3, rest: [0; 4] };
                let answer = answer.frame(&frame(&t, Dress::default())[14..]);
                let expected = if refuse && addr != "203.0.113.11" { TAKEN } else { (PASS, "pass_icmp") };
                assert_eq!(bench.outcome(&answer), expected, "{addr}, {kind}");
            }
        }
    }
}

/// The workers know the way, or hand it to the kernel.
#[test]
fn protocols_without_ports_are_taken_at_cluster_ips() {
    for (refuse, expected) in [(true, true), (false, false)] {
        let mut bench = bench(refuse, false);
        for addr in ["10.109.35.25", "10.110.7.7", "fd00:10::25", "fd00:11::7"] {
            for (frame, passed) in frames(addr).into_iter().skip(1).filter(|(_, passed)| *passed != "pass_icmp") {
                assert_eq!(bench.outcome(&frame), if expected { TAKEN } else { (PASS, passed) }, "{addr}: {frame:x?}");
            }
        }
    }
}

#[test]
fn pings_are_taken_by_choice() {
    let pinged = ["10.109.35.25", "10.110.7.7", "fd00:10::25", OUTER[0], OUTER[1]];
    for answer in [false, true] {
        let mut bench = bench(false, answer);
        set(&mut bench, WayOut::Never);
        for addr in pinged.into_iter().chain(["203.0.113.11", "10.109.35.24"]) {
            let [_, _, (ping, passed), ..] = frames(addr);
            let taken = answer && pinged.contains(&addr);
            assert_eq!(bench.outcome(&ping), if taken { TAKEN } else { (PASS, passed) }, "{addr}, {answer}");
        }
        bench.maps.set_kernel_addresses(&[ip(OUTER[0])].into_iter().collect()).unwrap();
        assert_eq!(bench.outcome(&frames(OUTER[0])[2].0), (PASS, "pass_icmp"), "the node's own");
    }
}

#[test]
fn behind_redirect_ports_only_pings_are_taken() {
    let constants = Constants { refuse_unused: true, answer_ping: true, redirect_to: LO, ..Bench::constants() };
    let mut bench = Bench::with_constants(constants);
    program::set_redirect_macs(&mut bench.ebpf, LO, Some(PortMacs::of(&Bench::link(MAC, None)))).unwrap();
    bench.maps.add(&rules()).unwrap();
    set(&mut bench, WayOut::Several);
    for (frame, passed) in OUTER.into_iter().chain(["10.109.35.25"]).flat_map(frames) {
        let whole = frame[30..34] == [10, 109, 35, 25] && passed == "pass_not_ours";
        let taken = whole || passed == "pass_icmp";
        assert_eq!(bench.outcome(&frame), if taken { TAKEN } else { (PASS, passed) }, "{frame:x?}");
    }
}

#[test]
fn denied_sources_are_denied_here_too() {
    let mut bench = bench(true, true);
    set(&mut bench, WayOut::By(LO));
    let all = ["192.168.0.0/16", "fd00::/64"].map(|prefix| (prefix.parse().unwrap(), None));
    bench.denied.follow(&all.into_iter().collect()).unwrap();
    for (frame, _) in OUTER.into_iter().flat_map(frames) {
        assert_eq!(bench.outcome(&frame), (DROP, "denied"), "{frame:x?}");
    }
}

#[test]
fn rules_come_before_outer_addresses() {
    let mut bench = Bench::new(false);
    let addr = |n: u32| std::net::IpAddr::from((n + (1 << 24)).to_be_bytes());
    let whole = |range: std::ops::Range<u32>| FilterRules { addresses: range.map(addr).collect(), ..FilterRules::default() };
    let most = ADDRESSES_MAX as u32;
    bench.maps.add(&whole(0..most - 2)).unwrap();
    let outer = [most + 1, most + 2, most + 3].map(addr);
    assert_eq!(outer.map(|addr| bench.maps.set_outer(addr, WayOut::By(LO)).unwrap()), [true, true, false]);
    assert!(bench.maps.set_outer(outer[0], WayOut::Several).unwrap(), "what is there can change");
    bench.maps.add(&whole(0..most)).unwrap();
    assert_eq!((bench.maps.rules().addresses.len(), bench.maps.outer().count()), (most as usize, 0));
    // A cluster IP is more than an outer address, and does not become one.
    assert!(bench.maps.set_outer(addr(0), WayOut::Never).unwrap());
    assert_eq!(bench.maps.outer().count(), 0);
    bench.maps.remove(&whole(0..2)).unwrap();
    assert!(bench.maps.set_outer(addr(0), WayOut::Never).unwrap());
    bench.maps.add(&whole(0..1)).unwrap();
    assert_eq!((bench.maps.rules().addresses.len(), bench.maps.outer().count()), (most as usize - 1, 0));
}

/// The default routes lead through these ports' routers.
fn routes(generation: u64, by: &[u16]) -> Routes {
    let leg = |port: &u16| Leg { port: Some(PortId(*port)), captured: false, gateway: Some(ip("10.0.0.254")), weight: 1, mtu: None };
    let kind = RouteKind::Unicast(by.iter().map(leg).collect());
    let routes = ["0.0.0.0/0", "::/0"].map(|prefix| Route { prefix: prefix.parse().unwrap(), metric: 0, kind: kind.clone() });
    let ports = vec![Port { mac: MAC, mtu: 1_500, up: true }; 2];
    Routes::build(generation, ports, None, routes.into(), &[]).0
}

fn services(outer: &[&str]) -> Services {
    let mut services = Services::empty(HashSeed::new(1));
    for addr in outer {
        add_action(&mut services, addr, 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
        make_outer(&mut services, addr);
    }
    services
}

#[test]
fn the_filter_follows_services_routes_and_interfaces() {
    let (mut bench, mut ways) = (bench(true, false), OuterWays::default());
    let mut follow = |bench: &mut Bench, services: &Services, routes: &Routes, interfaces: [u32; 2]| {
        ways.follow(&mut bench.maps, services, routes, interfaces.into()).unwrap();
        assert_eq!(ways.left_out(), 0);
        OUTER.map(|addr| bench.outcome(&frame(&to(addr, 81), Dress::default())) == TAKEN)
    };
    let (both, one) = (services(&OUTER), services(&OUTER[..1]));
    let (first, second, either) = (routes(1, &[0]), routes(2, &[1]), routes(3, &[1, 0]));
    assert_eq!(follow(&mut bench, &one, &first, [LO, LO + 1]), [true, false]);
    assert_eq!(follow(&mut bench, &both, &first, [LO, LO + 1]), [true, true]);
    assert_eq!(follow(&mut bench, &both, &second, [LO, LO + 1]), [false, false]);
    assert_eq!(bench.maps.outer().count(), 2, "by another interface");
    assert_eq!(follow(&mut bench, &both, &second, [LO + 1, LO]), [true, true], "the ports' interfaces are others");
    assert_eq!(follow(&mut bench, &both, &either, [LO, LO + 1]), [true, true]);
    assert_eq!(follow(&mut bench, &one, &either, [LO, LO + 1]), [true, false]);
    let (mut left_alone, none) = (services(&OUTER), services(&[]));
    left_alone.unused_ports = UnusedPorts::Kernel;
    ways.forget();
    let mut follow = |bench: &mut Bench, services: &Services| {
        ways.follow(&mut bench.maps, services, &either, vec![LO, LO + 1]).unwrap();
        (bench.maps.outer().count(), bench.outcome(&frame(&to(OUTER[0], 81), Dress::default())) == TAKEN)
    };
    assert_eq!(follow(&mut bench, &left_alone), (0, false));
    left_alone.answer_ping = true;
    // The program's constant is off here.
    let mut again = OuterWays::default();
    again.follow(&mut bench.maps, &left_alone, &either, vec![LO, LO + 1]).unwrap();
    assert_eq!((bench.maps.outer().count(), bench.outcome(&frame(&to(OUTER[0], 81), Dress::default())) == TAKEN), (2, false));
    // What an earlier process has left.
    OuterWays::default().follow(&mut bench.maps, &none, &either, vec![LO, LO + 1]).unwrap();
    assert_eq!(bench.maps.outer().count(), 0);
}

#[test]
fn addresses_without_room_are_counted_and_get_it_later() {
    let (mut bench, mut ways) = (Bench::new(false), OuterWays::default());
    let whole = |range: std::ops::Range<u32>| FilterRules {
        addresses: range.map(|n| std::net::IpAddr::from((n + (1 << 24)).to_be_bytes())).collect(),
        ..FilterRules::default()
    };
    let most = ADDRESSES_MAX as u32;
    bench.maps.add(&whole(0..most - 1)).unwrap();
    let mut left_out = |bench: &mut Bench| {
        ways.follow(&mut bench.maps, &services(&OUTER), &routes(1, &[0]), vec![LO, LO + 1]).unwrap();
        ways.left_out()
    };
    assert_eq!(left_out(&mut bench), 1);
    bench.maps.remove(&whole(0..1)).unwrap();
    assert_eq!((left_out(&mut bench), bench.maps.outer().count()), (0, 2));
}
