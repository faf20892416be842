//! Frames as hosts build them, and what a hostile one does to them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, PacketBuilder};
use nomagic_core::frame::PortId;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::{ACK, CLIENT_MAC, KERNEL_MAC, PORT_MACS, RST, SYN, SYN_ACK, Spec, make_partial, naive_crc32c};

use crate::input::Input;

/// Where the IP header of an untagged frame begins.
const L3: usize = 14;
const TAGS: [&[u8]; 3] = [&[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5], &[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7]];

/// A frame on its way in.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The port that it comes in by.
    pub port: PortId,
    /// All of its bytes.
    pub bytes: Vec<u8>,
    /// Where its second segment begins.
    pub split: Option<usize>,
    /// It was held.
    pub resubmitted: bool,
    /// Its transport checksum is wrong.
    pub wrong_sum: bool,
    /// Its sender left the transport checksum to its NIC.
    pub partial_sum: bool,
}

impl Sent {
    /// An ordinary frame.
    pub fn new(port: PortId, bytes: Vec<u8>) -> Sent {
        Sent { port, bytes, split: None, resubmitted: false, wrong_sum: false, partial_sum: false }
    }
}

/// TCP flags of a packet, from one byte; usual ones are more likely.
pub fn flags(byte: u8) -> u8 {
    match byte {
        0..=63 => ACK,
        64..=95 => SYN,
        96..=127 => SYN_ACK,
        128..=159 => ACK | 1,
        160..=191 => RST,
        192..=207 => RST | ACK,
        _ => byte & 0x3f,
    }
}

/// The type of the first SCTP chunk that means what these TCP flags do.
fn chunk(flags: u8) -> u8 {
    match flags {
        SYN => 1,
        SYN_ACK => 2,
        f if f & RST != 0 => 6,
        f if f & 1 != 0 => 7,
        // COOKIE ECHO, COOKIE ACK, HEARTBEAT, DATA, SHUTDOWN ACK, SHUTDOWN COMPLETE.
        f => [10, 11, 4, 0, 8, 14][usize::from(f) % 6],
    }
}

/// Builds a packet into a frame that comes in by `port`.
pub fn build(spec: &Spec, port: PortId) -> Vec<u8> {
    let mut frame = if spec.proto == Proto::Sctp { sctp(spec) } else { spec.frame() };
    if let Some(mac) = PORT_MACS.get(usize::from(port.0)) {
        frame[..6].copy_from_slice(mac);
    }
    frame
}

fn sctp(spec: &Spec) -> Vec<u8> {
    let mut packet = [&spec.src.port().to_be_bytes()[..], &spec.dst.port().to_be_bytes(), &spec.sequence.to_be_bytes(), &[0; 4]].concat();
    packet.extend([chunk(spec.flags), 0]);
    packet.extend((spec.payload as u16 + 4).to_be_bytes());
    packet.extend((0..spec.payload).map(|i| i as u8));
    let crc = naive_crc32c(&packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    ip_packet(spec.src, spec.dst, spec.ttl, IpNumber::SCTP, &packet)
}

fn ip_packet(src: SocketAddr, dst: SocketAddr, ttl: u8, number: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, PORT_MACS[0]);
    let written = match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), ttl).write(&mut out, number, payload),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), ttl).write(&mut out, number, payload),
        _ => return out,
    };
    written.expect("a short packet");
    out
}

/// An ICMP error or query from a host, with something of a packet in it.
pub fn icmp(src: SocketAddr, dst: SocketAddr, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let payload = [&[kind, kind >> 4, 0, 0, 0, 0, 0, 0][..], quoted].concat();
    let number = if src.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
    ip_packet(src, dst, 64, number, &payload)
}

/// Cuts a packet into fragments: the first with the transport header, and a later one. None when it is too short to be cut.
pub fn fragments(frame: &[u8], id: u16) -> Option<[Vec<u8>; 2]> {
    let v6 = frame.get(L3)? >> 4 == 6;
    let l4 = L3 + if v6 { 40 } else { 20 };
    // Fragments are multiples of eight bytes, and the TCP header is in the first.
    let cut = 24;
    if frame.len() <= l4 + cut {
        return None;
    }
    let (first, later) = (&frame[l4..l4 + cut], &frame[l4 + cut..]);
    Some([(first, 0, true), (later, cut as u16, false)].map(|(payload, offset, more)| {
        let mut out = frame[..l4].to_vec();
        if v6 {
            let header = offset | u16::from(more);
            let id = u32::from(id).to_be_bytes();
            out.extend([frame[L3 + 6], 0]);
            out.extend(header.to_be_bytes());
            out.extend(id);
            out[L3 + 6] = 44;
            out[L3 + 4..L3 + 6].copy_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
        } else {
            out[L3 + 2..L3 + 4].copy_from_slice(&(payload.len() as u16 + 20).to_be_bytes());
            out[L3 + 4..L3 + 6].copy_from_slice(&id.to_be_bytes());
            out[L3 + 6..L3 + 8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
            repair_ipv4(&mut out);
        }
        out.extend(payload);
        out
    }))
}

/// Computes the IPv4 header checksum of an untagged frame anew.
fn repair_ipv4(frame: &mut [u8]) {
    let len = usize::from(frame[L3] & 15) * 4;
    frame[L3 + 10..L3 + 12].fill(0);
    let sum = !nomagic_core::checksum::fold(words(&frame[L3..L3 + len]));
    frame[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
}

/// The sum of 16-bit words, not folded.
pub fn words(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// Does to a frame what the next byte says; most bytes say: nothing.
pub fn disguise(sent: &mut Sent, spec: &Spec, input: &mut Input<'_>) {
    let what = input.byte();
    if what < 128 {
        return;
    }
    let (v4, sctp) = (spec.src.is_ipv4(), spec.proto == Proto::Sctp);
    if what & 1 != 0 && !sctp {
        make_partial(&mut sent.bytes, spec);
        sent.partial_sum = true;
    } else if what & 2 != 0 && !sctp {
        let at = if v4 { 34 } else { 54 } + if spec.proto == Proto::Tcp { 17 } else { 7 };
        sent.bytes[at] ^= 1 + input.byte() / 2;
        sent.wrong_sum = true;
    }
    if what & 16 != 0 && v4 {
        // It may be fragmented.
        sent.bytes[L3 + 6] &= !0x40;
        repair_ipv4(&mut sent.bytes);
    }
    if what & 4 != 0 {
        add_options(&mut sent.bytes, v4);
    }
    if what & 8 != 0 {
        let tags = input.one(&TAGS);
        sent.bytes.splice(12..12, tags.iter().copied());
    }
    if what & 16 != 0 {
        sent.bytes.extend([0; 7]);
    }
    if what & 32 != 0 {
        sent.split = Some(usize::from(input.byte()).min(sent.bytes.len()));
    }
    if what & 64 != 0 {
        match input.byte() {
            // As the kernel addresses its own frames to its end of the internal port.
            0..=63 => sent.bytes[..6].copy_from_slice(&KERNEL_MAC),
            64..=127 => sent.bytes[0] |= 1,
            changes => {
                // Nobody knows what its checksum is now.
                (sent.partial_sum, sent.wrong_sum) = (false, false);
                for _ in 0..changes % 4 {
                    let at = usize::from(input.byte()) % sent.bytes.len();
                    sent.bytes[at] = input.byte();
                }
            }
        }
    }
}

/// Adds IPv4 options, or IPv6 extension headers.
fn add_options(frame: &mut Vec<u8>, v4: bool) {
    if v4 {
        frame.splice(L3 + 20..L3 + 20, [1u8; 8]);
        frame[L3] = 0x47;
        let total = u16::from_be_bytes([frame[L3 + 2], frame[L3 + 3]]) + 8;
        frame[L3 + 2..L3 + 4].copy_from_slice(&total.to_be_bytes());
        repair_ipv4(frame);
    } else {
        let next = std::mem::replace(&mut frame[L3 + 6], 0);
        frame.splice(L3 + 40..L3 + 40, [60, 0, 1, 4, 0, 0, 0, 0, next, 0, 1, 4, 0, 0, 0, 0]);
        let payload = u16::from_be_bytes([frame[L3 + 4], frame[L3 + 5]]) + 16;
        frame[L3 + 4..L3 + 6].copy_from_slice(&payload.to_be_bytes());
    }
}
