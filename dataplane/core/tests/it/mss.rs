//! The maximum segment size in SYNs.

use etherparse::{PacketBuilder, TcpHeaderSlice, TcpOptionElement};
use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::mss::SegmentSize;
use nomagic_core_fixtures::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A segment of a connection from the client to the Service, or back, with these options.
fn segment(v6: bool, back: bool, flags: u8, options: &[TcpOptionElement]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, PORT_MACS[usize::from(back)]);
    let (from, to) = match (v6, back) {
        (false, false) => ("10.0.0.2:40000", "10.96.0.6:80"),
        (false, true) => ("192.168.1.1:80", "10.0.0.2:40000"),
        (true, false) => ("[fd00:a::2]:40000", "[fd00:96::6]:80"),
        (true, true) => ("[fd00:b::1]:80", "[fd00:a::2]:40000"),
    };
    let tuple = spec("tcp", from, to, 0).tuple();
    let builder = match (tuple.src_addr(), tuple.dst_addr()) {
        (std::net::IpAddr::V4(s), std::net::IpAddr::V4(d)) => builder.ipv4(s.octets(), d.octets(), 64),
        (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) => builder.ipv6(s.octets(), d.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut tcp = builder.tcp(tuple.sport, tuple.dport, 7, 1_000);
    if flags & SYN != 0 {
        tcp = tcp.syn();
    }
    if flags & ACK != 0 {
        tcp = tcp.ack(9);
    }
    let mut frame = Vec::new();
    tcp.options(options).unwrap().write(&mut frame, &[]).unwrap();
    frame
}

const SYN: u8 = 0x02;

fn world(size: SegmentSize) -> World {
    let mut s = services();
    s.mss = size;
    add_service(&mut s, "10.96.0.6", 80, nomagic_core::tuple::Proto::Tcp, &[backend("192.168.1.1", 80)], false);
    add_service(&mut s, "fd00:96::6", 80, nomagic_core::tuple::Proto::Tcp, &[backend("fd00:b::1", 80)], false);
    World::new(s, 16)
}

/// The size in the frame that was sent on, whose checksums are right.
fn sent(w: &mut World, port: PortId, frame: &[u8]) -> Option<u16> {
    let done = w.run(port, frame);
    assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?}", done.verdict);
    let seen = read(&done.bytes).expect("a sound packet");
    let tcp = TcpHeaderSlice::from_slice(&done.bytes[if seen.tuple.v6 { 54 } else { 34 }..]).unwrap();
    tcp.options_iterator().find_map(|o| if let Ok(TcpOptionElement::MaximumSegmentSize(size)) = o { Some(size) } else { None })
}

#[test]
fn syns_of_both_directions_are_lowered() {
    let mss = TcpOptionElement::MaximumSegmentSize;
    for v6 in [false, true] {
        let fits = if v6 { 1_440 } else { 1_460 };
        for (size, announced, expected) in [
            (SegmentSize::Keep, 8_960, 8_960),
            (SegmentSize::Clamp, 8_960, fits),
            (SegmentSize::Clamp, 1_400, 1_400),
            (SegmentSize::AtMost(1_000), 1_460, 1_000),
            (SegmentSize::AtMost(1_000), 536, 536),
            (SegmentSize::AtMost(9_000), 1_460, 1_460),
        ] {
            // At an even place, and at an odd one, and among others.
            let before: [&[TcpOptionElement]; 3] = [&[], &[TcpOptionElement::Noop], &[TcpOptionElement::SelectiveAcknowledgementPermitted]];
            for before in before {
                let options = [before, &[mss(announced), TcpOptionElement::WindowScale(7)]].concat();
                let mut w = world(size);
                let sizes = [(CLIENTS, false, SYN), (PODS, true, SYN | ACK)]
                    .map(|(port, back, flags)| sent(&mut w, port, &segment(v6, back, flags, &options)));
                assert_eq!(sizes, [Some(expected); 2], "{size:?} of {announced}, {options:?}");
                assert_eq!(w.counters.path.mss_lowered.get(), 2 * u64::from(expected < announced));
                // Other segments stay, whatever they say.
                assert_eq!(sent(&mut w, CLIENTS, &segment(v6, false, ACK, &options)), Some(announced));
            }
            let mut w = world(size);
            assert_eq!(sent(&mut w, CLIENTS, &segment(v6, false, SYN, &[TcpOptionElement::WindowScale(7)])), None, "nothing is added");
        }
    }
}

#[test]
fn a_checksum_that_was_left_to_the_nic_is_completed() {
    let mut frame = segment(false, false, SYN, &[TcpOptionElement::MaximumSegmentSize(1_460)]);
    let len = (frame.len() - 34) as u8;
    let pseudo = [&frame[26..34], &[0, 6, 0, len]].concat();
    let sum = ones_sum(&pseudo);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut w = world(SegmentSize::AtMost(1_000));
    assert_eq!(sent(&mut w, CLIENTS, &frame), Some(1_000));
    assert_eq!(w.counters.path.checksum_completed.get(), 1);
}
