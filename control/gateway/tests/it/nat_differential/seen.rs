//! What arrived, in terms that do not depend on who translated: checksums by how wrong they are, quotes by how they differ from what was sent.

use std::net::IpAddr;

use nomagic_core_fixtures::ones_sum;

use super::generate::Side;
use super::packet::{IPV4_LEN, IPV6_LEN, Id, LINK_LEN, addresses, is_later_fragment, pseudo_header};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Checksum fields of TCP and UDP.
const fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        SCTP => 8,
        _ => 2,
    }
}

/// A checksum of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    Right,
    /// UDP without one.
    Absent,
    /// The difference to the right one.
    Wrong(u32),
    /// The packet ends in front of it.
    CutOff,
}

/// What an ICMP error says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenError {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
    /// How the quote differs from the packet that its receiver has sent, byte by byte; checksums by their difference.
    pub quote: Vec<u8>,
}

/// A packet that has arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub side: Side,
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub protocol: u8,
    pub ttl: u8,
    pub tos: u8,
    pub dont_fragment: bool,
    /// IPv4 options, or IPv6 extension headers but for a fragment header.
    pub options: Vec<u8>,
    pub ip_checksum: bool,
    pub checksum: Checksum,
    /// What follows the ports, without a checksum.
    pub payload: Vec<u8>,
    pub error: Option<SeenError>,
}

impl Seen {
    /// Reads an IP packet. `None`: it contradicts itself. `sent`: the packet that an error quotes.
    pub fn read(packet: &[u8], side: Side, sent: Option<&[u8]>) -> Option<Seen> {
        let v6 = packet.first()? >> 4 == 6;
        let ip = if v6 { read_ipv6(packet)? } else { read_ipv4(packet)? };
        let (src, dst) = addresses(packet);
        let l4 = packet.get(ip.l4..ip.end)?;
        let is_icmp = ip.protocol == if v6 { ICMPV6 } else { ICMP };
        let port = |at: usize| l4.get(at..at + 2).filter(|_| !is_icmp).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        let checksum = checksum_of(l4, ip.protocol, (src, dst));
        let error = match (is_icmp, l4) {
            (true, [kind, code, _, _, a, b, c, d, quote @ ..]) => {
                let quote = sent.map_or_else(|| quote.to_vec(), |sent| compared(quote, sent));
                Some(SeenError { kind: *kind, code: *code, rest: [*a, *b, *c, *d], quote })
            }
            _ => None,
        };
        let at = checksum_at(ip.protocol);
        let width = if ip.protocol == SCTP { 4 } else { 2 };
        let payload = l4.iter().enumerate().skip(4).filter(|(i, _)| !(at..at + width).contains(i)).map(|(_, byte)| *byte);
        Some(Seen {
            side,
            src: (src, port(0)),
            dst: (dst, port(2)),
            protocol: ip.protocol,
            ttl: packet[if v6 { 7 } else { 8 }],
            tos: if v6 { packet[0] << 4 | packet[1] >> 4 } else { packet[1] },
            dont_fragment: !v6 && packet[6] & 0x40 != 0,
            options: ip.options,
            ip_checksum: v6 || ones_sum(&packet[..ip.l4]) == 0xffff,
            checksum,
            payload: if error.is_some() { Vec::new() } else { payload.collect() },
            error,
        })
    }

    /// The names of what differs.
    pub fn differing(&self, other: &Seen) -> Vec<&'static str> {
        let fields = [
            ("side", self.side == other.side),
            ("source", self.src.0 == other.src.0),
            ("source port", self.src.1 == other.src.1),
            ("destination", self.dst.0 == other.dst.0),
            ("destination port", self.dst.1 == other.dst.1),
            ("protocol", self.protocol == other.protocol),
            ("TTL", self.ttl == other.ttl),
            ("TOS", self.tos == other.tos),
            ("DF", self.dont_fragment == other.dont_fragment),
            ("options", self.options == other.options),
            ("IP checksum", self.ip_checksum == other.ip_checksum),
            ("checksum", self.checksum == other.checksum),
            ("payload", self.payload == other.payload),
        ];
        let mut names: Vec<_> = fields.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect();
        match (&self.error, &other.error) {
            (Some(a), Some(b)) => {
                let parts = [
                    ("type", a.kind == b.kind),
                    ("code", a.code == b.code),
                    ("rest", a.rest == b.rest),
                    ("quoted length", a.quote.len() == b.quote.len()),
                    ("quote", a.quote.iter().zip(&b.quote).all(|(a, b)| a == b)),
                ];
                names.extend(parts.into_iter().filter(|(_, same)| !same).map(|(name, _)| name));
            }
            (a, b) if a != b => names.push("error"),
            _ => {}
        }
        names
    }
}

struct Ip {
    l4: usize,
    end: usize,
    protocol: u8,
    options: Vec<u8>,
}

fn read_ipv4(packet: &[u8]) -> Option<Ip> {
    let header: &[u8; IPV4_LEN] = packet.first_chunk()?;
    let (l4, end) = (usize::from(header[0] & 15) * 4, usize::from(u16::from_be_bytes([header[2], header[3]])));
    (l4 >= IPV4_LEN && end >= l4 && end <= packet.len()).then(|| Ip {
        l4,
        end,
        protocol: header[9],
        options: packet[IPV4_LEN..l4].to_vec(),
    })
}

fn read_ipv6(packet: &[u8]) -> Option<Ip> {
    let header: &[u8; IPV6_LEN] = packet.first_chunk()?;
    let end = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (mut at, mut next, mut options) = (IPV6_LEN, header[6], Vec::new());
    while [0, 43, 44, 60].contains(&next) {
        let len = if next == 44 { 8 } else { usize::from(*packet.get(at + 1)?) * 8 + 8 };
        let body = packet.get(at + 1..at + len)?;
        // An atomic fragment is a whole packet.
        if next != 44 {
            options.extend([&[next], body].concat());
        }
        (next, at) = (*packet.get(at)?, at + len);
    }
    (end <= packet.len() && at <= end).then_some(Ip { l4: at, end, protocol: next, options })
}

fn checksum_of(l4: &[u8], protocol: u8, (src, dst): (IpAddr, IpAddr)) -> Checksum {
    let at = checksum_at(protocol);
    if l4.len() < at + if protocol == SCTP { 4 } else { 2 } {
        return Checksum::CutOff;
    }
    let wrong = if protocol == SCTP {
        let covered = [&l4[..8], &[0; 4], &l4[12..]].concat();
        crc32c::crc32c(&covered) ^ u32::from_le_bytes(l4[8..12].try_into().unwrap())
    } else {
        if protocol == UDP && l4[6..8] == [0, 0] {
            return Checksum::Absent;
        }
        let told = usize::from(u16::from_be_bytes([l4[4], l4[5]]));
        let len = if protocol == UDP && (8..l4.len()).contains(&told) { told } else { l4.len() };
        let pseudo = if protocol == ICMP { Vec::new() } else { pseudo_header(src, dst, protocol, len) };
        u32::from(!ones_sum(&[&pseudo, &l4[..len]].concat()))
    };
    if wrong == 0 { Checksum::Right } else { Checksum::Wrong(wrong) }
}

/// A quote compared with what was sent. Checksums are compared by ones' complement, the others bit by bit.
fn compared(quote: &[u8], sent: &[u8]) -> Vec<u8> {
    let v6 = sent[0] >> 4 == 6;
    let mut out: Vec<u8> = quote.iter().enumerate().map(|(i, byte)| byte ^ sent.get(i).copied().unwrap_or(0)).collect();
    let protocol = sent[if v6 { 6 } else { 9 }];
    let l4 = if v6 { IPV6_LEN } else { usize::from(sent[0] & 15) * 4 };
    let transport = (protocol != SCTP).then_some(l4 + checksum_at(protocol));
    for at in transport.into_iter().chain((!v6).then_some(10)) {
        if let (Some(a), Some(b)) = (quote.get(at..at + 2), sent.get(at..at + 2)) {
            let difference = ones_sum(&[a, &[!b[0], !b[1]]].concat());
            // Two numbers are zero.
            out[at..at + 2].copy_from_slice(&if difference == 0xffff { 0 } else { difference }.to_be_bytes());
        }
    }
    out
}

/// The IP packet in a frame; `None`: it is none, or belongs to the link (ARP, neighbour and group discovery).
pub fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(LINK_LEN..)?;
    match (&frame[12..14], packet.first()? >> 4) {
        ([0x08, 0x00], _) => (packet.len() >= IPV4_LEN).then_some(packet),
        ([0x86, 0xdd], _) if packet.len() >= IPV6_LEN => {
            let link_message = |at: usize| packet.get(at).is_some_and(|kind| (130..=143).contains(kind));
            let behind_options = packet[6] == 0 && packet.get(IPV6_LEN) == Some(&ICMPV6);
            let of_link = (packet[6] == ICMPV6 && link_message(IPV6_LEN)) || (behind_options && link_message(IPV6_LEN + 8));
            (!of_link).then_some(packet)
        }
        _ => None,
    }
}

/// The packet that an ICMP message quotes.
pub fn quote_of(packet: &[u8]) -> Option<&[u8]> {
    let v6 = packet[0] >> 4 == 6;
    let (number, icmp, at) = if v6 { (packet[6], ICMPV6, IPV6_LEN) } else { (packet[9], ICMP, usize::from(packet[0] & 15) * 4) };
    packet.get(at + 8..).filter(|_| number == icmp && !is_later_fragment(packet))
}

/// The number that a packet carries.
pub fn id_of(packet: &[u8]) -> Option<Id> {
    let at = match packet.first()? >> 4 {
        6 => 2,
        4 => 4,
        _ => return None,
    };
    packet.get(at..at + 2).map(|id| Id::from_be_bytes([id[0], id[1]]))
}
