//! TCP connections that are answered by a reset (RFC 9293, 3.10.7.1), rejected or unknown: packets in, packets out, with etherparse as the judge.

use etherparse::{NetHeaders, PacketHeaders, TcpHeader, TransportHeader};
use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;
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

/// An established connection of each family, idle for longer than its timeout: both ends get the reset that they expect.
#[test]
fn both_ends_of_an_idle_connection_are_reset_if_the_configuration_says_so() {
    const DAY_MS: u64 = 24 * 3_600_000;
    for reset_idle in [false, true] {
        let mut w = world();
        w.services.reset_idle = reset_idle;
        let clients = [("10.0.0.2:40000", "10.96.0.1:80"), ("[fd00:a::2]:40000", "[fd00:96::1]:80")];
        let seen: Vec<Seen> = clients
            .iter()
            .map(|(src, dst)| w.connect(&Spec { sequence: 500, ..spec("tcp", src, dst, SYN) }).expect("the SYN goes on"))
            .collect();
        // A request and its answer, right after the handshake.
        for ((src, dst), to_backend) in clients.iter().zip(&seen) {
            let ask = Spec { sequence: 501, acknowledgment: 70_001, payload: 10, ..spec("tcp", src, dst, ACK) };
            w.run(CLIENTS, &ask.frame());
            let t = &to_backend.tuple;
            let (from, to) = ((t.dst_addr(), t.dport).into(), (t.src_addr(), t.sport).into());
            let answer = Spec { src: from, dst: to, flags: ACK, sequence: 70_001, acknowledgment: 511, payload: 30, ..ask };
            w.run(PODS, &answer.frame());
            w.run(CLIENTS, &Spec { sequence: 511, acknowledgment: 70_031, payload: 0, ..ask }.frame());
        }
        // A handshake that never completes, and a question: neither gets a reset.
        w.run(CLIENTS, &spec("tcp", "10.0.0.2:40001", "10.96.0.1:80", SYN).frame());
        w.run(CLIENTS, &spec("udp", "10.0.0.2:40002", "10.96.0.1:53", 0).frame());
        w.now_ms += DAY_MS - 1_000;
        assert!(w.sweep_all().is_empty(), "not yet");
        w.now_ms += 2_000;
        let made = w.sweep_all();
        assert_eq!(w.live(), 0);
        if !reset_idle {
            assert!(made.is_empty());
            continue;
        }
        assert_eq!((made.len(), w.counters.path.rejects_made.of(Class::Idle).get()), (4, 4));
        for ((src, dst), to_backend) in clients.iter().zip(&seen) {
            let find = |to: std::net::SocketAddr| {
                made.iter().find(|(frame, _)| read(frame).is_ok_and(|s| (s.tuple.dst_addr(), s.tuple.dport) == (to.ip(), to.port())))
            };
            let (frame, port) = find(src.parse().unwrap()).expect("the client's reset");
            let (seen, tcp) = (read(frame).expect("a sound frame"), tcp_of(frame));
            let service: std::net::SocketAddr = dst.parse().unwrap();
            assert_eq!((seen.tuple.src_addr(), seen.tuple.sport, *port), (service.ip(), service.port(), CLIENTS));
            assert_eq!((tcp.sequence_number, tcp.acknowledgment_number, tcp.rst, tcp.ack), (70_031, 511, true, true));
            let t = &to_backend.tuple;
            let (frame, port) = find((t.dst_addr(), t.dport).into()).expect("the backend's reset");
            let (seen, tcp) = (read(frame).expect("a sound frame"), tcp_of(frame));
            assert_eq!((seen.tuple, *port), (*t, PODS), "it looks like the client's packets");
            assert_eq!((tcp.sequence_number, tcp.acknowledgment_number, tcp.rst, tcp.ack), (511, 70_031, true, true));
        }
    }
}

/// More connections end at once than there are spare frames: the others end without a reset, and that is counted.
#[test]
fn idle_resets_need_spare_frames() {
    let mut w = world();
    w.services.reset_idle = true;
    for port in 40_000..40_012 {
        w.connect(&spec("tcp", &format!("10.0.0.2:{port}"), "10.96.0.1:80", SYN)).expect("the SYN goes on");
    }
    w.now_ms += 25 * 3_600_000;
    let made = w.sweep_all().len() as u64;
    let path = &w.counters.path;
    assert_eq!((made, path.rejects_suppressed.of(Class::Idle).get(), w.live()), (16, 24 - 16, 0));
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
    assert_eq!((w.counters.frames.made.packets.get(), w.counters.path.read().rejects_suppressed.total(), w.live()), (20, 0, 0));
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
    assert_eq!(w.counters.path.read().rejects_suppressed.total(), 8);
}

#[test]
fn what_is_not_a_whole_segment_is_told_by_icmp() {
    let icmp = |frame: &[u8]| {
        let transport = PacketHeaders::from_ethernet_slice(frame).unwrap().transport.unwrap();
        matches!(transport, TransportHeader::Icmpv4(_) | TransportHeader::Icmpv6(_))
    };
    let mut w = world();
    let mut fragment = segment("10.96.0.8:80", SYN, 36, 7).frame();
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
fn rejects_of_a_sender_count_together_whether_resets_or_icmp() {
    let mut w = world();
    let (reset, icmp) = (segment("10.96.0.8:80", SYN, 0, 7).frame(), spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame());
    let mut sent = 0;
    for _ in 0..500 {
        sent += w.run(CLIENTS, &reset).made.len() + w.run(CLIENTS, &icmp).made.len();
    }
    assert_eq!(sent as u64, Class::Unreachable.share().burst);
    let path = &w.counters.path;
    assert_eq!(path.rejects_made.of(Class::Unreachable).get(), sent as u64);
    assert_eq!((path.read().rejects_made.total() + path.rejects_suppressed.of(Class::Unreachable).get()), 1_000);
}

/// The reset that a host without the connection sends: as if it came from the Service, and with the number that the segment acknowledges.
fn assert_reset(done: &Done, sent: &Segment, what: &str) {
    let [made] = &done.made[..] else { panic!("{what}: {:?}, {} frames made", done.verdict, done.made.len()) };
    let (seen, tcp) = (read(made).unwrap(), tcp_of(made));
    assert_eq!((seen.tuple, seen.payload.len(), seen.dst_mac), (sent.spec.tuple().reversed(), 0, CLIENT_MAC), "{what}");
    let others = tcp.ack | tcp.syn | tcp.fin | tcp.psh | tcp.urg;
    assert!(tcp.rst && !others && tcp.sequence_number == 9, "{what}: {tcp:?}");
    assert_eq!(done.bytes, sent.frame(), "{what}: the segment itself is as it was");
}

const PSH: u8 = 8;

#[test]
fn an_unknown_connection_is_reset_at_once_where_it_cannot_be_picked_up() {
    // With SNAT every one, without it what is no plain segment. However Services reject.
    let rows = [
        ("10.96.0.2:80", ACK, Reason::MidFlowSnat),
        ("[fd00:96::2]:80", ACK, Reason::MidFlowSnat),
        ("10.96.0.2:80", FIN_ACK, Reason::TcpFlags),
        ("10.96.0.2:80", SYN_ACK, Reason::TcpFlags),
        ("10.96.0.1:80", FIN_ACK, Reason::TcpFlags),
        ("[fd00:96::1]:80", FIN_ACK, Reason::TcpFlags),
        ("10.96.0.1:80", SYN_ACK, Reason::TcpFlags),
    ];
    for tcp_reject in [TcpReject::PortUnreachable, TcpReject::Reset] {
        let mut w = World::new(services(), 16);
        w.services.tcp_reject = tcp_reject;
        for (to, flags, reason) in rows {
            for (payload, psh) in [(0, 0), (6, PSH)] {
                let sent = segment(to, flags, payload, 7);
                let mut frame = sent.frame();
                frame[if sent.spec.src.is_ipv4() { 47 } else { 67 }] |= psh;
                let mut done = w.run(CLIENTS, &frame);
                assert_eq!((done.verdict, &done.bytes), (Verdict::Drop(reason), &frame), "{to} {flags:#x}");
                done.bytes = sent.frame();
                assert_reset(&done, &sent, &format!("{to}, flags {flags:#x}, {payload} bytes"));
            }
        }
        assert_eq!((w.live(), w.announced()), (0, 0), "nothing is opened");
        let path = &w.counters.path;
        assert_eq!((path.rejects_made.of(Class::Reset).get(), path.read().rejects_suppressed.total()), (2 * rows.len() as u64, 0));
        w.reconciled();
    }
    // What can be picked up is, and goes on.
    let mut w = World::new(services(), 16);
    let done = w.run(CLIENTS, &segment("10.96.0.1:80", ACK, 6, 7).frame());
    assert!(matches!(done.verdict, Verdict::Forward(..)) && done.made.is_empty());
}

#[test]
fn what_is_no_segment_of_a_connection_is_dropped_in_silence() {
    let mut w = World::new(services(), 16);
    for to in ["10.96.0.1:80", "10.96.0.2:80", "[fd00:96::2]:80"] {
        for flags in [RST, RST | ACK, RST | SYN_ACK, 0, FIN, SYN | FIN, PSH] {
            let done = w.run(CLIENTS, &segment(to, flags, 0, 7).frame());
            assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::TcpFlags), 0), "{to} {flags:#x}");
        }
        for group in [0xff, 0x01] {
            let mut frame = segment(to, FIN_ACK, 0, 7).frame();
            frame[0] = group;
            assert!(w.run(CLIENTS, &frame).made.is_empty(), "a broadcast");
        }
    }
    // Where Services say so, silence is meant.
    add_action(&mut w.services, "10.96.1.2", 80, Proto::Tcp, Action::Drop(Reason::NoLocalEndpoints));
    let local = w.run(CLIENTS, &segment("10.96.1.2:80", ACK, 0, 7).frame());
    assert_eq!((local.verdict, local.made.len()), (Verdict::Drop(Reason::NoLocalEndpoints), 0));
    assert_eq!(w.counters.path.read().rejects_made.total(), 0);
}

/// RFC 9260, 8.4: an ABORT with the tag of the packet; SHUTDOWN ACK gets what it waits for. Other chunks get nothing.
#[test]
fn an_unknown_association_is_aborted() {
    const ABORT: u8 = 6;
    let aborts = [(0, ABORT), (3, ABORT), (4, ABORT), (7, ABORT), (8, 14)];
    let mut w = World::new(services(), 16);
    for (chunk, answer) in aborts {
        let done = w.run(CLIENTS, &sctp_frame("10.0.0.2:40000", "10.96.0.2:80", chunk, 32));
        let reason = if matches!(chunk, 7 | 8) { Reason::TcpFlags } else { Reason::MidFlowSnat };
        assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(reason), 1), "chunk {chunk}");
        let made = &done.made[0];
        let (ip, mut sctp) = (&made[14..34], made[34..].to_vec());
        assert_eq!(nomagic_core::checksum::checksum(ip), 0, "the IPv4 header's checksum");
        assert_eq!((ip[9], &ip[12..16], &ip[16..20]), (132, &[10, 96, 0, 2][..], &[10, 0, 0, 2][..]), "as if from the Service");
        let crc = <[u8; 4]>::try_from(&sctp[8..12]).unwrap();
        sctp[8..12].fill(0);
        assert_eq!(naive_crc32c(&sctp).to_le_bytes(), crc);
        let ports = [&80u16.to_be_bytes()[..], &40_000u16.to_be_bytes()].concat();
        assert_eq!(sctp, [&ports[..], &[0, 0, 0, 7], &[0; 4], &[answer, 1, 0, 4]].concat(), "chunk {chunk}");
    }
    // An INIT opens one; the others are not answered by a host, either.
    for chunk in [1, 2, 6, 9, 10, 11, 14] {
        assert!(w.run(CLIENTS, &sctp_frame("10.0.0.2:40001", "10.96.0.2:80", chunk, 32)).made.is_empty(), "chunk {chunk}");
        w = World::new(services(), 16);
    }
    let mut without_tag = sctp_frame("10.0.0.2:40000", "10.96.0.2:80", 0, 32);
    without_tag[38..42].fill(0);
    let done = w.run(CLIENTS, &without_tag);
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::MidFlowSnat), 0));
}

#[test]
fn a_connection_that_was_idle_for_too_long_is_reset_at_the_next_segment() {
    let mut w = World::new(services(), 16);
    let client = |flags| segment("10.96.0.2:80", flags, 0, 7);
    let at_pod = read(&w.run(CLIENTS, &client(SYN).frame()).bytes).unwrap().tuple;
    let answer = spec("tcp", &format!("{}:8080", at_pod.dst_addr()), &format!("10.0.0.1:{}", at_pod.sport), SYN_ACK);
    w.run(PODS, &answer.frame());
    w.run(CLIENTS, &client(ACK).frame());
    w.now_ms += 86_400_000 - 1;
    assert!(matches!(w.run(CLIENTS, &client(ACK).frame()).verdict, Verdict::Forward(..)), "it still is one");
    w.now_ms += 86_400_000 + 256;
    let done = w.run(CLIENTS, &client(ACK).frame());
    assert_eq!((done.verdict, w.live()), (Verdict::Drop(Reason::MidFlowSnat), 0));
    assert_reset(&done, &client(ACK), "after the idle time");
}

#[test]
fn a_reset_does_not_wait_for_the_way_to_an_endpoint() {
    let mut s = services();
    // Nobody has answered for this address yet; and this one is behind the kernel, which asks for SNAT.
    add_service(&mut s, "10.96.0.5", 80, Proto::Tcp, &[backend("192.168.9.9", 8080)], true);
    add_service(&mut s, "10.96.0.6", 80, Proto::Tcp, &[backend("172.16.0.5", 8080)], false);
    let mut w = World::new(s, 16);
    for to in ["10.96.0.5:80", "10.96.0.6:80"] {
        let sent = segment(to, ACK, 6, 7);
        let done = w.run(CLIENTS, &sent.frame());
        assert_eq!(done.verdict, Verdict::Drop(Reason::MidFlowSnat), "{to}");
        assert_reset(&done, &sent, to);
    }
}

#[test]
fn a_way_back_that_another_connection_has_ends_it_and_a_full_table_does_not() {
    let mut s = services();
    for addr in ["10.96.0.6", "10.96.0.7"] {
        add_service(&mut s, addr, 80, Proto::Tcp, &[backend("192.168.1.1", 80)], false);
    }
    let mut w = World::new(s, 1);
    w.run(CLIENTS, &segment("10.96.0.6:80", SYN, 0, 7).frame());
    let second = segment("10.96.0.7:80", ACK, 6, 7);
    let mut roomy = World::new(w.services.clone(), 16);
    roomy.run(CLIENTS, &segment("10.96.0.6:80", SYN, 0, 7).frame());
    let done = roomy.run(CLIENTS, &second.frame());
    assert_eq!(done.verdict, Verdict::Drop(Reason::ReplyKeyTaken));
    assert_reset(&done, &second, "the other connection may last for days");

    // Sent again, the segment may find room: the endpoint still knows the connection.
    let reply = spec("tcp", "192.168.1.1:80", "10.0.0.2:40000", SYN_ACK);
    w.run(PODS, &reply.frame());
    w.run(CLIENTS, &segment("10.96.0.6:80", ACK, 0, 7).frame());
    let mut other = second;
    other.spec.src.set_port(40_001);
    let done = w.run(CLIENTS, &other.frame());
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::ConntrackFull), 0));
}

#[test]
fn a_connection_to_a_service_without_endpoints_is_reset_however_it_rejects() {
    let mut w = world();
    w.services.tcp_reject = TcpReject::PortUnreachable;
    for to in ["10.96.0.8:80", "[fd00:96::8]:80", "10.96.0.8:81"] {
        let sent = segment(to, ACK, 6, 7);
        // No ICMP error ends a connection that is open.
        assert_reset(&w.run(CLIENTS, &sent.frame()), &sent, to);
    }
    assert_eq!(w.counters.path.rejects_made.of(Class::Reset).get(), 3);
}
