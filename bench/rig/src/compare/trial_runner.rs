//! Repeats trials on a disturbed machine, so that only undisturbed ones count.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, bail};

use super::trial::{Path, Trial, trial};
use crate::ndr::search::Shot;

/// The hypervisor's largest share of CPU time in a trial that counts.
pub const STEAL_MAX: f64 = 0.03;
/// The same for processes outside of the rig.
pub const FOREIGN_MAX: f64 = 0.03;
/// Repetitions of a trial before the run is refused.
const REPEATS_MAX: u32 = 20;
/// A rate was offered from this share of it on; a trial below is repeated so many times. The generator does not catch
/// up with delays of more than a millisecond: between such pauses it keeps the requested rate.
const OFFERED: f64 = 0.97;
const OFFERS_MAX: u32 = 4;

/// Disturbances of all trials.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Watched {
    /// Largest share of steal in a trial that counted.
    pub steal_share_max: f64,
    pub foreign_share_max: f64,
    pub trials: u32,
    pub repeated: u32,
}

/// Whether trials on a disturbed machine are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// Repeat them, and give up when the machine stays busy.
    Refuse,
    /// Count them. For tests of the rig itself: the results are meaningless.
    Accept,
}

pub struct TrialRunner {
    pub watched: Watched,
    own: HashSet<u32>,
    strictness: Strictness,
}

impl TrialRunner {
    /// `own` are the processes of the rig besides this one.
    pub fn new(own: impl IntoIterator<Item = u32>, strictness: Strictness) -> TrialRunner {
        TrialRunner { watched: Watched::default(), own: own.into_iter().chain([std::process::id()]).collect(), strictness }
    }

    /// Adds a process of the rig that was started later.
    pub fn also_own(&mut self, pid: u32) {
        self.own.insert(pid);
    }

    pub fn trial(&mut self, path: &mut Path<'_>, pps: Option<u64>, duration: Duration) -> Result<Trial> {
        let mut last = (0.0, 0.0);
        for repeat in 0..=REPEATS_MAX {
            let trial = trial(path, pps, duration, &self.own)?;
            last = (trial.usage.steal_share, trial.usage.foreign_share);
            if self.strictness == Strictness::Accept || (last.0 <= STEAL_MAX && last.1 <= FOREIGN_MAX) {
                let w = &mut self.watched;
                w.trials += 1;
                (w.steal_share_max, w.foreign_share_max) = (w.steal_share_max.max(last.0), w.foreign_share_max.max(last.1));
                return Ok(trial);
            }
            self.watched.repeated += 1;
            // The disturbance may end by itself.
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

    /// A trial during which the rig changes tables: foreign CPU time does not refuse it.
    pub fn disturbed(&mut self, path: &mut Path<'_>, pps: u64, duration: Duration) -> Result<Trial> {
        self.watched.trials += 1;
        trial(path, Some(pps), duration, &self.own)
    }

    /// A trial for the rate search.
    pub fn shoot(&mut self, path: &mut Path<'_>, pps: u64, duration: Duration) -> Result<Shot> {
        let mut shot = Shot { loss_share: 0.0, offered: false };
        for _ in 0..OFFERS_MAX {
            let trial = self.trial(path, Some(pps), duration)?;
            shot = Shot { loss_share: trial.loss_share(), offered: trial.offered_pps() >= pps as f64 * OFFERED };
            if shot.offered {
                break;
            }
        }
        Ok(shot)
    }
}
