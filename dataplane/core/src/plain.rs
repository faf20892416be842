//! Reading what nearly every frame is, in a straight line: Ethernet without tags, IPv4 without options or IPv6 without extension headers,
//! TCP or UDP, whole and in one segment.
//!
//! What is said here [`parse`](crate::parse::parse) says too, except that no address is judged: whoever opens connections asks
//! [`martian`](crate::parse::martian), and packets of connections that are open have addresses that somebody asked for. Whatever is not plain
//! in this sense, or not sane, is read by `parse`.

use crate::frame::Frame;
use crate::parse::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, array_at};
use crate::rewrite::Covered;
use crate::tuple::{Key, Proto, key_meta, meta_parts};

const L4_V4: usize = ETHERNET_LEN + 20;
const L4_V6: usize = ETHERNET_LEN + 40;
/// The shortest plain frame: IPv4 and UDP.
pub const PLAIN_MIN: usize = L4_V4 + 8;
/// Ethertype, and the first byte of an IPv4 header without options.
const IPV4_WITHOUT_OPTIONS: u32 = ((ETHERTYPE_IPV4 as u32) << 8) | 0x45;

/// What is kept of a plain frame's headers between the steps of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// Ports, protocol and family, see [`Tuple::meta`](crate::tuple::Tuple::meta).
    pub meta: u64,
    /// Source and destination address of IPv4; those of IPv6 stay in the frame.
    addrs: u64,
    l4_len: u16,
    covered_len: u16,
    /// TCP flags; 0 for UDP.
    pub tcp_flags: u8,
    /// True for IPv6.
    pub v6: bool,
}

impl Plain {
    /// Reads a frame's headers. `None`: not plain.
    #[inline(always)]
    pub fn read(frame: &Frame<'_>) -> Option<Plain> {
        let data = frame.head();
        let start: &[u8; PLAIN_MIN] = data.first_chunk()?;
        let kind = u32::from_be_bytes([start[12], start[13], start[14], start[15]]);
        if !frame.tail().is_empty() {
            None
        } else if kind >> 8 == IPV4_WITHOUT_OPTIONS {
            Plain::ipv4(data, start)
        } else if kind >> 16 == u32::from(ETHERTYPE_IPV6) {
            Plain::ipv6(data)
        } else {
            None
        }
    }

    #[inline(always)]
    fn ipv4(data: &[u8], start: &[u8; PLAIN_MIN]) -> Option<Plain> {
        let ip_len = usize::from(u16::from_be_bytes([start[16], start[17]]));
        let fragment = u16::from_be_bytes([start[20], start[21]]) & 0x3fff;
        if (fragment != 0) | (ip_len < 28) | (ip_len > data.len() - ETHERNET_LEN) {
            return None;
        }
        let l4: &[u8; 8] = array_at(start, L4_V4)?;
        Plain::transport(data, l4, L4_V4, ip_len - 20, start[23], word_at(start, 26), false)
    }

    #[inline(always)]
    fn ipv6(data: &[u8]) -> Option<Plain> {
        let header: &[u8; L4_V6 + 8] = data.first_chunk()?;
        let l4_len = usize::from(u16::from_be_bytes([header[18], header[19]]));
        if (header[14] >> 4 != 6) | (l4_len < 8) | (l4_len + L4_V6 > data.len()) {
            return None;
        }
        let l4: &[u8; 8] = array_at(header, L4_V6)?;
        Plain::transport(data, l4, L4_V6, l4_len, header[20], 0, true)
    }

    /// The transport header, which `start` begins; its `l4_len` bytes are in `data` for certain, and at least eight.
    #[inline(always)]
    fn transport(data: &[u8], start: &[u8; 8], l4: usize, l4_len: usize, protocol: u8, addrs: u64, v6: bool) -> Option<Plain> {
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
        let ports = u32::from_be_bytes([start[0], start[1], start[2], start[3]]);
        let meta = key_meta(ports, proto, v6);
        Some(Plain { meta, addrs, l4_len: l4_len as u16, covered_len: covered as u16, tcp_flags, v6 })
    }

    /// The key of the packet. `data` are the bytes of the frame that it was read from; `V6` is [`Plain::v6`], said at a time when the compiler
    /// hears it.
    #[inline(always)]
    pub fn key<const V6: bool>(&self, data: &[u8]) -> Key {
        let addrs = match data.first_chunk::<L4_V6>() {
            Some(header) if V6 => [word_at(header, 22), word_at(header, 30), word_at(header, 38), word_at(header, 46)],
            _ => [self.addrs, 0, 0, 0],
        };
        Key { meta: self.meta, addrs }
    }

    /// What its transport checksum covers.
    #[inline(always)]
    pub fn covered(&self) -> Covered {
        Covered { protocol: (self.meta >> 8) as u8, len: self.covered_len }
    }

    /// IPv4 TTL or IPv6 hop limit.
    #[inline(always)]
    pub fn ttl<const V6: bool>(data: &[u8]) -> u8 {
        data.first_chunk::<PLAIN_MIN>().map_or(0, |header| header[if V6 { 21 } else { 22 }])
    }

    /// Bytes of the IP packet.
    #[inline(always)]
    pub fn ip_len<const V6: bool>(&self) -> usize {
        usize::from(self.l4_len) + if V6 { 40 } else { 20 }
    }

    /// The packet as [`parse`](crate::parse::parse) would say it.
    pub fn packet(&self, data: &[u8]) -> Packet {
        let key = if self.v6 { self.key::<true>(data) } else { self.key::<false>(data) };
        let mut tuple = meta_parts(key.meta);
        (tuple.src, tuple.dst) = key.addresses(self.v6);
        let l4 = if self.v6 { L4_V6 } else { L4_V4 } as u16;
        let ttl = if self.v6 { Plain::ttl::<true>(data) } else { Plain::ttl::<false>(data) };
        let Plain { l4_len, covered_len, tcp_flags, .. } = *self;
        Packet { tuple, l3: ETHERNET_LEN as u16, l4, l4_len, covered_len, tcp_flags, ttl, fragment_id: None }
    }
}

/// Eight bytes of a header.
#[inline(always)]
fn word_at<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    array_at(header, at).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
