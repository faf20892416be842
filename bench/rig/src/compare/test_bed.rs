//! One subject with its generator and counter.

use anyhow::{Context, Result};
use nomagic_xsk::Link;

use super::counter::Counter;
use super::subject::Running;
use super::topology::Ends;
use super::trial::{Generator, Path};
use super::workload;
use crate::pktgen::profile::{Protocol, Size};
use crate::pktgen::program::{LiveProgram, Part};
use crate::pktgen::template::Macs;

pub struct TestBed<'r> {
    pub running: &'r Running,
    /// The counter at its far end.
    pub counter: Counter,
    pub generator: Generator,
}

/// Kinds of traffic of the test bed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// Flows to the first Service, established after the first frames: the same frames for every subject, whatever its number of Services.
    Established,
    /// Flows to all Services in turn; one frame in so many opens a flow.
    NewFlows(u32),
    /// SYNs from random sources to the first Service's TCP port, mixed with established flows in these shares.
    Flood {
        established: u32,
        /// SYNs to so many of them.
        syns: u32,
    },
    /// Every frame opens a flow to this Service.
    Looking(u32),
}

/// A generator for a topology. Call it on a thread in the generator's namespace.
pub fn generator(running: &Running, flows: u32, mix: Mix) -> Result<Generator> {
    let topology = &running.topology;
    let link = Link::query(&topology.generator).with_context(|| topology.generator.clone())?;
    let services = running.subject.services.max(1);
    let spread = if matches!(mix, Mix::NewFlows(_)) { services } else { 1 };
    let established = workload::profile(spread, flows, Protocol::Udp, Size::Min);
    let fresh = match mix {
        Mix::Flood { .. } => workload::profile(1, 1, Protocol::SynFlood, Size::Min),
        Mix::Looking(service) => workload::profile_of(service),
        Mix::Established | Mix::NewFlows(_) => workload::profile(spread, spread.min(flows), Protocol::Udp, Size::Min),
    };
    let known = |weight| Part { profile: &established, weight, fresh: false, run: 0 };
    let new = |weight| Part { profile: &fresh, weight, fresh: true, run: 1 };
    let parts = match mix {
        Mix::Established => vec![known(1)],
        Mix::NewFlows(every) => vec![known(every.max(2) - 1), new(1)],
        Mix::Flood { established, syns } => vec![known(established), new(syns)],
        Mix::Looking(_) => vec![new(1)],
    };
    let macs = Macs { src: topology.generator_mac, dst: topology.gateway_mac };
    Ok(Generator::new(LiveProgram::open(link.ifindex, &parts, macs)?))
}

impl<'r> TestBed<'r> {
    /// Call it on a thread in the generator's namespace.
    pub fn new(ends: &Ends, running: &'r Running, flows: u32) -> Result<TestBed<'r>> {
        Ok(TestBed {
            running,
            generator: generator(running, flows, Mix::Established)?,
            counter: Counter::open(ends, &running.topology.sink)?,
        })
    }

    /// Its path with the established flows.
    pub fn path(&mut self) -> Path<'_> {
        Path { generator: &mut self.generator, counter: &self.counter, gateway: &self.running.topology.gateway }
    }
}
