//! The source ports in use towards each endpoint, whoever holds them: how full the range is, whether all of it is taken, which ports were
//! given back last.
//!
//! A cache line for each endpoint that connections with a replaced source lead to, in a table of lines found by hash:
//!
//! ```text
//! word 0      tag << 32 | ports in use
//! word 1      how often a port was given back << 32 | the same number, plus one, when a walk over the range found all ports taken
//! words 2..8  ports given back last, four a word, the last one lowest
//! ```
//!
//! A line with no port in use may be taken by another endpoint. Where too many endpoints meet, some have no line: their ports are looked for as
//! any, only not counted. Nothing depends on a line being right but what it costs to find a port, and that is why a line can be changed word by word:
//! whether a port is free is decided by the index alone.

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
/// Lines among which an endpoint's is.
const PLACES: usize = 8;
/// Attempts at a line that other workers change at the same time.
const TRIES: u32 = 8;

type Line = [AtomicU64; ENDPOINT_WORDS];

/// The source ports towards one endpoint, as they were when a connection came to take one.
#[derive(Clone, Copy)]
pub struct EndpointPorts<'r> {
    line: Option<&'r Line>,
    /// How often a port had been given back.
    given_back: u64,
}

impl<'r> EndpointPorts<'r> {
    /// The ports that were given back last, most of which are free when few are. Other endpoints' may be among them, and any number.
    pub fn given_back(self) -> impl Iterator<Item = u16> + Clone + use<'r> {
        let words = self.line.into_iter().flat_map(|line| &line[LAST..]);
        words.flat_map(|word| {
            let ports = word.load(Relaxed);
            (0..4).map(move |i| (ports >> (16 * i)) as u16)
        })
    }

    /// Notes that since then a walk over the whole range found all ports taken, unless one was given back meanwhile.
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

    /// Counts a port for a connection; `None`, and nothing counted, when all were taken lately and none was given back since.
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
                    // What was found out about the last endpoint is not true of this one.
                    line[GIVEN_BACK].fetch_and(!COUNT_MASK, Relaxed);
                }
                return Some(EndpointPorts { line: Some(line), given_back });
            }
        }
        Some(EndpointPorts { line: None, given_back: 0 })
    }

    /// Takes back what [`SnatPorts::take_port`] counted. `was_taken`: the connection had its port, and others may have it now.
    pub(super) fn give_port(&self, flow: &Flow, was_taken: bool) {
        let Some(line) = self.line(&self.place_of(flow)) else { return };
        let _ = line[IN_USE].fetch_update(Relaxed, Relaxed, |in_use| (in_use & COUNT_MASK > 0).then(|| in_use - 1));
        if was_taken {
            let number = line[GIVEN_BACK].fetch_add(ONE_MORE, Relaxed) >> 32;
            let word = &line[LAST + number as usize % (ENDPOINT_WORDS - LAST)];
            // When two write at once one of the ports is forgotten: it is found as those are that nobody remembers.
            word.store((word.load(Relaxed) << 16) | u64::from(flow.source_port), Relaxed);
        }
    }

    fn place_of(&self, flow: &Flow) -> Place {
        let kind = (u64::from(flow.backend_port) << 16) | (u64::from(flow.proto as u8) << 8) | u64::from(flow.v6);
        let ([b0, b1], [s0, s1]) = (flow.backend, flow.source);
        let hash = self.region.seed.hash_words(&[b0, b1, kind, s0, s1]);
        // No tag is that of memory which was never written.
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
