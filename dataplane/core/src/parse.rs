//! Reading a frame's headers: checked once here, trusted afterwards. Plain frames are parsed by [`fast_parse`](crate::fast_parse) first.
//!
//! The rewrite works with offsets into the first segment; an offset in a [`Packet`] is always inside it.
//! Sources: IEEE 802.3/802.1Q/802.1ad, RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP).

use crate::frame::Frame;
use crate::icmp::{self, EchoRequest, IcmpError};
use crate::reason::Reason;
use crate::tuple::{AddrWords, Proto, Tuple};
use crate::wire::{Field, ethernet, ethertype, ipv4, ipv6, ipv6_extension, ipv6_fragment, ports, protocol, sctp, tcp, udp, vlan};

/// Most VLAN tags (QinQ).
const VLAN_TAGS_MAX: usize = 2;
/// Fragments begin at multiples of it (RFC 791, 3.1; RFC 8200, 4.5), bytes.
pub const FRAGMENT_UNIT: usize = 8;
/// Most IPv6 extension headers; hosts send one or two. The kernel has no limit but the packet's length: it gets what has more.
pub(crate) const IPV6_EXTENSIONS_MAX: usize = 16;

/// What the first chunk of an SCTP packet means for an association, said in TCP's terms (RFC 9260, section 3.2): both protocols open with
/// a handshake and close on both sides.
fn sctp_flags(chunk: u8) -> u8 {
    match chunk {
        sctp::chunk::INIT => tcp::SYN,
        sctp::chunk::INIT_ACK => tcp::SYN | tcp::ACK,
        sctp::chunk::SHUTDOWN | sctp::chunk::SHUTDOWN_ACK => tcp::FIN | tcp::ACK,
        sctp::chunk::ABORT | sctp::chunk::SHUTDOWN_COMPLETE => tcp::RST,
        _ => tcp::ACK,
    }
}

/// The headers of a packet that Services may be about: IPv4 or IPv6 with TCP, UDP or SCTP, whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Addresses, ports, protocol.
    pub tuple: Tuple,
    /// Offset of the IP header; bytes of Ethernet header and tags before it.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Bytes of transport header and payload together, as the IP header has it.
    pub l4_len: u16,
    /// Bytes that the transport checksum covers: `l4_len`, or less for UDP with a surplus area (RFC 9868).
    pub covered_len: u16,
    /// TCP flags; for SCTP what they would be; 0 for UDP.
    pub tcp_flags: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// When this is the first fragment of a larger packet.
    pub fragment: Option<FirstFragment>,
}

/// What a first fragment shares with the others of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstFragment {
    /// The identification.
    pub id: u32,
    /// Where the next fragment begins: bytes of the fragmented part, a multiple of 8.
    pub end: u16,
    /// Bytes of the fragmented part altogether, if the last fragment has told.
    pub len: Option<u16>,
}

/// A later fragment: it has addresses, but no ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaterFragment {
    /// Addresses and protocol; the ports are 0.
    pub tuple: Tuple,
    /// The identification that it shares with the first fragment.
    pub id: u32,
    /// Where it begins in the fragmented part, bytes.
    pub offset: u16,
    /// Where it ends.
    pub end: u16,
    /// None follows it.
    pub last: bool,
    /// Offset of the IP header.
    pub l3: u16,
    /// Bytes of the IP packet.
    pub ip_len: u16,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
}

/// Where a TCP segment lies in its sender's sequence space, and what it acknowledges (RFC 9293, section 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpNumbers {
    /// Number of its first byte, or of its SYN.
    pub sequence: u32,
    /// Number after its last byte; SYN and FIN count as one each.
    pub end: u32,
    /// The next number that its sender expects, if it carries one.
    pub acknowledgment: Option<u32>,
}

impl Packet {
    /// The segment's numbers; `None` unless this is TCP. `head` is the frame's first segment.
    pub fn tcp_numbers(&self, head: &[u8]) -> Option<TcpNumbers> {
        use tcp::field::*;
        if self.tuple.proto != Proto::Tcp {
            return None;
        }
        let header: &[u8; tcp::HEADER_LEN] = array_at(head, self.l4.into())?;
        let sequence = SEQUENCE.u32(header);
        let payload = usize::from(self.l4_len).saturating_sub(tcp::header_len(DATA_OFFSET.u8(header)));
        let flags = [tcp::SYN, tcp::FIN].into_iter().filter(|flag| self.tcp_flags & flag != 0).count();
        let acknowledgment = (self.tcp_flags & tcp::ACK != 0).then(|| ACKNOWLEDGMENT.u32(header));
        Some(TcpNumbers { sequence, end: sequence.wrapping_add((payload + flags) as u32), acknowledgment })
    }

    /// Whether its headers are where those of a [plain](crate::fast_parse) frame are.
    pub fn is_plain(&self) -> bool {
        let ip_header_len = if self.tuple.v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
        let usual = usize::from(self.l3) == ethernet::HEADER_LEN && usize::from(self.l4 - self.l3) == ip_header_len;
        usual && self.fragment.is_none() && self.tuple.proto != Proto::Sctp
    }

    /// Bytes of the IP packet.
    #[inline(always)]
    pub fn ip_len(&self) -> usize {
        usize::from(self.l4 - self.l3) + usize::from(self.l4_len)
    }
}

/// Why a frame is not a [`Packet`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPacket {
    /// Malformed: dropped.
    Malformed(Reason),
    /// Well-formed, but the kernel's business.
    Kernel(Reason),
    /// A later fragment: goes where its first one went.
    Later(LaterFragment),
    /// An ICMP error: goes to the sender of the packet that it quotes.
    Error(IcmpError),
    /// A ping.
    Echo(EchoRequest),
}

use NotPacket::{Kernel, Later, Malformed};

/// Reads a frame. Only the first segment is looked at: headers are in it, or the frame is malformed.
pub fn parse(frame: &Frame<'_>) -> Result<Packet, NotPacket> {
    let data = frame.head();
    let (ethertype, l3) = link_header(data)?;
    let ip_available = frame.total_len() - l3;
    match ethertype {
        ethertype::IPV4 => ipv4_header(data, l3, ip_available),
        ethertype::IPV6 => ipv6_header(data, l3, ip_available),
        _ => Err(Kernel(Reason::NotIp)),
    }
}

/// `(ethertype, offset of what follows)`, behind up to two VLAN tags.
#[inline(always)]
pub fn link_header(data: &[u8]) -> Result<(u16, usize), NotPacket> {
    let mut ethertype = ethernet::field::TYPE;
    for _ in 0..=VLAN_TAGS_MAX {
        let number = ethertype.get(data).map(u16::from_be_bytes).ok_or(Malformed(Reason::EthernetTruncated))?;
        let end = ethertype.range().end;
        if !ethertype::VLAN.contains(&number) {
            return Ok((number, end));
        }
        ethertype = vlan::field::TYPE.after(end);
    }
    Err(Malformed(Reason::VlanTooDeep))
}

/// Whether an address cannot be a source on the wire. RFC 1122, 3.2.1.3: 0.0.0.0/8, 127.0.0.0/8, class D and E. RFC 4291, 2.5 and 2.7: the
/// unspecified, loopback and multicast addresses. And IPv4-mapped ones, as in the kernel: sockets would take them for IPv4.
pub fn martian(src: AddrWords, v6: bool) -> bool {
    match v6 {
        true => (src[0] >> 56) as u8 == 0xff || (src[0] == 0 && (src[1] <= 1 || src[1] >> 32 == 0xffff)),
        false => matches!((src[1] >> 24) as u8, 0 | 127 | 224..),
    }
}

fn ipv4_header(data: &[u8], l3: usize, available: usize) -> Result<Packet, NotPacket> {
    use ipv4::field::*;
    let bad = Malformed(Reason::Ipv4Malformed);
    let header: &[u8; ipv4::HEADER_LEN] = array_at(data, l3).ok_or(bad)?;
    let version_ihl = VERSION_IHL.u8(header);
    let header_len = ipv4::header_len(version_ihl);
    let total_len = usize::from(TOTAL_LEN.u16(header));
    let sane = ipv4::version(version_ihl) == 4 && header_len >= ipv4::HEADER_LEN && total_len >= header_len && total_len <= available;
    if !sane || data.len() < l3 + header_len {
        return Err(bad);
    }
    let addr = |field: Field<4>| -> AddrWords { [0, u64::from(field.u32(header))] };
    let (src, dst) = (addr(SOURCE), addr(DESTINATION));
    if martian(src, false) {
        return Err(Malformed(Reason::Martian));
    }
    if !carried_options(&data[l3 + ipv4::HEADER_LEN..l3 + header_len]) {
        return Err(Kernel(Reason::Ipv4Options));
    }
    let l4_len = total_len - header_len;
    let mut ip = Ip { l3, l4: l3 + header_len, l4_len, ttl: TTL.u8(header), src, dst, v6: false, fragment: None };
    let fragment = FRAGMENT.u16(header) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET);
    if fragment != 0 {
        let offset = usize::from(fragment & ipv4::FRAGMENT_OFFSET) * FRAGMENT_UNIT;
        let piece = Piece { id: u32::from(ID.u16(header)), offset, len: l4_len, last: fragment & ipv4::MORE_FRAGMENTS == 0 };
        ip.fragment = piece.first_or_later(PROTOCOL.u8(header), &ip)?;
    }
    transport(data, PROTOCOL.u8(header), ip)
}

/// Whether a packet with these IPv4 options may be carried: they can be read, and none is a source route, which would name the next hop in place of
/// the destination (RFC 1812, 5.2.4.1; the kernel's `accept_source_route`).
fn carried_options(mut options: &[u8]) -> bool {
    use ipv4::option::*;
    loop {
        options = match *options {
            [] | [END, ..] => return true,
            [NOP, ref rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return false,
            [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => &options[usize::from(len)..],
            _ => return false,
        }
    }
}

fn ipv6_header(data: &[u8], l3: usize, available: usize) -> Result<Packet, NotPacket> {
    use ipv6::field::*;
    let bad = Malformed(Reason::Ipv6Malformed);
    let header: &[u8; ipv6::HEADER_LEN] = array_at(data, l3).ok_or(bad)?;
    let payload_len = usize::from(PAYLOAD_LEN.u16(header));
    if ipv6::version(VERSION.u8(header)) != 6 || payload_len + ipv6::HEADER_LEN > available {
        return Err(bad);
    }
    let addr = |field: Field<16>| -> AddrWords {
        let n = u128::from_be_bytes(field.read(header));
        [(n >> 64) as u64, n as u64]
    };
    let (src, dst) = (addr(SOURCE), addr(DESTINATION));
    if martian(src, true) {
        return Err(Malformed(Reason::Martian));
    }
    let end = l3 + ipv6::HEADER_LEN + payload_len;
    let (mut next, mut at) = (NEXT_HEADER.u8(header), l3 + ipv6::HEADER_LEN);
    let mut fragment = None;
    let ttl = HOP_LIMIT.u8(header);
    let ip_at = |at: usize, fragment| Ip { l3, l4: at, l4_len: end - at, ttl, src, dst, v6: true, fragment };
    for _ in 0..=IPV6_EXTENSIONS_MAX {
        let len = match next {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => extension_len(data, at, bad)?,
            protocol::ROUTING => {
                let [segments_left] = ipv6_extension::field::SEGMENTS_LEFT.after(at).get(data).ok_or(bad)?;
                if segments_left != 0 {
                    return Err(Kernel(Reason::Ipv6Routing));
                }
                extension_len(data, at, bad)?
            }
            protocol::FRAGMENT => {
                use ipv6_fragment::{HEADER_LEN, MORE_FRAGMENTS, OFFSET, field};
                let header: &[u8; HEADER_LEN] = array_at(data, at).ok_or(bad)?;
                let field = field::OFFSET.u16(header);
                // A fragment header on a whole packet ("atomic fragment", RFC 6946) is skipped. Packets with two are left to the kernel.
                if field & (OFFSET | MORE_FRAGMENTS) != 0 {
                    if fragment.is_some() {
                        return Err(Kernel(Reason::Fragment));
                    }
                    let len = end.checked_sub(at + HEADER_LEN).ok_or(bad)?;
                    let last = field & MORE_FRAGMENTS == 0;
                    let piece = Piece { id: field::ID.u32(header), offset: usize::from(field & OFFSET), len, last };
                    fragment = piece.first_or_later(field::NEXT_HEADER.u8(header), &ip_at(at + HEADER_LEN, None))?;
                }
                HEADER_LEN
            }
            _ => {
                if at > end || at > data.len() {
                    return Err(bad);
                }
                return transport(data, next, ip_at(at, fragment));
            }
        };
        [next] = ipv6_extension::field::NEXT_HEADER.after(at).get(data).ok_or(bad)?;
        at += len;
    }
    Err(Kernel(Reason::Ipv6ExtensionChain))
}

/// Length of an options or routing header.
fn extension_len(data: &[u8], at: usize, bad: NotPacket) -> Result<usize, NotPacket> {
    let [len] = ipv6_extension::field::LEN.after(at).get(data).ok_or(bad)?;
    Ok(ipv6_extension::header_len(len))
}

/// What both IP versions tell the transport layer.
pub(crate) struct Ip {
    pub l3: usize,
    pub l4: usize,
    pub l4_len: usize,
    pub ttl: u8,
    pub src: AddrWords,
    pub dst: AddrWords,
    pub v6: bool,
    pub fragment: Option<FirstFragment>,
}

/// A fragment, as the headers of both IP versions have it.
struct Piece {
    id: u32,
    offset: usize,
    len: usize,
    last: bool,
}

impl Piece {
    /// What is known of a first fragment; `Err` if this is a later one, or none that can be carried. `ip` ends behind the fragment's header.
    fn first_or_later(self, protocol: u8, ip: &Ip) -> Result<Option<FirstFragment>, NotPacket> {
        let Piece { id, offset, len, last } = self;
        let end = u16::try_from(offset + len).ok().filter(|_| len > 0 && (last || len.is_multiple_of(FRAGMENT_UNIT)));
        let proto = match (Proto::from_ip_number(protocol), end) {
            (None, end) if offset == 0 => return Ok(Some(FirstFragment { id, end: end.unwrap_or(0), len: None })),
            (None, _) => return Err(Kernel(Reason::Fragment)),
            (Some(proto), _) => proto,
        };
        let end = end.ok_or(Malformed(Reason::FragmentMalformed))?;
        if offset == 0 {
            return Ok(Some(FirstFragment { id, end, len: None }));
        }
        // RFC 1858, RFC 3128: it would replace what the first one says of ports or flags.
        if offset < transport_header_min(proto) {
            return Err(Malformed(Reason::FragmentTiny));
        }
        let tuple = Tuple { src: ip.src, dst: ip.dst, sport: 0, dport: 0, proto, v6: ip.v6 };
        let ip_len = (ip.l4 - ip.l3 + ip.l4_len) as u16;
        Err(Later(LaterFragment { tuple, id, offset: offset as u16, end, last, l3: ip.l3 as u16, ip_len, ttl: ip.ttl }))
    }
}

/// What a first fragment must have of the transport header.
fn transport_header_min(proto: Proto) -> usize {
    match proto {
        Proto::Tcp => tcp::HEADER_LEN,
        Proto::Udp => udp::HEADER_LEN,
        Proto::Sctp => sctp::HEADER_LEN + sctp::CHUNK_HEADER_LEN,
    }
}

fn transport(data: &[u8], protocol: u8, ip: Ip) -> Result<Packet, NotPacket> {
    // A header that is cut short: in a first fragment, it is the next one's to complete (RFC 1858, RFC 7112).
    let cut = |reason| Malformed(if ip.fragment.is_some() { Reason::FragmentTiny } else { reason });
    let (tcp_flags, covered_len) = match protocol {
        protocol::TCP => {
            let bad = cut(Reason::TcpMalformed);
            let header: &[u8; tcp::HEADER_LEN] = array_at(data, ip.l4).ok_or(bad)?;
            let header_len = tcp::header_len(tcp::field::DATA_OFFSET.u8(header));
            if header_len < tcp::HEADER_LEN || header_len > ip.l4_len || data.len() < ip.l4 + header_len {
                return Err(bad);
            }
            (tcp::field::FLAGS.u8(header), ip.l4_len)
        }
        protocol::UDP => {
            let bad = cut(Reason::UdpMalformed);
            let header: &[u8; udp::HEADER_LEN] = array_at(data, ip.l4).ok_or(bad)?;
            let udp_len = usize::from(udp::field::LEN.u16(header));
            // The first fragment's length field is that of the whole datagram.
            if udp_len < udp::HEADER_LEN || (udp_len > ip.l4_len && ip.fragment.is_none()) {
                return Err(bad);
            }
            (0, udp_len.min(ip.l4_len))
        }
        protocol::SCTP => {
            let bad = cut(Reason::SctpMalformed);
            let header: &[u8; sctp::HEADER_LEN + sctp::CHUNK_HEADER_LEN] = array_at(data, ip.l4).ok_or(bad)?;
            if ip.l4_len < header.len() {
                return Err(bad);
            }
            (sctp_flags(sctp::field::CHUNK_TYPE.u8(header)), ip.l4_len)
        }
        protocol::ICMP | protocol::ICMPV6 => return Err(icmp::read(data, protocol, &ip)),
        _ => return Err(Kernel(Reason::OtherProtocol)),
    };
    let Some(proto) = Proto::from_ip_number(protocol) else { return Err(Kernel(Reason::OtherProtocol)) };
    let ports: &[u8; 4] = array_at(data, ip.l4).ok_or(Malformed(Reason::UdpMalformed))?;
    let (sport, dport) = (ports::field::SOURCE.u16(ports), ports::field::DESTINATION.u16(ports));
    let tuple = Tuple { src: ip.src, dst: ip.dst, sport, dport, proto, v6: ip.v6 };
    let (l3, l4, l4_len) = (ip.l3 as u16, ip.l4 as u16, ip.l4_len as u16);
    Ok(Packet { tuple, l3, l4, l4_len, covered_len: covered_len as u16, tcp_flags, ttl: ip.ttl, fragment: ip.fragment })
}

#[inline(always)]
pub(crate) fn array_at<const N: usize>(data: &[u8], at: usize) -> Option<&[u8; N]> {
    data.get(at..)?.first_chunk()
}
