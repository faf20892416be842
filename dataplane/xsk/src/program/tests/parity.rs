//! Compares two parsers of the same headers: the filter's in C (bpf/parse.h) and the core's ([`parse`]). The filter reads the same tuple as
//! the core: announcing exactly that tuple makes it capture the frame, and announcing one that differs in a single field does not. Where
//! one parser stops, the other stops for the same reason, except for the cases in [`agree`].

use std::collections::BTreeMap;

use aya::maps::HashMap;
use nomagic_core::filter::source_place;
use nomagic_core::parse::{LaterFragment, Packet, link_header};
use nomagic_core::wire::{ethertype, ipv4, ipv6};
use nomagic_core_fixtures::{fuzz_input, honest_frames, with_ipv4_options};

use super::*;

/// The kernel runs an XDP program on no frame shorter than an Ethernet header; neither does a NIC.
const FRAME_MIN: usize = 14;

/// Where the filter stopped on a frame without a matching rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stop {
    /// It has read the addresses and ports of a whole packet.
    NotOurs,
    NotIp,
    /// It has read a fragment, or stopped at one.
    Fragment,
    Icmp,
    OtherProtocol,
    Unreadable,
    /// It is another's, or its IPv4 header is not sound: it has read no further, see [`refused`].
    Refused,
}

/// Whether both parsers stopped for the same reason. The exceptions are frames that the core drops as malformed. The filter reads only what
/// it needs; it leaves such frames to the core if their tuple has a rule, and to the kernel otherwise.
fn agree(core: &Result<Packet, NotPacket>, filter: Stop) -> bool {
    match core {
        Ok(packet) if packet.fragment.is_some() => filter == Stop::Fragment,
        Ok(_) => filter == Stop::NotOurs,
        Err(NotPacket::Later(_)) => filter == Stop::Fragment,
        Err(NotPacket::Error(_) | NotPacket::Echo(_)) => filter == Stop::Icmp,
        Err(NotPacket::Kernel(reason)) => match reason {
            Reason::NotIp => filter == Stop::NotIp,
            Reason::Icmp | Reason::IcmpQuote => filter == Stop::Icmp,
            Reason::OtherProtocol | Reason::Ipv6Routing => filter == Stop::OtherProtocol,
            // Both have the same limit of extension headers.
            Reason::Ipv6ExtensionChain => filter == Stop::Unreadable,
            // The filter steps over options, and the core hands on what the filter captures of these.
            Reason::Ipv4Options => filter != Stop::NotIp,
            // A later fragment of a protocol without ports: the filter counts it under the protocol. Either way it goes to the kernel.
            Reason::Fragment => matches!(filter, Stop::Fragment | Stop::Icmp | Stop::OtherProtocol),
            other => panic!("the parser has no reason {other:?}"),
        },
        Err(NotPacket::Malformed(reason)) => match reason {
            Reason::EthernetTruncated => filter == Stop::Unreadable,
            // The filter does not check lengths in the headers, nor source addresses.
            Reason::Ipv4Malformed | Reason::Ipv6Malformed | Reason::Martian => filter != Stop::NotIp,
            // The filter does not look at the offsets and lengths of fragments.
            Reason::FragmentMalformed | Reason::FragmentTiny => matches!(filter, Stop::Fragment | Stop::Unreadable),
            // The filter reads only the ports of these.
            Reason::TcpMalformed | Reason::UdpMalformed | Reason::SctpMalformed => {
                matches!(filter, Stop::NotOurs | Stop::Fragment | Stop::Unreadable)
            }
            other => panic!("the parser has no reason {other:?}"),
        },
    }
}

/// The words of `struct fragment`.
pub fn fragment_key(src: [u64; 2], dst: [u64; 2], id: u32, proto: Proto) -> [u32; 10] {
    let halves = |word: u64| [(word >> 32) as u32, word as u32];
    let [a, b, c, d] = [src[0], src[1], dst[0], dst[1]].map(halves);
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1], id, proto as u32]
}

/// `enum fate`.
pub const PASSED: u32 = 1;
pub const CAPTURED: u32 = 2;

/// An entry of the map `fragments` of this moment.
pub fn fate_now(fate: u32) -> u32 {
    (((monotonic_ns() >> 29) as u32) << 2) | fate
}

/// Tuples that differ from this one in a single field.
fn neighbours(t: &Tuple) -> [Tuple; 7] {
    let proto = if t.proto == Proto::Tcp { Proto::Udp } else { Proto::Tcp };
    // The highest bit of an IPv6 address, and a low one that IPv4 has too.
    let high = if t.v6 { 1 << 63 } else { 0 };
    [
        Tuple { src: [t.src[0], t.src[1] ^ 1], ..*t },
        Tuple { src: [t.src[0] ^ high, t.src[1] ^ 0x80], ..*t },
        Tuple { dst: [t.dst[0], t.dst[1] ^ 1], ..*t },
        Tuple { dst: [t.dst[0] ^ high, t.dst[1] ^ 0x80], ..*t },
        Tuple { sport: t.sport ^ 0x0101, ..*t },
        Tuple { dport: t.dport ^ 0x0101, ..*t },
        Tuple { proto, ..*t },
    ]
}

/// Both parsers, and the outcomes seen.
struct Parity {
    bench: Bench,
    seen: BTreeMap<(String, Stop), u32>,
}

impl Parity {
    fn new() -> Parity {
        Parity { bench: Bench::new(false), seen: BTreeMap::new() }
    }

    fn fragments(&mut self) -> HashMap<&mut aya::maps::MapData, [u32; 10], u32> {
        self.bench.ebpf.map_mut("fragments").unwrap().try_into().unwrap()
    }

    fn action(&mut self, frame: &[u8]) -> u32 {
        self.bench.heartbeat.store(monotonic_ns(), Relaxed);
        self.bench.run(frame)
    }

    /// Announces exactly this reply: its source does not count for fragments without ports.
    fn announce(&mut self, t: &Tuple) {
        assert!(self.bench.replies.insert(t, 0));
        self.bench.sources[source_place(t.src)].store(0, Relaxed);
    }

    /// Forgets the datagrams that came. Returns their keys.
    fn forget_fragments(&mut self) -> Vec<[u32; 10]> {
        let mut fragments = self.fragments();
        let keys: Vec<[u32; 10]> = fragments.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| fragments.remove(key).unwrap());
        keys
    }

    /// Where the filter stops without rules: the counter that the run incremented.
    fn stop(&mut self, frame: &[u8]) -> Stop {
        let before = self.bench.counters();
        assert_eq!(self.action(frame), PASS, "there are no rules: {frame:x?}");
        let after = self.bench.counters();
        let stops = [
            (Stop::NotOurs, after.pass_not_ours - before.pass_not_ours),
            (Stop::NotIp, after.pass_not_ip - before.pass_not_ip),
            (Stop::Fragment, after.pass_fragment - before.pass_fragment),
            (Stop::Icmp, after.pass_icmp - before.pass_icmp),
            (Stop::OtherProtocol, after.pass_other_protocol - before.pass_other_protocol),
            (Stop::Unreadable, after.pass_unreadable - before.pass_unreadable),
        ];
        let [(stop, 1)] = stops.into_iter().filter(|(_, runs)| *runs > 0).collect::<Vec<_>>()[..] else { panic!("{stops:?}: {frame:x?}") };
        stop
    }

    /// A frame that the filter refuses for whose it is, or for its IPv4 header, is made acceptable and then compared.
    fn check(&mut self, frame: &[u8]) {
        if frame.len() < FRAME_MIN {
            return;
        }
        let Some(place) = refused(frame) else { return self.compare(frame) };
        assert_eq!(self.bench.outcome(frame), (PASS, place), "{frame:x?}");
        *self.seen.entry((place.into(), Stop::Refused)).or_default() += 1;
        let mut better = frame.to_vec();
        match place {
            "pass_other_mac" => better[..6].copy_from_slice(&MAC),
            // Without room for the tag that the EtherType announces.
            "pass_vlan" if better.len() < FRAME_MIN + 4 => return,
            "pass_vlan" => drop(better.drain(12..16)),
            "pass_ipv4_checksum" => assert!(link_header(frame).is_ok_and(|(_, l3)| set_ipv4_checksum(&mut better, l3))),
            other => panic!("{other}"),
        }
        self.check(&better);
    }

    fn compare(&mut self, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let len = bytes.len();
        let core = parse(&Frame::new(&mut bytes, 0, len, PortId(0), 0));
        let stop = self.stop(frame);
        assert!(agree(&core, stop), "the core reads {core:?}, the filter {stop:?}: {frame:x?}");
        let class = match &core {
            Ok(packet) if packet.fragment.is_some() => "first fragment".into(),
            Ok(packet) => packet.tuple.proto.to_string(),
            Err(NotPacket::Later(_)) => "later fragment".into(),
            Err(NotPacket::Error(error)) => format!("error about {}", error.quoted.proto),
            Err(NotPacket::Echo(_)) => "ping".into(),
            Err(NotPacket::Kernel(reason) | NotPacket::Malformed(reason)) => format!("{reason:?}"),
        };
        *self.seen.entry((class, stop)).or_default() += 1;
        match core {
            Ok(packet) => self.check_tuple(frame, &packet.tuple, packet.fragment.map(|first| first.id)),
            // Captured if a packet to the quoted one's sender is.
            Err(NotPacket::Error(error)) => self.check_tuple(frame, &error.key(), None),
            Err(NotPacket::Later(piece)) => self.check_piece(frame, &piece),
            Err(NotPacket::Kernel(Reason::Icmp | Reason::IcmpQuote) | NotPacket::Echo(_)) => self.check_icmp(frame),
            Err(_) => {}
        }
    }

    /// The filter captures the frame for exactly this tuple, and for exactly this Service.
    fn check_tuple(&mut self, frame: &[u8], t: &Tuple, fragment_id: Option<u32>) {
        let service = |t: &Tuple| FilterRules { services: [(t.dst_addr(), t.dport, t.proto)].into(), ..FilterRules::default() };
        self.announce(t);
        assert_eq!(self.action(frame), REDIRECT, "{t} is announced: {frame:x?}");
        assert!(self.bench.replies.remove(t));
        self.bench.apply(&service(t));
        assert_eq!(self.action(frame), REDIRECT, "{t} is to a Service: {frame:x?}");
        let own = fragment_id.map(|id| fragment_key(t.src, t.dst, id, t.proto));
        assert_eq!(self.forget_fragments(), Vec::from_iter(own), "its entry for the later fragments: {frame:x?}");
        for other in neighbours(t) {
            self.announce(&other);
            self.bench.apply(&FilterRules::default());
            assert_eq!(self.action(frame), PASS, "{other} is announced, not {t}: {frame:x?}");
            assert!(self.bench.replies.remove(&other));
            if (other.dst, other.dport, other.proto) != (t.dst, t.dport, t.proto) {
                self.bench.apply(&service(&other));
                assert_eq!(self.action(frame), PASS, "the Service of {other}, not of {t}: {frame:x?}");
            }
        }
        self.bench.apply(&FilterRules::default());
        // That it was passed, of a fragment that may be for a Service.
        assert!(self.forget_fragments().iter().all(|key| Some(*key) == own), "{frame:x?}");
    }

    /// The filter passes the frame, although packets to every address are captured.
    fn check_icmp(&mut self, frame: &[u8]) {
        // It does not look at the IP packet's length, and so may find a quote beyond its end.
        if cut(frame, frame.len()) == frame {
            self.bench.apply(&FilterRules {
                service_cidrs: ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap()).into(),
                ..FilterRules::default()
            });
            assert_eq!(self.action(frame), PASS, "{frame:x?}");
            self.bench.apply(&FilterRules::default());
        }
    }

    /// The filter captures the frame after a first fragment with exactly these addresses, identification and protocol.
    fn check_piece(&mut self, frame: &[u8], piece: &LaterFragment) {
        let LaterFragment { tuple: t, id, .. } = piece;
        let others = neighbours(t).into_iter().filter(|other| (other.sport, other.dport) == (t.sport, t.dport));
        let keys = others.map(|o| fragment_key(o.src, o.dst, *id, o.proto)).chain([fragment_key(t.src, t.dst, id ^ 1, t.proto)]);
        for (key, action) in keys.map(|key| (key, PASS)).chain([(fragment_key(t.src, t.dst, *id, t.proto), REDIRECT)]) {
            self.fragments().insert(key, fate_now(CAPTURED), 0).unwrap();
            assert_eq!(self.action(frame), action, "{key:x?} for {piece:?}: {frame:x?}");
            self.fragments().remove(&key).unwrap();
        }
        // And before it, if its destination and protocol are a Service's, or its source is an endpoint's.
        let own = fragment_key(t.src, t.dst, *id, t.proto);
        for (dst, proto, action) in
            [(t.dst, t.proto, REDIRECT), (t.dst, neighbours(t)[6].proto, PASS), (neighbours(t)[3].dst, t.proto, PASS)]
        {
            let service = (Tuple { dst, ..*t }.dst_addr(), 80, proto);
            self.bench.apply(&FilterRules { services: [service].into(), ..FilterRules::default() });
            assert_eq!(self.action(frame), action, "{service:?} for {piece:?}: {frame:x?}");
            assert_eq!(self.forget_fragments(), Vec::from_iter((action == REDIRECT).then_some(own)));
        }
        self.bench.apply(&FilterRules::default());
        let source = &self.bench.sources[source_place(t.src)];
        source.store(1, Relaxed);
        assert_eq!(self.action(frame), REDIRECT, "{piece:?}: {frame:x?}");
        self.bench.sources[source_place(t.src)].store(0, Relaxed);
        assert_eq!(self.forget_fragments(), [own]);
    }

    /// Checks that frames of these classes occurred, by the core's names.
    fn met(&self, classes: &[&str]) {
        let missing: Vec<_> = classes.iter().filter(|class| !self.seen.keys().any(|(core, _)| core == *class)).collect();
        assert!(missing.is_empty(), "no frames of {missing:?}");
    }

    /// Prints the outcomes.
    fn report(&self, what: &str) {
        println!("{what}: {} frames", self.seen.values().sum::<u32>());
        self.seen.iter().for_each(|((core, filter), frames)| println!("  {core} in the core, {filter:?} in the filter: {frames}"));
    }
}

/// Whole frames of all three protocols and both families, with every encapsulation.
fn dressed_frames() -> Vec<Vec<u8>> {
    let ends = [("192.168.0.5:1000", "10.109.35.24:80"), ("[fd00::5]:1000", "[fd00:10::24]:53")];
    let first = |extensions, fragment| Dress { vlan_tags: 1, extensions, fragment, ..Dress::default() };
    // More fragments at offset 0, by the flag of each family.
    let first_fragments = [first(&[], 0x2000), first(&[60, 44], 0x0001), first(&[44, 44], 0x0001)];
    let dresses = DRESSES.into_iter().chain(first_fragments);
    let protos = [Proto::Tcp, Proto::Udp, Proto::Sctp];
    let tuples: Vec<Tuple> = ends.iter().flat_map(|(src, dst)| protos.map(|proto| tuple(proto, src, dst))).collect();
    let mut frames: Vec<Vec<u8>> = dresses.flat_map(|dress| tuples.iter().map(move |t| frame(t, dress))).collect();
    let options: [&[u8]; 5] = [&[7, 7, 4, 0, 0, 0, 0, 1], &[131, 3, 4, 0], &[1, 137, 3, 4], &[130, 4, 0, 0], &[136, 4, 0, 0]];
    frames.extend(options.map(|options| with_ipv4_options(&frame(&tuples[0], Dress::default()), options)));
    frames.extend(tuples.iter().flat_map(|t| quotes::errors_about(t, &quotes::DRESSES)));
    frames
}

#[test]
fn both_parsers_agree_on_the_fuzzers_corpus() {
    let mut parity = Parity::new();
    let inputs = fuzz_input::corpus();
    inputs.iter().flat_map(|input| fuzz_input::decode(input)).for_each(|(_, frame)| parity.check(&frame));
    parity.report(&format!("{} inputs of the corpus", inputs.len()));
    parity.met(&["TCP", "UDP", "later fragment", "NotIp", "Icmp", "OtherProtocol", "Ipv6Routing", "Ipv6Malformed"]);
}

/// A frame's first bytes, with the IP header's length adjusted.
fn cut(frame: &[u8], len: usize) -> Vec<u8> {
    let mut frame = frame[..len].to_vec();
    let (field, left) = match link_header(&frame) {
        Ok((ethertype::IPV4, l3)) => (ipv4::field::TOTAL_LEN.after(l3), len - l3),
        Ok((ethertype::IPV6, l3)) => (ipv6::field::PAYLOAD_LEN.after(l3), len.saturating_sub(l3 + ipv6::HEADER_LEN)),
        _ => return frame,
    };
    if field.get(&frame).is_some() {
        field.write(&mut frame, (left as u16).to_be_bytes());
    }
    frame
}

#[test]
fn both_parsers_agree_on_truncated_frames() {
    let mut parity = Parity::new();
    for frame in honest_frames().into_iter().chain(dressed_frames()) {
        for len in FRAME_MIN..=frame.len() {
            parity.check(&frame[..len]);
            parity.check(&cut(&frame, len));
        }
    }
    parity.report("cut short");
    parity.met(&["EthernetTruncated", "Ipv4Malformed", "Ipv6Malformed", "TcpMalformed", "UdpMalformed", "SctpMalformed"]);
    parity.met(&["IcmpQuote", "error about TCP", "error about UDP", "error about SCTP"]);
}

#[test]
fn both_parsers_agree_on_frames_with_a_changed_byte() {
    let mut parity = Parity::new();
    let mut random = 7;
    for frame in honest_frames().into_iter().chain(dressed_frames()) {
        for at in 12..frame.len().min(140) {
            for bit in 0..8 {
                let mut frame = frame.clone();
                frame[at] ^= 1 << bit;
                // Every fourth frame has two.
                if splitmix64(&mut random).is_multiple_of(4) {
                    let other = splitmix64(&mut random) as usize % (frame.len() - 12);
                    frame[12 + other] = splitmix64(&mut random) as u8;
                }
                parity.check(&frame);
            }
        }
    }
    parity.report("a changed byte");
    parity.met(&["TCP", "UDP", "SCTP", "first fragment", "later fragment", "NotIp", "Icmp", "OtherProtocol", "Fragment"]);
    parity.met(&["pass_vlan", "pass_ipv4_checksum", "Ipv4Options"]);
    parity.met(&["IcmpQuote", "error about TCP", "error about UDP", "error about SCTP"]);
    parity.met(&["Ipv6Routing", "Ipv6ExtensionChain", "Martian", "TcpMalformed", "UdpMalformed", "SctpMalformed"]);
}
