//! Changing a packet: addresses, ports, TTL and checksums, then the link-layer header.
//!
//! Everything is checked before the first byte changes; after that there is only straight line.

use crate::checksum::{Sum, addr_sum, apply, apply_both, is_fold_of, pseudo_sum};
use crate::conntrack::Hit;
use crate::frame::Frame;
use crate::parse::{ETHERNET_LEN, Packet, Piece};
use crate::plain::PLAIN_MIN;
use crate::reason::Reason;
use crate::routes::{Mac, NextHop};
use crate::tuple::{AddrWords, Key, Proto, Tuple};

/// One hop less, as a change of the IPv4 header's checksum (RFC 1624): the TTL is the upper half of its word.
const TTL_DELTA: u16 = !0x0100;

/// Whether a packet of this TTL and length can go on by this next hop.
#[inline(always)]
pub fn check(ttl: u8, ip_len: usize, hop: &NextHop) -> Result<(), Reason> {
    if ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if ip_len > usize::from(hop.mtu) {
        return Err(Reason::TooBig);
    }
    Ok(())
}

/// Rewrites a checked packet of a connection for the wire: what it becomes replaces its tuple, `hop` its link-layer header.
/// True when the transport checksum had to be computed in full.
pub fn rewrite(frame: &mut Frame<'_>, packet: &Packet, hit: &Hit, hop: &NextHop) -> bool {
    if packet.is_plain() && frame.tail().is_empty() {
        let (head, covered) = (frame.head_mut(), Covered { protocol: packet.tuple.proto as u8, len: packet.covered_len });
        let done = match packet.tuple.v6 {
            true => rewrite_plain::<true>(head, covered, &packet.tuple.key(), hit, hop),
            false => rewrite_plain::<false>(head, covered, &packet.tuple.key(), hit, hop),
        };
        if done {
            return false;
        }
    }
    let completed = match packet.tuple.proto {
        Proto::Sctp => sctp(frame, packet, &hit.new),
        Proto::Tcp | Proto::Udp => transport(frame, packet, &hit.new, hit.deltas.l4),
    };
    network(frame.head_mut(), usize::from(packet.l3), &hit.new, hit.deltas.l3);
    link(frame, packet.l3, hop.src_mac(), hop.dst_mac());
    completed
}

/// What a transport checksum covers beside addresses and ports.
#[derive(Clone, Copy)]
pub struct Covered {
    /// TCP's or UDP's number.
    pub protocol: u8,
    /// Bytes.
    pub len: u16,
}

/// [`rewrite`] for a [plain](crate::plain) packet. False, and nothing changed, for one whose checksum must be computed in full, or that is
/// one of the rare numbers where TCP and UDP differ.
#[inline(always)]
pub fn rewrite_plain<const V6: bool>(head: &mut [u8], covered: Covered, key: &Key, hit: &Hit, hop: &NextHop) -> bool {
    let (new, deltas) = (&hit.new, hit.deltas);
    let l4 = ETHERNET_LEN + if V6 { 40 } else { 20 };
    let at = l4 + if covered.protocol == Proto::Tcp as u8 { 16 } else { 6 };
    let Some(place) = head.get_mut(at..at + 2) else { return false };
    let field = u16::from_be_bytes([place[0], place[1]]);
    if field != 0 {
        let addrs = key.addrs.iter().take(if V6 { 4 } else { 1 }).fold(0, |sum, w| sum + (w >> 32) + (w & 0xffff_ffff));
        let pseudo = addrs + u64::from(covered.protocol) + u64::from(covered.len);
        let changed = apply(field, deltas.l4);
        // A computed 0 is sent as 0xffff over UDP (RFC 768).
        if (changed == 0) | is_fold_of(field, pseudo) {
            return false;
        }
        place.copy_from_slice(&changed.to_be_bytes());
    } else if covered.protocol != Proto::Udp as u8 {
        // UDP without a checksum stays without.
        return false;
    }
    let Some(header) = head.first_chunk_mut::<PLAIN_MIN>() else { return false };
    header[..12].copy_from_slice(&hop.link);
    let ports = hit.new_ports.to_be_bytes();
    if V6 {
        let Some(header) = head.first_chunk_mut::<62>() else { return false };
        header[21] -= 1;
        header[22..38].copy_from_slice(&v6_bytes(new.src));
        header[38..54].copy_from_slice(&v6_bytes(new.dst));
        header[54..58].copy_from_slice(&ports);
    } else {
        header[22] -= 1;
        let field = apply_both(u16::from_be_bytes([header[24], header[25]]), deltas.l3, TTL_DELTA);
        header[24..26].copy_from_slice(&field.to_be_bytes());
        header[26..34].copy_from_slice(&((new.src[1] << 32) | (new.dst[1] & 0xffff_ffff)).to_be_bytes());
        header[34..38].copy_from_slice(&ports);
    }
    true
}

/// Rewrites a checked later fragment: addresses only.
pub fn rewrite_piece(frame: &mut Frame<'_>, piece: &Piece, hit: &Hit, hop: &NextHop) {
    network(frame.head_mut(), usize::from(piece.l3), &hit.new, hit.deltas.l3);
    link(frame, piece.l3, hop.src_mac(), hop.dst_mac());
}

/// Addresses, TTL and the IPv4 header's checksum.
#[inline(always)]
fn network(head: &mut [u8], l3: usize, new: &Tuple, delta: u16) {
    let ip = &mut head[l3..];
    if new.v6 {
        let ip = &mut ip[..40];
        ip[7] -= 1;
        ip[8..24].copy_from_slice(&v6_bytes(new.src));
        ip[24..40].copy_from_slice(&v6_bytes(new.dst));
    } else {
        let ip = &mut ip[..20];
        ip[8] -= 1;
        let field = apply_both(u16::from_be_bytes([ip[10], ip[11]]), delta, TTL_DELTA);
        ip[10..12].copy_from_slice(&field.to_be_bytes());
        ip[12..20].copy_from_slice(&((new.src[1] << 32) | (new.dst[1] & 0xffff_ffff)).to_be_bytes());
    }
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
    if packet.tuple.proto == Proto::Sctp {
        let absent = sctp_field(frame, packet) == 0;
        if absent {
            let crc = sctp_crc(frame, packet);
            write_sctp_field(frame, packet, crc);
        }
        return absent;
    }
    let field = checksum_field(frame.head(), packet);
    let partial = is_partial(packet, field);
    if partial {
        write_full(frame, packet, packet.tuple.src, packet.tuple.dst);
    }
    partial
}

/// Ports and the checksum of TCP or UDP. True when it had to be computed in full.
fn transport(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple, delta: u16) -> bool {
    let field = checksum_field(frame.head(), packet);
    write_ports(frame, packet, new);
    if is_partial(packet, field) {
        write_full(frame, packet, new.src, new.dst);
        return true;
    }
    write_field(frame, packet, changed_field(packet, field, delta));
    false
}

/// The checksum field of TCP or UDP after a change.
#[inline(always)]
fn changed_field(packet: &Packet, field: u16, delta: u16) -> u16 {
    let changed = apply(field, delta);
    let rare = (field == 0) | (changed == 0);
    if rare && packet.tuple.proto == Proto::Udp { udp_field(field, changed) } else { changed }
}

/// UDP over IPv4 without a checksum stays without; a computed 0 is sent as 0xffff there (RFC 768). For TCP both are the same number.
#[cold]
fn udp_field(field: u16, changed: u16) -> u16 {
    match (field, changed) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        _ => changed,
    }
}

fn write_ports(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple) {
    let ports = &mut frame.head_mut()[usize::from(packet.l4)..];
    ports[0..2].copy_from_slice(&new.sport.to_be_bytes());
    ports[2..4].copy_from_slice(&new.dport.to_be_bytes());
}

/// SCTP's CRC32c (RFC 9260, appendix A) covers no addresses. It is linear: the difference between the CRCs of the packet before and after is
/// the difference of the field, so a packet that was damaged on its way stays damaged. A local sender's offloaded CRC is 0.
fn sctp(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple) -> bool {
    let field = sctp_field(frame, packet);
    if field == 0 {
        write_ports(frame, packet, new);
        let crc = sctp_crc(frame, packet);
        write_sctp_field(frame, packet, crc);
        return true;
    }
    if (new.sport, new.dport) != (packet.tuple.sport, packet.tuple.dport) {
        let before = sctp_crc(frame, packet);
        write_ports(frame, packet, new);
        let after = sctp_crc(frame, packet);
        write_sctp_field(frame, packet, field ^ before ^ after);
    }
    false
}

/// The CRC of the packet with its checksum field taken as zero.
fn sctp_crc(frame: &Frame<'_>, packet: &Packet) -> u32 {
    let head = &frame.head()[usize::from(packet.l4)..];
    let head = &head[..head.len().min(usize::from(packet.covered_len))];
    let mut crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head[..8]), &[0; 4]), &head[12..]);
    let mut left = usize::from(packet.covered_len) - head.len();
    for piece in frame.tail() {
        let piece = &piece[..piece.len().min(left)];
        crc = crc32c::crc32c_append(crc, piece);
        left -= piece.len();
    }
    crc
}

/// The field is sent least significant byte first.
fn sctp_field(frame: &Frame<'_>, packet: &Packet) -> u32 {
    let at = usize::from(packet.l4) + 8;
    frame.head()[at..at + 4].iter().rev().fold(0, |n, b| (n << 8) | u32::from(*b))
}

fn write_sctp_field(frame: &mut Frame<'_>, packet: &Packet, crc: u32) {
    let at = usize::from(packet.l4) + 8;
    frame.head_mut()[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A local sender that leaves the checksum to its NIC (Linux: CHECKSUM_PARTIAL) stores the pseudo header's sum, not complemented.
/// A finished checksum may equal that by chance; computing it anew is right in both cases.
#[inline(always)]
fn is_partial(packet: &Packet, field: u16) -> bool {
    let t = &packet.tuple;
    // Nobody leaves fragments to the NIC, and the rest of the packet is not here.
    packet.fragment_id.is_none() && is_fold_of(field, pseudo_sum(t.src, t.dst, t.proto as u8, packet.covered_len))
}

#[inline(always)]
fn checksum_at(packet: &Packet) -> usize {
    usize::from(packet.l4) + if packet.tuple.proto == Proto::Tcp { 16 } else { 6 }
}

#[inline(always)]
fn checksum_field(head: &[u8], packet: &Packet) -> u16 {
    let at = checksum_at(packet);
    u16::from_be_bytes([head[at], head[at + 1]])
}

fn write_field(frame: &mut Frame<'_>, packet: &Packet, field: u16) {
    let at = checksum_at(packet);
    frame.head_mut()[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// Computes the transport checksum over all segments.
#[cold]
#[inline(never)]
fn write_full(frame: &mut Frame<'_>, packet: &Packet, src: AddrWords, dst: AddrWords) {
    write_field(frame, packet, 0);
    let mut sum = Sum::new(addr_sum(src) + addr_sum(dst) + u64::from(packet.tuple.proto as u8) + u64::from(packet.covered_len));
    let mut left = usize::from(packet.covered_len);
    let head = &frame.head()[usize::from(packet.l4)..];
    for piece in std::iter::once(head).chain(frame.tail().iter().copied()) {
        let piece = &piece[..piece.len().min(left)];
        sum.add(piece);
        left -= piece.len();
    }
    // A computed 0 is sent as 0xffff over UDP, where 0 means none (RFC 768).
    let field = match sum.finish() {
        0 if packet.tuple.proto == Proto::Udp => 0xffff,
        field => field,
    };
    write_field(frame, packet, field);
}

#[inline(always)]
fn v6_bytes(a: AddrWords) -> [u8; 16] {
    ((u128::from(a[0]) << 64) | u128::from(a[1])).to_be_bytes()
}
