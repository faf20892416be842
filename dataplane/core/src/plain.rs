//! Reading what nearly every frame is, in a straight line: Ethernet without tags, IPv4 without options or IPv6 without extension headers,
//! TCP or UDP, whole and in one segment.
//!
//! What is said here [`parse`](crate::parse::parse) says too. Whatever is not plain in this sense, or not sane, is read by that.

use crate::frame::Frame;
use crate::parse::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, array_at};
use crate::tuple::{Proto, Tuple};

const L4_V4: usize = ETHERNET_LEN + 20;
const L4_V6: usize = ETHERNET_LEN + 40;

/// What is kept of a plain frame's headers between the steps of a batch; its addresses stay where they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    sport: u16,
    dport: u16,
    l4_len: u16,
    covered_len: u16,
    proto: Proto,
    tcp_flags: u8,
    ttl: u8,
    /// True for IPv6.
    pub v6: bool,
}

impl Plain {
    /// Reads a frame's headers. `None`: not plain.
    #[inline(always)]
    pub fn read(frame: &Frame<'_>) -> Option<Plain> {
        let data = frame.head();
        let ethertype = u16::from_be_bytes(*array_at(data, ETHERNET_LEN - 2)?);
        if !frame.tail().is_empty() {
            return None;
        }
        match ethertype {
            ETHERTYPE_IPV4 => Plain::ipv4(data),
            ETHERTYPE_IPV6 => Plain::ipv6(data),
            _ => None,
        }
    }

    #[inline(always)]
    fn ipv4(data: &[u8]) -> Option<Plain> {
        let header: &[u8; L4_V4 + 8] = data.first_chunk()?;
        let ip_len = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let fragment = u16::from_be_bytes([header[20], header[21]]) & 0x3fff;
        // No loopback, multicast or 0/8 as source.
        let unicast = (header[26].wrapping_sub(1) < 223) & (header[26] != 127);
        if !((header[14] == 0x45) & (fragment == 0) & (ip_len >= 28) & (ip_len <= data.len() - ETHERNET_LEN) & unicast) {
            return None;
        }
        Plain::transport(data, L4_V4, ip_len - 20, header[23], header[22], false)
    }

    #[inline(always)]
    fn ipv6(data: &[u8]) -> Option<Plain> {
        let header: &[u8; L4_V6 + 8] = data.first_chunk()?;
        let l4_len = usize::from(u16::from_be_bytes([header[18], header[19]]));
        let source = u128::from_be_bytes(*array_at(header, 22)?);
        let unicast = (header[22] != 0xff) & (source > 1);
        if !((header[14] >> 4 == 6) & (l4_len >= 8) & (l4_len + L4_V6 <= data.len()) & unicast) {
            return None;
        }
        Plain::transport(data, L4_V6, l4_len, header[20], header[21], true)
    }

    /// The transport header; its `l4_len` bytes are in `data` for certain, and at least eight.
    #[inline(always)]
    fn transport(data: &[u8], l4: usize, l4_len: usize, protocol: u8, ttl: u8, v6: bool) -> Option<Plain> {
        let start: &[u8; 8] = array_at(data, l4)?;
        let (proto, tcp_flags, covered) = match protocol {
            17 => {
                let udp_len = usize::from(u16::from_be_bytes([start[4], start[5]]));
                if (udp_len < 8) | (udp_len > l4_len) {
                    return None;
                }
                (Proto::Udp, 0, udp_len)
            }
            6 => {
                let header: &[u8; 20] = array_at(data, l4)?;
                let header_len = usize::from(header[12] >> 4) * 4;
                if (header_len < 20) | (header_len > l4_len) {
                    return None;
                }
                (Proto::Tcp, header[13], l4_len)
            }
            _ => return None,
        };
        let (sport, dport) = (u16::from_be_bytes([start[0], start[1]]), u16::from_be_bytes([start[2], start[3]]));
        Some(Plain { sport, dport, l4_len: l4_len as u16, covered_len: covered as u16, proto, tcp_flags, ttl, v6 })
    }

    /// The packet. `data` are the bytes of the frame that it was read from; `V6` is [`Plain::v6`], said at a time when the compiler hears it.
    #[inline(always)]
    pub fn packet<const V6: bool>(&self, data: &[u8]) -> Packet {
        let word = |at: usize| array_at(data, at).map_or(0, |b| u64::from_be_bytes(*b));
        let (src, dst) = if V6 {
            ([word(22), word(30)], [word(38), word(46)])
        } else {
            let both = word(26);
            ([0, both >> 32], [0, both & 0xffff_ffff])
        };
        let tuple = Tuple { src, dst, sport: self.sport, dport: self.dport, proto: self.proto, v6: V6 };
        let l4 = if V6 { L4_V6 } else { L4_V4 } as u16;
        let Plain { l4_len, covered_len, tcp_flags, ttl, .. } = *self;
        Packet { tuple, l3: ETHERNET_LEN as u16, l4, l4_len, covered_len, tcp_flags, ttl, fragment_id: None }
    }

    /// The packet, of either family.
    pub fn any_packet(&self, data: &[u8]) -> Packet {
        if self.v6 { self.packet::<true>(data) } else { self.packet::<false>(data) }
    }
}
