//! The frames of a profile, in order.

use std::net::{IpAddr, SocketAddr};

use super::choice::Chooser;
use super::profile::{FCS_LEN, FIRST_PORT, NewFlows, Profile, Protocol};
use super::template::{Ends, Macs, Template};

/// A sequence of frames.
pub trait Source: Send {
    /// Writes the next frame (without FCS), stamped `now_ns`, to the start of a buffer of at least
    /// [`Source::frame_max`] bytes. Returns its length, or 0 at the end of the sequence.
    fn next(&mut self, out: &mut [u8], now_ns: u64) -> usize;

    /// Bytes of the largest frame.
    fn frame_max(&self) -> usize;

    /// Flows that were opened so far.
    fn flows_opened(&self) -> u64;
}

/// Which frame is the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The flow's place, below [`Profile::flows`]; part of the payload header.
    pub flow: u32,
    /// The number of its source.
    pub tuple: u64,
    /// The frame's number within its place.
    pub sequence: u32,
    pub first: bool,
    /// Bytes without FCS.
    pub len: usize,
}

#[derive(Clone, Debug)]
pub struct Stream {
    profile: Profile,
    macs: Macs,
    run: u16,
    chooser: Chooser,
    places: Vec<Place>,
    frames: u64,
    tuples: u64,
    /// The next unused source.
    next_tuple: u64,
    /// The next place to get a new flow.
    next_place: u32,
    /// New flows that are due, in parts of [`NewFlows::frames`].
    due: u64,
    opened: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    tuple: u64,
    sequence: u32,
    opened: bool,
}

impl Stream {
    /// The profile must have been checked.
    pub fn new(profile: &Profile, macs: Macs, run: u16) -> Stream {
        let place = |n: u32| Place { tuple: u64::from(n), sequence: 0, opened: false };
        Stream {
            chooser: Chooser::new(profile.choice, profile.flows, profile.seed),
            places: (0..profile.flows).map(place).collect(),
            frames: 0,
            tuples: profile.tuples(),
            next_tuple: u64::from(profile.flows),
            next_place: 0,
            due: 0,
            opened: 0,
            profile: profile.clone(),
            macs,
            run,
        }
    }

    /// The ends of a flow from source number `tuple`.
    pub fn ends(&self, tuple: u64) -> Ends {
        let (p, hosts) = (&self.profile, self.profile.sources.hosts());
        let port = u64::from(FIRST_PORT) + tuple / hosts % u64::from(u16::MAX - FIRST_PORT + 1);
        let src = SocketAddr::new(p.sources.host(tuple % hosts), port as u16);
        Ends { src, dst: p.targets[(tuple % p.targets.len() as u64) as usize] }
    }

    pub fn template(&self, flow: u32, tuple: u64) -> Template {
        Template::new(&self.macs, &self.ends(tuple), self.profile.protocol, self.run, flow)
    }

    /// The headers of a flow in which each frame gets another source: port 0, and an address that ends in 16 zero bits.
    pub fn fresh_template(&self, flow: u32) -> Template {
        let zeroed = match self.profile.sources.address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !0xffff).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !0xffff).into()),
        };
        let dst = self.profile.targets[flow as usize % self.profile.targets.len()];
        Template::new(&self.macs, &Ends { src: SocketAddr::new(zeroed, 0), dst }, self.profile.protocol, self.run, flow)
    }

    pub fn step(&mut self) -> Step {
        let (flow, renew) = self.choose();
        let place = &mut self.places[flow as usize];
        // A place without frames so far has an unused source.
        if renew && place.opened {
            place.tuple = self.next_tuple;
            place.opened = false;
            self.next_tuple = if self.next_tuple + 1 == self.tuples { 0 } else { self.next_tuple + 1 };
        }
        let first = !place.opened;
        place.opened = true;
        self.opened += u64::from(first);
        let step =
            Step { flow, tuple: place.tuple, sequence: place.sequence, first, len: (self.profile.size_of(self.frames) - FCS_LEN) as usize };
        place.sequence = place.sequence.wrapping_add(1);
        self.frames += 1;
        step
    }

    /// The next frame's place, and whether it gets a new flow.
    fn choose(&mut self) -> (u32, bool) {
        if self.profile.protocol == Protocol::SynFlood {
            return (self.chooser.flow(), true);
        }
        if let Some(NewFlows { new, frames }) = self.profile.new_flows {
            self.due += new;
            if self.due >= frames {
                self.due -= frames;
                let place = self.next_place;
                self.next_place = (place + 1) % self.profile.flows;
                return (place, true);
            }
        }
        (self.chooser.flow(), false)
    }
}

impl Source for Stream {
    fn next(&mut self, out: &mut [u8], now_ns: u64) -> usize {
        let step = self.step();
        let mut template = self.template(step.flow, step.tuple);
        template.opens_flow(step.first);
        template.finish(out, step.len, step.sequence, now_ns);
        step.len
    }

    fn frame_max(&self) -> usize {
        self.profile.buffer_max()
    }

    fn flows_opened(&self) -> u64 {
        self.opened
    }
}

#[cfg(test)]
mod tests;
