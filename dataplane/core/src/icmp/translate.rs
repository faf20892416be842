//! Translating an ICMP error: the quote back to the packet that its sender has sent, the addresses as those of a packet to that sender.

use super::{IcmpError, TRANSPORT_MIN};
use crate::checksum::{Sum, addr_sum, apply, delta, pseudo_sum};
use crate::conntrack::Hit;
use crate::frame::Frame;
use crate::rewrite::{self, checksum_of, udp_field, v6_bytes};
use crate::routes::NextHop;
use crate::tuple::{AddrWords, Proto, Tuple};
use crate::wire::{icmp, ipv4, ipv6, ports, protocol, sctp};

/// The error's source address after the translation.
///
/// The far end that the quoted packet was for becomes what its sender takes for it: the endpoint the Service, the client the SNAT address. The
/// kernel's NAT gives that address to routers in between as well, if there is one (nf_nat_icmp_reply_translation; RFC 5508, REQ-5, asks for a
/// public address): their own may be a private one, which filters on the way to the client do not let pass, and the error would be lost. It is done
/// here too, but for "time exceeded": that is nothing without its sender, and nobody but a `traceroute` waits for it.
pub fn source_after(error: &IcmpError, hit: &Hit) -> AddrWords {
    let (far, becomes) = (error.quoted.dst, hit.new.src);
    let far_itself = error.sender == far;
    let hidden = far != becomes && !error.is_time_exceeded();
    if far_itself || hidden { becomes } else { error.sender }
}

/// Whether the checksum over the whole message is right.
pub fn has_right_checksum(frame: &Frame<'_>, error: &IcmpError) -> bool {
    checksum(frame, error, error.sender, error.quoted.src) == 0
}

/// Translates a checked error about `hit`'s flow for the wire: it comes from `source` afterwards.
///
/// The quoted TCP or UDP checksum follows the quoted addresses and ports if it is within the quote, as nf_nat does. SCTP's depends on all of the
/// packet, so it follows if the packet is quoted whole; nf_nat writes one of the part that is quoted, and hosts look at none.
pub fn translate(frame: &mut Frame<'_>, error: &IcmpError, hit: &Hit, source: AddrWords, hop: &NextHop) {
    let end = frame.head_len().min(usize::from(error.l4) + usize::from(error.l4_len));
    let quote = &mut frame.head_mut()[usize::from(error.quoted_l3)..end];
    quoted_packet(quote, usize::from(error.quoted_l4 - error.quoted_l3), error, hit);
    let outer = Tuple { src: source, ..hit.new };
    let changed = delta(addr_sum(error.sender) + addr_sum(error.quoted.src), addr_sum(outer.src) + addr_sum(outer.dst));
    rewrite::network(frame.head_mut(), error.l3.into(), &outer, changed);
    let field = icmp::field::CHECKSUM.after(error.l4.into());
    field.write(frame.head_mut(), [0; 2]);
    // In full: it was right before, so no damage is hidden.
    let sum = checksum(frame, error, outer.src, outer.dst);
    field.write(frame.head_mut(), sum.to_be_bytes());
    rewrite::link(frame, error.l3, hop.src_mac(), hop.dst_mac());
}

/// Addresses, ports and checksums of the quoted packet. It was rewritten in the direction opposite to `hit`'s, so `hit`'s differences undo that.
fn quoted_packet(quote: &mut [u8], l4: usize, error: &IcmpError, hit: &Hit) {
    let sent = hit.new.reversed();
    if sent.v6 {
        ipv6::field::SOURCE.write(quote, v6_bytes(sent.src));
        ipv6::field::DESTINATION.write(quote, v6_bytes(sent.dst));
    } else {
        let field = ipv4::field::CHECKSUM.u16(quote);
        ipv4::field::CHECKSUM.write(quote, apply(field, hit.deltas.l3).to_be_bytes());
        ipv4::field::ADDRESSES.write(quote, ((sent.src[1] << 32) | (sent.dst[1] & 0xffff_ffff)).to_be_bytes());
    }
    let whole = whole_len(quote, l4, sent.v6);
    let transport = &mut quote[l4..];
    debug_assert!(transport.len() >= TRANSPORT_MIN);
    let write_ports = |transport: &mut [u8]| {
        ports::field::SOURCE.write(transport, sent.sport.to_be_bytes());
        ports::field::DESTINATION.write(transport, sent.dport.to_be_bytes());
    };
    match error.quoted.proto {
        Proto::Tcp | Proto::Udp => {
            write_ports(transport);
            let field = checksum_of(sent.proto as u8);
            if let Some(before) = field.get(transport).map(u16::from_be_bytes) {
                let after = apply(before, hit.deltas.l4);
                let after = if sent.proto == Proto::Udp { udp_field(before, after) } else { after };
                field.write(transport, after.to_be_bytes());
            }
        }
        Proto::Sctp => match whole.and_then(|len| transport.get_mut(..len)).filter(|packet| packet.len() >= sctp::HEADER_LEN) {
            Some(packet) => {
                // The CRC is linear, see `rewrite`.
                let before = crc32c::crc32c(packet);
                write_ports(packet);
                let changed = before ^ crc32c::crc32c(packet);
                let crc = u32::from_le_bytes(sctp::field::CHECKSUM.read(packet)) ^ changed;
                sctp::field::CHECKSUM.write(packet, crc.to_le_bytes());
            }
            None => write_ports(transport),
        },
    }
}

/// Bytes of the quoted transport header and payload, by the quoted IP header. `None`: it contradicts itself.
fn whole_len(quote: &[u8], l4: usize, v6: bool) -> Option<usize> {
    let ip_len = match v6 {
        true => ipv6::HEADER_LEN + usize::from(ipv6::field::PAYLOAD_LEN.u16(quote)),
        false => usize::from(ipv4::field::TOTAL_LEN.u16(quote)),
    };
    ip_len.checked_sub(l4)
}

/// The checksum of the message from `src` to `dst` as it is: 0 if the one that it carries is right.
fn checksum(frame: &Frame<'_>, error: &IcmpError, src: AddrWords, dst: AddrWords) -> u16 {
    // ICMPv6 covers a pseudo header, ICMP does not.
    let pseudo = if error.quoted.v6 { pseudo_sum(src, dst, protocol::ICMPV6, error.l4_len) } else { 0 };
    let mut sum = Sum::new(pseudo);
    let mut left = usize::from(error.l4_len);
    let head = &frame.head()[usize::from(error.l4)..];
    for piece in std::iter::once(head).chain(frame.tail().iter().copied()) {
        let piece = &piece[..piece.len().min(left)];
        sum.add(piece);
        left -= piece.len();
    }
    sum.finish()
}
