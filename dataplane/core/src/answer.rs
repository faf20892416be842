//! Frames that are made here: ICMP errors to the sender of a packet that cannot go on.
//!
//! Built off the hit path with etherparse. Sources: RFC 792, RFC 4443 (ICMPv6), RFC 1122 3.2.2 (when not to send), RFC 1812 4.3.2.3 and
//! RFC 4443 2.4 (how much to quote).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};
use etherparse::{icmpv4, icmpv6};

use crate::frame::Frame;
use crate::parse::Packet;

/// Bytes of an IPv4 packet with an ICMP error at the most (RFC 1812).
const V4_LEN_MAX: usize = 576;
/// Bytes of an IPv6 packet with an ICMPv6 error at the most (the minimum MTU).
const V6_LEN_MAX: usize = 1_280;
/// Hop limit of what is made here.
const TTL: u8 = 64;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Nobody serves this port (kube-proxy's REJECT): ICMP 3/3, ICMPv6 1/4.
    PortUnreachable,
    /// ICMP 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// ICMP 3/4, ICMPv6 2/0, with the MTU in bytes.
    TooBig(u32),
}

/// Builds the answer to `packet` (still unchanged in `frame`) into `spare`, as a frame back to where it came from.
/// False, with `spare` unchanged in size, when no answer may be sent or it does not fit.
pub fn build(error: Error, frame: &Frame<'_>, packet: &Packet, from: IpAddr, spare: &mut Frame<'_>) -> bool {
    let l3 = usize::from(packet.l3);
    let received = frame.head();
    // A link-layer broadcast or multicast is never answered (RFC 1122, 3.2.2).
    if received[0] & 1 != 0 || (error_needs_df(error) && !packet.tuple.v6 && received[l3 + 6] & 0x40 == 0) {
        return false;
    }
    let packet_end = received.len().min(l3 + packet.ip_len());
    let quoted = &received[l3..packet_end];
    let start = crate::frame::HEADROOM_MIN.min(spare.capacity());
    let room = spare.capacity() - start;
    let mut message = [0u8; V6_LEN_MAX];
    let len = match (from, packet.tuple.src_addr()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(error, from, to, quoted, &mut message),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(error, from, to, quoted, &mut message),
        _ => return false,
    };
    if l3 + len > room || !spare.set_range(start, l3 + len) {
        return false;
    }
    let out = spare.head_mut();
    // Back the way it came: addresses swapped, VLAN tags kept.
    out[..l3].copy_from_slice(&received[..l3]);
    out[0..6].copy_from_slice(&received[6..12]);
    out[6..12].copy_from_slice(&received[0..6]);
    out[l3..].copy_from_slice(&message[..len]);
    spare.port = frame.port;
    true
}

/// An IPv4 packet without the DF bit would have been fragmented by a router; nomagic does not fragment and stays silent.
fn error_needs_df(error: Error) -> bool {
    matches!(error, Error::TooBig(_))
}

fn v4(error: Error, from: Ipv4Addr, to: Ipv4Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
        Error::TimeExceeded => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
        Error::TooBig(mtu) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu })
        }
    };
    let quoted = &quoted[..quoted.len().min(V4_LEN_MAX - 28)];
    let icmp = Icmpv4Header::with_checksum(kind, quoted).to_bytes();
    let payload_len = (icmp.len() + quoted.len()) as u16;
    let Ok(mut ip) = Ipv4Header::new(payload_len, TTL, IpNumber::ICMP, from.octets(), to.octets()) else { return 0 };
    ip.header_checksum = ip.calc_header_checksum();
    join(out, &[&ip.to_bytes(), &icmp, quoted])
}

fn v6(error: Error, from: Ipv6Addr, to: Ipv6Addr, quoted: &[u8], out: &mut [u8]) -> usize {
    let kind = match error {
        Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu },
    };
    let quoted = &quoted[..quoted.len().min(V6_LEN_MAX - 48)];
    let Ok(icmp) = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted) else { return 0 };
    let icmp = icmp.to_bytes();
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: (icmp.len() + quoted.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: TTL,
        source: from.octets(),
        destination: to.octets(),
    };
    join(out, &[&ip.to_bytes(), &icmp, quoted])
}

fn join(out: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}

/// How many errors may be sent: a token bucket.
#[derive(Debug)]
pub struct Limiter {
    tokens: u64,
    refilled_ms: u64,
}

impl Limiter {
    /// Errors a second that a worker sends at the most (the kernel's icmp_msgs_per_sec).
    pub const PER_SECOND: u64 = 1_000;
    /// Errors in a burst at the most.
    pub const BURST: u64 = 200;

    /// Takes a token, if there is one.
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
