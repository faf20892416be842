//! Rejected TCP connections that are answered by a reset (RFC 9293, 3.10.7.1): packets in, packets out, with etherparse as the judge.

use etherparse::{NetHeaders, PacketHeaders, TcpHeader, TransportHeader};
use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::reject::Limiter;
use nomagic_core::services::{Action, TcpReject};
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

const FIN: u8 = 1;

/// 10.96.0.8 and fd00:96::8 reject.
fn world() -> World {
    let mut s = services();
    s.tcp_reject = TcpReject::Reset;
    for addr in ["10.96.0.8", "fd00:96::8"] {
        for proto in [Proto::Tcp, Proto::Udp] {
            add_action(&mut s, addr, 80, proto, Action::Reject(Reason::NoEndpoints));
        }
    }
    World::new(s, 16)
}

/// A segment with this sequence number.
fn segment(to: &str, flags: u8, payload: usize, sequence: u32) -> Segment {
    let src = if to.starts_with('[') { "[fd00:a::2]:40000" } else { "10.0.0.2:40000" };
    Segment { spec: Spec { payload, ..spec("tcp", src, to, flags) }, sequence }
}

struct Segment {
    spec: Spec,
    sequence: u32,
}

impl Segment {
    fn frame(&self) -> Vec<u8> {
        let mut frame = self.spec.frame();
        let l4 = if self.spec.src.is_ipv4() { 34 } else { 54 };
        frame[l4 + 4..l4 + 8].copy_from_slice(&self.sequence.to_be_bytes());
        frame
    }
}

fn tcp_of(frame: &[u8]) -> TcpHeader {
    let Some(TransportHeader::Tcp(tcp)) = PacketHeaders::from_ethernet_slice(frame).unwrap().transport else { panic!("no TCP") };
    tcp
}

#[test]
fn sequence_numbers_are_those_of_a_closed_port() {
    // Flags and payload of the segment, its sequence number (it acknowledges 9), then: sequence number, acknowledged.
    let rows = [
        (SYN, 0, 7, 0, Some(8)),
        (SYN, 32, 7, 0, Some(40)),
        (SYN | FIN, 0, 7, 0, Some(9)),
        (SYN, 0, u32::MAX, 0, Some(0)),
        (0, 0, 7, 0, Some(7)),
        (0, 100, u32::MAX - 9, 0, Some(90)),
        (FIN, 0, 7, 0, Some(8)),
        (ACK, 32, 7, 9, None),
        (SYN_ACK, 0, 7, 9, None),
        (FIN_ACK, 5, 7, 9, None),
    ];
    let mut w = world();
    for to in ["10.96.0.8:80", "[fd00:96::8]:80"] {
        for (flags, payload, sequence, expected, acknowledged) in rows {
            let sent = segment(to, flags, payload, sequence);
            let frame = sent.frame();
            let done = w.run(CLIENTS, &frame);
            let what = format!("{to}, flags {flags:#x}, {payload} bytes");
            assert_eq!(done.verdict, Verdict::Drop(Reason::NoEndpoints), "{what}");
            assert_eq!(done.bytes, frame, "{what}: the segment itself is as it was");
            let [made] = &done.made[..] else { panic!("{what}: {} frames made", done.made.len()) };
            // Checks both checksums.
            let seen = read(made).unwrap();
            assert_eq!((seen.tuple, seen.ttl, seen.payload.len()), (sent.spec.tuple().reversed(), 64, 0), "{what}");
            assert_eq!((seen.dst_mac, seen.src_mac), (CLIENT_MAC, PORT_MACS[0]), "{what}: back the way it came");
            let tcp = tcp_of(made);
            let others = tcp.syn | tcp.fin | tcp.psh | tcp.urg | tcp.ece | tcp.cwr | tcp.ns;
            assert!(tcp.rst && !others && tcp.window_size == 0 && tcp.options.is_empty(), "{what}: {tcp:?}");
            assert_eq!((tcp.sequence_number, tcp.ack.then_some(tcp.acknowledgment_number)), (expected, acknowledged), "{what}");
            if let Some(NetHeaders::Ipv4(ip, _)) = PacketHeaders::from_ethernet_slice(made).unwrap().net {
                assert!(ip.dont_fragment && !ip.more_fragments && usize::from(ip.total_len) == made.len() - 14, "{what}: {ip:?}");
            }
        }
    }
    assert_eq!((w.counters.frames.made.packets.get(), w.counters.path.made_suppressed.get(), w.live()), (20, 0, 0));
}

#[test]
fn behind_options_tags_and_extension_headers() {
    let mut w = world();
    // Twelve bytes of options: not part of the segment's length.
    let mut options = segment("10.96.0.8:80", SYN, 32, 7).frame();
    options[46] = 0x80;
    let mut tagged = segment("10.96.0.8:80", SYN, 0, 7).frame();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    // Padding to the shortest frame is not, either.
    let mut padded = segment("10.96.0.8:80", SYN, 0, 7).frame();
    padded.resize(60, 0xaa);
    let mut extended = segment("[fd00:96::8]:80", SYN, 0, 7).frame();
    extended[20] = 60;
    extended.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    extended[19] += 8;
    for (what, frame, acknowledged) in [("options", options, 28), ("tag", tagged, 8), ("padding", padded, 8), ("extension", extended, 8)] {
        let done = w.run(CLIENTS, &frame);
        read(&done.made[0]).unwrap();
        assert_eq!(tcp_of(&done.made[0]).acknowledgment_number, acknowledged, "{what}");
        if what == "tag" {
            assert_eq!(done.made[0][12..16], [0x81, 0, 0, 5], "the same network");
        }
    }
}

#[test]
fn nothing_answers_a_reset_or_a_broadcast() {
    let mut w = world();
    for to in ["10.96.0.8:80", "[fd00:96::8]:80"] {
        for flags in [RST, RST | ACK, RST | SYN] {
            let done = w.run(CLIENTS, &segment(to, flags, 0, 7).frame());
            assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::NoEndpoints), 0), "{to} {flags:#x}");
        }
        let mut broadcast = segment(to, SYN, 0, 7).frame();
        broadcast[0] = 0xff;
        assert!(w.run(CLIENTS, &broadcast).made.is_empty());
    }
    assert_eq!(w.counters.path.made_suppressed.get(), 8);
}

#[test]
fn what_is_not_a_whole_segment_is_told_by_icmp() {
    let icmp = |frame: &[u8]| {
        let transport = PacketHeaders::from_ethernet_slice(frame).unwrap().transport.unwrap();
        matches!(transport, TransportHeader::Icmpv4(_) | TransportHeader::Icmpv6(_))
    };
    let mut w = world();
    let mut fragment = segment("10.96.0.8:80", SYN, 32, 7).frame();
    fragment[20] = 0x20;
    for frame in [
        spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame(),
        spec("udp", "[fd00:a::2]:40000", "[fd00:96::8]:80", 0).frame(),
        sctp_frame("10.0.0.2:40000", "10.96.0.1:81", 1, 32),
        fragment,
    ] {
        let done = w.run(CLIENTS, &frame);
        assert!(icmp(&done.made[0]), "{:?}", done.verdict);
    }
    // Unless it is asked for, TCP too.
    w.services.tcp_reject = TcpReject::default();
    assert!(icmp(&w.run(CLIENTS, &segment("10.96.0.8:80", SYN, 0, 7).frame()).made[0]));
    // What is wrong with the way on is no reject: the connection may go on.
    w.services.tcp_reject = TcpReject::Reset;
    let dying = Spec { ttl: 1, ..spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN) };
    assert!(icmp(&w.run(CLIENTS, &dying.frame()).made[0]));
    // Unused ports of a cluster IP are rejected, too.
    assert!(tcp_of(&w.run(CLIENTS, &segment("10.96.0.1:81", SYN, 0, 7).frame()).made[0]).rst);
}

#[test]
fn resets_count_against_the_limit_of_all_rejects() {
    let mut w = world();
    let (reset, icmp) = (segment("10.96.0.8:80", SYN, 0, 7).frame(), spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame());
    let mut sent = 0;
    for _ in 0..500 {
        sent += w.run(CLIENTS, &reset).made.len() + w.run(CLIENTS, &icmp).made.len();
    }
    assert!((Limiter::BURST..=Limiter::BURST + 1).contains(&(sent as u64)), "{sent}");
    assert_eq!(w.counters.frames.made.packets.get() + w.counters.path.made_suppressed.get(), 1_000);
}
