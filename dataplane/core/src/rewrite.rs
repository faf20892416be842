//! Changing a packet: addresses, ports, TTL and checksums, then the link-layer header.
//!
//! Everything is checked before the first byte changes; after that there is only straight line.

use crate::checksum::{Covered, Sum, addr_sum, apply, apply_both, is_fold_of, pseudo_sum};
use crate::conntrack::Hit;
use crate::fast_parse::{L3, L4_V4, L4_V6, PLAIN_MIN, PLAIN_V6_MIN};
use crate::frame::Frame;
use crate::parse::{FirstFragment, LaterFragment, Packet};
use crate::reason::Reason;
use crate::routes::{Mac, NextHop};
use crate::tuple::{AddrWords, Key, Proto, Tuple};
use crate::wire::{Field, ethernet, ipv4, ipv6, ports, sctp, tcp, udp};

/// One hop less, as a change of the IPv4 header's checksum (RFC 1624): the TTL is the upper half of its word.
const TTL_DELTA: u16 = !0x0100;
const _: () = assert!(ipv4::field::TTL.start().is_multiple_of(2));

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

/// [`rewrite`] for a [plain](crate::fast_parse) packet. False, and nothing changed, for one whose checksum must be computed in full, or that is
/// one of the rare numbers where TCP and UDP differ.
#[inline(always)]
pub fn rewrite_plain<const V6: bool>(head: &mut [u8], covered: Covered, key: &Key, hit: &Hit, hop: &NextHop) -> bool {
    let (new, deltas) = (&hit.new, hit.deltas);
    let at = checksum_of(covered.protocol).after(if V6 { L4_V6 } else { L4_V4 });
    let Some(place) = head.get_mut(at.range()) else { return false };
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
    let Some(start) = head.first_chunk_mut::<PLAIN_MIN>() else { return false };
    ethernet::field::ADDRESSES.write(start, hop.link);
    let ports = hit.new_ports.to_be_bytes();
    if V6 {
        let Some(start) = head.first_chunk_mut::<PLAIN_V6_MIN>() else { return false };
        ipv6_header(start, L3, new);
        ports::field::BOTH.after(L4_V6).write(start, ports);
    } else {
        ipv4_header(start, L3, new, deltas.l3);
        ports::field::BOTH.after(L4_V4).write(start, ports);
    }
    true
}

/// Rewrites a checked later fragment: addresses only.
pub fn rewrite_later_fragment(frame: &mut Frame<'_>, fragment: &LaterFragment, hit: &Hit, hop: &NextHop) {
    network(frame.head_mut(), usize::from(fragment.l3), &hit.new, hit.deltas.l3);
    link(frame, fragment.l3, hop.src_mac(), hop.dst_mac());
}

/// Addresses, TTL and the IPv4 header's checksum.
#[inline(always)]
pub(crate) fn network(head: &mut [u8], l3: usize, new: &Tuple, delta: u16) {
    let ip = &mut head[l3..];
    if new.v6 {
        ipv6_header(&mut ip[..ipv6::HEADER_LEN], 0, new);
    } else {
        ipv4_header(&mut ip[..ipv4::HEADER_LEN], 0, new, delta);
    }
}

#[inline(always)]
fn ipv4_header(data: &mut [u8], l3: usize, new: &Tuple, delta: u16) {
    use ipv4::field::*;
    data[TTL.after(l3).start()] -= 1;
    let checksum = CHECKSUM.after(l3);
    let field = apply_both(checksum.u16(data), delta, TTL_DELTA);
    checksum.write(data, field.to_be_bytes());
    ADDRESSES.after(l3).write(data, ((new.src[1] << 32) | (new.dst[1] & 0xffff_ffff)).to_be_bytes());
}

#[inline(always)]
fn ipv6_header(data: &mut [u8], l3: usize, new: &Tuple) {
    use ipv6::field::*;
    data[HOP_LIMIT.after(l3).start()] -= 1;
    SOURCE.after(l3).write(data, v6_bytes(new.src));
    DESTINATION.after(l3).write(data, v6_bytes(new.dst));
}

/// Writes a plain Ethernet header, without tags, directly in front of what starts at `l3`. The ethertype stays.
pub fn link(frame: &mut Frame<'_>, l3: u16, src: Mac, dst: Mac) {
    use ethernet::field::*;
    let tags = usize::from(l3) - ethernet::HEADER_LEN;
    // That of the last tag, when there are any.
    let ethertype = TYPE.after(tags).read(frame.head());
    frame.pull_front(tags);
    let data = frame.head_mut();
    DESTINATION.write(data, dst);
    SOURCE.write(data, src);
    TYPE.write(data, ethertype);
}

/// Completes a checksum that the sender left to its NIC, so that the packet can go anywhere. True when it was one.
pub fn complete(frame: &mut Frame<'_>, packet: &Packet) -> bool {
    if packet.tuple.proto == Proto::Sctp {
        let absent = sctp_field(frame, packet) == 0 && packet.fragment.is_none();
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
pub(crate) fn udp_field(field: u16, changed: u16) -> u16 {
    match (field, changed) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        _ => changed,
    }
}

fn write_ports(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple) {
    let header = &mut frame.head_mut()[usize::from(packet.l4)..];
    ports::field::SOURCE.write(header, new.sport.to_be_bytes());
    ports::field::DESTINATION.write(header, new.dport.to_be_bytes());
}

/// SCTP's CRC32c (RFC 9260, appendix A) covers no addresses. It is linear: the difference between the CRCs of the packet before and after is
/// the difference of the field, so a packet that was damaged on its way stays damaged. A local sender's offloaded CRC is 0.
fn sctp(frame: &mut Frame<'_>, packet: &Packet, new: &Tuple) -> bool {
    let field = sctp_field(frame, packet);
    if let Some(first) = packet.fragment {
        sctp_fragment(frame, packet, first, new);
        return false;
    }
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

/// The same for a first fragment: what the ports change depends on how many bytes follow them, and not on which. A CRC of 0 stays: nobody leaves
/// fragments to the NIC, so it is none (RFC 9653).
fn sctp_fragment(frame: &mut Frame<'_>, packet: &Packet, first: FirstFragment, new: &Tuple) {
    let field = sctp_field(frame, packet);
    let ports = |sport: u16, dport: u16| crc32c::crc32c(&((u32::from(sport) << 16) | u32::from(dport)).to_be_bytes());
    let changed = ports(packet.tuple.sport, packet.tuple.dport) ^ ports(new.sport, new.dport);
    write_ports(frame, packet, new);
    if let Some(len) = first.len.filter(|_| field != 0 && changed != 0) {
        // Of the fragmented part, headers in front of the transport header are not covered.
        let covered = usize::from(len).saturating_sub(usize::from(first.end - packet.l4_len));
        let behind = covered.saturating_sub(ports::field::BOTH.range().len());
        write_sctp_field(frame, packet, field ^ crc32c::crc32c_combine(changed, 0, behind));
    }
}

/// The CRC of the packet with its checksum field taken as zero.
fn sctp_crc(frame: &Frame<'_>, packet: &Packet) -> u32 {
    let head = &frame.head()[usize::from(packet.l4)..];
    let head = &head[..head.len().min(usize::from(packet.covered_len))];
    let field = sctp::field::CHECKSUM.range();
    let before = crc32c::crc32c(&head[..field.start]);
    let mut crc = crc32c::crc32c_append(crc32c::crc32c_append(before, &[0; 4]), &head[field.end..]);
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
    u32::from_le_bytes(sctp::field::CHECKSUM.after(packet.l4.into()).read(frame.head()))
}

fn write_sctp_field(frame: &mut Frame<'_>, packet: &Packet, crc: u32) {
    sctp::field::CHECKSUM.after(packet.l4.into()).write(frame.head_mut(), crc.to_le_bytes());
}

/// A local sender that leaves the checksum to its NIC (Linux: CHECKSUM_PARTIAL) stores the pseudo header's sum, not complemented.
/// A finished checksum may equal that by chance; computing it anew is right in both cases.
#[inline(always)]
pub(crate) fn is_partial(packet: &Packet, field: u16) -> bool {
    let t = &packet.tuple;
    // Nobody leaves fragments to the NIC, and the rest of the packet is not here.
    packet.fragment.is_none() && is_fold_of(field, pseudo_sum(t.src, t.dst, t.proto as u8, packet.covered_len))
}

/// The checksum field of TCP or UDP.
#[inline(always)]
pub(crate) fn checksum_of(protocol: u8) -> Field<2> {
    if protocol == Proto::Tcp as u8 { tcp::field::CHECKSUM } else { udp::field::CHECKSUM }
}

#[inline(always)]
fn checksum_at(packet: &Packet) -> Field<2> {
    checksum_of(packet.tuple.proto as u8).after(packet.l4.into())
}

#[inline(always)]
fn checksum_field(head: &[u8], packet: &Packet) -> u16 {
    checksum_at(packet).u16(head)
}

fn write_field(frame: &mut Frame<'_>, packet: &Packet, field: u16) {
    checksum_at(packet).write(frame.head_mut(), field.to_be_bytes());
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
pub(crate) fn v6_bytes(a: AddrWords) -> [u8; 16] {
    ((u128::from(a[0]) << 64) | u128::from(a[1])).to_be_bytes()
}
