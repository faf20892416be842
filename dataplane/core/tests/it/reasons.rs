//! Every reason that the core gives has a packet that meets it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use nomagic_core::conntrack::{EvictionRank, Flow, Phase};
use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{Port, ReversePath, Routes};
use nomagic_core::services::{Action, ClientLimit, ConnectionsPerClient, ConnectionsPerSecond, Frontend, Limits, RateLimit, ServicePort};
use nomagic_core::tuple::{PrefixSet, Proto};
use nomagic_core_fixtures::*;

/// Reasons that only the edge gives: nomagic-xsk's tests meet them.
const EDGE: &[Reason] = &[
    Reason::NeighbourTimeout,
    Reason::HoldFull,
    Reason::HandoverFull,
    Reason::WorkerGone,
    Reason::TxFull,
    Reason::FrameTooLong,
    Reason::PoolEmpty,
    Reason::Shutdown,
];

/// The sources of the edge's tests: files and directories called so.
fn edge_tests(path: &Path, inside: bool, out: &mut String) {
    for entry in std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
        let path = entry.unwrap().path();
        let inside = inside || path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
        if path.is_dir() {
            edge_tests(&path, inside, out);
        } else if inside {
            out.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

fn edited(spec: Spec, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = spec.frame();
    edit(&mut frame);
    frame
}

/// The first fragment of an SCTP packet, so many bytes of it.
fn edited_sctp_fragment(len: u8) -> Vec<u8> {
    let mut frame = sctp_frame("10.0.0.2:40000", "10.96.0.1:80", 1, 32);
    (frame[17], frame[20]) = (20 + len, 0x20);
    frame
}

/// An SCTP packet of this many bytes.
fn short_sctp(len: usize) -> Vec<u8> {
    let mut frame = sctp_frame("10.0.0.2:40000", "10.96.0.1:80", 1, 0);
    frame.truncate(34 + len);
    frame[17] = 20 + len as u8;
    frame
}

/// Port unreachable from a client.
fn icmp_error(to: &str) -> IcmpSpec {
    IcmpSpec { from: ip("10.0.0.2"), to: ip(to), kind: 3, code: 3, rest: [0; 4] }
}

/// `(frame, port)` for each reason about single packets.
#[expect(clippy::too_many_lines, reason = "a packet for each reason")]
fn packets() -> Vec<(Reason, Vec<u8>, PortId)> {
    let tcp = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN);
    let udp = spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0);
    let v6 = spec("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80", 0);
    let to = |dst: &str| spec("tcp", "10.0.0.2:40000", dst, SYN);
    let mut v6_chain = v6.frame();
    v6_chain[20] = 60;
    v6_chain.splice(54..54, [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(17));
    let len = (v6_chain.len() - 54) as u16;
    v6_chain[18..20].copy_from_slice(&len.to_be_bytes());
    let mut v6_routing = v6.frame();
    v6_routing[20] = 43;
    v6_routing.splice(54..54, [17u8, 0, 0, 1, 0, 0, 0, 0]);
    v6_routing[19] += 8;
    let mut list = vec![
        (Reason::EthernetTruncated, vec![0; 13], CLIENTS),
        (Reason::EthernetTruncated, vec![], CLIENTS),
        (Reason::VlanTooDeep, edited(tcp, |f| f.splice(12..12, [0x81, 0, 0, 5].repeat(3)).for_each(drop)), CLIENTS),
        (Reason::Ipv4Malformed, edited(tcp, |f| f[14] = 0x44), CLIENTS),
        (Reason::Ipv4Malformed, edited(tcp, |f| f[14] = 0x55), CLIENTS),
        (Reason::Ipv4Malformed, edited(tcp, |f| f[16] = 0xff), CLIENTS),
        (Reason::Ipv4Malformed, edited(tcp, |f| f[16..18].fill(0)), CLIENTS),
        (Reason::Ipv6Malformed, edited(v6, |f| f[14] = 0x40), CLIENTS),
        (Reason::Ipv6Malformed, edited(v6, |f| f[18] = 0xff), CLIENTS),
        (Reason::Ipv6ExtensionChain, v6_chain, CLIENTS),
        (Reason::Ipv6Routing, v6_routing, CLIENTS),
        (Reason::TcpMalformed, edited(tcp, |f| f[46] = 0x40), CLIENTS),
        (Reason::TcpMalformed, edited(Spec { payload: 0, ..tcp }, |f| f[46] = 0xf0), CLIENTS),
        (Reason::UdpMalformed, edited(udp, |f| f[39] = 7), CLIENTS),
        (Reason::UdpMalformed, edited(udp, |f| f[38] = 1), CLIENTS),
        (Reason::SctpMalformed, short_sctp(8), CLIENTS),
        (Reason::SctpMalformed, short_sctp(15), CLIENTS),
        (Reason::TcpFlags, sctp_frame("10.0.0.2:40000", "10.96.0.1:80", 6, 32), CLIENTS),
        (Reason::MidFlowSnat, sctp_frame("10.0.0.2:40000", "10.96.0.2:80", 0, 32), CLIENTS),
        (Reason::TcpFlags, Spec { flags: 0, ..tcp }.frame(), CLIENTS),
        (Reason::TcpFlags, Spec { flags: RST, ..tcp }.frame(), CLIENTS),
        (Reason::TcpFlags, Spec { flags: SYN_ACK, ..tcp }.frame(), CLIENTS),
        (Reason::TcpFlags, Spec { flags: SYN | 1, ..tcp }.frame(), CLIENTS),
        (Reason::NotIp, edited(tcp, |f| f[12..14].copy_from_slice(&[8, 6])), CLIENTS),
        (Reason::Ipv4Options, with_ipv4_options(&tcp.frame(), &[131, 7, 4, 10, 0, 0, 9, 0]), CLIENTS),
        (Reason::Ipv4Options, with_ipv4_options(&tcp.frame(), &[137, 7, 4, 10, 0, 0, 9, 0]), PODS),
        (Reason::OwnSource, spec("tcp", "10.0.0.1:40000", "10.96.0.1:80", SYN).frame(), CLIENTS),
        (Reason::OwnSource, spec("udp", "[fd4e:6f6d:6167::78]:40000", "[fd00:96::1]:80", 0).frame(), CLIENTS),
        (Reason::ServiceSource, spec("tcp", "10.96.0.2:40000", "10.96.0.1:80", SYN).frame(), CLIENTS),
        (Reason::LinkLocalSource, spec("udp", "169.254.1.1:40000", "10.96.0.1:80", 0).frame(), CLIENTS),
        (Reason::LinkLocalSource, spec("tcp", "[fe80::1]:40000", "[fd00:96::1]:80", SYN).frame(), PODS),
        (Reason::NotOurs, to("10.0.0.1:22").frame(), CLIENTS),
        (Reason::NoFlow, to("10.0.0.1:61000").frame(), CLIENTS),
        (Reason::Icmp, edited(tcp, |f| f[23] = 1), CLIENTS),
        (Reason::Icmp, edited(v6, |f| f[20] = 58), CLIENTS),
        (Reason::Icmp, icmp_error("10.96.0.1").frame(&spec("tcp", "10.96.0.1:80", "10.0.0.2:40000", ACK).frame()[14..]), CLIENTS),
        (
            Reason::IcmpQuote,
            icmp_error("10.96.0.1").frame(&spec("tcp", "10.96.0.1:80", "10.0.0.2:40000", ACK).frame()[14..14 + 27]),
            CLIENTS,
        ),
        (Reason::IcmpQuote, icmp_error("10.96.0.2").frame(&spec("tcp", "10.96.0.1:80", "10.0.0.2:40000", ACK).frame()[14..]), CLIENTS),
        (Reason::Fragment, edited(tcp, |f| (f[21], f[23]) = (9, 47)), CLIENTS),
        (Reason::FragmentMalformed, edited(udp, |f| f[20..22].copy_from_slice(&[0x3f, 0xff])), CLIENTS),
        (Reason::FragmentMalformed, edited(udp, |f| (f[17], f[20]) = (20 + 31, 0x20)), CLIENTS),
        (Reason::FragmentMalformed, edited(udp, |f| (f[17], f[21]) = (20, 9)), CLIENTS),
        (Reason::FragmentTiny, edited(tcp, |f| f[21] = 1), CLIENTS),
        (Reason::FragmentTiny, edited(tcp, |f| f[21] = 2), CLIENTS),
        (Reason::FragmentTiny, edited(tcp, |f| (f[17], f[20]) = (20 + 16, 0x20)), CLIENTS),
        (Reason::FragmentTiny, edited_sctp_fragment(8), CLIENTS),
        (Reason::OtherProtocol, edited(tcp, |f| f[23] = 47), CLIENTS),
        (Reason::NoEndpoints, to("10.96.1.1:80").frame(), CLIENTS),
        (Reason::NoLocalEndpoints, to("10.96.1.2:80").frame(), CLIENTS),
        (Reason::SourceRange, to("10.96.1.3:80").frame(), CLIENTS),
        (Reason::UnusedServicePort, to("10.96.0.1:81").frame(), CLIENTS),
        (Reason::UnallocatedServiceAddress, to("10.96.9.9:80").frame(), CLIENTS),
        (Reason::UnusedExternalPort, spec("tcp", "198.51.100.7:40000", "203.0.113.10:81", SYN).frame(), CLIENTS),
        (Reason::MidFlowSnat, Spec { flags: ACK, ..to("10.96.0.2:80") }.frame(), CLIENTS),
        (Reason::TtlExceeded, Spec { ttl: 1, ..tcp }.frame(), CLIENTS),
        (Reason::TooBig, Spec { payload: 1500, ..tcp }.frame(), CLIENTS),
        (Reason::NoRoute, to("10.96.1.4:80").frame(), CLIENTS),
        (Reason::Unreachable, to("10.96.1.5:80").frame(), CLIENTS),
        (Reason::RouteProhibited, to("10.96.1.10:80").frame(), CLIENTS),
        (Reason::RouteBlackhole, to("10.96.1.11:80").frame(), CLIENTS),
        (Reason::NextHopKernel, to("10.96.1.6:80").frame(), CLIENTS),
        (Reason::NotOurs, edited(to("169.254.78.78:22"), |f| f[..6].copy_from_slice(&KERNEL_MAC)), INTERNAL),
        (Reason::SnatAddressMissing, to("10.96.1.7:80").frame(), CLIENTS),
    ];
    for source in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.1:1", "255.255.255.255:1"] {
        list.push((Reason::Martian, spec("udp", source, "10.96.0.1:80", 0).frame(), CLIENTS));
    }
    for source in ["[::]:1", "[::1]:1", "[ff02::1]:1", "[::ffff:10.0.0.2]:1"] {
        list.push((Reason::Martian, spec("udp", source, "[fd00:96::1]:80", 0).frame(), CLIENTS));
    }
    list
}

/// The test world with a Service for each bad end.
fn world() -> World {
    let mut s = services();
    add_action(&mut s, "10.96.1.1", 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
    add_action(&mut s, "10.96.1.2", 80, Proto::Tcp, Action::Drop(Reason::NoLocalEndpoints));
    let open = s.frontend(ip("10.96.0.1"), 80, Proto::Tcp).expect("there").clone();
    let fenced = Frontend { source_ranges: Some(PrefixSet::new(["203.0.113.0/24".parse().unwrap()]).into()), ..open };
    s.add_frontend(ip("10.96.1.3"), 80, Proto::Tcp, fenced).expect("free");
    add_service(&mut s, "10.96.1.4", 80, Proto::Tcp, &[backend("100.64.0.1", 80)], false);
    add_service(&mut s, "10.96.1.5", 80, Proto::Tcp, &[backend("192.168.77.1", 80)], false);
    add_service(&mut s, "10.96.1.10", 80, Proto::Tcp, &[backend("192.168.78.1", 80)], false);
    add_service(&mut s, "10.96.1.11", 80, Proto::Tcp, &[backend("192.168.79.1", 80)], false);
    add_service(&mut s, "10.96.1.6", 80, Proto::Tcp, &[backend("172.16.0.1", 80)], false);
    add_service(&mut s, "10.96.1.7", 80, Proto::Tcp, &[backend("192.168.1.1", 80)], true);
    add_service(&mut s, "203.0.113.10", 80, Proto::Tcp, &[backend("192.168.1.1", 80)], true);
    make_outer(&mut s, "203.0.113.10");
    World::new(s, 256)
}

#[test]
fn every_reason_has_a_packet_a_counter_and_no_other_effect() {
    let mut met = HashSet::new();
    for (reason, frame, port) in packets() {
        let mut w = world();
        if reason == Reason::SnatAddressMissing {
            w.services.snat.v4.clear();
        }
        if reason == Reason::NextHopKernel {
            w.services.snat.internal_v4 = None;
        }
        let done = w.run(port, &frame);
        let verdict_reason = match done.verdict {
            Verdict::Drop(r) => {
                assert_eq!(done.bytes, frame, "{reason:?}: a dropped frame is not touched");
                r
            }
            Verdict::Kernel(r) => r,
            other => panic!("{reason:?}: {other:?}"),
        };
        assert_eq!(verdict_reason, reason, "{frame:02x?}");
        let (frames, reasons) = (w.reconciled(), w.counters.reasons.read());
        let kernel = u64::from(matches!(done.verdict, Verdict::Kernel(_)));
        assert_eq!((frames.kernel.packets, frames.dropped.packets), (kernel, 1 - kernel), "{reason:?}");
        assert_eq!(if kernel == 1 { &reasons.kernel[reason] } else { &reasons.drop[reason] }, &1, "{reason:?}");
        assert_eq!((w.live(), w.announced()), (0, 0), "{reason:?} opens nothing");
        met.insert(reason);
    }
    met.extend(limits());
    met.extend(icmp_errors());
    met.extend(fragments());
    met.insert(too_many_fragments());
    let missing: Vec<_> = Reason::ALL.iter().filter(|r| !met.contains(r) && !EDGE.contains(r)).collect();
    assert!(missing.is_empty(), "no packet for {missing:?}");
    let mut elsewhere = String::new();
    edge_tests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../xsk"), false, &mut elsewhere);
    for reason in EDGE {
        assert!(!met.contains(reason), "{reason:?} is met here");
        assert!(elsewhere.contains(&format!("Reason::{reason:?}")), "no test of the edge names {reason:?}");
    }
}

/// A datagram that a way with the smallest MTU (RFC 791) takes in more fragments than the limit.
fn too_many_fragments() -> Reason {
    let mut w = world();
    w.routes = routes_with_mtu(2, 68);
    let mut frame = Spec { payload: 3_200, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) }.frame();
    allow_fragments(&mut frame);
    let done = w.run(CLIENTS, &frame);
    assert_eq!((done.verdict, done.bytes == frame, done.made.len()), (Verdict::Drop(Reason::TooManyFragments), true, 0));
    w.reconciled();
    assert_eq!((w.live(), w.counters.path.fragmented.get()), (0, 0));
    Reason::TooManyFragments
}

/// Fragments that overlap, and later ones that are given up: for a cluster IP, and for an address of the node.
fn fragments() -> Vec<Reason> {
    let later = |to: &str| edited(spec("udp", "10.0.0.2:40000", to, 0), |f| f[21] = 9);
    for reason in [Reason::FragmentTimeout, Reason::FragmentHoldFull] {
        let submitted = if reason == Reason::FragmentTimeout { Submitted::Overdue } else { Submitted::Evicted };
        for (to, verdict) in [("10.96.0.1:80", Verdict::Drop(reason)), ("10.0.0.1:53", Verdict::Kernel(reason))] {
            let mut w = world();
            assert!(matches!(w.run(CLIENTS, &later(to)).verdict, Verdict::Hold(_)));
            assert_eq!(w.run_as(submitted, CLIENTS, &later(to)).verdict, verdict);
            w.reconciled();
        }
    }
    let mut w = world();
    w.run(CLIENTS, &later("10.96.0.1:80"));
    assert_eq!(w.run(CLIENTS, &later("10.96.0.1:80")).verdict, Verdict::Drop(Reason::FragmentOverlap));
    vec![Reason::FragmentTimeout, Reason::FragmentHoldFull, Reason::FragmentOverlap]
}

/// ICMP errors about a connection: by the wrong port, about what was not sent, damaged, too many.
fn icmp_errors() -> Vec<Reason> {
    let mut met = Vec::new();
    for reason in [Reason::IcmpPort, Reason::IcmpSequence, Reason::IcmpChecksum, Reason::IcmpLimit] {
        let mut w = world();
        let syn = Spec { payload: 0, ..spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN) };
        w.connect(&syn).unwrap();
        let sequence = 70_001 + if reason == Reason::IcmpSequence { 1 << 30 } else { 0 };
        let answer = Spec { src: syn.dst, dst: syn.src, flags: ACK, sequence, ..syn };
        let mut frame = icmp_error("10.96.0.1").frame(&answer.frame()[14..]);
        if reason == Reason::IcmpChecksum {
            frame[40] ^= 1;
        }
        if reason == Reason::IcmpLimit {
            let carried = (0..1_000).take_while(|_| matches!(w.run(CLIENTS, &frame).verdict, Verdict::Forward(PODS, _))).count();
            assert_eq!(carried, 200, "a client's share of a burst");
        } else {
            let done = w.run(if reason == Reason::IcmpPort { PODS } else { CLIENTS }, &frame);
            assert_eq!((done.verdict, &done.bytes), (Verdict::Drop(reason), &frame));
        }
        w.reconciled();
        assert_eq!(w.counters.reasons.drop.of(reason).get(), 1);
        assert_eq!((w.live(), w.announced()), (1, 1));
        met.push(reason);
    }
    met
}

#[test]
fn a_frame_that_would_loop_counts_as_dropped_and_not_as_left_to_the_kernel() {
    let mut w = world();
    // What the kernel sends to an address that it always routes here: returned to it, it would come again and again.
    let loops = |f: &mut Vec<u8>| f[..6].copy_from_slice(&KERNEL_MAC);
    let to_internal = spec("tcp", "10.0.0.2:40000", "169.254.78.78:22", SYN);
    assert_eq!(w.run(INTERNAL, &edited(to_internal, loops)).verdict, Verdict::Drop(Reason::NotOurs));
    let frames = w.reconciled();
    assert_eq!((frames.kernel.packets, frames.dropped.packets), (0, 1));
    // The same from elsewhere goes to the kernel.
    assert_eq!(w.run(CLIENTS, &to_internal.frame()).verdict, Verdict::Kernel(Reason::NotOurs));
    let (frames, reasons) = (w.reconciled(), w.counters.reasons.read());
    assert_eq!((frames.kernel.packets, frames.dropped.packets), (1, 1));
    assert_eq!((reasons.kernel[Reason::NotOurs], reasons.drop[Reason::NotOurs]), (1, 1));
}

/// The limits: a full table, a lost race, no ports left, a full filter, a way back that is taken, no way to the kernel.
#[expect(clippy::too_many_lines, reason = "a limit for each reason")]
fn limits() -> Vec<Reason> {
    let request = |i: u16| spec("tcp", &format!("10.0.0.2:{}", 1024 + i), "10.96.0.1:80", SYN);
    let to_snat = |i: u16| Spec { dst: "10.96.0.2:80".parse().unwrap(), ..request(i) };
    let mut met = Vec::new();
    let mut meet = |w: &World, done: &Done, reason: Reason| {
        assert_eq!(done.verdict, Verdict::Drop(reason));
        w.reconciled();
        assert_eq!(w.counters.reasons.drop.of(reason).get(), 1);
        met.push(reason);
    };

    // Established connections fill the table: the next one is refused. A closed one makes room.
    let mut w = World::new(services(), 4);
    for i in 0..4 {
        w.connect(&request(i)).unwrap();
    }
    let done = w.run(CLIENTS, &request(9).frame());
    meet(&w, &done, Reason::ConntrackFull);
    assert_eq!((w.live(), w.announced()), (4, 4));
    w.run(CLIENTS, &Spec { flags: RST, sequence: request(2).sequence + 1, ..request(2) }.frame());
    assert!(matches!(w.run(CLIENTS, &request(9).frame()).verdict, Verdict::Forward(..)));
    assert_eq!((w.live(), w.announced(), w.counters.conntrack.evicted.of(EvictionRank::Closed).get()), (4, 4, 1));

    // Another worker has half created the same connection.
    let mut w = World::new(services(), 4);
    let key = request(0).tuple();
    let mut flow = Flow {
        proto: key.proto,
        v6: key.v6,
        announced: false,
        client: key.src,
        client_port: key.sport,
        service: key.dst,
        service_port: key.dport,
        backend: [0, 0xc0a8_0101],
        backend_port: 8080,
        source: key.src,
        source_port: key.sport,
        stats: 1,
        counted: None,
    };
    let pending = w.with(|ctx| {
        let (hash, ports) = (ctx.table.hash(&key), std::iter::once(key.sport));
        ctx.table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, SYN), ctx.now_ms, ports).ok()
    });
    let done = w.run(CLIENTS, &request(0).frame());
    meet(&w, &done, Reason::ConntrackBusy);
    assert_eq!((w.live(), w.announced(), w.counters.conntrack.busy.get()), (0, 0, 1));
    w.with(|ctx| ctx.table.abort(pending.expect("room")));
    assert!(matches!(w.run(CLIENTS, &request(0).frame()).verdict, Verdict::Forward(..)));
    assert_eq!((w.live(), w.counters.conntrack.busy.get()), (1, 1));

    // Two source ports towards one backend.
    let mut s = services();
    s.snat.port_last = s.snat.port_first + 1;
    add_service(&mut s, "10.96.0.7", 80, Proto::Tcp, &[backend("192.168.1.1", 80)], true);
    let mut w = World::new(s, 16);
    let to7 = |i: u16| Spec { dst: "10.96.0.7:80".parse().unwrap(), ..request(i) };
    let ports: HashSet<u16> = (0..2).map(|i| w.connect(&to7(i)).unwrap().tuple.sport).collect();
    assert_eq!(ports, HashSet::from([61_000, 61_001]));
    let done = w.run(CLIENTS, &to7(2).frame());
    meet(&w, &done, Reason::SnatPortsExhausted);
    assert_eq!(w.live(), 2);

    // Half of two ports for a client.
    w.services.snat.share_percent = 50;
    let mut w = World::new(w.services, 64);
    w.connect(&to7(0)).unwrap();
    let done = w.run(CLIENTS, &to7(1).frame());
    meet(&w, &done, Reason::SnatShare);
    assert_eq!(w.live(), 1);

    // One new connection a second, one connection of a client.
    let rate = ConnectionsPerSecond::new(1).map(RateLimit::new);
    let per_client = ConnectionsPerClient::new(1).map(|most| ClientLimit::new(most, "n", "s"));
    let limits = [(rate, None, Reason::ServiceRateLimited), (None, per_client, Reason::ClientConnectionLimit)];
    for (rate, per_client, reason) in limits {
        let mut w = World::new(services(), 64);
        change(&mut w.services, |f| {
            let limits = Limits { rate: rate.clone(), per_client };
            f.port = Arc::new(ServicePort { limits, ..(*f.port).clone() });
        });
        w.connect(&request(0)).unwrap();
        let done = w.run(CLIENTS, &request(1).frame());
        meet(&w, &done, reason);
        assert_eq!((w.live(), w.announced()), (1, 1));
    }

    // One bucket of sixteen announcements, of connections that must not go.
    let mut w = World::new(services(), 64);
    w.replies = Replies::new(1);
    for i in 0..16 {
        w.connect(&request(i)).unwrap();
    }
    let done = w.run(CLIENTS, &request(16).frame());
    meet(&w, &done, Reason::ReplyFilterFull);
    assert_eq!((w.live(), w.announced()), (16, 16));

    // More pings than one sender's share.
    let mut w = world();
    w.services.answer_ping = true;
    let ping = IcmpSpec { from: ip("10.0.0.2"), to: ip("10.96.0.1"), kind: 8, code: 0, rest: [0, 1, 0, 1] }.frame(&[7; 56]);
    assert_eq!((0..100).take_while(|_| matches!(w.run(CLIENTS, &ping).verdict, Verdict::Forward(CLIENTS, _))).count(), 50);
    w.counters = nomagic_core::counters::Counters::new(8);
    let done = w.run(CLIENTS, &ping);
    meet(&w, &done, Reason::PingLimit);
    assert_eq!(done.bytes, ping);

    // A source behind another port.
    let mut w = world();
    w.routes = routes(2).with_reverse_path([ReversePath::Strict; 2]);
    let done = w.run(CLIENTS, &spec("tcp", "192.168.1.1:40000", "10.96.0.1:80", SYN).frame());
    meet(&w, &done, Reason::ReversePath);

    // A reply by the clients' port.
    let mut w = world();
    let seen = w.connect(&to_snat(0)).unwrap();
    let forged = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: (seen.tuple.src_addr(), seen.tuple.sport).into(), ..request(0) };
    let done = w.run(CLIENTS, &Spec { flags: ACK, ..forged }.frame());
    meet(&w, &done, Reason::ReplyPort);

    // Two Services lead to one backend; the client uses one port for both. The second connection gets another source port,
    // but not when it is met in its middle.
    let mut s = services();
    for addr in ["10.96.0.6", "10.96.0.7"] {
        add_service(&mut s, addr, 80, Proto::Tcp, &[backend("192.168.1.1", 80)], false);
    }
    let mut w = World::new(s, 16);
    let both = |addr: &str, flags| Spec { dst: format!("{addr}:80").parse().unwrap(), flags, ..request(0) };
    let first = read(&w.run(CLIENTS, &both("10.96.0.6", SYN).frame()).bytes).unwrap().tuple;
    let done = w.run(CLIENTS, &both("10.96.0.7", ACK).frame());
    meet(&w, &done, Reason::ReplyKeyTaken);
    let second = read(&w.run(CLIENTS, &both("10.96.0.7", SYN).frame()).bytes).unwrap().tuple;
    assert_eq!((first.src_addr(), first.sport), (ip("10.0.0.2"), 1024));
    assert_eq!(second.src_addr(), ip("10.0.0.2"), "only the port changes");
    assert_ne!(second.sport, first.sport);

    // The backends' port is down.
    let mut w = world();
    let mac = |port: PortId| w.routes.port(port).expect("a port").mac;
    let ports = [CLIENTS, PODS].map(|port| Port { mac: mac(port), mtu: 1500, up: port == CLIENTS }).into();
    w.routes = Routes::build(2, ports, None, vec![route("192.168.0.0/16", on_link(PODS))], &[]).0;
    let done = w.run(CLIENTS, &request(0).frame());
    meet(&w, &done, Reason::PortDown);

    let mut w = world();
    w.routes.internal = None;
    let done = w.run(CLIENTS, &spec("tcp", "10.0.0.2:1", "10.0.0.1:22", SYN).frame());
    meet(&w, &done, Reason::NoInternalPort);
    met
}
