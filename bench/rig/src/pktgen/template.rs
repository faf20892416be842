//! Frames: the constant headers of a flow, and the fields that change from frame to frame.
//!
//! `bpf/generate.c` completes frames from the same templates in the same way; `tests/it/pktgen.rs` compares both at the receiver.

use std::net::{IpAddr, SocketAddr};

use super::payload::{PAYLOAD_LEN, Payload};
use super::profile::Protocol;

/// Bytes of a template: the longest headers (IPv6, TCP) with the payload header, in 8-byte words.
pub const TEMPLATE_LEN: usize = 96;
pub const ETH_LEN: usize = 14;

const TTL: u8 = 64;
const TCP_SYN: u16 = 0x5002;
const TCP_PSH_ACK: u16 = 0x5018;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Macs {
    pub src: [u8; 6],
    pub dst: [u8; 6],
}

/// The two ends of a flow, both of one family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// A flow's headers without lengths, sequence numbers, time, flags and checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    /// Headers, from Ethernet to the payload header.
    pub bytes: [u8; TEMPLATE_LEN],
    /// The sum of the IPv4 header's 16-bit words.
    pub ip_sum: u32,
    /// The same of the pseudo header, the L4 header and the payload header.
    pub l4_sum: u32,
    v4: bool,
    protocol: Protocol,
    /// The next frame opens the flow, whatever its sequence number.
    opens: bool,
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum()
}

/// Folds a sum of 16-bit words into an Internet checksum (RFC 1071).
pub fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn halves(value: u32) -> u64 {
    u64::from(value >> 16) + u64::from(value & 0xffff)
}

impl Template {
    /// The headers of flow number `flow`.
    pub fn new(macs: &Macs, ends: &Ends, protocol: Protocol, run: u16, flow: u32) -> Template {
        let mut bytes = [0u8; TEMPLATE_LEN];
        bytes[0..6].copy_from_slice(&macs.dst);
        bytes[6..12].copy_from_slice(&macs.src);
        let number = if protocol == Protocol::Udp { 17 } else { 6 };
        let v4 = ends.src.is_ipv4();
        let (l4, addresses) = if v4 {
            bytes[12..14].copy_from_slice(&[0x08, 0x00]);
            // Version and length; "don't fragment"; the identification stays 0 (RFC 6864 allows it for atomic datagrams).
            bytes[14] = 0x45;
            bytes[20] = 0x40;
            bytes[22] = TTL;
            bytes[23] = number;
            (34, 26..34)
        } else {
            bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
            bytes[14] = 0x60;
            bytes[20] = number;
            bytes[21] = TTL;
            (54, 22..54)
        };
        let half = addresses.len() / 2;
        for (ip, at) in [(ends.src.ip(), addresses.start), (ends.dst.ip(), addresses.start + half)] {
            match ip {
                IpAddr::V4(ip) => bytes[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => bytes[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        bytes[l4..l4 + 2].copy_from_slice(&ends.src.port().to_be_bytes());
        bytes[l4 + 2..l4 + 4].copy_from_slice(&ends.dst.port().to_be_bytes());
        if protocol != Protocol::Udp {
            // The largest window.
            bytes[l4 + 14..l4 + 16].copy_from_slice(&[0xff, 0xff]);
        }
        let payload = l4 + protocol.header_len();
        Payload { run, flow, sequence: 0, sent_ns: 0 }.write(&mut bytes[payload..]);
        let ip_sum = if v4 { words(&bytes[ETH_LEN..34]) } else { 0 };
        let l4_sum = words(&bytes[addresses]) + u32::from(number) + words(&bytes[l4..payload + PAYLOAD_LEN]);
        Template { bytes, ip_sum, l4_sum, v4, protocol, opens: protocol == Protocol::SynFlood }
    }

    /// Makes the next TCP frame a SYN even if it is not the first of its place.
    pub fn opens_flow(&mut self, opens: bool) {
        self.opens = opens;
    }

    /// Writes a whole frame of `len` bytes (without FCS) to the start of a buffer. `len` must hold the headers.
    pub fn finish(&self, out: &mut [u8], len: usize, sequence: u32, sent_ns: u64) {
        let out = &mut out[..len];
        let l4 = if self.v4 { 34 } else { 54 };
        let payload = l4 + self.protocol.header_len();
        let end = payload + PAYLOAD_LEN;
        out[..end].copy_from_slice(&self.bytes[..end]);
        out[end..].fill(0);
        let l4_len = (len - l4) as u16;
        if self.v4 {
            let total = (len - ETH_LEN) as u16;
            out[16..18].copy_from_slice(&total.to_be_bytes());
            out[24..26].copy_from_slice(&fold(u64::from(self.ip_sum) + u64::from(total)).to_be_bytes());
        } else {
            out[18..20].copy_from_slice(&l4_len.to_be_bytes());
        }
        out[payload + 6..payload + 10].copy_from_slice(&sequence.to_be_bytes());
        out[payload + 10..payload + 18].copy_from_slice(&sent_ns.to_be_bytes());
        let mut sum = u64::from(self.l4_sum) + u64::from(l4_len) + halves(sequence);
        sum += halves((sent_ns >> 32) as u32) + halves(sent_ns as u32);
        if self.protocol == Protocol::Udp {
            let checksum = match fold(sum + u64::from(l4_len)) {
                // 0 would say that there is none (RFC 768).
                0 => 0xffff,
                checksum => checksum,
            };
            out[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
            out[l4 + 6..l4 + 8].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let flags = if self.opens || sequence == 0 { TCP_SYN } else { TCP_PSH_ACK };
            out[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            out[l4 + 12..l4 + 14].copy_from_slice(&flags.to_be_bytes());
            out[l4 + 16..l4 + 18].copy_from_slice(&fold(sum + halves(sequence) + u64::from(flags)).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
