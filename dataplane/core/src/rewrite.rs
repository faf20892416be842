//! Changing a packet: addresses, ports, TTL and checksums, then the link-layer header.
//!
//! Everything is checked before the first byte changes; after that there is only straight line.

use crate::checksum::{Sum, addr_sum, apply, fold, pseudo_sum};
use crate::conntrack::Deltas;
use crate::frame::Frame;
use crate::parse::{ETHERNET_LEN, Packet};
use crate::reason::Reason;
use crate::routes::{Mac, NextHop};
use crate::tuple::{AddrWords, Proto, Tuple};

/// One hop less, as a change of the IPv4 header's checksum (RFC 1624): the TTL is the upper half of its word.
const TTL_DELTA: u16 = !0x0100;

/// Whether a packet can go on by this next hop; nothing is changed.
pub fn check(packet: &Packet, hop: &NextHop) -> Result<(), Reason> {
    if packet.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if packet.ip_len() > hop.mtu as usize {
        return Err(Reason::TooBig);
    }
    Ok(())
}

/// Rewrites a checked packet for the wire: `new` replaces its tuple, `hop` its link-layer header.
/// True when the transport checksum had to be computed in full.
pub fn rewrite(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple, deltas: Deltas, hop: &NextHop) -> bool {
    let completed = transport(frame, packet, new, deltas.l4);
    let ip = &mut frame.head_mut()[usize::from(packet.l3)..];
    if new.v6 {
        ip[7] -= 1;
        ip[8..24].copy_from_slice(&v6_bytes(new.src));
        ip[24..40].copy_from_slice(&v6_bytes(new.dst));
    } else {
        ip[8] -= 1;
        let field = apply(apply(u16::from_be_bytes([ip[10], ip[11]]), deltas.l3), TTL_DELTA);
        ip[10..12].copy_from_slice(&field.to_be_bytes());
        ip[12..16].copy_from_slice(&(new.src[1] as u32).to_be_bytes());
        ip[16..20].copy_from_slice(&(new.dst[1] as u32).to_be_bytes());
    }
    link(frame, packet.l3, hop.src_mac, hop.dst_mac);
    completed
}

/// Writes a plain Ethernet header, without tags, directly in front of what starts at `l3`. The ethertype stays.
pub fn link(frame: &mut Frame<'_>, l3: u16, src: Mac, dst: Mac) {
    let tags = usize::from(l3) - ETHERNET_LEN;
    let data = frame.head_mut();
    let ethertype = [data[usize::from(l3) - 2], data[usize::from(l3) - 1]];
    frame.pull_front(tags);
    let data = frame.head_mut();
    data[0..6].copy_from_slice(&dst);
    data[6..12].copy_from_slice(&src);
    data[12..14].copy_from_slice(&ethertype);
}

/// Completes a checksum that the sender left to its NIC, so that the packet can go anywhere. True when it was one.
pub fn complete(frame: &mut Frame<'_>, packet: &Packet) -> bool {
    let field = checksum_field(frame, packet);
    let partial = is_partial(packet, field);
    if partial {
        write_full(frame, packet, packet.tuple.src, packet.tuple.dst);
    }
    partial
}

/// Ports and transport checksum.
fn transport(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple, delta: u16) -> bool {
    let field = checksum_field(frame, packet);
    let l4 = usize::from(packet.l4);
    let data = frame.head_mut();
    data[l4..l4 + 2].copy_from_slice(&new.sport.to_be_bytes());
    data[l4 + 2..l4 + 4].copy_from_slice(&new.dport.to_be_bytes());
    if is_partial(packet, field) {
        write_full(frame, packet, new.src, new.dst);
        return true;
    }
    // UDP over IPv4 without a checksum stays without (RFC 768).
    if !(packet.tuple.proto == Proto::Udp && field == 0) {
        write_field(frame, packet, apply(field, delta));
    }
    false
}

/// A local sender that leaves the checksum to its NIC (Linux: CHECKSUM_PARTIAL) stores the pseudo header's sum, not complemented.
/// A finished checksum may equal that by chance; computing it anew is right in both cases.
fn is_partial(packet: &Packet, field: u16) -> bool {
    let t = &packet.tuple;
    field == fold(pseudo_sum(t.src, t.dst, t.proto as u8, packet.covered_len))
}

fn checksum_at(packet: &Packet) -> usize {
    usize::from(packet.l4) + if packet.tuple.proto == Proto::Tcp { 16 } else { 6 }
}

fn checksum_field(frame: &Frame<'_>, packet: &Packet) -> u16 {
    let at = checksum_at(packet);
    u16::from_be_bytes([frame.head()[at], frame.head()[at + 1]])
}

/// A computed 0 is sent as 0xffff over UDP, where 0 means none (RFC 768); for TCP both are the same number.
fn write_field(frame: &mut Frame<'_>, packet: &Packet, field: u16) {
    let field = if field == 0 && packet.tuple.proto == Proto::Udp { 0xffff } else { field };
    let at = checksum_at(packet);
    frame.head_mut()[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// Computes the transport checksum over all segments.
fn write_full(frame: &mut Frame<'_>, packet: &Packet, src: AddrWords, dst: AddrWords) {
    write_field_raw(frame, packet, 0);
    let mut sum = Sum::new(addr_sum(src) + addr_sum(dst) + u64::from(packet.tuple.proto as u8) + u64::from(packet.covered_len));
    let mut left = usize::from(packet.covered_len);
    let head = &frame.head()[usize::from(packet.l4)..];
    for piece in std::iter::once(head).chain(frame.tail().iter().copied()) {
        let piece = &piece[..piece.len().min(left)];
        sum.add(piece);
        left -= piece.len();
    }
    write_field(frame, packet, sum.finish());
}

fn write_field_raw(frame: &mut Frame<'_>, packet: &Packet, field: u16) {
    let at = checksum_at(packet);
    frame.head_mut()[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

fn v6_bytes(a: AddrWords) -> [u8; 16] {
    ((u128::from(a[0]) << 64) | u128::from(a[1])).to_be_bytes()
}
