//! The parser for plain frames, which nearly all are: Ethernet without tags, IPv4 without options or IPv6 without extension headers, TCP or UDP,
//! unfragmented and in one segment.
//!
//! It agrees with [`parse`](crate::parse::parse), except that it accepts any address: the slow path calls [`martian`](crate::parse::martian), and
//! the addresses of open flows have passed that. All other frames are left to `parse`.

use crate::checksum::Covered;
use crate::frame::Frame;
use crate::parse::{Packet, array_at};
use crate::tuple::{Key, Proto, key_meta, meta_parts};
use crate::wire::{Field, ethernet, ethertype, ipv4, ipv6, ports, protocol, tcp, udp};

/// Offset of the IP header in a plain frame.
pub(crate) const L3: usize = ethernet::HEADER_LEN;
/// Offset of the transport header over IPv4.
pub(crate) const L4_V4: usize = L3 + ipv4::HEADER_LEN;
/// Offset of the transport header over IPv6.
pub(crate) const L4_V6: usize = L3 + ipv6::HEADER_LEN;
/// The shortest plain frame: IPv4 and UDP.
pub const PLAIN_MIN: usize = L4_V4 + udp::HEADER_LEN;
/// The shortest plain frame over IPv6: UDP.
pub(crate) const PLAIN_V6_MIN: usize = L4_V6 + udp::HEADER_LEN;
/// EtherType and the first two bytes of the IP header: tells the two families of plain frames apart in one comparison.
const KIND: Field<4> = Field::at(ethernet::field::TYPE.start());
/// The upper three bytes of [`KIND`], for IPv4.
const IPV4_WITHOUT_OPTIONS: u32 = ((ethertype::IPV4 as u32) << 8) | ipv4::WITHOUT_OPTIONS as u32;

/// The header fields of a plain frame that the passes over a batch share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// Ports, protocol and family, see [`Tuple::meta`](crate::tuple::Tuple::meta).
    pub meta: u64,
    /// Source and destination address of IPv4. IPv6 addresses stay in the frame.
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
        let kind = KIND.u32(start);
        if !frame.tail().is_empty() {
            None
        } else if kind >> 8 == IPV4_WITHOUT_OPTIONS {
            Plain::ipv4(data, start)
        } else if kind >> 16 == u32::from(ethertype::IPV6) {
            Plain::ipv6(data)
        } else {
            None
        }
    }

    #[inline(always)]
    fn ipv4(data: &[u8], start: &[u8; PLAIN_MIN]) -> Option<Plain> {
        use ipv4::field::*;
        let ip_len = usize::from(TOTAL_LEN.after(L3).u16(start));
        let fragment = FRAGMENT.after(L3).u16(start) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET);
        if (fragment != 0) | (ip_len > data.len() - L3) {
            return None;
        }
        let l4: &[u8; udp::HEADER_LEN] = array_at(start, L4_V4)?;
        let (protocol, addrs) = (PROTOCOL.after(L3).u8(start), ADDRESSES.after(L3).u64(start));
        Plain::transport(data, l4, L4_V4, ip_len.cast_signed() - ipv4::HEADER_LEN.cast_signed(), protocol, addrs, false)
    }

    #[inline(always)]
    fn ipv6(data: &[u8]) -> Option<Plain> {
        use ipv6::field::*;
        let start: &[u8; PLAIN_V6_MIN] = data.first_chunk()?;
        let l4_len = usize::from(PAYLOAD_LEN.after(L3).u16(start));
        let version = ipv6::version(VERSION.after(L3).u8(start));
        if (version != 6) | (l4_len + L4_V6 > data.len()) {
            return None;
        }
        let l4: &[u8; udp::HEADER_LEN] = array_at(start, L4_V6)?;
        Plain::transport(data, l4, L4_V6, l4_len.cast_signed(), NEXT_HEADER.after(L3).u8(start), 0, true)
    }

    /// Reads the transport header, which begins with `start`. The caller has checked that `data` holds its `l4_len` bytes. An IPv4 header with a
    /// total length below its own makes that negative: less than any transport header.
    #[inline(always)]
    fn transport(
        data: &[u8],
        start: &[u8; udp::HEADER_LEN],
        l4: usize,
        l4_len: isize,
        protocol: u8,
        addrs: u64,
        v6: bool,
    ) -> Option<Plain> {
        let (proto, tcp_flags, covered) = match protocol {
            protocol::UDP => {
                let udp_len = usize::from(udp::field::LEN.u16(start));
                if (udp_len < udp::HEADER_LEN) | (udp_len.cast_signed() > l4_len) {
                    return None;
                }
                (Proto::Udp, 0, udp_len)
            }
            protocol::TCP => {
                let header: &[u8; tcp::HEADER_LEN] = array_at(data, l4)?;
                let header_len = tcp::header_len(tcp::field::DATA_OFFSET.u8(header));
                if (header_len < tcp::HEADER_LEN) | (header_len.cast_signed() > l4_len) {
                    return None;
                }
                (Proto::Tcp, tcp::field::FLAGS.u8(header), l4_len.cast_unsigned())
            }
            _ => return None,
        };
        let meta = key_meta(ports::field::BOTH.u32(start), proto, v6);
        Some(Plain { meta, addrs, l4_len: l4_len.cast_unsigned() as u16, covered_len: covered as u16, tcp_flags, v6 })
    }

    /// The key of the packet. `data` are the bytes of its frame; `V6` is [`Plain::v6`] as a const generic, so each family gets its own code.
    #[inline(always)]
    pub fn key<const V6: bool>(&self, data: &[u8]) -> Key {
        let addrs = match data.first_chunk::<L4_V6>() {
            Some(start) if V6 => {
                let [a, b, c, d] = ipv6::field::ADDRESS_WORDS;
                [a.after(L3).u64(start), b.after(L3).u64(start), c.after(L3).u64(start), d.after(L3).u64(start)]
            }
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
        let field = if V6 { ipv6::field::HOP_LIMIT } else { ipv4::field::TTL };
        data.first_chunk::<PLAIN_MIN>().map_or(0, |start| field.after(L3).u8(start))
    }

    /// Bytes of the IP packet.
    #[inline(always)]
    pub fn ip_len<const V6: bool>(&self) -> usize {
        usize::from(self.l4_len) + if V6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN }
    }

    /// The packet as [`parse`](crate::parse::parse) returns it.
    pub fn packet(&self, data: &[u8]) -> Packet {
        let key = if self.v6 { self.key::<true>(data) } else { self.key::<false>(data) };
        let mut tuple = meta_parts(key.meta);
        (tuple.src, tuple.dst) = key.addresses(self.v6);
        let l4 = if self.v6 { L4_V6 } else { L4_V4 } as u16;
        let ttl = if self.v6 { Plain::ttl::<true>(data) } else { Plain::ttl::<false>(data) };
        let Plain { l4_len, covered_len, tcp_flags, .. } = *self;
        Packet { tuple, l3: L3 as u16, l4, l4_len, covered_len, tcp_flags, ttl, fragment: None }
    }
}
