//! Fragments of an IPv4 packet that is longer than the MTU of its way on (RFC 791, section 3.2), as the kernel makes them: `ip_do_fragment` in
//! net/ipv4/ip_output.c.
//!
//! Each fragment is as long as the MTU allows, and carries the packet's identification. A packet may be a fragment itself: then its offset and its
//! flag for more fragments hold on. IPv6 packets are only fragmented by their senders (RFC 8200, section 4.5).

use std::ops::Range;

use crate::checksum::checksum;
use crate::frame::Frame;
use crate::parse::{FRAGMENT_UNIT, link_header};
use crate::wire::{ethertype, ipv4};

/// Fragments that one packet may become. The longest IPv4 packet, 65,535 bytes, becomes 61 over an MTU of 1,100.
pub const FRAGMENTS_MAX: usize = 64;

/// How an IPv4 packet is split into fragments. It describes a frame of a certain length, whose addresses and TTL may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Offset of the IP header in the frame.
    l3: usize,
    /// Bytes of the IP header, options included.
    header_len: usize,
    /// Bytes of the packet behind its header.
    payload_len: usize,
    /// Bytes of each fragment's payload but the last one's.
    step: usize,
    /// Fragments.
    count: usize,
}

impl Split {
    /// How the IPv4 packet in `frame` becomes fragments of at most `mtu` bytes, their headers included. `None` when it may not be fragmented: it says
    /// DF, is no IPv4 packet that [`parse`](crate::parse::parse) accepts, or no 8 bytes fit beside its header.
    pub fn of(frame: &Frame<'_>, mtu: usize) -> Option<Split> {
        use ipv4::field::*;
        let (ethertype, l3) = link_header(frame.head()).ok()?;
        let ip = frame.head().get(l3..)?;
        let header_len = ipv4::header_len(VERSION_IHL.get(ip)?[0]);
        let flags = u16::from_be_bytes(FRAGMENT.get(ip)?);
        let total_len = usize::from(u16::from_be_bytes(TOTAL_LEN.get(ip)?));
        let is_whole = (ipv4::HEADER_LEN..=ip.len().min(total_len)).contains(&header_len) && l3 + total_len <= frame.total_len();
        if ethertype != ethertype::IPV4 || !is_whole || flags & ipv4::DONT_FRAGMENT != 0 {
            return None;
        }
        let (payload_len, room) = (total_len - header_len, mtu.checked_sub(header_len)?);
        let step = room - room % FRAGMENT_UNIT;
        if step == 0 {
            return None;
        }
        // The last one may use the room to its end.
        let count = 1 + payload_len.saturating_sub(room).div_ceil(step);
        Some(Split { l3, header_len, payload_len, step, count })
    }

    /// The number of fragments: 1 when the packet fits as it is.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Writes the frame of a fragment, by its number in the order of offsets, to the start of `out`. Returns its length; `None` when there is no such
    /// fragment, or when `out` is too short.
    pub fn write(&self, number: usize, frame: &Frame<'_>, out: &mut [u8]) -> Option<usize> {
        use ipv4::field::*;
        let payload = self.payload(number)?;
        let headers_len = self.l3 + self.header_len;
        let out = out.get_mut(..headers_len + payload.len())?;
        let (headers, data) = out.split_at_mut(headers_len);
        headers.copy_from_slice(frame.head().get(..headers_len)?);
        copy_segments(frame, headers_len + payload.start, data)?;

        let header = &mut headers[self.l3..];
        let received = FRAGMENT.u16(header);
        let more = if number + 1 < self.count { ipv4::MORE_FRAGMENTS } else { received & ipv4::MORE_FRAGMENTS };
        let offset = (received & ipv4::FRAGMENT_OFFSET) + (payload.start / FRAGMENT_UNIT) as u16;
        if offset > 0 {
            clear_options_of_first(&mut header[ipv4::HEADER_LEN..]);
        }
        TOTAL_LEN.write(header, ((self.header_len + payload.len()) as u16).to_be_bytes());
        FRAGMENT.write(header, (offset & ipv4::FRAGMENT_OFFSET | more).to_be_bytes());
        CHECKSUM.write(header, [0; 2]);
        let sum = checksum(header);
        CHECKSUM.write(header, sum.to_be_bytes());
        Some(out.len())
    }

    /// Where a fragment's payload is in the packet's.
    fn payload(&self, number: usize) -> Option<Range<usize>> {
        let start = number.checked_mul(self.step)?;
        match (number + 1).cmp(&self.count) {
            std::cmp::Ordering::Less => Some(start..start + self.step),
            std::cmp::Ordering::Equal => Some(start..self.payload_len),
            std::cmp::Ordering::Greater => None,
        }
    }
}

/// Overwrites the options that only the first fragment has (RFC 791, 3.1: those without the copied flag) by NOPs, as the kernel does: so all
/// fragments have headers of one length.
fn clear_options_of_first(mut options: &mut [u8]) {
    use ipv4::option::*;
    loop {
        let len = match *options {
            [] | [END, ..] => return,
            [NOP, ..] => 1,
            [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => usize::from(len),
            // Such a packet is left to the kernel.
            _ => return,
        };
        let (option, rest) = options.split_at_mut(len);
        if option[0] & COPIED == 0 {
            option.fill(NOP);
        }
        options = rest;
    }
}

/// Copies the frame's bytes from `start` on, over all its segments. `None` when it has too few.
fn copy_segments(frame: &Frame<'_>, start: usize, mut out: &mut [u8]) -> Option<()> {
    let mut skip = start;
    for segment in std::iter::once(frame.head()).chain(frame.tail().iter().copied()) {
        let here = &segment[skip.min(segment.len())..];
        skip -= segment.len() - here.len();
        let (now, later) = out.split_at_mut(here.len().min(out.len()));
        now.copy_from_slice(&here[..now.len()]);
        out = later;
    }
    out.is_empty().then_some(())
}
