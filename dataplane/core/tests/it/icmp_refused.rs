//! ICMP errors that are not sent on: damaged, forged, or about no flow.

use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, splitmix64};
use nomagic_core_fixtures::*;

use crate::icmp_scene::*;

#[test]
fn quotes_that_are_cut_short_or_not_of_the_receivers_packet_are_the_kernels() {
    let kernel = |reason| Verdict::Kernel(reason);
    for v6 in [false, true] {
        let mut s = scene(v6, Nat::Snat, Proto::Tcp);
        let (header, kind) = if v6 { (40, (1, 4)) } else { (20, (3, 3)) };
        let (spec, whole) = s.ways[0].error(v6, s.ways[0].router, kind, 20);
        let packet = s.ways[0].went[14..].to_vec();
        for len in 0..header + 8 {
            assert_eq!(verdict_of(&mut s, PODS, &spec.frame(&packet[..len])), kernel(Reason::IcmpQuote), "{len} bytes quoted");
        }
        assert!(matches!(verdict_of(&mut s, PODS, &whole), Verdict::Forward(..)));
        // Addressed to another than the quoted packet's sender.
        let elsewhere = IcmpSpec { to: ip(if v6 { "fd00:a::77" } else { "10.0.0.77" }), ..spec }.frame(&packet);
        assert_eq!(verdict_of(&mut s, PODS, &elsewhere), kernel(Reason::IcmpQuote));
        let edit = |at: usize, bytes: &[u8]| {
            let mut packet = packet.clone();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            spec.frame(&packet)
        };
        // Another version, a header below its minimum, a later fragment; a ping; the packet as it came in, which nobody beyond here has seen.
        let cases = match v6 {
            false => vec![
                (edit(0, &[0x65]), Reason::IcmpQuote),
                (edit(0, &[0x44]), Reason::IcmpQuote),
                (edit(6, &[0, 1]), Reason::IcmpQuote),
                (edit(9, &[1]), Reason::Icmp),
            ],
            true => vec![(edit(0, &[0x40]), Reason::IcmpQuote), (edit(6, &[44, 0]), Reason::Icmp), (edit(6, &[58]), Reason::Icmp)],
        };
        for (frame, reason) in cases {
            let verdict = verdict_of(&mut s, PODS, &frame);
            // The bytes that follow are no fragment header that anybody has written: either reason names it.
            assert!(verdict == kernel(reason) || (v6 && verdict == kernel(Reason::IcmpQuote)), "{verdict:?}");
        }
        let unchanged = IcmpSpec { to: s.ways[0].sender, ..spec }.frame(&s.ways[0].sent[14..]);
        assert_eq!(verdict_of(&mut s, PODS, &unchanged), kernel(Reason::Icmp), "of no flow, seen from there");
    }
    // A family's ICMP in the other family, a fragment of an error, and what is no error.
    let mut s = scene(false, Nat::Dnat, Proto::Udp);
    let (_, whole) = s.ways[0].error(false, s.ways[0].router, (3, 3), 8);
    let edits: [(usize, &[u8]); 5] = [(23, &[58]), (20, &[0x20]), (34, &[8]), (34, &[5]), (34, &[4])];
    for (at, bytes) in edits {
        let mut frame = whole.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(verdict_of(&mut s, PODS, &frame), kernel(Reason::Icmp), "{at}");
    }
}

#[test]
fn a_wrong_checksum_is_dropped() {
    all(|mut s| {
        let (_, frame) = s.ways[0].error(s.v6, s.ways[0].router, if s.v6 { (2, 0) } else { (3, 4) }, 40);
        let l4 = if s.v6 { 54 } else { 34 };
        // The type's code, the checksum, the MTU, a byte of the payload.
        for at in [l4 + 1, l4 + 2, l4 + 7, frame.len() - 1] {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            assert_eq!(verdict_of(&mut s, PODS, &damaged), Verdict::Drop(Reason::IcmpChecksum), "{at}");
        }
    });
}

/// Routers may be anywhere on the way, but on the way: an error comes in where the packet left, or, about a packet to the client, where that one's packets
/// come in.
#[test]
fn errors_come_in_where_the_packet_went() {
    for v6 in [false, true] {
        let mut s = scene(v6, Nat::Snat, Proto::Udp);
        let kind = if v6 { (2, 0) } else { (3, 4) };
        let about_request = s.ways[0].error(v6, s.ways[0].router, kind, 8).1;
        let about_reply = s.ways[1].error(v6, s.ways[1].router, kind, 8).1;
        assert_eq!(verdict_of(&mut s, CLIENTS, &about_request), Verdict::Drop(Reason::IcmpPort));
        assert_eq!(verdict_of(&mut s, INTERNAL, &about_request), Verdict::Drop(Reason::IcmpPort));
        assert_eq!(verdict_of(&mut s, PODS, &about_reply), Verdict::Drop(Reason::IcmpPort));
        assert!(matches!(verdict_of(&mut s, PODS, &about_request), Verdict::Forward(CLIENTS, _)));
        assert!(matches!(verdict_of(&mut s, CLIENTS, &about_reply), Verdict::Forward(PODS, _)));
        // The client's packets begin to come in by another port than the route to it names.
        let request = s.ways[0].sent.clone();
        assert!(matches!(s.w.run(INTERNAL, &request).verdict, Verdict::Forward(..)));
        assert!(matches!(verdict_of(&mut s, INTERNAL, &about_reply), Verdict::Forward(PODS, _)));
        assert!(matches!(verdict_of(&mut s, CLIENTS, &about_reply), Verdict::Forward(PODS, _)));
        // No router has this node's own address, and none sends from its link.
        let own = s.ways[0].error(v6, ip(if v6 { "fd00:a::1" } else { "10.0.0.1" }), kind, 8).1;
        assert_eq!(verdict_of(&mut s, PODS, &own), Verdict::Drop(Reason::OwnSource));
        let time_exceeded = if v6 { (3, 0) } else { (11, 0) };
        let (_, on_link) = s.ways[0].error(v6, ip(if v6 { "fe80::9" } else { "169.254.9.9" }), time_exceeded, 8);
        assert_eq!(verdict_of(&mut s, PODS, &on_link), Verdict::Kernel(Reason::LinkLocalSource));
        let (_, translated) = s.ways[0].error(v6, ip(if v6 { "fe80::9" } else { "169.254.9.9" }), kind, 8);
        assert!(matches!(verdict_of(&mut s, PODS, &translated), Verdict::Forward(..)), "the Service's address takes its place");
    }
}

#[test]
fn an_error_that_cannot_go_on_is_dropped_in_silence() {
    let mut s = scene(false, Nat::Snat, Proto::Udp);
    let (_, mut frame) = s.ways[0].error(false, s.ways[0].router, (3, 1), 8);
    frame[22] = 1;
    set_ipv4_checksum(&mut frame, 14);
    let done = s.w.run(PODS, &frame);
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::TtlExceeded), 0));
    let spec = IcmpSpec { from: s.ways[0].router, to: addr(&s.ways[0].went, false, false), kind: 3, code: 1, rest: [0; 4] };
    let long = spec.frame(&[&s.ways[0].went[14..], &[0; 1_000]].concat());
    let done = s.w.run(PODS, &long);
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::TooBig), 0));
}

/// A flow that has timed out gets no errors, and an error does not keep it.
#[test]
fn errors_do_not_prolong_a_flow() {
    let mut s = scene(false, Nat::Dnat, Proto::Udp);
    let (_, frame) = s.ways[0].error(false, s.ways[0].router, (3, 1), 8);
    let mut carried = 0;
    while matches!(verdict_of(&mut s, PODS, &frame), Verdict::Forward(..)) {
        s.w.now_ms += 1_000;
        carried += 1;
    }
    assert!((10..=180).contains(&carried), "{carried} s");
    assert_eq!(verdict_of(&mut s, PODS, &frame), Verdict::Kernel(Reason::Icmp));
    assert_eq!(s.w.sweep_all().len(), 0);
    assert_eq!(s.w.live(), 0);
}

/// RFC 5927: what the flow cannot have sent is not believed.
#[test]
fn quoted_segments_are_compared_with_what_was_sent() {
    let mut s = scene(false, Nat::Snat, Proto::Tcp);
    let l4 = 34;
    let quoting = |s: &mut Scene, way: usize, number: u32| {
        let quoted = &mut s.ways[way].went;
        quoted[l4 + 4..l4 + 8].copy_from_slice(&number.to_be_bytes());
        let (_, frame) = s.ways[way].error(false, s.ways[way].router, (3, 3), 8);
        let port = s.ways[way].beyond;
        s.w.now_ms += 100;
        verdict_of(s, port, &frame)
    };
    let forged = Verdict::Drop(Reason::IcmpSequence);
    // The client has sent up to 1,600, by the endpoint's acknowledgment; the endpoint up to 5,600.
    for (way, next) in [(0, 1_600u32), (1, 5_600)] {
        for near in [0, 599, 600] {
            assert!(matches!(quoting(&mut s, way, next.wrapping_sub(near)), Verdict::Forward(..)), "{near} before the next one");
        }
        assert!(matches!(quoting(&mut s, way, next.wrapping_add(1 << 28)), Verdict::Forward(..)), "not noted yet");
        for far in [1 << 29, 1 << 30, 1 << 31, 3 << 30] {
            assert_eq!(quoting(&mut s, way, next.wrapping_add(far)), forged, "{far} after the next one");
        }
        assert_eq!(quoting(&mut s, way, next.wrapping_sub((1 << 26) + 601)), forged);
    }
    let mut random = 5;
    let passed = (0..1_000).filter(|_| quoting(&mut s, 0, splitmix64(&mut random) as u32) != forged).count();
    assert!((90..200).contains(&passed), "{passed} of 1,000 guesses, should be one in seven");
}

/// Before the handshake is complete, only what the endpoint has sent is known.
#[test]
fn the_range_of_a_handshake_is_exact() {
    let mut w = World::new(services(), 64);
    let syn = Spec { payload: 0, sequence: 999, ..spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN) };
    let went = w.run(CLIENTS, &syn.frame()).bytes;
    let pod = addr(&went, false, true);
    let answer = Spec { src: (pod, 8080).into(), dst: syn.src, flags: SYN_ACK, sequence: 7_000, acknowledgment: 1_000, ..syn };
    let mut back = w.run(PODS, &answer.frame()).bytes;
    let spec = IcmpSpec { from: ip("10.0.0.254"), to: ip("10.96.0.1"), kind: 3, code: 1, rest: [0; 4] };
    for (number, sent) in [(6_999u32, false), (7_000, true), (7_001, true), (7_002, false), (1 << 31, false)] {
        back[38..42].copy_from_slice(&number.to_be_bytes());
        let verdict = w.run(CLIENTS, &spec.frame(&back[14..])).verdict;
        assert_eq!(matches!(verdict, Verdict::Forward(..)), sent, "{number}: {verdict:?}");
    }
}

/// Damaged errors, half of them with a right checksum: whatever goes on is sound.
#[test]
fn random_damage_never_passes_as_something_else() {
    let mut random = 11;
    let (mut forwarded, mut others) = (0, 0);
    all(|mut s| {
        let kinds = if s.v6 { V6 } else { V4 };
        for i in 0..3_000 {
            let mut next = |n: usize| splitmix64(&mut random) as usize % n;
            let way = &s.ways[i % 2];
            let (_, mut frame) =
                way.error(s.v6, if i % 3 == 0 { way.far(s.v6) } else { way.router }, kinds[next(kinds.len())], 8 + next(40));
            for _ in 0..1 + next(3) {
                let at = 14 + next(frame.len() - 14);
                frame[at] ^= 1 << next(8);
            }
            if next(4) == 0 {
                frame.truncate(14 + next(frame.len() - 14));
            }
            let plain = frame.len() > 62 && (frame[12] == 0x86 || frame[14] == 0x45);
            if i % 4 < 2 && plain {
                set_icmp_checksum(&mut frame);
            }
            set_ipv4_checksum(&mut frame, 14);
            let (port, sender, receiver, back) = (way.beyond, way.sender, way.receiver, way.back);
            let expected = way.as_sent(s.v6);
            s.w.now_ms += 20;
            // Kept open.
            s.ways
                .iter()
                .map(|way| (way.back, way.sent.clone()))
                .collect::<Vec<_>>()
                .iter()
                .for_each(|(port, packet)| drop(s.w.run(*port, packet)));
            let before = table(&s.w);
            let done = s.w.run(port, &frame);
            assert_eq!(table(&s.w), before);
            let Verdict::Forward(out, _) = done.verdict else {
                others += 1;
                continue;
            };
            forwarded += 1;
            let seen = read_error(&done.bytes).unwrap_or_else(|e| panic!("{e}: {frame:x?}"));
            assert_eq!((out, seen.spec.to), (back, sender));
            let (addresses, ports) = if s.v6 { (8..40, 40..44) } else { (12..20, 20..24) };
            assert_eq!(seen.quote[addresses.clone()], expected[addresses], "{receiver}");
            let options = if s.v6 { 0 } else { usize::from(seen.quote[0] & 15) * 4 - 20 };
            if s.v6 && seen.quote[6] != expected[6] {
                continue;
            }
            assert_eq!(seen.quote[ports.start + options..ports.end + options], expected[ports]);
        }
    });
    println!("{forwarded} forwarded, {others} not");
    assert!(forwarded > 3_000 && others > 10_000, "{forwarded} {others}");
}
