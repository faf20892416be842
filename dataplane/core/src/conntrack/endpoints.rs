//! Source ports in use towards each endpoint, by all clients: how full the range is, whether it is exhausted, and which ports were released
//! last.
//!
//! A cache line for each endpoint of flows with SNAT, in a table of lines found by hash:
//!
//! ```text
//! word 0      tag << 32 | ports in use
//! word 1      releases << 32 | releases + 1 when a search of the range found all ports taken
//! words 2..8  ports released last, four a word, the latest lowest
//! ```
//!
//! An endpoint may claim a line with no port in use. When too many endpoints hash to the same lines, some have none, and their ports are
//! not counted. A wrong line only makes the search for a port slower, so words may change independently: the index alone decides whether a
//! port is free.

use super::Flow;
use super::region::Region;
use super::shares::SnatPorts;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::fast_range;

/// Words of a line.
pub(super) const ENDPOINT_WORDS: usize = 8;
const IN_USE: usize = 0;
const GIVEN_BACK: usize = 1;
const LAST: usize = 2;
const COUNT_MASK: u64 = 0xffff_ffff;
const ONE_MORE: u64 = 1 << 32;
/// Lines in which an endpoint's may be.
const PLACES: usize = 8;
/// Attempts to change a line that other workers change at the same time.
const TRIES: u32 = 8;

type Line = [AtomicU64; ENDPOINT_WORDS];

/// The source ports towards one endpoint, as they were when a flow asked for one.
#[derive(Clone, Copy)]
pub struct EndpointPorts<'r> {
    line: Option<&'r Line>,
    /// How often a port had been released.
    given_back: u64,
}

impl<'r> EndpointPorts<'r> {
    /// The ports that were released last, which are the most likely to be free in a nearly full range. They may be another endpoint's, or
    /// arbitrary numbers.
    pub fn given_back(self) -> impl Iterator<Item = u16> + Clone + use<'r> {
        let words = self.line.into_iter().flat_map(|line| &line[LAST..]);
        words.flat_map(|word| {
            let ports = word.load(Relaxed);
            (0..4).map(move |i| (ports >> (16 * i)) as u16)
        })
    }

    /// Marks the endpoint as exhausted after a search of the whole range, unless a port was released meanwhile.
    pub(super) fn none_left(self) {
        if let Some(line) = self.line {
            let (old, mark) = (self.given_back, ((self.given_back >> 32) + 1) & COUNT_MASK);
            let _ = line[GIVEN_BACK].compare_exchange(old, (old & !COUNT_MASK) | mark, Relaxed, Relaxed);
        }
    }
}

/// Where an endpoint's line is.
struct Place {
    tag: u64,
    first: usize,
}

impl<'r> SnatPorts<'r> {
    /// The most source ports in use towards one endpoint.
    pub fn fullest_endpoint(&self) -> u64 {
        self.region.endpoints().iter().map(|line| line[IN_USE].load(Relaxed) & COUNT_MASK).max().unwrap_or(0)
    }

    /// Counts a port for a flow. `None`, and nothing counted: the endpoint is marked as exhausted and no port was released since.
    pub(super) fn take_port(&self, flow: &Flow) -> Option<EndpointPorts<'r>> {
        let place = self.place_of(flow);
        for _ in 0..TRIES {
            let line = self.line(&place).or_else(|| lines(&self.region, &place).find(|line| line[IN_USE].load(Relaxed) & COUNT_MASK == 0));
            let Some(line) = line else { break };
            let (in_use, given_back) = (line[IN_USE].load(Relaxed), line[GIVEN_BACK].load(Relaxed));
            let known = in_use >> 32 == place.tag;
            if known && (given_back >> 32).wrapping_add(1) & COUNT_MASK == given_back & COUNT_MASK {
                return None;
            }
            let new = match in_use & COUNT_MASK {
                0 => (place.tag << 32) | 1,
                _ if known => in_use + 1,
                _ => continue,
            };
            if line[IN_USE].compare_exchange(in_use, new, Relaxed, Relaxed).is_ok() {
                if !known {
                    // The mark belonged to the previous endpoint.
                    line[GIVEN_BACK].fetch_and(!COUNT_MASK, Relaxed);
                }
                return Some(EndpointPorts { line: Some(line), given_back });
            }
        }
        Some(EndpointPorts { line: None, given_back: 0 })
    }

    /// Reverses [`SnatPorts::take_port`]. `was_taken`: the flow had its port, which is free now.
    pub(super) fn give_port(&self, flow: &Flow, was_taken: bool) {
        let Some(line) = self.line(&self.place_of(flow)) else { return };
        let _ = line[IN_USE].fetch_update(Relaxed, Relaxed, |in_use| (in_use & COUNT_MASK > 0).then(|| in_use - 1));
        if was_taken {
            let number = line[GIVEN_BACK].fetch_add(ONE_MORE, Relaxed) >> 32;
            let word = &line[LAST + number as usize % (ENDPOINT_WORDS - LAST)];
            // When two workers write at once, one port is not remembered; the search finds it like any other.
            word.store((word.load(Relaxed) << 16) | u64::from(flow.source_port), Relaxed);
        }
    }

    /// Copies the line of a flow's endpoint from another table with the same seed. This table must be the caller's alone.
    pub(super) fn copy_line(&self, from: &SnatPorts<'_>, flow: &Flow) {
        let place = self.place_of(flow);
        let Some(theirs) = from.line(&from.place_of(flow)) else { return };
        let unused = || lines(&self.region, &place).find(|line| line[IN_USE].load(Relaxed) & COUNT_MASK == 0);
        if let Some(ours) = self.line(&place).or_else(unused) {
            theirs.iter().zip(ours).for_each(|(theirs, ours)| ours.store(theirs.load(Relaxed), Relaxed));
        }
    }

    fn place_of(&self, flow: &Flow) -> Place {
        let kind = (u64::from(flow.backend_port) << 16) | (u64::from(flow.proto as u8) << 8) | u64::from(flow.v6);
        let ([b0, b1], [s0, s1]) = (flow.backend, flow.source);
        let hash = self.region.seed.hash_words(&[b0, b1, kind, s0, s1]);
        // No tag is 0, which is the tag of fresh memory.
        Place { tag: (hash >> 32) | 1, first: fast_range(hash as u32, self.region.endpoints().len() as u32) as usize }
    }

    fn line(&self, place: &Place) -> Option<&'r Line> {
        lines(&self.region, place).find(|line| line[IN_USE].load(Relaxed) >> 32 == place.tag)
    }
}

fn lines<'r>(region: &Region<'r>, place: &Place) -> impl Iterator<Item = &'r Line> + use<'r> {
    let (all, first) = (region.endpoints(), place.first);
    (0..PLACES.min(all.len())).map(move |i| &all[(first + i) % all.len()])
}
