//! Rejects: ICMP errors and resets to the sender of a packet that is not forwarded.
//!
//! Built on the slow path with etherparse. Sources: RFC 792, RFC 4443 (ICMPv6), RFC 1122 3.2.2 (when not to send), RFC 1812 4.3.2.3 and
//! RFC 4443 2.4 (how much to quote), RFC 9293 3.10.7.1 (resets).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};

use crate::frame::Frame;
use crate::parse::Packet;
use crate::wire::{ethernet, icmp, icmpv6, ipv4, ipv6, tcp};

/// Longest IPv4 packet with an ICMP error, bytes (RFC 1812).
const V4_LEN_MAX: usize = 576;
/// Longest IPv6 packet with an ICMPv6 error, bytes (the minimum MTU).
const V6_LEN_MAX: usize = 1_280;
/// TTL and hop limit of rejects.
const TTL: u8 = 64;

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Port unreachable (kube-proxy's REJECT): ICMP 3/3, ICMPv6 1/4.
    PortUnreachable,
    /// ICMP 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// ICMP 3/4, ICMPv6 2/0, with the MTU in bytes.
    TooBig(u32),
}

/// Builds an error about `packet` (still unchanged in `frame`) into `spare`, addressed to the packet's sender.
/// False, with `spare` unchanged in size, when no error may be sent or it does not fit.
pub fn build(error: Error, frame: &Frame<'_>, packet: &Packet, from: IpAddr, spare: &mut Frame<'_>) -> bool {
    let l3 = usize::from(packet.l3);
    let received = frame.head();
    let may_fragment = !packet.tuple.v6 && ipv4::field::FRAGMENT.after(l3).u16(received) & ipv4::DONT_FRAGMENT == 0;
    // A link-layer broadcast or multicast is never answered (RFC 1122, 3.2.2).
    if is_group(received) || (error_needs_df(error) && may_fragment) {
        return false;
    }
    let packet_end = received.len().min(l3 + packet.ip_len());
    let quoted = &received[l3..packet_end];
    let mut message = [0u8; V6_LEN_MAX];
    let len = match (from, packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(error, from, to, quoted, &mut message),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(error, from, to, quoted, &mut message),
        _ => return false,
    };
    send_back(frame, l3, &message[..len], spare)
}

/// Builds the reset that a host sends for a closed port. Like [`build`]; a reset is never answered.
pub fn build_reset(frame: &Frame<'_>, packet: &Packet, spare: &mut Frame<'_>) -> bool {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let received = frame.head();
    // Nor is a link-layer broadcast or multicast. `parse` has checked that the header is in the first segment.
    let Some((segment, _)) = received.get(l4..).and_then(|l4| TcpHeader::from_slice(l4).ok()) else { return false };
    if is_group(received) || segment.rst {
        return false;
    }
    let mut reset = TcpHeader::new(segment.destination_port, segment.source_port, 0, 0);
    reset.rst = true;
    if segment.ack {
        reset.sequence_number = segment.acknowledgment_number;
    } else {
        reset.ack = true;
        let payload = usize::from(packet.l4_len).saturating_sub(segment.header_len());
        let length = payload as u32 + u32::from(segment.syn) + u32::from(segment.fin);
        reset.acknowledgment_number = segment.sequence_number.wrapping_add(length);
    }
    let mut message = [0u8; ipv6::HEADER_LEN + tcp::HEADER_LEN];
    let len = match (packet.tuple.dst_addr(), packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => reset_v4(reset, from, to, &mut message),
        (IpAddr::V6(from), IpAddr::V6(to)) => reset_v6(reset, from, to, &mut message),
        _ => return false,
    };
    len > 0 && send_back(frame, l3, &message[..len], spare)
}

/// Builds a frame with this IP packet for the sender of another frame. False when it does not fit.
fn send_back(frame: &Frame<'_>, l3: usize, packet: &[u8], spare: &mut Frame<'_>) -> bool {
    let received = frame.head();
    let start = crate::frame::HEADROOM_MIN.min(spare.capacity());
    let len = l3 + packet.len();
    if len > spare.capacity() - start || !spare.set_range(start, len) {
        return false;
    }
    let out = spare.head_mut();
    // MAC addresses swapped, VLAN tags kept.
    out[..l3].copy_from_slice(&received[..l3]);
    ethernet::field::DESTINATION.write(out, ethernet::field::SOURCE.read(received));
    ethernet::field::SOURCE.write(out, ethernet::field::DESTINATION.read(received));
    out[l3..].copy_from_slice(packet);
    spare.port = frame.port;
    true
}

/// Whether a frame's destination is a broadcast or multicast address.
fn is_group(frame: &[u8]) -> bool {
    frame[0] & ethernet::GROUP != 0
}

/// A router would fragment an IPv4 packet without the DF bit. nomagic does not fragment, and sends no error for these.
fn error_needs_df(error: Error) -> bool {
    matches!(error, Error::TooBig(_))
}

fn v4(error: Error, from: Ipv4Addr, to: Ipv4Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
        Error::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Error::TooBig(mtu) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu })
        }
    };
    let quoted = &quoted[..quoted.len().min(V4_LEN_MAX - ipv4::HEADER_LEN - icmp::HEADER_LEN)];
    let icmp = Icmpv4Header::with_checksum(kind, quoted).to_bytes();
    join(out, &[&header_v4(icmp.len() + quoted.len(), IpNumber::ICMP, from, to), &icmp, quoted])
}

fn v6(error: Error, from: Ipv6Addr, to: Ipv6Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(etherparse::icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu },
    };
    let quoted = &quoted[..quoted.len().min(V6_LEN_MAX - ipv6::HEADER_LEN - icmpv6::HEADER_LEN)];
    let Ok(icmp) = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted) else { return 0 };
    let icmp = icmp.to_bytes();
    join(out, &[&header_v6(icmp.len() + quoted.len(), IpNumber::IPV6_ICMP, from, to), &icmp, quoted])
}

fn reset_v4(mut reset: TcpHeader, from: Ipv4Addr, to: Ipv4Addr, out: &mut [u8]) -> usize {
    let Ok(checksum) = reset.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]) else { return 0 };
    reset.checksum = checksum;
    join(out, &[&header_v4(tcp::HEADER_LEN, IpNumber::TCP, from, to), &reset.to_bytes()])
}

fn reset_v6(mut reset: TcpHeader, from: Ipv6Addr, to: Ipv6Addr, out: &mut [u8]) -> usize {
    let Ok(checksum) = reset.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]) else { return 0 };
    reset.checksum = checksum;
    join(out, &[&header_v6(tcp::HEADER_LEN, IpNumber::TCP, from, to), &reset.to_bytes()])
}

/// An IPv4 header for a payload of this many bytes, which is far below the largest packet.
fn header_v4(payload_len: usize, protocol: IpNumber, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; ipv4::HEADER_LEN] {
    let mut ip = Ipv4Header {
        total_len: (ipv4::HEADER_LEN + payload_len) as u16,
        dont_fragment: true,
        time_to_live: TTL,
        protocol,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    };
    ip.header_checksum = ip.calc_header_checksum();
    let mut bytes = [0; ipv4::HEADER_LEN];
    join(&mut bytes, &[&ip.to_bytes()]);
    bytes
}

fn header_v6(payload_len: usize, next_header: IpNumber, source: Ipv6Addr, destination: Ipv6Addr) -> [u8; ipv6::HEADER_LEN] {
    Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: payload_len as u16,
        next_header,
        hop_limit: TTL,
        source: source.octets(),
        destination: destination.octets(),
    }
    .to_bytes()
}

fn join(out: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}

/// Limits the rate of rejects: a token bucket.
#[derive(Debug)]
pub struct Limiter {
    tokens: u64,
    refilled_ms: u64,
}

impl Limiter {
    /// Rejects a second and worker (the kernel's icmp_msgs_per_sec).
    pub const PER_SECOND: u64 = 1_000;
    /// Rejects in a burst.
    pub const BURST: u64 = 200;

    /// Takes a token. False when none is left.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.refilled_ms).saturating_mul(Limiter::PER_SECOND) / 1_000;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(Limiter::BURST);
            self.refilled_ms = now_ms;
        }
        let allowed = self.tokens > 0;
        self.tokens -= u64::from(allowed);
        allowed
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter { tokens: Limiter::BURST, refilled_ms: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiter_allows_a_burst_and_then_a_rate() {
        let mut limiter = Limiter::default();
        let burst = (0..500).filter(|_| limiter.take(1)).count() as u64;
        assert!((Limiter::BURST..=Limiter::BURST + 1).contains(&burst));
        let sent = (1..=1_000u64).flat_map(|ms| [ms; 5]).filter(|&ms| limiter.take(1 + ms)).count() as u64;
        assert!((Limiter::PER_SECOND - 1..=Limiter::PER_SECOND + 1).contains(&sent), "{sent}");
    }
}
