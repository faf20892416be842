//! Reading a frame's headers: checked once here, trusted afterwards. What nearly all frames are is read by `plain` first.
//!
//! Everything the rewrite needs comes out as offsets into the first segment; an offset in a [`Packet`] is always inside it.
//! Sources: IEEE 802.3/802.1Q/802.1ad, RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP).

use crate::frame::Frame;
use crate::reason::Reason;
use crate::tuple::{AddrWords, Proto, Tuple};

/// Ethernet header without tags, in bytes.
pub const ETHERNET_LEN: usize = 14;
/// VLAN tags at the most (QinQ).
const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers at the most; hosts send one or two.
const IPV6_EXTENSIONS_MAX: usize = 8;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// TCP header flags (RFC 9293, section 3.1).
pub mod tcp {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// What the first chunk of an SCTP packet means for an association, said in TCP's terms (RFC 9260, section 3.2): both protocols open with
/// a handshake and close on both sides.
fn sctp_flags(chunk: u8) -> u8 {
    match chunk {
        1 => tcp::SYN,                // INIT
        2 => tcp::SYN | tcp::ACK,     // INIT ACK
        7 | 8 => tcp::FIN | tcp::ACK, // SHUTDOWN, SHUTDOWN ACK
        6 | 14 => tcp::RST,           // ABORT, SHUTDOWN COMPLETE
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
    /// The identification, when this is the first fragment of a larger packet.
    pub fragment_id: Option<u32>,
}

/// A later fragment: it has addresses, but no ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Addresses and protocol; the ports are 0.
    pub tuple: Tuple,
    /// The identification that it shares with the first fragment.
    pub id: u32,
    /// Offset of the IP header.
    pub l3: u16,
    /// Bytes of the IP packet.
    pub ip_len: u16,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
}

impl Packet {
    /// Whether its headers are where those of a [plain](crate::plain) frame are.
    pub fn is_plain(&self) -> bool {
        let ip_header_len = if self.tuple.v6 { 40 } else { 20 };
        let usual = usize::from(self.l3) == ETHERNET_LEN && self.l4 - self.l3 == ip_header_len;
        usual && self.fragment_id.is_none() && self.tuple.proto != Proto::Sctp
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
    /// Contradicts itself: dropped.
    Malformed(Reason),
    /// Well-formed, but the kernel's business.
    Kernel(Reason),
    /// A later fragment: goes where its first one went.
    Later(Piece),
}

use NotPacket::{Kernel, Later, Malformed};

/// Reads a frame. Only the first segment is looked at: headers are in it, or the frame is malformed.
pub fn parse(frame: &Frame<'_>) -> Result<Packet, NotPacket> {
    let data = frame.head();
    let (ethertype, l3) = ethernet(data)?;
    let ip_available = frame.total_len() - l3;
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(data, l3, ip_available),
        ETHERTYPE_IPV6 => ipv6(data, l3, ip_available),
        _ => Err(Kernel(Reason::NotIp)),
    }
}

/// `(ethertype, offset of what follows)`, behind up to two VLAN tags.
#[inline(always)]
pub fn ethernet(data: &[u8]) -> Result<(u16, usize), NotPacket> {
    let mut at = ETHERNET_LEN - 2;
    for _ in 0..=VLAN_TAGS_MAX {
        let ethertype = u16_at(data, at).ok_or(Malformed(Reason::EthernetTruncated))?;
        if !ETHERTYPE_VLAN.contains(&ethertype) {
            return Ok((ethertype, at + 2));
        }
        at += 4;
    }
    Err(Malformed(Reason::VlanTooDeep))
}

/// Whether an address is no source on the wire. RFC 1122, 3.2.1.3: 0.0.0.0/8, 127.0.0.0/8, class D and E. RFC 4291, 2.5 and 2.7: the unspecified,
/// loopback and multicast addresses.
pub fn martian(src: AddrWords, v6: bool) -> bool {
    match v6 {
        true => (src[0] >> 56) as u8 == 0xff || (src[0] == 0 && src[1] <= 1),
        false => matches!((src[1] >> 24) as u8, 0 | 127 | 224..),
    }
}

fn ipv4(data: &[u8], l3: usize, available: usize) -> Result<Packet, NotPacket> {
    let bad = Malformed(Reason::Ipv4Malformed);
    let header: &[u8; 20] = array_at(data, l3).ok_or(bad)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let sane = header[0] >> 4 == 4 && header_len >= 20 && total_len >= header_len && total_len <= available;
    if !sane || data.len() < l3 + header_len {
        return Err(bad);
    }
    let addr = |i: usize| -> AddrWords { [0, u64::from(u32::from_be_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]))] };
    let (src, dst) = (addr(12), addr(16));
    if martian(src, false) {
        return Err(Malformed(Reason::Martian));
    }
    let l4_len = total_len - header_len;
    let mut ip = Ip { l3, l4: l3 + header_len, l4_len, ttl: header[8], src, dst, v6: false, fragment_id: None };
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if fragment != 0 {
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        if fragment & 0x1fff != 0 {
            return Err(later(header[9], &ip, id));
        }
        ip.fragment_id = Some(id);
    }
    transport(data, header[9], ip)
}

fn ipv6(data: &[u8], l3: usize, available: usize) -> Result<Packet, NotPacket> {
    let bad = Malformed(Reason::Ipv6Malformed);
    let header: &[u8; 40] = array_at(data, l3).ok_or(bad)?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || payload_len + 40 > available {
        return Err(bad);
    }
    let addr = |i: usize| -> AddrWords {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&header[i..i + 16]);
        let n = u128::from_be_bytes(bytes);
        [(n >> 64) as u64, n as u64]
    };
    let (src, dst) = (addr(8), addr(24));
    if martian(src, true) {
        return Err(Malformed(Reason::Martian));
    }
    let end = l3 + 40 + payload_len;
    let (mut next, mut at) = (header[6], l3 + 40);
    let mut fragment_id = None;
    let ip_at = |at: usize, fragment_id| Ip { l3, l4: at, l4_len: end - at, ttl: header[7], src, dst, v6: true, fragment_id };
    for _ in 0..IPV6_EXTENSIONS_MAX {
        let len = match next {
            // Hop-by-hop options, destination options.
            0 | 60 => extension_len(data, at, bad)?,
            43 => {
                let segments_left = data.get(at + 3).ok_or(bad)?;
                if *segments_left != 0 {
                    return Err(Kernel(Reason::Ipv6Routing));
                }
                extension_len(data, at, bad)?
            }
            44 => {
                let fragment: &[u8; 8] = array_at(data, at).ok_or(bad)?;
                let offset_and_more = u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff9;
                let id = u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]);
                // A fragment header on a whole packet ("atomic fragment", RFC 6946) is skipped; two on one packet are nobody's.
                if offset_and_more != 0 && fragment_id.is_some() {
                    return Err(Kernel(Reason::Fragment));
                }
                if offset_and_more & 0xfff8 != 0 {
                    if at + 8 > end {
                        return Err(bad);
                    }
                    return Err(later(fragment[0], &ip_at(at + 8, None), id));
                }
                if offset_and_more != 0 {
                    fragment_id = Some(id);
                }
                8
            }
            _ => {
                if at > end || at > data.len() {
                    return Err(bad);
                }
                return transport(data, next, ip_at(at, fragment_id));
            }
        };
        next = *data.get(at).ok_or(bad)?;
        at += len;
    }
    Err(Malformed(Reason::Ipv6ExtensionChain))
}

/// Length of an options or routing header: units of 8 bytes, the first not counted (RFC 8200, 4.3 to 4.6).
fn extension_len(data: &[u8], at: usize, bad: NotPacket) -> Result<usize, NotPacket> {
    data.get(at + 1).map(|&n| (usize::from(n) + 1) * 8).ok_or(bad)
}

/// What both IP versions tell the transport layer.
struct Ip {
    l3: usize,
    l4: usize,
    l4_len: usize,
    ttl: u8,
    src: AddrWords,
    dst: AddrWords,
    v6: bool,
    fragment_id: Option<u32>,
}

/// A later fragment of a protocol that Services can name. Not SCTP: its CRC covers all fragments, so none can change its ports.
fn later(protocol: u8, ip: &Ip, id: u32) -> NotPacket {
    match Proto::from_ip_number(protocol) {
        Some(proto @ (Proto::Tcp | Proto::Udp)) => {
            let tuple = Tuple { src: ip.src, dst: ip.dst, sport: 0, dport: 0, proto, v6: ip.v6 };
            let ip_len = (ip.l4 - ip.l3 + ip.l4_len) as u16;
            Later(Piece { tuple, id, l3: ip.l3 as u16, ip_len, ttl: ip.ttl })
        }
        _ => Kernel(Reason::Fragment),
    }
}

fn transport(data: &[u8], protocol: u8, ip: Ip) -> Result<Packet, NotPacket> {
    let (tcp_flags, covered_len) = match protocol {
        6 => {
            let bad = Malformed(Reason::TcpMalformed);
            let header: &[u8; 20] = array_at(data, ip.l4).ok_or(bad)?;
            let header_len = usize::from(header[12] >> 4) * 4;
            if header_len < 20 || header_len > ip.l4_len || data.len() < ip.l4 + header_len {
                return Err(bad);
            }
            (header[13], ip.l4_len)
        }
        17 => {
            let bad = Malformed(Reason::UdpMalformed);
            let header: &[u8; 8] = array_at(data, ip.l4).ok_or(bad)?;
            let udp_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // The first fragment's length field speaks of the whole datagram.
            if udp_len < 8 || (udp_len > ip.l4_len && ip.fragment_id.is_none()) {
                return Err(bad);
            }
            (0, udp_len.min(ip.l4_len))
        }
        132 if ip.fragment_id.is_some() => return Err(Kernel(Reason::Fragment)),
        132 => {
            let bad = Malformed(Reason::SctpMalformed);
            // Common header and the first chunk's header.
            let header: &[u8; 16] = array_at(data, ip.l4).ok_or(bad)?;
            if ip.l4_len < header.len() {
                return Err(bad);
            }
            (sctp_flags(header[12]), ip.l4_len)
        }
        1 | 58 => return Err(Kernel(Reason::Icmp)),
        _ => return Err(Kernel(Reason::OtherProtocol)),
    };
    let Some(proto) = Proto::from_ip_number(protocol) else { return Err(Kernel(Reason::OtherProtocol)) };
    let (Some(sport), Some(dport)) = (u16_at(data, ip.l4), u16_at(data, ip.l4 + 2)) else {
        return Err(Malformed(Reason::UdpMalformed));
    };
    let tuple = Tuple { src: ip.src, dst: ip.dst, sport, dport, proto, v6: ip.v6 };
    let (l3, l4, l4_len) = (ip.l3 as u16, ip.l4 as u16, ip.l4_len as u16);
    Ok(Packet { tuple, l3, l4, l4_len, covered_len: covered_len as u16, tcp_flags, ttl: ip.ttl, fragment_id: ip.fragment_id })
}

#[inline(always)]
fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    array_at(data, at).map(|b: &[u8; 2]| u16::from_be_bytes(*b))
}

#[inline(always)]
pub(crate) fn array_at<const N: usize>(data: &[u8], at: usize) -> Option<&[u8; N]> {
    data.get(at..)?.first_chunk()
}
