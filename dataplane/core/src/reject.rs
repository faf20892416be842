//! Rejects: ICMP errors and resets to the sender of a packet that is not forwarded.
//!
//! Built on the slow path with etherparse. Sources: RFC 792, RFC 4443 (ICMPv6), RFC 1122 3.2.2 (when not to send), RFC 1812 4.3.2.3 and
//! RFC 4443 2.4 (how much to quote), RFC 9293 3.10.7.1 (resets),
//! RFC 9260 8.4 (SCTP's).

mod limit;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};

use crate::frame::Frame;
use crate::parse::Packet;
use crate::tuple::{Proto, Tuple};
use crate::wire::{Field, ethernet, ethertype, icmp, icmpv6, ipv4, ipv6, ports, sctp, tcp};

pub use limit::{Class, Limited, Limiter, Rate, sender_hash};

/// Longest IPv4 packet with an ICMP error, bytes (RFC 1812).
const V4_LEN_MAX: usize = 576;
/// Longest IPv6 packet with an ICMPv6 error, bytes (the minimum MTU).
const V6_LEN_MAX: usize = 1_280;
/// TTL and hop limit of rejects.
const TTL: u8 = 64;

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Port unreachable (kube-proxy's REJECT): ICMP 3/3, ICMPv6 1/4.
    PortUnreachable,
    /// No route: ICMP 3/0 (net unreachable), ICMPv6 1/0 (no route to destination).
    NoRoute,
    /// A route that says unreachable: ICMP 3/1 (host unreachable), ICMPv6 1/0, as the kernel has it.
    RouteUnreachable,
    /// The next hop does not answer: ICMP 3/1, ICMPv6 1/3 (address unreachable).
    HostUnreachable,
    /// Administratively prohibited: ICMP 3/13, ICMPv6 1/1.
    Prohibited,
    /// ICMP 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// ICMP 3/4, ICMPv6 2/0, with the MTU in bytes.
    TooBig(u32),
}

/// What the sender of a packet is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// An ICMP error.
    Icmp(Error),
    /// The reset that a host sends for a closed port.
    Reset,
    /// SCTP's reset: an ABORT, or for a SHUTDOWN ACK the SHUTDOWN COMPLETE that it waits for.
    Abort,
}

/// The answer that ends the connection which a packet is in the middle of (RFC 9293, 3.10.7.1; RFC 9260, 8.4). `None`: it opens or ends one, or
/// is answered by nobody. A segment without ACK is only sent by scanners, but for the SYN.
pub fn ending(frame: &Frame<'_>, packet: &Packet) -> Option<Answer> {
    use sctp::chunk::*;
    match packet.tuple.proto {
        Proto::Tcp => (packet.tcp_flags & (tcp::ACK | tcp::RST) == tcp::ACK).then_some(Answer::Reset),
        Proto::Sctp => {
            let header = frame.head().get(packet.l4.into()..)?;
            let quiet = [INIT, INIT_ACK, ABORT, ERROR, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE];
            // Only an INIT has no tag.
            let stray = quiet.contains(&sctp::field::CHUNK_TYPE.get(header)?[0]) || sctp::field::VERIFICATION_TAG.get(header)? == [0; 4];
            (!stray).then_some(Answer::Abort)
        }
        Proto::Udp => None,
    }
}

/// Whether the sender of a packet may be answered at all. Not after a link-layer broadcast or multicast (RFC 1122, 3.2.2), and no reset by a reset. An
/// IPv4 packet without the DF bit may be fragmented on its way: there is no error about its size.
pub fn may_answer(answer: Answer, frame: &Frame<'_>, packet: &Packet) -> bool {
    let received = frame.head();
    let fits = match answer {
        Answer::Reset => packet.tuple.proto == Proto::Tcp && packet.tcp_flags & tcp::RST == 0,
        Answer::Abort => packet.tuple.proto == Proto::Sctp && packet.tcp_flags & tcp::RST == 0,
        Answer::Icmp(Error::TooBig(_)) => {
            packet.tuple.v6 || ipv4::field::FRAGMENT.after(packet.l3.into()).u16(received) & ipv4::DONT_FRAGMENT != 0
        }
        Answer::Icmp(_) => true,
    };
    fits && received[0] & ethernet::GROUP == 0
}

/// Builds an answer about `packet` (still unchanged in `frame`) into `spare`, addressed to the packet's sender. `from` is the sender of an ICMP error.
/// False, with `spare` unchanged in size, when it [may not](may_answer) be sent or does not fit.
pub fn build(answer: Answer, frame: &Frame<'_>, packet: &Packet, from: IpAddr, spare: &mut Frame<'_>) -> bool {
    may_answer(answer, frame, packet)
        && match answer {
            Answer::Icmp(error) => build_error(error, frame, packet, from, spare),
            Answer::Reset => build_reset(frame, packet, spare),
            Answer::Abort => build_abort(frame, packet, spare),
        }
}

fn build_error(error: Error, frame: &Frame<'_>, packet: &Packet, from: IpAddr, spare: &mut Frame<'_>) -> bool {
    let l3 = usize::from(packet.l3);
    let received = frame.head();
    let packet_end = received.len().min(l3 + packet.ip_len());
    let quoted = &received[l3..packet_end];
    let mut message = [0u8; V6_LEN_MAX];
    let len = match (from, packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(error, from, to, quoted, &mut message),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(error, from, to, quoted, &mut message),
        _ => return false,
    };
    send_back(frame, l3, &message[..len], spare)
}

/// Builds a reset that no segment asked for into `spare`, with these numbers. Returns the length of its Ethernet header, whose addresses the
/// caller writes. `None`, with `spare` unchanged in size, when it does not fit.
pub fn build_idle_reset(tuple: &Tuple, sequence: u32, acknowledgment: u32, spare: &mut Frame<'_>) -> Option<u16> {
    let mut reset = TcpHeader::new(tuple.sport, tuple.dport, sequence, 0);
    (reset.rst, reset.ack, reset.acknowledgment_number) = (true, true, acknowledgment);
    let mut packet = [0; ipv6::HEADER_LEN + tcp::HEADER_LEN];
    let (ethertype, len) = match (tuple.src_addr(), tuple.dst_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            reset.checksum = reset.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]).ok()?;
            (ethertype::IPV4, join(&mut packet, &[&header_v4(tcp::HEADER_LEN, IpNumber::TCP, from, to), &reset.to_bytes()]))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            reset.checksum = reset.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]).ok()?;
            (ethertype::IPV6, join(&mut packet, &[&header_v6(tcp::HEADER_LEN, IpNumber::TCP, from, to), &reset.to_bytes()]))
        }
        _ => return None,
    };
    let start = crate::frame::HEADROOM_MIN.min(spare.capacity());
    if ethernet::HEADER_LEN + len > spare.capacity() - start || !spare.set_range(start, ethernet::HEADER_LEN + len) {
        return None;
    }
    let out = spare.head_mut();
    ethernet::field::TYPE.write(out, ethertype.to_be_bytes());
    out[ethernet::HEADER_LEN..].copy_from_slice(&packet[..len]);
    Some(ethernet::HEADER_LEN as u16)
}

/// Builds a reset (RFC 9293, 3.10.7.1), from the address that the segment was for.
fn build_reset(frame: &Frame<'_>, packet: &Packet, spare: &mut Frame<'_>) -> bool {
    // `parse` has checked that the header is in the first segment.
    let Some((segment, _)) = frame.head().get(packet.l4.into()..).and_then(|l4| TcpHeader::from_slice(l4).ok()) else { return false };
    let mut reset = TcpHeader::new(segment.destination_port, segment.source_port, 0, 0);
    reset.rst = true;
    if segment.ack {
        reset.sequence_number = segment.acknowledgment_number;
    } else {
        reset.ack = true;
        let payload = usize::from(packet.l4_len).saturating_sub(segment.header_len());
        let length = payload as u32 + u32::from(segment.syn) + u32::from(segment.fin);
        reset.acknowledgment_number = segment.sequence_number.wrapping_add(length);
    }
    let checksum = match (packet.tuple.dst_addr(), packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => reset.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
        (IpAddr::V6(from), IpAddr::V6(to)) => reset.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
        _ => return false,
    };
    let Ok(checksum) = checksum else { return false };
    reset.checksum = checksum;
    send_from_service(frame, packet, IpNumber::TCP, &reset.to_bytes(), spare)
}

/// Builds an SCTP packet that ends an association, with the verification tag of the packet that it answers (RFC 9260, 8.4).
fn build_abort(frame: &Frame<'_>, packet: &Packet, spare: &mut Frame<'_>) -> bool {
    const CHUNK: Field<{ sctp::CHUNK_HEADER_LEN }> = Field::at(sctp::HEADER_LEN);
    // `parse` has checked that the header is in the first segment.
    let Some(received) = frame.head().get(packet.l4.into()..) else { return false };
    let chunk = match sctp::field::CHUNK_TYPE.u8(received) {
        sctp::chunk::SHUTDOWN_ACK => sctp::chunk::SHUTDOWN_COMPLETE,
        _ => sctp::chunk::ABORT,
    };
    let mut abort = [0; sctp::HEADER_LEN + sctp::CHUNK_HEADER_LEN];
    ports::field::SOURCE.write(&mut abort, ports::field::DESTINATION.read(received));
    ports::field::DESTINATION.write(&mut abort, ports::field::SOURCE.read(received));
    sctp::field::VERIFICATION_TAG.write(&mut abort, sctp::field::VERIFICATION_TAG.read(received));
    CHUNK.write(&mut abort, [chunk, sctp::TAG_REFLECTED, 0, sctp::CHUNK_HEADER_LEN as u8]);
    let crc = crc32c::crc32c(&abort);
    sctp::field::CHECKSUM.write(&mut abort, crc.to_le_bytes());
    send_from_service(frame, packet, IpNumber::SCTP, &abort, spare)
}

/// Builds a frame with these bytes from the address that a packet was for to its sender.
fn send_from_service(frame: &Frame<'_>, packet: &Packet, protocol: IpNumber, transport: &[u8], spare: &mut Frame<'_>) -> bool {
    let mut message = [0u8; ipv6::HEADER_LEN + tcp::HEADER_LEN];
    let len = match (packet.tuple.dst_addr(), packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => join(&mut message, &[&header_v4(transport.len(), protocol, from, to), transport]),
        (IpAddr::V6(from), IpAddr::V6(to)) => join(&mut message, &[&header_v6(transport.len(), protocol, from, to), transport]),
        _ => return false,
    };
    send_back(frame, packet.l3.into(), &message[..len], spare)
}

/// Builds a frame with this IP packet for the sender of another frame. False when it does not fit.
fn send_back(frame: &Frame<'_>, l3: usize, packet: &[u8], spare: &mut Frame<'_>) -> bool {
    let received = frame.head();
    let start = crate::frame::HEADROOM_MIN.min(spare.capacity());
    let len = l3 + packet.len();
    if len > spare.capacity() - start || !spare.set_range(start, len) {
        return false;
    }
    let out = spare.head_mut();
    // MAC addresses swapped, VLAN tags kept.
    out[..l3].copy_from_slice(&received[..l3]);
    ethernet::field::DESTINATION.write(out, ethernet::field::SOURCE.read(received));
    ethernet::field::SOURCE.write(out, ethernet::field::DESTINATION.read(received));
    out[l3..].copy_from_slice(packet);
    spare.port = frame.port;
    true
}

fn v4(error: Error, from: Ipv4Addr, to: Ipv4Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
        Error::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        Error::RouteUnreachable | Error::HostUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
        Error::Prohibited => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FilterProhibited),
        Error::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Error::TooBig(mtu) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu })
        }
    };
    let quoted = &quoted[..quoted.len().min(V4_LEN_MAX - ipv4::HEADER_LEN - icmp::HEADER_LEN)];
    let icmp = Icmpv4Header::with_checksum(kind, quoted).to_bytes();
    join(out, &[&header_v4(icmp.len() + quoted.len(), IpNumber::ICMP, from, to), &icmp, quoted])
}

fn v6(error: Error, from: Ipv6Addr, to: Ipv6Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Error::NoRoute | Error::RouteUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
        Error::HostUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
        Error::Prohibited => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited),
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(etherparse::icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu },
    };
    let quoted = &quoted[..quoted.len().min(V6_LEN_MAX - ipv6::HEADER_LEN - icmpv6::HEADER_LEN)];
    let Ok(icmp) = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted) else { return 0 };
    let icmp = icmp.to_bytes();
    join(out, &[&header_v6(icmp.len() + quoted.len(), IpNumber::IPV6_ICMP, from, to), &icmp, quoted])
}

/// An IPv4 header for a payload of this many bytes, which is far below the largest packet.
fn header_v4(payload_len: usize, protocol: IpNumber, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; ipv4::HEADER_LEN] {
    let mut ip = Ipv4Header {
        total_len: (ipv4::HEADER_LEN + payload_len) as u16,
        dont_fragment: true,
        time_to_live: TTL,
        protocol,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    };
    ip.header_checksum = ip.calc_header_checksum();
    let mut bytes = [0; ipv4::HEADER_LEN];
    join(&mut bytes, &[&ip.to_bytes()]);
    bytes
}

fn header_v6(payload_len: usize, next_header: IpNumber, source: Ipv6Addr, destination: Ipv6Addr) -> [u8; ipv6::HEADER_LEN] {
    Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: payload_len as u16,
        next_header,
        hop_limit: TTL,
        source: source.octets(),
        destination: destination.octets(),
    }
    .to_bytes()
}

fn join(out: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}
