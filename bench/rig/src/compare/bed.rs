//! The test bed: every subject with its generator and counter, and the rules about which trials count.

use anyhow::{Context, Result, bail};
use nomagic_xsk::Link;
use std::collections::HashSet;
use std::time::Duration;

use super::counter::Counter;
use super::lane::Ends;
use super::subject::Running;
use super::trial::{Generator, Trial, Way, trial};
use super::workload;
use crate::ndr::search::Shot;
use crate::pktgen::profile::{Protocol, Size};
use crate::pktgen::program::{LiveProgram, Part};
use crate::pktgen::template::Macs;

/// Share of CPU time that the hypervisor may take in a trial that counts.
pub const STEAL_MAX: f64 = 0.03;
/// The same for processes that are not of the rig.
pub const FOREIGN_MAX: f64 = 0.03;
/// How often a trial is repeated for that reason before the run is refused.
const REPEATS_MAX: u32 = 20;
/// Share of the wanted rate from which on it was offered, and how often a trial is repeated in which it was not. What the generator was late with by more
/// than a millisecond is not caught up with: the rate between such pauses is the wanted one.
const OFFERED: f64 = 0.97;
const OFFERS_MAX: u32 = 4;

/// What was watched over all trials.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Watched {
    /// Largest share of steal in a trial that counted.
    pub steal_share_max: f64,
    /// The same for foreign CPU.
    pub foreign_share_max: f64,
    /// Trials that counted.
    pub trials: u32,
    /// Trials that did not.
    pub repeated: u32,
}

/// Whether trials on a disturbed machine are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// They are repeated, and the run ends when it does not become quiet.
    Refuse,
    /// They count. For tests of the rig itself: what is measured then means nothing.
    Accept,
}

/// One subject ready for trials.
pub struct Bed<'r> {
    /// The subject.
    pub running: &'r Running,
    /// The counter at its far end.
    pub counter: Counter,
    /// Established flows.
    pub generator: Generator,
}

/// What trials share.
pub struct Judge {
    /// What was watched.
    pub watched: Watched,
    own: HashSet<u32>,
    strictness: Strictness,
}

impl Judge {
    /// `own` are the processes of the rig beside this one.
    pub fn new(own: impl IntoIterator<Item = u32>, strictness: Strictness) -> Judge {
        Judge { watched: Watched::default(), own: own.into_iter().chain([std::process::id()]).collect(), strictness }
    }

    /// A process that was started later.
    pub fn also_own(&mut self, pid: u32) {
        self.own.insert(pid);
    }

    /// A trial that counts.
    pub fn trial(&mut self, way: &mut Way<'_>, pps: Option<u64>, duration: Duration) -> Result<Trial> {
        let mut last = (0.0, 0.0);
        for repeat in 0..=REPEATS_MAX {
            let trial = trial(way, pps, duration, &self.own)?;
            last = (trial.usage.steal_share, trial.usage.foreign_share);
            if self.strictness == Strictness::Accept || (last.0 <= STEAL_MAX && last.1 <= FOREIGN_MAX) {
                let w = &mut self.watched;
                w.trials += 1;
                (w.steal_share_max, w.foreign_share_max) = (w.steal_share_max.max(last.0), w.foreign_share_max.max(last.1));
                return Ok(trial);
            }
            self.watched.repeated += 1;
            // What disturbs may end by itself.
            std::thread::sleep(Duration::from_millis(20 * u64::from(repeat)));
        }
        bail!(
            "the machine is too busy to measure on: in {} trials in a row steal or foreign CPU was over {:.0} % (last: {:.1} % steal, {:.1} % foreign). End what else \
             runs here, and try again",
            REPEATS_MAX + 1,
            FOREIGN_MAX * 100.0,
            last.0 * 100.0,
            last.1 * 100.0
        )
    }

    /// A trial during which the rig itself works: it is not refused for the CPU time of others.
    pub fn disturbed(&mut self, way: &mut Way<'_>, pps: u64, duration: Duration) -> Result<Trial> {
        self.watched.trials += 1;
        trial(way, Some(pps), duration, &self.own)
    }

    /// A trial as the search wants it.
    pub fn shoot(&mut self, way: &mut Way<'_>, pps: u64, duration: Duration) -> Result<Shot> {
        let mut shot = Shot { loss_share: 0.0, offered: false };
        for _ in 0..OFFERS_MAX {
            let trial = self.trial(way, Some(pps), duration)?;
            shot = Shot { loss_share: trial.loss_share(), offered: trial.offered_pps() >= pps as f64 * OFFERED };
            if shot.offered {
                break;
            }
        }
        Ok(shot)
    }
}

/// Kinds of traffic of the test bed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// Flows to the first Service, known after the first frames: the very same frames for every subject, however many Services it has.
    Established,
    /// Flows to all Services in turn, and one frame in so many opens one.
    NewFlows(u32),
    /// SYNs from everywhere to the first Service's TCP port beside the established flows, in these shares.
    Flood {
        /// Frames of established flows.
        established: u32,
        /// SYNs to so many of them.
        syns: u32,
    },
    /// Every frame opens a flow to this Service.
    Looking(u32),
}

/// A generator for a lane. Call it on a thread in the generator's namespace.
pub fn generator(running: &Running, flows: u32, mix: Mix) -> Result<Generator> {
    let lane = &running.lane;
    let link = Link::query(&lane.generator).with_context(|| lane.generator.clone())?;
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
    let macs = Macs { src: lane.generator_mac, dst: lane.gateway_mac };
    Ok(Generator::new(LiveProgram::open(link.ifindex, &parts, macs)?))
}

impl<'r> Bed<'r> {
    /// Call it on a thread in the generator's namespace.
    pub fn new(ends: &Ends, running: &'r Running, flows: u32) -> Result<Bed<'r>> {
        Ok(Bed { running, generator: generator(running, flows, Mix::Established)?, counter: Counter::open(ends, &running.lane.sink)? })
    }

    /// Its lane with the established flows.
    pub fn way(&mut self) -> Way<'_> {
        Way { generator: &mut self.generator, counter: &self.counter, gateway: &self.running.lane.gateway }
    }
}
