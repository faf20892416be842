//! The frame that opens a flow: a TCP SYN, a UDP datagram or an SCTP INIT, with complete checksums. For `explain` and for tests.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};

use crate::tuple::{Proto, Tuple};
use crate::wire::{ethernet, ethertype};

const TTL: u8 = 64;
/// A common receive window.
const WINDOW: u16 = 64_240;
/// The Initiate Tag, and the first number of a sequence: any, but not 0.
const FIRST: [u8; 4] = [0, 0, 0, 1];

/// The first frame of the flow with this tuple, between any two MAC addresses. Nothing but headers is in it.
pub fn first_packet(tuple: &Tuple) -> Vec<u8> {
    let l4 = transport(tuple);
    let (ethertype, ip) = network(tuple, l4.len());
    let mut frame = Vec::with_capacity(ethernet::HEADER_LEN + ip.len() + l4.len());
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(ip);
    frame.extend(l4);
    frame
}

fn network(tuple: &Tuple, l4_len: usize) -> (u16, Vec<u8>) {
    let number = IpNumber(tuple.proto as u8);
    match (tuple.src_addr(), tuple.dst_addr()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = Ipv4Header {
                total_len: (Ipv4Header::MIN_LEN + l4_len) as u16,
                dont_fragment: true,
                time_to_live: TTL,
                protocol: number,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            ip.header_checksum = ip.calc_header_checksum();
            (ethertype::IPV4, ip.to_bytes().to_vec())
        }
        (source, destination) => {
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: l4_len as u16,
                next_header: number,
                hop_limit: TTL,
                source: octets(source),
                destination: octets(destination),
            };
            (ethertype::IPV6, ip.to_bytes().to_vec())
        }
    }
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The transport header. Its checksum fits any payload length that etherparse can be told of, so none can fail.
fn transport(tuple: &Tuple) -> Vec<u8> {
    let (sport, dport) = (tuple.sport, tuple.dport);
    match tuple.proto {
        Proto::Tcp => {
            let mut tcp = TcpHeader { syn: true, ..TcpHeader::new(sport, dport, 1, WINDOW) };
            tcp.checksum = match (tuple.src_addr(), tuple.dst_addr()) {
                (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4_raw(s.octets(), d.octets(), &[]),
                (s, d) => tcp.calc_checksum_ipv6_raw(octets(s), octets(d), &[]),
            }
            .unwrap_or(0);
            tcp.to_bytes().to_vec()
        }
        Proto::Udp => {
            let mut udp = UdpHeader { source_port: sport, destination_port: dport, length: UdpHeader::LEN_U16, checksum: 0 };
            udp.checksum = match (tuple.src_addr(), tuple.dst_addr()) {
                (IpAddr::V4(s), IpAddr::V4(d)) => udp.calc_checksum_ipv4_raw(s.octets(), d.octets(), &[]),
                (s, d) => udp.calc_checksum_ipv6_raw(octets(s), octets(d), &[]),
            }
            .unwrap_or(0);
            udp.to_bytes().to_vec()
        }
        Proto::Sctp => init(sport, dport),
    }
}

/// An SCTP packet of one INIT chunk (RFC 9260, sections 3.1 and 3.3.2): verification tag 0, a window of 64 KiB, one stream each way.
fn init(sport: u16, dport: u16) -> Vec<u8> {
    let mut sctp =
        [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &[1, 0, 0, 20], &FIRST, &[0, 1, 0, 0], &[0, 1, 0, 1], &FIRST].concat();
    // Least significant byte first (RFC 9260, appendix A).
    let crc = crc32c::crc32c(&sctp).to_le_bytes();
    sctp[8..12].copy_from_slice(&crc);
    sctp
}
