//! ICMP and ICMPv6: errors about packets of connections, and pings.
//!
//! An error quotes the packet that it is about, as that was on the wire: after the rewrite here. So it is addressed to what the packet had as its
//! source (the client or an SNAT address, or a Service's), and the flow is found by the quoted addresses and ports, swapped. The sender of the packet
//! knows other ones: the error is translated like a packet of the opposite direction, and its quote back to what the sender has sent.
//!
//! Sources: RFC 792, RFC 4443 (ICMPv6), RFC 5508 (NAT and ICMP), RFC 5927 (attacks by ICMP), nf_nat_proto.c and nf_conntrack_proto_icmp.c in Linux.

mod class;
mod echo;
mod translate;

use crate::parse::{Ip, NotPacket, array_at};
use crate::reason::Reason;
use crate::tuple::{AddrWords, Proto, Tuple};
use crate::wire::{Field, icmp, icmpv6, ipv4, ipv6, ipv6_extension, ipv6_fragment, ports, protocol, tcp};

pub use class::ErrorClass;
pub use echo::EchoRequest;
pub use translate::{has_right_checksum, source_after, translate};

/// Bytes of an ICMP header.
const HEADER_LEN: usize = icmp::HEADER_LEN;
/// Bytes of the transport header that an error quotes at least (RFC 792): ports, and TCP's sequence number.
const TRANSPORT_MIN: usize = 8;
/// Most extension headers of a quoted packet.
const QUOTED_EXTENSIONS_MAX: usize = 8;
const _: () = assert!(icmp::HEADER_LEN == icmpv6::HEADER_LEN);

/// An ICMP error that quotes a packet of a protocol that Services can name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Addresses, ports and protocol of the quoted packet. Its source is the error's destination.
    pub quoted: Tuple,
    /// Who sent the error: the quoted packet's destination, or a router.
    pub sender: AddrWords,
    /// ICMP's or ICMPv6's type.
    pub kind: u8,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the ICMP header.
    pub l4: u16,
    /// Bytes of ICMP header and quote together, as the IP header has it.
    pub l4_len: u16,
    /// Offset of the quoted IP header; at least its fixed part is in the first segment.
    pub quoted_l3: u16,
    /// Offset of the quoted transport header, of which at least eight bytes are in the first segment.
    pub quoted_l4: u16,
    /// IPv4 TTL or IPv6 hop limit of the error.
    pub ttl: u8,
}

impl IcmpError {
    /// The key of the quoted packet's flow, in the direction of the error.
    pub fn key(&self) -> Tuple {
        self.quoted.reversed()
    }

    /// Bytes of the error as an IP packet.
    pub fn ip_len(&self) -> usize {
        usize::from(self.l4 - self.l3) + usize::from(self.l4_len)
    }

    /// The quoted segment's sequence number, if the protocol is TCP. `head` is the frame's first segment.
    pub fn quoted_sequence(&self, head: &[u8]) -> Option<u32> {
        let number = tcp::field::SEQUENCE.after(self.quoted_l4.into());
        (self.quoted.proto == Proto::Tcp).then(|| number.get(head).map(u32::from_be_bytes))?
    }

    /// Whether the TTL or hop limit ran out (`traceroute`), or fragments did not all arrive.
    fn is_time_exceeded(&self) -> bool {
        self.kind == if self.quoted.v6 { icmpv6::TIME_EXCEEDED } else { icmp::TIME_EXCEEDED }
    }
}

/// The types that are translated. Not source quench, which hosts ignore (RFC 6633), and not redirects: they are about a link.
fn is_error(kind: u8, v6: bool) -> bool {
    match v6 {
        true => matches!(kind, icmpv6::UNREACHABLE | icmpv6::TOO_BIG | icmpv6::TIME_EXCEEDED | icmpv6::PARAMETER_PROBLEM),
        false => matches!(kind, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM),
    }
}

/// Reads an ICMP message; `ip` is its packet.
pub(crate) fn read(data: &[u8], protocol: u8, ip: &Ip) -> NotPacket {
    let end = data.len().min(ip.l4 + ip.l4_len);
    let message = data.get(ip.l4..end).unwrap_or_default();
    let Some([kind]) = icmp::field::TYPE.get(message) else { return NotPacket::Kernel(Reason::Icmp) };
    if (protocol == protocol::ICMPV6) != ip.v6 || ip.fragment.is_some() {
        return NotPacket::Kernel(Reason::Icmp);
    }
    if is_error(kind, ip.v6) {
        return error(message, kind, ip).map_or_else(NotPacket::Kernel, NotPacket::Error);
    }
    EchoRequest::read(kind, message, ip).map_or(NotPacket::Kernel(Reason::Icmp), NotPacket::Echo)
}

/// Reads an error message. The reason says why it is left to the kernel.
fn error(message: &[u8], kind: u8, ip: &Ip) -> Result<IcmpError, Reason> {
    let quote = message.get(HEADER_LEN..).ok_or(Reason::IcmpQuote)?;
    let (src, dst, protocol, header_len) = if ip.v6 { ipv6_header(quote)? } else { ipv4_header(quote)? };
    let proto = Proto::from_ip_number(protocol).ok_or(Reason::Icmp)?;
    let l4: &[u8; TRANSPORT_MIN] = array_at(quote, header_len).ok_or(Reason::IcmpQuote)?;
    // Whoever reports an error sends it to the packet's source. Elsewhere it would be believed of a connection that it does not know.
    if src != ip.dst {
        return Err(Reason::IcmpQuote);
    }
    let quoted_l3 = ip.l4 + HEADER_LEN;
    Ok(IcmpError {
        quoted: Tuple { src, dst, sport: ports::field::SOURCE.u16(l4), dport: ports::field::DESTINATION.u16(l4), proto, v6: ip.v6 },
        sender: ip.src,
        kind,
        l3: ip.l3 as u16,
        l4: ip.l4 as u16,
        l4_len: ip.l4_len as u16,
        quoted_l3: quoted_l3 as u16,
        quoted_l4: (quoted_l3 + header_len) as u16,
        ttl: ip.ttl,
    })
}

/// Source, destination, transport protocol and length of headers in front of it.
type Quoted = (AddrWords, AddrWords, u8, usize);

/// Reads a quoted IPv4 header. Its length field and its checksum count for nothing: routers are known to quote them changed.
fn ipv4_header(quote: &[u8]) -> Result<Quoted, Reason> {
    use ipv4::field::*;
    let header: &[u8; ipv4::HEADER_LEN] = array_at(quote, 0).ok_or(Reason::IcmpQuote)?;
    let header_len = ipv4::header_len(VERSION_IHL.u8(header));
    let sane = ipv4::version(VERSION_IHL.u8(header)) == 4 && header_len >= ipv4::HEADER_LEN;
    // A later fragment has no ports.
    if !sane || FRAGMENT.u16(header) & ipv4::FRAGMENT_OFFSET != 0 {
        return Err(Reason::IcmpQuote);
    }
    let addr = |field: Field<4>| -> AddrWords { [0, u64::from(field.u32(header))] };
    Ok((addr(SOURCE), addr(DESTINATION), PROTOCOL.u8(header), header_len))
}

/// Reads a quoted IPv6 header with its extension headers.
fn ipv6_header(quote: &[u8]) -> Result<Quoted, Reason> {
    use ipv6::field::*;
    let header: &[u8; ipv6::HEADER_LEN] = array_at(quote, 0).ok_or(Reason::IcmpQuote)?;
    if ipv6::version(VERSION.u8(header)) != 6 {
        return Err(Reason::IcmpQuote);
    }
    let addr = |field: Field<16>| -> AddrWords {
        let n = u128::from_be_bytes(field.read(header));
        [(n >> 64) as u64, n as u64]
    };
    let (mut next, mut at) = (NEXT_HEADER.u8(header), ipv6::HEADER_LEN);
    for _ in 0..QUOTED_EXTENSIONS_MAX {
        let extension: Option<&[u8; 4]> = array_at(quote, at);
        let len = match (next, extension) {
            (protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS, Some(extension)) => {
                ipv6_extension::header_len(ipv6_extension::field::LEN.u8(extension))
            }
            // With segments left, the destination is not the one that the sender meant.
            (protocol::ROUTING, Some(extension)) if ipv6_extension::field::SEGMENTS_LEFT.u8(extension) == 0 => {
                ipv6_extension::header_len(ipv6_extension::field::LEN.u8(extension))
            }
            (protocol::FRAGMENT, Some(fragment)) if ipv6_fragment::field::OFFSET.u16(fragment) & ipv6_fragment::OFFSET == 0 => {
                ipv6_fragment::HEADER_LEN
            }
            (protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING | protocol::FRAGMENT, _) => {
                return Err(Reason::IcmpQuote);
            }
            _ => return Ok((addr(SOURCE), addr(DESTINATION), next, at)),
        };
        [next] = ipv6_extension::field::NEXT_HEADER.after(at).get(quote).ok_or(Reason::IcmpQuote)?;
        at += len;
    }
    Err(Reason::IcmpQuote)
}
