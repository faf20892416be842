//! ICMP errors about known flows: each type, both families, every protocol, by every way through the NAT.
//!
//! The oracle is the sender's own packet. Sent through the world and quoted as it came out, it must come back in the quote as it was sent.

use std::net::IpAddr;

use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

use crate::icmp_scene::*;

fn neighbour(addr: IpAddr) -> [u8; 6] {
    mac_of(&addr.to_string())
}

/// Runs an error and checks everything about what comes out.
fn check(s: &mut Scene, way: usize, from: IpAddr, kind: (u8, u8), quoted: usize) {
    let (v6, way) = (s.v6, &s.ways[way]);
    let (spec, frame) = way.error(v6, from, kind, quoted);
    let what = format!("{spec:?}, {quoted} bytes quoted");
    let before = table(&s.w);
    // Within the limits, which are another test's.
    s.w.now_ms += 10;
    let done = s.w.run(way.beyond, &frame);
    let Verdict::Forward(out, _) = done.verdict else { panic!("{what}: {:?}", done.verdict) };
    assert_eq!(table(&s.w), before, "{what}: an error changes nothing in the table");
    let seen = read_error(&done.bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((out, seen.dst_mac, seen.src_mac, seen.ttl), (way.back, neighbour(way.sender), PORT_MACS[usize::from(out.0)], 63), "{what}");
    let time_exceeded = kind.0 == if v6 { 3 } else { 11 };
    let source = if from == way.far(v6) || (way.hidden && !time_exceeded) { way.receiver } else { from };
    assert_eq!(seen.spec, IcmpSpec { from: source, to: way.sender, ..spec }, "{what}");
    let mut expected = way.as_sent(v6)[..seen.quote.len()].to_vec();
    let l4 = if v6 { 40 } else { 20 };
    let sctp = if v6 { way.went[20] == 132 } else { way.went[23] == 132 };
    if sctp && seen.quote.len() < way.went.len() - 14 && seen.quote.len() > l4 + 8 {
        // The CRC of a packet that is not quoted whole stays.
        let (crc, end) = (l4 + 8, seen.quote.len().min(l4 + 12));
        expected[crc..end].copy_from_slice(&way.went[14 + crc..14 + end]);
    }
    assert_eq!(seen.quote, expected, "{what}");
}

#[test]
fn every_error_reaches_the_sender_of_the_packet_as_that_sent_it() {
    let mut errors = 0;
    all(|mut s| {
        for way in 0..2 {
            let (far, router, kinds) = (s.ways[way].far(s.v6), s.ways[way].router, if s.v6 { V6 } else { V4 });
            for from in [far, router] {
                for kind in kinds {
                    // RFC 792's eight bytes, half of a TCP header, all of it, some payload, as much as there is.
                    for quoted in [8, 12, 18, 20, 200, 520, 2_000] {
                        check(&mut s, way, from, kind, quoted);
                        errors += 1;
                    }
                }
            }
        }
        let frames = s.w.reconciled();
        assert_eq!(frames.dropped.packets + frames.kernel.packets, 0);
    });
    println!("{errors} errors");
    assert_eq!(errors, 2 * 3 * 3 * 2 * 2 * 11 * 7);
}

/// An error about a flow's first packet: the client learns that nobody listens.
#[test]
fn a_flow_that_was_never_answered_gets_errors_too() {
    for (proto, flags) in [("tcp", SYN), ("udp", 0)] {
        for (client, service, from) in
            [("10.0.0.2:40000", "10.96.0.2:80", "192.168.1."), ("[fd00:a::2]:40000", "[fd00:96::2]:80", "fd00:b::")]
        {
            let mut w = World::new(services(), 64);
            let v6 = client.starts_with('[');
            let sent = spec(proto, client, service, flags);
            let went = w.run(CLIENTS, &sent.frame()).bytes;
            let pod = addr(&went, v6, true);
            assert!(pod.to_string().starts_with(from));
            let kind = if v6 { (1, 4) } else { (3, 3) };
            let error = IcmpSpec { from: pod, to: addr(&went, v6, false), kind: kind.0, code: kind.1, rest: [0; 4] }.frame(&went[14..]);
            let done = w.run(PODS, &error);
            assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
            let seen = read_error(&done.bytes).unwrap();
            assert_eq!((seen.spec.from, seen.spec.to), (sent.dst.ip(), sent.src.ip()));
            let l4 = if v6 { 40 } else { 20 };
            assert_eq!(seen.quote[l4..], sent.frame()[14 + l4..], "the transport header and payload that the client has sent");
        }
    }
}

/// Options in the outer header and in the quoted one, tags, extension headers in both.
#[test]
fn headers_of_any_length() {
    let mut s = scene(false, Nat::Snat, Proto::Udp);
    let way = &s.ways[0];
    let quoted_with_options = with_ipv4_options(&way.went, &[1; 12]);
    let spec = IcmpSpec { from: way.router, to: addr(&way.went, false, false), kind: 3, code: 1, rest: [0; 4] };
    let plain = spec.frame(&quoted_with_options[14..14 + 32 + 8]);
    let mut expected = with_ipv4_options(&[&way.sent[..14], &way.as_sent(false)].concat(), &[1; 12])[14..14 + 32 + 8].to_vec();
    let with_options = with_ipv4_options(&plain, &[1; 40]);
    let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
    for frame in [plain, with_options, tagged] {
        let done = s.w.run(PODS, &frame);
        assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
        assert_eq!(read_error(&done.bytes).unwrap().quote, expected);
    }

    let mut s = scene(true, Nat::Snat, Proto::Tcp);
    let way = &s.ways[0];
    // Hop-by-hop, destination options, an atomic fragment's header, a routing header without segments left.
    let chain =
        [&[60u8, 0, 1, 4, 0, 0, 0, 0][..], &[44, 1, 1, 12], &[0; 12], &[43, 0, 0, 0, 0, 0, 0, 9], &[6, 0, 0, 0, 0, 0, 0, 0]].concat();
    let dress = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet.splice(40..40, chain.iter().copied());
        packet[6] = 0;
        let len = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet
    };
    let spec = IcmpSpec { from: way.router, to: addr(&way.went, true, false), kind: 2, code: 0, rest: [0, 0, 5, 0x78] };
    let frame = spec.frame(&dress(&way.went[14..])[..40 + 40 + 20]);
    expected = dress(&way.as_sent(true))[..40 + 40 + 20].to_vec();
    let mut outer = frame.clone();
    outer.splice(54..54, [58u8, 0, 1, 4, 0, 0, 0, 0]);
    outer[20] = 60;
    let len = (outer.len() - 54) as u16;
    outer[18..20].copy_from_slice(&len.to_be_bytes());
    for frame in [frame, outer] {
        let done = s.w.run(PODS, &frame);
        assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
        let seen = read_error(&done.bytes).unwrap();
        assert_eq!((seen.quote, seen.spec.from, seen.spec.to), (expected.clone(), ip("fd00:96::2"), ip("fd00:a::2")));
    }
}

/// UDP over IPv4 may go without a checksum, and a computed 0 is sent as 0xffff.
#[test]
fn a_quoted_datagram_without_a_checksum_stays_without() {
    let mut s = scene(false, Nat::Snat, Proto::Udp);
    let way = &mut s.ways[0];
    way.sent[40..42].fill(0);
    way.went[40..42].fill(0);
    check(&mut s, 0, ip("192.168.9.9"), (3, 1), 8);
}

/// The rest of a long error may be in other segments: only the headers must be in the first.
#[test]
fn errors_in_several_segments() {
    for v6 in [false, true] {
        let mut s = scene(v6, Nat::Snat, Proto::Tcp);
        let (_, frame) = s.ways[0].error(v6, s.ways[0].router, if v6 { (2, 0) } else { (3, 4) }, 401);
        let whole = s.w.run(PODS, &frame);
        let cuts = [frame.len() - 300, frame.len() - 101];
        let (tail, head) = ([&frame[cuts[0]..cuts[1]], &frame[cuts[1]..]], &frame[..cuts[0]]);
        let done = s.w.run_segments(PODS, head, &tail);
        assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
        assert_eq!([&done.bytes[..], tail[0], tail[1]].concat(), whole.bytes);
    }
}

/// Endpoints behind the kernel, and clients on the node: their errors come in by the internal port.
#[test]
fn errors_from_and_to_what_lies_behind_the_kernel() {
    let mut s = services();
    add_service(&mut s, "10.96.0.9", 80, Proto::Udp, &[backend("172.31.0.5", 53)], false);
    let mut w = World::new(s, 64);
    let sent = spec("udp", "10.0.0.2:40000", "10.96.0.9:80", 0);
    let went = w.run(CLIENTS, &sent.frame());
    assert!(matches!(went.verdict, Verdict::Forward(INTERNAL, _)));
    let error = |went: &[u8], from: &str| {
        IcmpSpec { from: ip(from), to: addr(went, false, false), kind: 3, code: 3, rest: [0; 4] }.frame(&went[14..])
    };
    let done = w.run(INTERNAL, &error(&went.bytes, "172.31.0.5"));
    assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
    assert_eq!(read_error(&done.bytes).unwrap().spec.from, ip("10.96.0.9"));

    // The endpoint is the node itself, and its kernel's error is captured on its way to the client.
    let mut s = services();
    add_service(&mut s, "10.96.0.9", 80, Proto::Udp, &[backend("10.0.0.1", 53)], false);
    let mut w = World::new(s, 64);
    w.routes = w.routes.with_answers_seen([true; 3]);
    let went = w.run(CLIENTS, &sent.frame());
    assert!(matches!(went.verdict, Verdict::Forward(INTERNAL, _)));
    assert_eq!(addr(&went.bytes, false, false), ip("10.0.0.2"), "it sees its client");
    let closed = error(&went.bytes, "10.0.0.1");
    assert_eq!(w.run(CLIENTS, &closed).verdict, Verdict::Drop(Reason::IcmpPort), "nobody else may say so");
    let done = w.run(INTERNAL, &closed);
    assert!(matches!(done.verdict, Verdict::Forward(CLIENTS, _)), "{:?}", done.verdict);
    assert_eq!(read_error(&done.bytes).unwrap().spec.from, ip("10.96.0.9"));

    // The node itself is the client: its kernel says that nobody waits for an answer any more.
    let sent = spec("udp", "10.0.0.1:40000", "10.96.0.2:80", 0);
    let mut frame = sent.frame();
    frame[..6].copy_from_slice(&KERNEL_MAC);
    let went = read(&w.run(INTERNAL, &frame).bytes).unwrap().tuple;
    let answer = Spec { src: (went.dst_addr(), went.dport).into(), dst: (went.src_addr(), went.sport).into(), ..sent };
    let back = w.run(PODS, &answer.frame());
    assert!(matches!(back.verdict, Verdict::Forward(INTERNAL, _)), "{:?}", back.verdict);
    let mut closed = error(&back.bytes, "10.0.0.1");
    closed[..6].copy_from_slice(&KERNEL_MAC);
    let done = w.run(INTERNAL, &closed);
    assert!(matches!(done.verdict, Verdict::Forward(PODS, _)), "{:?}", done.verdict);
    let seen = read_error(&done.bytes).unwrap();
    assert_eq!((seen.spec.from, seen.spec.to), (went.src_addr(), went.dst_addr()));
}
