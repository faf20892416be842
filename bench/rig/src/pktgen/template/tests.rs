use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const MACS: Macs = Macs { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] };

fn ends(v4: bool, src: u128, dst: u128, ports: (u16, u16)) -> Ends {
    let ip = |n: u128| if v4 { IpAddr::V4((n as u32).into()) } else { IpAddr::V6(n.into()) };
    Ends { src: SocketAddr::new(ip(src), ports.0), dst: SocketAddr::new(ip(dst), ports.1) }
}

/// What etherparse reads in a frame: its ends, SYN or not, its payload. Panics on lengths and checksums that are wrong.
fn parse(frame: &[u8]) -> (Ends, bool, Payload) {
    let packet = SlicedPacket::from_ethernet(frame).expect("etherparse reads it");
    let transport = packet.transport.expect("a transport header");
    let (sport, dport, syn, payload, given) = match &transport {
        TransportSlice::Udp(udp) => {
            assert_eq!(usize::from(udp.length()), udp.slice().len());
            (udp.source_port(), udp.destination_port(), false, udp.payload(), udp.checksum())
        }
        TransportSlice::Tcp(tcp) => {
            assert_eq!(tcp.syn(), !tcp.ack());
            (tcp.source_port(), tcp.destination_port(), tcp.syn(), tcp.payload(), tcp.checksum())
        }
        other => panic!("{other:?}"),
    };
    let (src, dst, checksum) = match packet.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let (src, dst) = (ip.header().source(), ip.header().destination());
            let checksum = match &transport {
                TransportSlice::Udp(udp) => udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()).unwrap(),
                TransportSlice::Tcp(tcp) => tcp.to_header().calc_checksum_ipv4_raw(src, dst, tcp.payload()).unwrap(),
                _ => unreachable!(),
            };
            (IpAddr::from(src), IpAddr::from(dst), checksum)
        }
        NetSlice::Ipv6(ip) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            let checksum = match &transport {
                TransportSlice::Udp(udp) => udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).unwrap(),
                TransportSlice::Tcp(tcp) => tcp.to_header().calc_checksum_ipv6_raw(src, dst, tcp.payload()).unwrap(),
                _ => unreachable!(),
            };
            (IpAddr::from(src), IpAddr::from(dst), checksum)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(given, checksum, "L4 checksum");
    assert!(payload[PAYLOAD_LEN..].iter().all(|b| *b == 0));
    (Ends { src: SocketAddr::new(src, sport), dst: SocketAddr::new(dst, dport) }, syn, Payload::read(payload).expect("our payload"))
}

proptest! {
    #[test]
    fn etherparse_reads_what_was_written(
        v4: bool,
        protocol in prop::sample::select(vec![Protocol::Udp, Protocol::Tcp, Protocol::SynFlood]),
        (src, dst, ports) in any::<(u128, u128, (u16, u16))>(),
        (run, flow) in (0u16..4096, 0u32..1 << 20),
        (sequence, sent_ns) in (prop_oneof![Just(0), any::<u32>()], any::<u64>()),
        extra in 0usize..1400,
    ) {
        let ends = ends(v4, src, dst, ports);
        let template = Template::new(&MACS, &ends, protocol, run, flow);
        let least = ETH_LEN + if v4 { 20 } else { 40 } + protocol.header_len() + PAYLOAD_LEN;
        let len = (least + extra).min(1514);
        let mut frame = vec![0xee; 1600];
        template.finish(&mut frame, len, sequence, sent_ns);
        prop_assert!(frame[len..].iter().all(|b| *b == 0xee), "nothing is written past the frame");
        let (read, syn, payload) = parse(&frame[..len]);
        prop_assert_eq!(read, ends);
        prop_assert_eq!(payload, Payload { run, flow, sequence, sent_ns });
        prop_assert_eq!(syn, protocol == Protocol::SynFlood || protocol == Protocol::Tcp && sequence == 0);
        prop_assert_eq!(&frame[..12], &[MACS.dst, MACS.src].concat()[..]);
    }
}

#[test]
fn a_udp_checksum_of_0_is_written_as_ffff() {
    let template = Template::new(&MACS, &ends(true, 1, 2, (3, 4)), Protocol::Udp, 0, 0);
    let mut frame = [0; 60];
    let found = (0..0x10000u64).any(|ns| {
        template.finish(&mut frame, 60, 0, ns);
        frame[40..42] == [0xff, 0xff]
    });
    assert!(found, "one of all values of a 16-bit word must give it");
    parse(&frame);
}
