//! The types that callers of the core share: frames in, verdicts out.
//!
//! A [`Frame`] is a move-only view of one received frame in the caller's memory. The caller lends a batch of them
//! (and a few spare ones to build rejects in), gets one [`Verdict`] for each, and a bounded list of frames that were made.

use arrayvec::ArrayVec;
use std::net::IpAddr;

use crate::conntrack::Datagram;
use crate::prefetch::prefetch;
use crate::reason::Reason;

/// Most frames in a batch.
pub const BATCH_MAX: usize = 64;
/// Most frames that one batch may make (rejects, ICMP errors).
pub const OUTPUT_MAX: usize = 16;
/// Headroom that the caller keeps free before a received frame, bytes, for tags and encapsulation.
pub const HEADROOM_MIN: usize = 128;

/// A port of the dataplane: an index into the caller's list of interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// No port, for packets that came in by none.
    pub const NONE: PortId = PortId(u16::MAX);
}

/// A link-layer destination in the [`crate::routes::Routes`] table. 0 is never a valid next hop.
#[derive(Default, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextHopId(pub u16);

/// One frame: its first segment with headroom, and the segments behind it (multi-buffer), read-only.
pub struct Frame<'f> {
    buf: &'f mut [u8],
    start: usize,
    len: usize,
    tail: &'f [&'f [u8]],
    /// The port that received it.
    pub port: PortId,
    /// The caller's own handle (for a UMEM frame: its address). The core carries it along and never reads it.
    pub token: u64,
    /// True when it was held and is submitted again.
    pub resubmitted: bool,
    /// True when it has been held for too long: what it waits for does not come.
    pub overdue: bool,
    /// True when it was held and others need its room.
    pub evicted: bool,
}

impl<'f> Frame<'f> {
    /// A frame whose data is `buf[start..start + len]`, with headroom before and tailroom behind.
    ///
    /// # Panics
    /// If the range is outside of `buf`: a caller's error, never the wire's.
    pub fn new(buf: &'f mut [u8], start: usize, len: usize, port: PortId, token: u64) -> Frame<'f> {
        assert!(start <= buf.len() && len <= buf.len() - start, "frame range outside of its buffer");
        Frame { buf, start, len, tail: &[], port, token, resubmitted: false, overdue: false, evicted: false }
    }

    /// Adds the read-only segments behind the first one (multi-buffer frames).
    pub fn with_tail(mut self, tail: &'f [&'f [u8]]) -> Frame<'f> {
        self.tail = tail;
        self
    }

    /// The first segment's bytes.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }

    /// The first segment's bytes, for rewriting.
    #[inline(always)]
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..self.start + self.len]
    }

    /// The segments behind the first.
    pub fn tail(&self) -> &[&'f [u8]] {
        self.tail
    }

    /// Bytes of the whole frame, all segments.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        if self.tail.is_empty() { self.len } else { self.len + self.tail_len() }
    }

    #[cold]
    fn tail_len(&self) -> usize {
        self.tail.iter().map(|s| s.len()).sum()
    }

    /// Prefetches the headers' cache line.
    #[inline(always)]
    pub fn prefetch_head(&self) {
        if let Some(first) = self.buf.get(self.start) {
            prefetch(first);
        }
    }

    /// Where the first segment starts in its buffer (the headroom in front of it).
    pub fn start(&self) -> usize {
        self.start
    }

    /// Length of the first segment.
    pub fn head_len(&self) -> usize {
        self.len
    }

    /// Takes `n` bytes of headroom into the frame. False (and nothing changed) when there is less.
    pub fn push_front(&mut self, n: usize) -> bool {
        if n > self.start {
            return false;
        }
        self.start -= n;
        self.len += n;
        true
    }

    /// Gives `n` bytes at the front back to the headroom. False (and nothing changed) when the segment is shorter.
    pub fn pull_front(&mut self, n: usize) -> bool {
        if n > self.len {
            return false;
        }
        self.start += n;
        self.len -= n;
        true
    }

    /// Sets the first segment to `len` bytes from `start`, for frames built from nothing. False when it does not fit.
    pub fn set_range(&mut self, start: usize, len: usize) -> bool {
        if start > self.buf.len() || len > self.buf.len() - start {
            return false;
        }
        (self.start, self.len) = (start, len);
        true
    }

    /// Bytes of the buffer: headroom, data and tailroom.
    pub fn capacity(&self) -> usize {
        self.buf.len()
    }
}

/// The fate of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Rewritten, ready to be sent by this port.
    Forward(PortId, NextHopId),
    /// Rewritten, but longer than the MTU of the way on, which is so many bytes: to be sent by this port in fragments, see
    /// [`Split`](crate::fragmenting::Split).
    Fragment(PortId, NextHopId, u16),
    /// Hand to the kernel through the internal port: addressed to it, otherwise unchanged.
    Kernel(Reason),
    /// Not forwarded. Rejected frames are dropped too; the answer to the sender is in [`Outputs::made`].
    Drop(Reason),
    /// Unchanged. Submit it again when what it waits for is there, or as overdue or evicted.
    Hold(Wait),
}

/// What a held frame waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The next hop's link-layer address.
    Neighbour(Wanted),
    /// The other fragments of its datagram: [`Fragments::is_settled`](crate::conntrack::Fragments::is_settled).
    Fragments(Waiting),
}

/// A fragment that waits for others of its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Its datagram.
    pub datagram: Datagram,
    /// Names its sender, for a share of the room: an IPv4 address or an IPv6 /64, hashed with a secret.
    pub sender: u64,
    /// It is the first one and waits for the last one, which tells the length.
    pub first: bool,
}

/// A neighbour whose link-layer address is missing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Wanted {
    /// The port that leads to it.
    pub port: PortId,
    /// Its address.
    pub addr: IpAddr,
}

/// The frames that a batch makes, and the spare ones it may build them in.
#[derive(Default)]
pub struct Outputs<'f> {
    /// Free frames, lent by the caller; those left afterwards are still free.
    pub spare: ArrayVec<Frame<'f>, OUTPUT_MAX>,
    /// Made frames, ready to be sent by a port.
    pub made: ArrayVec<(Frame<'f>, PortId, NextHopId), OUTPUT_MAX>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headroom_is_taken_and_given_back_within_the_buffer() {
        let mut buf = [0u8; 64];
        let mut f = Frame::new(&mut buf, 8, 20, PortId(0), 1);
        assert!(!f.push_front(9));
        assert!(f.push_front(8));
        assert_eq!((f.start(), f.head_len()), (0, 28));
        assert!(!f.pull_front(29));
        assert!(f.pull_front(28));
        assert_eq!(f.head(), &[] as &[u8]);
        assert!(!f.set_range(60, 5));
        assert!(f.set_range(60, 4));
    }

    #[test]
    #[should_panic(expected = "outside of its buffer")]
    fn a_range_outside_is_the_callers_error() {
        let mut buf = [0u8; 8];
        Frame::new(&mut buf, 4, usize::MAX, PortId(0), 0);
    }
}
