//! The source ports that a new flow tries, in order.

use super::Context;
use crate::parse::Packet;
use crate::rss::Answers;
use crate::services::{PortSet, Source};
use crate::tuple::{Proto, fast_range};
use crate::wire::tcp;

/// Ports tried before the recently released ones. In a range that is nine tenths full, one of these is free 29 times of 30.
pub(super) const TRIED_FIRST: usize = 32;
/// Other source ports tried when the client's own clashes.
const CLIENT_TRIED_MAX: u32 = 16;
/// Source ports checked for one whose answers arrive at this worker. With eight workers every eighth port is one, and one flow in thousands
/// finds none among this many; with sixteen, one in sixty.
const LOOKED_AT_MAX: u32 = 64;
/// Distance between checked ports: the golden section of 2^32. Adjacent ports differ in few bits, which under many hash keys reach few queues;
/// this step changes all bits.
const FAR: u32 = 0x9e37_79b9;

/// The source ports to try for a new connection, best first.
///
/// Start and step follow from the flow's hash, so two flows that collide at one port separate afterwards. In a shared order taken ports would form
/// runs, and each search that meets a run would walk through all of it. Every port of the range comes once: steps are odd, modulo the next power of
/// two, and numbers beyond the range are skipped.
#[derive(Clone)]
pub(super) struct SourcePorts {
    first: Option<u16>,
    ports: PortSet,
    at: u32,
    step: u32,
    left: u32,
}

impl SourcePorts {
    pub(super) fn new(ctx: &Context<'_>, packet: &Packet, hash: u64, source: Source) -> SourcePorts {
        let any = PortSet::new(1_024..=u16::MAX, None);
        let (first, ports, tries) = match source {
            Source::Replaced(_) => (None, ctx.services.snat.ports(), u32::MAX),
            // The client's own port; mid-stream only that one.
            Source::Client if packet.tcp_flags & tcp::SYN == 0 && packet.tuple.proto != Proto::Udp => (Some(packet.tuple.sport), any, 0),
            Source::Client => (Some(packet.tuple.sport), any, CLIENT_TRIED_MAX),
        };
        SourcePorts::of_set(first, ports, tries, hash, ctx.worker.port_hint)
    }

    #[inline(always)]
    fn of_set(first: Option<u16>, ports: PortSet, tries: u32, hash: u64, hint: u32) -> SourcePorts {
        let at = fast_range((hash as u32).wrapping_add(hint), ports.len());
        SourcePorts { first, ports, at, step: (hash >> 32) as u32 | 1, left: tries.min(ports.len()) }
    }

    /// Whether there are others than the client's own.
    pub(super) fn may_choose(&self) -> bool {
        self.left > 0
    }

    /// Among some ports, starting at the worker's hint, those whose answers arrive at this worker.
    pub(super) fn leading<'r>(&self, answers: Answers<'r>) -> impl Iterator<Item = u16> + Clone + use<'r> {
        let SourcePorts { ports, mut at, .. } = *self;
        let step = fast_range(FAR, ports.len()) | 1;
        let far = (0..ports.len().min(LOOKED_AT_MAX)).map(move |_| {
            let port = ports.port(at);
            at = (at + step) % ports.len();
            port
        });
        far.filter(move |port| answers.come_back(*port))
    }
}

impl Iterator for SourcePorts {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        self.left = self.left.checked_sub(1)?;
        let port = self.ports.port(self.at);
        let mask = self.ports.len().next_power_of_two() - 1;
        self.at = self.at.wrapping_add(self.step) & mask;
        while self.at >= self.ports.len() {
            self.at = self.at.wrapping_add(self.step) & mask;
        }
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ops::RangeInclusive;

    use super::*;
    use crate::tuple::splitmix64;

    fn ports(range: RangeInclusive<u16>, hash: u64) -> SourcePorts {
        SourcePorts::of_set(None, PortSet::new(range, None), u32::MAX, hash, 0)
    }

    #[test]
    fn every_port_comes_by_once() {
        let mut random = 1;
        for range in [1_024..=1_024, 61_000..=61_001, 61_000..=61_002, 5_000..=5_063, 61_000..=65_535, 1_024..=65_535] {
            for _ in 0..20 {
                let all: Vec<u16> = ports(range.clone(), splitmix64(&mut random)).collect();
                assert_eq!((all.len(), all.iter().copied().collect::<HashSet<_>>()), (range.len(), range.clone().collect()));
            }
        }
        let (from, to) = (2, 1);
        assert_eq!(ports(from..=to, 7).count(), 0, "no ports");
    }

    /// Ports that the last few hundred newcomers looked at on the average, when the range is as full as this; and how long the longest took.
    fn looked_at(full: f64) -> (f64, usize) {
        let range = 61_000..=65_535;
        let (mut random, mut taken) = (3, HashSet::new());
        let mut looked = Vec::new();
        while (taken.len() as f64) < full * range.len() as f64 {
            let place = ports(range.clone(), splitmix64(&mut random)).enumerate().find(|(_, port)| taken.insert(*port));
            looked.push(place.expect("a free port").0 + 1);
        }
        let last = &looked[looked.len() - 200..];
        (last.iter().sum::<usize>() as f64 / 200.0, *last.iter().max().expect("some"))
    }

    #[test]
    fn taken_ports_do_not_gather_in_runs() {
        for full in [0.5, 0.8, 0.9, 0.95] {
            let (average, most) = looked_at(full);
            // As many as if each port was drawn from all. Ports side by side would be (1 + drawn²) / 2: five times as many at nine tenths.
            let drawn = 1.0 / (1.0 - full);
            println!("{full}: {average:.1} ports on the average, {drawn:.1} when drawn; {most} at the most");
            assert!(average < 1.35 * drawn && (most as f64) < 12.0 * drawn, "{full}: {average} and {most}, drawn {drawn}");
        }
    }
}
