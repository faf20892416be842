//! Packets as the test generates them, built by hand so that each field can be wrong. Nothing of the core is used.

use std::net::IpAddr;

use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::{fragment, ones_sum, set_ipv4_checksum};

pub const LINK_LEN: usize = 14;
/// Where the transport header of a packet without options and extension headers begins.
pub const IPV6_LEN: usize = 40;
pub const IPV4_LEN: usize = 20;
const FRAGMENT: u8 = 44;

/// What a packet means to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Opens,
    Answers,
    Continues,
    /// Of a connection that nobody knows.
    Stray(Stray),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stray {
    Data,
    Reset,
    Fin,
    SynAck,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    Ipv4Checksum,
    TransportChecksum,
    Version,
    HeaderLen,
    IpLenBeyondFrame,
    IpLenCutsTransport,
    UdpLenBeyondPacket,
    /// Bytes behind the datagram, which its checksum does not cover (RFC 9868).
    UdpLenShort,
    TcpOffsetBeyondPacket,
    TcpOffsetTooSmall,
}

/// How a datagram is cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cut {
    /// All fragments once, in any order.
    Whole,
    /// One of them comes twice.
    Twice,
    /// One of them comes again with bytes in front or behind that another one has.
    Overlaps,
    /// One comes with a part of its own bytes before it.
    Contained,
    /// The first one ends inside the transport header.
    Tiny,
    /// IPv6 fragments below the smallest MTU.
    Small,
    Missing,
}

/// The one thing that is special about a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Special {
    Nothing,
    /// The whole packet has this many bytes.
    Length(usize),
    /// The TTL or hop limit runs out, or nearly.
    Hops,
    Options(&'static str, Vec<u8>),
    /// Numbers and bodies of extension headers, without the next header's number.
    Extensions(&'static str, Vec<(u8, Vec<u8>)>),
    NoChecksum,
    Damage(Damage),
    Trailer(usize),
    Fragments {
        cut: Cut,
        size: usize,
        order: Vec<usize>,
    },
}

/// A packet as it is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Form {
    pub role: Role,
    pub special: Special,
    pub ttl: u8,
    pub tos: u8,
    pub dont_fragment: bool,
    pub payload: usize,
}

/// Addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
}

/// Number of a conversation: IPv4's identification, IPv6's flow label.
pub type Id = u16;

impl Form {
    /// The IP packet before it is cut.
    pub fn packet(&self, proto: Proto, ends: &Ends, id: Id) -> Vec<u8> {
        let v6 = ends.src.0.is_ipv6();
        let in_front = match &self.special {
            Special::Options(_, options) => options.clone(),
            Special::Extensions(_, headers) => chain(headers, proto as u8),
            _ => Vec::new(),
        };
        let ip_len = if v6 { IPV6_LEN } else { IPV4_LEN } + in_front.len();
        let mut transport = self.transport(proto, ends, |header| match self.special {
            Special::Length(len) => len.saturating_sub(ip_len + header),
            _ => self.payload,
        });
        if !matches!(self.special, Special::NoChecksum) {
            set_transport_checksum(&mut transport, proto, ends);
        }
        let ttl = self.ttl;
        let mut packet = match (ends.src.0, ends.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = (ip_len + transport.len()) as u16;
                let flags: u16 = if self.dont_fragment { 0x4000 } else { 0 };
                let words = [&total.to_be_bytes()[..], &id.to_be_bytes(), &flags.to_be_bytes(), &[ttl, proto as u8, 0, 0]].concat();
                [&[0x40 | (ip_len / 4) as u8, self.tos][..], &words, &src.octets(), &dst.octets(), &in_front].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let first = 6 << 28 | u32::from(self.tos) << 20 | u32::from(id);
                let next = if let Special::Extensions(_, headers) = &self.special { headers[0].0 } else { proto as u8 };
                let len = ((in_front.len() + transport.len()) as u16).to_be_bytes();
                [&first.to_be_bytes()[..], &len, &[next, ttl], &src.octets(), &dst.octets(), &in_front].concat()
            }
            _ => unreachable!("one family"),
        };
        packet.extend(transport);
        if !v6 {
            set_ipv4_checksum(&mut packet, 0);
        }
        if let Special::Damage(damage) = self.special {
            damage_packet(&mut packet, damage, ip_len, proto);
        }
        packet
    }

    /// Transport header and payload, without a checksum. `payload` tells the payload's length by the header's.
    fn transport(&self, proto: Proto, ends: &Ends, payload: impl Fn(usize) -> usize) -> Vec<u8> {
        let ports = [ends.src.1.to_be_bytes(), ends.dst.1.to_be_bytes()].concat();
        let filling = |len: usize| (0..len).map(|i| (i as u8).wrapping_mul(31) ^ ends.src.1 as u8);
        match proto {
            Proto::Udp => {
                let len = payload(8);
                [&ports[..], &(len as u16 + 8).to_be_bytes(), &[0; 2]].concat().into_iter().chain(filling(len)).collect()
            }
            Proto::Tcp => {
                let (sequence, acknowledgment, flags): (u32, u32, u8) = match self.role {
                    Role::Opens => (1_000, 0, 0x02),
                    Role::Answers => (5_000, 1_001, 0x12),
                    Role::Continues => (1_001, 5_001, 0x18),
                    Role::Stray(Stray::Data) => (7_000, 8_000, 0x10),
                    Role::Stray(Stray::Reset) => (7_000, 8_000, 0x14),
                    Role::Stray(Stray::Fin) => (7_000, 8_000, 0x11),
                    Role::Stray(Stray::SynAck) => (7_000, 8_000, 0x12),
                };
                let header = [&ports[..], &sequence.to_be_bytes(), &acknowledgment.to_be_bytes(), &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]];
                header.concat().into_iter().chain(filling(payload(20))).collect()
            }
            Proto::Sctp => {
                // The tag, the chunk, and the tag that an INIT asks for, with windows, streams and a first number.
                let init = |tag: u32| [&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat();
                let (tag, chunk, start): (u32, u8, Vec<u8>) = match self.role {
                    Role::Opens => (0, 1, init(7)),
                    Role::Answers | Role::Stray(Stray::SynAck) => (7, 2, init(9)),
                    Role::Continues => (9, 10, Vec::new()),
                    Role::Stray(Stray::Data) => (9, 0, Vec::new()),
                    Role::Stray(Stray::Reset) => (9, 6, Vec::new()),
                    Role::Stray(Stray::Fin) => (9, 7, Vec::new()),
                };
                // Chunks are padded to four bytes.
                let len = payload(16 + start.len()) & !3;
                let head = [&ports[..], &tag.to_be_bytes(), &[0; 4], &[chunk, 0], &((4 + start.len() + len) as u16).to_be_bytes(), &start];
                head.concat().into_iter().chain(filling(len)).collect()
            }
        }
    }

    /// The frames of a packet, in the order in which they are sent. `link`: the Ethernet header.
    pub fn frames(&self, packet: &[u8], link: &[u8], id: Id) -> Vec<Vec<u8>> {
        let frame = [link, packet].concat();
        match &self.special {
            Special::Trailer(len) => vec![[&frame[..], &vec![0xee; *len]].concat()],
            Special::Fragments { cut, size, order } => fragment_frames(&frame, cut, *size, order, id),
            _ => vec![frame],
        }
    }
}

/// Extension headers in a row; the last one names the transport protocol.
fn chain(headers: &[(u8, Vec<u8>)], transport: u8) -> Vec<u8> {
    let next = headers.iter().skip(1).map(|(number, _)| *number).chain([transport]);
    headers.iter().zip(next).flat_map(|((_, body), next)| [&[next][..], body].concat()).collect()
}

/// Computes the checksum of a transport header and payload between these ends.
pub fn set_transport_checksum(transport: &mut [u8], proto: Proto, ends: &Ends) {
    if proto == Proto::Sctp {
        let crc = crc32c::crc32c(transport);
        transport[8..12].copy_from_slice(&crc.to_le_bytes());
        return;
    }
    let at = if proto == Proto::Tcp { 16 } else { 6 };
    let sum = !ones_sum(&[&pseudo_header(ends.src.0, ends.dst.0, proto as u8, transport.len()), &*transport].concat());
    let field = if sum == 0 && proto == Proto::Udp { 0xffff } else { sum };
    transport[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// What checksums cover besides the packet.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let tail = [&(len as u32).to_be_bytes()[..], &[0, 0, 0, protocol]].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [&src.octets()[..], &dst.octets(), &tail].concat(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => [&src.octets()[..], &dst.octets(), &tail].concat(),
        _ => unreachable!("one family"),
    }
}

fn damage_packet(packet: &mut [u8], damage: Damage, l4: usize, proto: Proto) {
    let v6 = packet[0] >> 4 == 6;
    let word = |packet: &mut [u8], at: usize, value: u16| packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
    let (len_at, len) = if v6 { (4, packet.len() - IPV6_LEN) } else { (2, packet.len()) };
    match damage {
        Damage::Ipv4Checksum => packet[10] ^= 0x5a,
        Damage::TransportChecksum => {
            let at = l4 + [16, 6, 8][[Proto::Tcp, Proto::Udp, Proto::Sctp].iter().position(|p| *p == proto).unwrap()];
            packet[at + 1] ^= 0x15;
            // Not the number that says there is none.
            packet[at] |= 1;
            // Nor the one that a sender leaves to its NIC, which is completed.
            let (src, dst) = addresses(packet);
            if packet[at..at + 2] == ones_sum(&pseudo_header(src, dst, proto as u8, packet.len() - l4)).to_be_bytes() {
                packet[at] ^= 2;
            }
        }
        Damage::Version => packet[0] ^= 0x30,
        Damage::HeaderLen => packet[0] = packet[0] & 0xf0 | 4,
        Damage::IpLenBeyondFrame => word(packet, len_at, len as u16 + 9),
        Damage::IpLenCutsTransport => word(packet, len_at, (l4 + 6 - if v6 { IPV6_LEN } else { 0 }) as u16),
        Damage::UdpLenBeyondPacket => word(packet, l4 + 4, (packet.len() - l4) as u16 + 3),
        Damage::UdpLenShort => {
            // The checksum fits the shorter datagram.
            let short = packet.len() - l4 - 5;
            word(packet, l4 + 4, short as u16);
            word(packet, l4 + 6, 0);
            let (src, dst) = addresses(packet);
            let sum = !ones_sum(&[&pseudo_header(src, dst, 17, short), &packet[l4..l4 + short]].concat());
            word(packet, l4 + 6, sum);
        }
        Damage::TcpOffsetBeyondPacket | Damage::TcpOffsetTooSmall => {
            packet[l4 + 12] = if damage == Damage::TcpOffsetTooSmall { 0x40 } else { 0xf0 };
            packet[l4 + 16..l4 + 18].fill(0);
            let (src, dst) = addresses(packet);
            set_transport_checksum(&mut packet[l4..], proto, &Ends { src: (src, 0), dst: (dst, 0) });
        }
    }
    let header_changed = matches!(damage, Damage::Version | Damage::HeaderLen | Damage::IpLenBeyondFrame | Damage::IpLenCutsTransport);
    if !v6 && header_changed {
        packet[10..12].fill(0);
        let sum = !ones_sum(&packet[..IPV4_LEN]);
        word(packet, 10, sum);
    }
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    if packet[0] >> 4 == 6 { (v6(8), v6(24)) } else { (v4(12), v4(16)) }
}

/// Fragments as they are sent.
fn fragment_frames(frame: &[u8], cut: &Cut, size: usize, order: &[usize], id: Id) -> Vec<Vec<u8>> {
    let headers = LINK_LEN + if frame[LINK_LEN] >> 4 == 6 { IPV6_LEN } else { IPV4_LEN };
    let len = frame.len() - headers;
    let mut ranges: Vec<_> = (0..len).step_by(size).map(|start| start..len.min(start + size)).collect();
    if *cut == Cut::Tiny {
        ranges.splice(0..1, [0..8, 8..ranges[0].end]);
    }
    let last = ranges.len() - 1;
    let mut sent: Vec<_> = order.iter().filter(|place| **place <= last).map(|place| ranges[*place].clone()).collect();
    match cut {
        Cut::Whole | Cut::Tiny | Cut::Small => {}
        Cut::Twice => sent.insert(sent.len() / 2, sent[0].clone()),
        Cut::Missing => drop(sent.pop()),
        Cut::Contained => {
            let part = sent[0].start..sent[0].end.min(sent[0].start + 8);
            sent.insert(1, part);
        }
        Cut::Overlaps => {
            // From the middle of the first one to the middle of the next.
            let wide = (size / 16 * 8).max(8)..(size / 16 * 8 + size).min(len / 8 * 8);
            sent.insert(sent.len() / 2, wide);
        }
    }
    sent.into_iter().map(|range| fragment(frame, range.clone(), range.end < len, id)).collect()
}

/// Whether an IP packet is a fragment. An atomic fragment is none.
pub fn is_fragment(packet: &[u8]) -> bool {
    fragment_word(packet) & if packet[0] >> 4 == 6 { 0xfff9 } else { 0x3fff } != 0
}

/// Whether an IP packet is a fragment, and not a first one.
pub fn is_later_fragment(packet: &[u8]) -> bool {
    fragment_word(packet) & if packet[0] >> 4 == 6 { 0xfff8 } else { 0x1fff } != 0
}

/// Offset and flags of a fragment; 0 without a fragment header.
fn fragment_word(packet: &[u8]) -> u16 {
    let at = if packet[0] >> 4 == 6 { 42 } else { 6 };
    let has_one = packet[0] >> 4 == 4 || packet[6] == FRAGMENT;
    packet.get(at..at + 2).filter(|_| has_one).map_or(0, |word| u16::from_be_bytes([word[0], word[1]]))
}
