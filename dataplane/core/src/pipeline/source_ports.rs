//! Which source ports a new connection tries, and in which order.

use super::Context;
use super::open::Source;
use crate::parse::{Packet, tcp};
use crate::rss::Answers;
use crate::tuple::{Proto, fast_range};

/// Source ports tried for one connection at the most, beside preferred ones.
const TRIED_MAX: u16 = 128;
/// Other source ports tried when a client's own clashes, at the most.
const CLIENT_TRIED_MAX: u16 = 16;
/// Source ports looked at for preferred ones, at the most. With eight workers every eighth port is one, and none among this many is
/// a matter of one connection in thousands; with sixteen, of one in sixty.
const LOOKED_AT_MAX: u32 = 64;
/// The golden section of 2^32: how far apart the ports lie that are looked at. Neighbours differ in few bits, and under many a hash key
/// few bits reach few queues; steps of this kind change all bits.
const FAR: u32 = 0x9e37_79b9;

/// The source ports to try for a new connection, best first.
#[derive(Clone)]
pub(super) struct SourcePorts<'r> {
    first: Option<u16>,
    preferred: Option<Preferred<'r>>,
    base: u16,
    range: u32,
    at: u32,
    left: u16,
}

/// Ports whose answers come in at this worker.
#[derive(Clone)]
struct Preferred<'r> {
    answers: Answers<'r>,
    base: u16,
    range: u32,
    step: u32,
    at: u32,
    left: u32,
}

impl<'r> SourcePorts<'r> {
    pub(super) fn new(ctx: &Context<'_>, packet: &Packet, hash: u64, source: Source) -> SourcePorts<'r> {
        let snat_range = &ctx.services.snat;
        let (first, base, last, tries) = match source {
            Source::Replaced(_) => (None, snat_range.port_first, snat_range.port_last, TRIED_MAX),
            // The client's own port; in the middle of a connection only that one.
            Source::Client if packet.tcp_flags & tcp::SYN == 0 && packet.tuple.proto != Proto::Udp => (Some(packet.tuple.sport), 1, 0, 0),
            Source::Client => (Some(packet.tuple.sport), 1_024, u16::MAX, CLIENT_TRIED_MAX),
        };
        let range = (u32::from(last) + 1).saturating_sub(u32::from(base));
        let at = fast_range((hash as u32).wrapping_add(ctx.worker.port_hint), range);
        SourcePorts { first, preferred: None, base, range, at, left: tries.min(range.min(u32::from(u16::MAX)) as u16) }
    }

    /// Of some ports from the worker's hint on, those come first whose answers come in at this worker. Then follow all, as ever.
    pub(super) fn prefer(&mut self, answers: Answers<'r>) {
        let SourcePorts { base, range, at, .. } = *self;
        let step = fast_range(FAR, range) | 1;
        let mut preferred = Preferred { answers, base, range, step, at, left: range.min(LOOKED_AT_MAX) };
        self.first = preferred.next();
        self.preferred = Some(preferred);
    }

    /// The first that will be tried.
    pub(super) fn best(&self) -> u16 {
        self.first.unwrap_or_else(|| self.base.wrapping_add(self.at as u16))
    }
}

impl Iterator for Preferred<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        while self.left > 0 {
            self.left -= 1;
            let port = self.base + self.at as u16;
            self.at += self.step;
            if self.at >= self.range {
                self.at -= self.range;
            }
            if self.answers.come_back(port) {
                return Some(port);
            }
        }
        None
    }
}

impl Iterator for SourcePorts<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if let Some(port) = self.first.take().or_else(|| self.preferred.as_mut()?.next()) {
            return Some(port);
        }
        self.left = self.left.checked_sub(1)?;
        let port = self.base + self.at as u16;
        self.at = (self.at + 1) % self.range;
        Some(port)
    }
}
