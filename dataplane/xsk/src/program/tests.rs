//! Runs the XDP program in the kernel on crafted frames (BPF_PROG_TEST_RUN) and compares it with the core's parser.

mod addressed;
mod bench;
mod denied;
mod direct;
mod fragments;
mod kernel_addresses;
mod outer;
mod parity;
mod quotes;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bench::*;
use nomagic_core::capture::FilterRules;
use nomagic_core::counters::XdpCounts;
use nomagic_core::deny::DENY_PREFIXES_MAX;
use nomagic_core::filter::ReplyKey;
use nomagic_core::frame::{Frame, PortId};
use nomagic_core::parse::{NotPacket, parse};
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_core::wire::tcp;
use nomagic_core_fixtures::set_ipv4_checksum;
use nomagic_sys::time::monotonic_ns;

use crate::config::{OnFailure, QUEUES_MAX, REDIRECTS_MAX};
use crate::filter::{ADDRESSES_MAX, SERVICE_CIDRS_MAX, SERVICES_MAX};
use crate::limits::WorkerCount;
use crate::program::{self, Constants};

fn rules() -> FilterRules {
    FilterRules {
        services: [(ip("10.109.35.24"), 80, Proto::Tcp), (ip("fd00:10::24"), 53, Proto::Udp)].into(),
        addresses: [ip("10.109.35.25"), ip("fd00:10::25")].into(),
        service_cidrs: ["10.110.0.0/16".parse().unwrap(), "fd00:11::/112".parse().unwrap()].into(),
    }
}

#[test]
fn the_filter_agrees_with_the_rules_and_the_core() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let mut tuples = vec![
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:81"),
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.25:81"),
        tuple(Proto::Sctp, "192.168.0.5:1000", "10.109.35.25:81"),
        tuple(Proto::Sctp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.110.3.4:5"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.111.3.4:5"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:40000"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:40999"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:41000"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:39999"),
        tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:53"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::24]:53"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::25]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:11::ff]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:11::1:ff]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00::1]:40500"),
        // The IPv4 addresses' words as IPv6 addresses.
        tuple(Proto::Tcp, "[::5]:1000", "[::10.109.35.24]:80"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[::10.109.35.25]:80"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[a6e::]:80"),
    ];
    for i in 0..40u8 {
        let proto = if i & 1 == 0 { Proto::Tcp } else { Proto::Udp };
        let v4 = tuple(proto, &format!("192.168.1.{i}:80"), "172.16.0.9:5555");
        let v6 = tuple(proto, &format!("[fd00:1::{i}]:80"), "[fd00:2::9]:5555");
        for t in [v4, v6] {
            if i < 20 {
                assert!(bench.replies.insert(&t, 0));
            }
            tuples.push(t);
        }
    }
    let (mut taken, mut passed) = (0, 0);
    for t in &tuples {
        for dress in DRESSES {
            bench.heartbeat.store(monotonic_ns(), Relaxed);
            let mut bytes = frame(t, dress);
            let action = bench.run(&bytes);
            let len = bytes.len();
            match parse(&Frame::new(&mut bytes, 0, len, PortId(0), 0)) {
                Ok(packet) => {
                    assert_eq!(packet.tuple, *t, "{dress:?}");
                    let taken = bench.ours(t) && dress.vlan_tags < 2;
                    assert_eq!(action, if taken { REDIRECT } else { PASS }, "{t} {dress:?}");
                }
                // Without ports.
                Err(NotPacket::Later(_) | NotPacket::Malformed(Reason::FragmentTiny | Reason::FragmentMalformed)) => {
                    assert_eq!(action, if bench.may_be_ours(t) { REDIRECT } else { PASS }, "{t} {dress:?}");
                }
                Err(_) => assert_eq!(action, PASS, "{t} {dress:?}"),
            }
            *if action == REDIRECT { &mut taken } else { &mut passed } += 1;
        }
    }
    assert!(taken > 150 && passed > 200, "{taken} taken, {passed} passed");
    let counters = bench.counters();
    assert_eq!((counters.taken, counters.passed(), counters.dropped()), (taken, passed, 0));
    assert!(counters.pass_fragment > 0 && counters.pass_unreadable > 0 && counters.pass_vlan > 0 && counters.pass_not_ours > 0);
}

#[test]
fn the_programs_counters_match_the_list_of_outcomes() {
    let header = include_str!("../../bpf/types.h");
    let (_, after) = header.split_once("enum stat {").expect("the enum");
    let (body, _) = after.split_once('}').expect("its end");
    let places: Vec<String> = body.split(',').map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect();
    let (last, places) = places.split_last().expect("places");
    assert_eq!((places, last.as_str()), (&XdpCounts::OUTCOMES.map(str::to_owned)[..], "stat_count"));
}

#[test]
fn corrupted_frames_are_passed_or_agree_with_the_core() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let seeds = [
        frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), DRESSES[1]),
        frame(&tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:53"), Dress { vlan_tags: 1, ..DRESSES[2] }),
        frame(&tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::25]:53"), DRESSES[3]),
    ];
    let mut state = 42;
    let (mut kernels, mut others) = (0, 0);
    for i in 0..4_000 {
        bench.heartbeat.store(monotonic_ns(), Relaxed);
        let mut bytes = seeds[i % seeds.len()].clone();
        for _ in 0..splitmix64(&mut state) % 4 {
            let at = splitmix64(&mut state) as usize % bytes.len();
            bytes[at] = splitmix64(&mut state) as u8;
        }
        if splitmix64(&mut state).is_multiple_of(3) {
            bytes.truncate(14 + splitmix64(&mut state) as usize % (bytes.len() - 14));
        }
        // Half of the spoilt IPv4 headers have a checksum that fits.
        if i % 2 == 0 && bytes.get(16..18) == Some(&[8, 0]) {
            set_ipv4_checksum(&mut bytes, 18);
        }
        let action = bench.run(&bytes);
        let len = bytes.len();
        if let Some(place) = refused(&bytes) {
            others += 1;
            assert_eq!(action, PASS, "{place}: {bytes:x?}");
            continue;
        }
        match parse(&Frame::new(&mut bytes, 0, len, PortId(0), 0)) {
            Ok(packet) => assert_eq!(action, if bench.ours(&packet.tuple) { REDIRECT } else { PASS }, "{bytes:x?}"),
            // The core hands on what the filter takes of these.
            Err(NotPacket::Kernel(Reason::Ipv4Options)) => assert!(action == PASS || action == REDIRECT),
            Err(NotPacket::Kernel(_) | NotPacket::Echo(_)) => {
                kernels += 1;
                assert_eq!(action, PASS, "{bytes:x?}");
            }
            Err(NotPacket::Error(error)) => {
                assert_eq!(action, if bench.ours(&error.key()) { REDIRECT } else { PASS }, "{bytes:x?}");
            }
            // Captured if its datagram may be nomagic's.
            Err(NotPacket::Later(_)) => assert!(action == PASS || action == REDIRECT),
            // Malformed, but perhaps with readable addresses and ports: captured and dropped by the core, or left to the kernel.
            Err(NotPacket::Malformed(_)) => assert!(action == PASS || action == REDIRECT),
        }
    }
    assert!(kernels > 100 && others > 500, "{kernels} {others}");
}

#[test]
fn the_heartbeat_decides_between_redirect_drop_and_pass() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let bytes = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), Dress::default());
    let other = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.9.35.24:80"), Dress::default());
    let aged = |bench: &mut Bench, age: Duration| {
        bench.heartbeat.store(monotonic_ns() - age.as_nanos() as u64, Relaxed);
        assert_eq!(bench.run(&other), PASS, "other frames are not affected");
        bench.run(&bytes)
    };
    bench.heartbeat.store(0, Relaxed);
    assert_eq!(bench.run(&bytes), PASS, "no worker has ever run");
    assert_eq!(aged(&mut bench, Duration::ZERO), REDIRECT);
    assert_eq!(aged(&mut bench, Duration::from_millis(450)), REDIRECT);
    assert_eq!(aged(&mut bench, Duration::from_millis(550)), DROP);
    assert_eq!(aged(&mut bench, Duration::from_millis(1_950)), DROP);
    assert_eq!(aged(&mut bench, Duration::from_millis(2_050)), PASS);
    bench.config.on_failure = OnFailure::Drop;
    program::write_settings(&mut bench.ebpf, &bench.config).unwrap();
    assert_eq!(aged(&mut bench, Duration::from_millis(2_050)), DROP);
    // A closed socket leaves the map. The frame is dropped, not passed, while the heartbeat is fresh.
    bench.socket = None;
    assert_eq!(aged(&mut bench, Duration::ZERO), DROP);
    let c = bench.counters();
    assert_eq!((c.pass_never_started, c.taken, c.dropped_stale, c.failed_open, c.failed_closed, c.dropped_no_socket), (1, 2, 2, 1, 1, 1));
    assert_eq!((c.pass_not_ours, c.received()), (7, 15));
}

#[test]
fn the_internal_port_captures_all_but_group_addresses() {
    let mut bench = Bench::new(true);
    let mut bytes = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.9.9.9:80"), Dress::default());
    assert_eq!(bench.run(&bytes), REDIRECT);
    bytes[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(bench.run(&bytes), REDIRECT, "even non-IP frames");
    bytes[0] = 0x33;
    assert_eq!(bench.run(&bytes), PASS, "multicast");
}

#[test]
fn the_internal_port_returns_frames_when_no_worker_is_alive() {
    let mut bench = Bench::new(true);
    bench.maps.add(&rules()).unwrap();
    let to = |src: &str, dst: &str| frame(&tuple(Proto::Tcp, src, dst), Dress::default());
    let service = to("192.168.0.5:1000", "10.109.35.24:80");
    let aged = |bench: &mut Bench, age_ms: u64, bytes: &[u8]| {
        bench.heartbeat.store(monotonic_ns() - age_ms * 1_000_000, Relaxed);
        bench.run(bytes)
    };
    assert_eq!(
        (aged(&mut bench, 0, &service), aged(&mut bench, 1_000, &service), aged(&mut bench, 2_050, &service)),
        (REDIRECT, DROP, REDIRECT)
    );
    let mut icmp = to("192.168.0.5:1000", "10.9.9.9:80");
    icmp[23] = 1;
    for given_back in [to("192.168.0.5:1000", "203.0.113.7:22"), to("[fd00::5]:1000", "[fd4e::79]:80"), icmp] {
        assert_eq!(aged(&mut bench, 2_050, &given_back), REDIRECT);
    }
    // These would loop.
    for [src, dst] in [["192.168.0.5:1000", "169.254.78.78:61000"], ["[fd00::5]:1000", "[fd4e::78]:61000"]] {
        assert_eq!(aged(&mut bench, 2_050, &to(src, dst)), PASS);
    }
    let mut arp = service.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(aged(&mut bench, 2_050, &arp), PASS);
    let c = bench.counters();
    assert_eq!((c.taken, c.dropped_stale, c.failed_open), (1, 1, 7));
    bench.config.on_failure = OnFailure::Drop;
    program::write_settings(&mut bench.ebpf, &bench.config).unwrap();
    assert_eq!(aged(&mut bench, 2_050, &service), DROP);
}

/// The sizes in bpf/maps.h must equal the limits.
#[test]
fn map_sizes_equal_the_limits() {
    let mut bench = Bench::new(false);
    let sizes = [
        ("services", SERVICES_MAX),
        ("addresses", ADDRESSES_MAX),
        ("service_cidrs", SERVICE_CIDRS_MAX),
        // With a place for a value that is being replaced.
        ("denied", DENY_PREFIXES_MAX + 1),
        ("heartbeats", WorkerCount::MAX as usize),
        ("owners", QUEUES_MAX as usize),
        ("xsks", QUEUES_MAX as usize),
        ("redirect_macs", 2 * REDIRECTS_MAX),
    ];
    for (map, size) in sizes {
        assert_eq!(bench.map_size(map), size, "{map}");
    }
}

#[test]
fn rules_are_applied_as_differences_and_within_limits() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    assert_eq!(bench.maps.rules(), &rules());
    let mut fewer = rules();
    fewer.addresses.clear();
    fewer.services = [(ip("203.0.113.1"), 81, Proto::Tcp)].into();
    bench.apply(&fewer);
    assert_eq!(bench.maps.rules(), &fewer);
    let request = |service: &str| frame(&tuple(Proto::Tcp, "192.168.0.5:1000", service), Dress::default());
    assert_eq!((bench.run(&request("10.109.35.24:80")), bench.run(&request("203.0.113.1:81"))), (PASS, REDIRECT));
    bench.maps.remove(&rules()).unwrap();
    assert_eq!(bench.maps.rules().len(), 1, "only the other rule is left");
    bench.maps.add(&FilterRules { service_cidrs: ["10.111.0.0/16".parse().unwrap()].into(), ..FilterRules::default() }).unwrap();
    let many = (0..1_024u16).map(|i| format!("10.{}.{}.0/24", 128 + i / 256, i % 256).parse().unwrap()).collect();
    let error = bench.maps.add(&FilterRules { service_cidrs: many, ..FilterRules::default() }).unwrap_err();
    assert!(error.to_string().contains("room for 1024 service ranges, but there are 1025"), "{error}");
    assert_eq!(bench.maps.rules().len(), 1 + SERVICE_CIDRS_MAX, "as many as fit are added");
}

/// An SNAT address may be the node's own: its other connections belong to the kernel, whatever their port.
#[test]
fn only_announced_replies_to_an_snat_address_are_captured() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    for (backend, source) in [("192.168.7.7", "10.0.0.1"), ("[fd00:1::7]", "[fd00::1]")] {
        let reply = |backend_port: u16, port: u16| tuple(Proto::Tcp, &format!("{backend}:{backend_port}"), &format!("{source}:{port}"));
        assert_eq!(bench.run(&frame(&reply(80, 40_000), Dress::default())), PASS);
        assert!(bench.replies.insert(&reply(80, 40_000), 0));
        let outcomes = [(80, 40_000), (80, 40_001), (443, 40_000), (80, 1_024), (80, 65_535)];
        let outcomes = outcomes.map(|(from, to)| bench.run(&frame(&reply(from, to), Dress::default())));
        assert_eq!(outcomes, [REDIRECT, PASS, PASS, PASS, PASS]);
    }
}

/// A million announced replies, and as many other packets that differ slightly from them.
#[test]
fn a_million_announced_replies() {
    const FLOWS: u32 = 1 << 20;
    let mut bench = Bench::with_buckets(FLOWS / 4, false);
    bench.maps.add(&rules()).unwrap();
    let reply = |i: u32| {
        let client = std::net::Ipv4Addr::from(0x0a01_0000 | (i >> 12));
        let pod = std::net::Ipv4Addr::from(0xc0a8_0000 | (i % 251));
        Tuple::new(Proto::Tcp, pod.into(), 8080, client.into(), 20_000 + (i & 0xfff) as u16).unwrap()
    };
    let full = (0..FLOWS).filter(|&i| !bench.replies.insert(&reply(i), i)).count();
    assert_eq!((full, bench.replies.len()), (0, FLOWS as usize), "no bucket overflows at a quarter of its places");
    let (mut random, mut packets) = (7, 0u32);
    let mut next = |n: u32| (splitmix64(&mut random) % u64::from(n)) as u32;
    for _ in 0..40_000 {
        let i = next(FLOWS);
        let ours = reply(i);
        // Keeps the worker alive, however long this takes.
        bench.heartbeat.store(monotonic_ns(), Relaxed);
        assert_eq!(bench.run(&frame(&ours, Dress::default())), REDIRECT, "an announced reply is missed: {ours:?}");
        // The node's own connections and those between pods: the same addresses and ports, swapped; other ports; other protocols.
        let foreign = match i % 4 {
            0 => Tuple { sport: 8081, ..ours },
            1 => Tuple { dport: ours.dport ^ 0x8000, ..ours },
            2 => Tuple { proto: Proto::Udp, ..ours },
            _ => Tuple { src: ours.dst, dst: ours.src, sport: ours.dport, dport: ours.sport, ..ours },
        };
        // In the middle: the first packet of a connection the other way round would be captured, see direct.rs.
        assert_eq!(bench.run(&direct::segment(&foreign, Dress::default(), tcp::ACK)), PASS, "not ours: {foreign:?}");
        packets += 1;
    }
    let counters = bench.counters();
    assert_eq!((counters.taken, counters.pass_not_ours), (u64::from(packets), u64::from(packets)));
    // Fingerprints that match by chance, among packets checked against the core's filter only: 3 in a million would be too many.
    let foreign = |i: u32| Tuple { sport: 443, ..reply(i) };
    let by_chance = (0..FLOWS).filter(|&i| bench.replies.contains(&foreign(i))).count();
    println!("{packets} packets of {FLOWS} announced replies taken, as many others passed; {by_chance} of {FLOWS} others match by chance");
    assert!(by_chance <= 3);
    (0..FLOWS).for_each(|i| assert!(bench.replies.remove(&reply(i))));
    assert!(bench.replies.is_empty());
    assert_eq!(bench.run(&frame(&reply(1), Dress::default())), PASS, "a connection that has ended");
}

/// Addresses and ports in every bit, and keys that a mistake in one of the hash's steps would show in.
#[test]
fn program_and_core_hash_alike_whatever_the_key() {
    let mut random = 11;
    let mut next = || splitmix64(&mut random);
    let keys = [[0, 0], [u64::MAX, u64::MAX], [1 << 63, 1], [next(), next()], [next(), next()]];
    for key in keys {
        let mut bench = Bench::with_constants(Constants { reply_buckets: 1 << 16, reply_key: ReplyKey(key), ..Bench::constants() });
        for i in 0..400 {
            let (v6, proto) = (i % 2 == 1, [Proto::Tcp, Proto::Udp, Proto::Sctp][i % 3]);
            let mut addr = || if v6 { [next(), next()] } else { [0, next() & 0xffff_ffff] };
            let (src, dst, ports) = (addr(), addr(), next());
            let reply = Tuple { src, dst, sport: ports as u16, dport: (ports >> 16) as u16, proto, v6 };
            let bytes = frame(&reply, Dress::default());
            bench.heartbeat.store(monotonic_ns(), Relaxed);
            assert_eq!(bench.run(&bytes), PASS, "{reply}");
            assert!(bench.replies.insert(&reply, 0));
            assert_eq!(bench.run(&bytes), REDIRECT, "{reply}");
        }
        assert_eq!(bench.replies.len(), 400);
    }
}

#[test]
fn the_verifier_has_room_to_spare() {
    for segments in [false, true] {
        let mut bench = Bench::with_constants(Constants { segments, ..Bench::constants() });
        let checked = program::program(&mut bench.ebpf).unwrap().info().unwrap().verified_instruction_count().expect("Linux 5.16");
        assert!(checked < 500_000, "{checked} instructions checked: newer kernels may need more than they allow, a million");
    }
}
