//! Trials by [`pktgen`](crate::pktgen), repeated searches, and the baseline, which shows whether generator and sink are the limit.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nomagic_testbed::rig::{Netns, cable};
use serde::Serialize;

use super::search::{Method, RATE_MIN, Shot, search};
use crate::pktgen::interface::Place;
use crate::pktgen::{Options, run};
use crate::results::{Estimate, Outcome};

/// The baseline's rate must be at least so many times the device's.
pub const FACTOR: f64 = 1.5;
/// A rate counts as offered from this share of it on.
const OFFERED: f64 = 0.97;

#[derive(Clone, Debug)]
pub struct Task {
    /// The traffic and its two ends; the search sets rate, duration and count.
    pub options: Options,
    pub trial: Duration,
    /// Number of searches.
    pub repeat: u32,
    /// Allowed shares of loss; each has its own search.
    pub goals: Vec<f64>,
    pub method: Method,
    /// The two ends of a cable without a device; `None` for a new veth pair.
    pub baseline: Option<(Place, Place)>,
}

/// The highest rate for one goal.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GoalRate {
    /// Allowed share of loss.
    pub loss_max: f64,
    /// Frames a second.
    pub pps: Outcome<Estimate>,
    pub repetitions: Vec<u64>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NdrReport {
    /// The sending interface.
    pub tx: String,
    /// The receiving interface.
    pub rx: String,
    /// Seconds of a trial.
    pub trial_s: f64,
    pub goals: Vec<GoalRate>,
    /// The highest rate without loss of the same generator and sink over a cable, in frames a second.
    pub baseline_pps: u64,
    pub baseline: String,
    pub trials: u32,
}

struct Path<'t> {
    task: &'t Task,
    options: Options,
    stop: &'t Arc<AtomicBool>,
    trials: u32,
}

impl Path<'_> {
    fn shoot(&mut self, pps: Option<u64>) -> Result<(f64, Shot)> {
        ensure!(!self.stop.load(Relaxed), "stopped by a signal");
        let options = Options { rate: pps, duration: self.task.trial, count: None, ..self.options.clone() };
        let report = run(&options, self.stop, false)?;
        self.trials += 1;
        let sink = report.sink.as_ref().context("--rx must name the receiving interface")?;
        let offered = pps.is_none_or(|pps| report.sent_pps >= pps as f64 * OFFERED);
        // Loss at the sink's sockets is not the device's, but it cannot be attributed for certain: it counts.
        let loss_share = (sink.lost + sink.lost_at_sink) as f64 / report.sent.max(1) as f64;
        Ok((report.sent_pps, Shot { loss_share, offered }))
    }

    /// Measures the generator's highest rate, then searches the highest rate for a goal below it.
    fn search(&mut self, goal: f64, start: Option<u64>) -> Result<u64> {
        let ceiling = self.shoot(None)?.0 as u64;
        let method = self.task.method;
        let start = start.unwrap_or(ceiling / 2).max(RATE_MIN);
        Ok(search(&method, goal, start, ceiling.max(RATE_MIN), |pps| self.shoot(Some(pps)).map(|(_, shot)| shot))?.pps)
    }
}

/// Searches all goals. `say` tells progress.
pub fn measure(task: &Task, stop: &Arc<AtomicBool>, say: &mut dyn FnMut(&str)) -> Result<NdrReport> {
    let rx = task.options.rx.clone().context("--rx must name the receiving interface")?;
    let (baseline, baseline_pps, mut trials) = baseline(task, stop, say)?;
    let mut path = Path { task, options: task.options.clone(), stop, trials: 0 };
    let mut found: Vec<Vec<u64>> = vec![Vec::new(); task.goals.len()];
    for repetition in 0..task.repeat {
        for (goal, rates) in task.goals.iter().zip(&mut found) {
            rates.push(path.search(*goal, rates.last().copied().filter(|r| *r > 0))?);
            let latest = rates.last().copied().unwrap_or(0);
            say(&format!("search {} of {}, at most {:.1} % lost: {latest} frames/s", repetition + 1, task.repeat, goal * 100.0));
        }
    }
    trials += path.trials;
    let goals = task.goals.iter().zip(found).map(|(goal, rates)| GoalRate {
        loss_max: *goal,
        pps: conclude(&rates, baseline_pps),
        repetitions: rates,
    });
    Ok(NdrReport {
        tx: task.options.tx.to_string(),
        rx: rx.to_string(),
        trial_s: task.trial.as_secs_f64(),
        goals: goals.collect(),
        baseline_pps,
        baseline,
        trials,
    })
}

/// A rate counts only if the baseline is far enough above it.
fn conclude(rates: &[u64], baseline_pps: u64) -> Outcome<Estimate> {
    let Some(estimate) = Estimate::of(&rates.iter().map(|r| *r as f64).collect::<Vec<_>>()) else {
        return Outcome::NotMeasured("no search was made".into());
    };
    if estimate.median <= 0.0 {
        return Outcome::NotMeasured("frames were lost at every rate".into());
    }
    let factor = baseline_pps as f64 / estimate.median;
    if factor < FACTOR {
        return Outcome::NotMeasured(format!(
            "the generator and the sink alone carry only {factor:.2} times this rate ({baseline_pps} frames/s), less than {FACTOR}: they may be \
             the limit"
        ));
    }
    Outcome::Measured(estimate)
}

/// The search over a cable: its name, the rate, the number of trials.
fn baseline(task: &Task, stop: &Arc<AtomicBool>, say: &mut dyn FnMut(&str)) -> Result<(String, u64, u32)> {
    let mut over = |tx: Place, rx: Place, what: &str| -> Result<(String, u64, u32)> {
        let options = Options { tx, rx: Some(rx), dst_mac: None, ..task.options.clone() };
        let mut path = Path { task, options, stop, trials: 0 };
        let rate = path.search(0.0, None)?;
        say(&format!("the generator and the sink alone, over {what}: {rate} frames/s"));
        Ok((what.to_owned(), rate, path.trials))
    };
    if let Some((tx, rx)) = &task.baseline {
        return over(tx.clone(), rx.clone(), &format!("the cable from {tx} to {rx}"));
    }
    let (a, b) = (Netns::new("ndr-a")?, Netns::new("ndr-b")?);
    cable(&a, "base0", &b, "base1", 1)?;
    let place = |name: &str, netns: &Netns| Place { name: name.into(), netns: Some(netns.name().into()) };
    over(place("base0", &a), place("base1", &b), "a veth pair")
}

impl fmt::Display for NdrReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}, trials of {} s, {} in all", self.tx, self.rx, self.trial_s, self.trials)?;
        writeln!(f, "{:<34} {:>14} frames/s", format!("baseline: {}", self.baseline), self.baseline_pps)?;
        for goal in &self.goals {
            let name = if goal.loss_max > 0.0 { format!("at most {:.1} % lost", goal.loss_max * 100.0) } else { "without loss".into() };
            match &goal.pps {
                Outcome::Measured(e) => {
                    writeln!(f, "{name:<34} {:>14.0} frames/s, {:.0} to {:.0} in {} searches", e.median, e.low, e.high, e.n)?;
                }
                Outcome::NotMeasured(why) => writeln!(f, "{name:<34} not measured: {why}. Seen: {:?}", goal.repetitions)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_near_the_baseline_s_is_not_measured() {
        assert!(conclude(&[100, 101, 102], 152).value().is_some());
        assert!(
            matches!(conclude(&[100, 101, 102], 151), Outcome::NotMeasured(why) if why.contains("1.50 times") || why.contains("1.49 times"))
        );
        assert!(matches!(conclude(&[0, 0, 5], 151), Outcome::NotMeasured(why) if why.contains("every rate")));
        assert!(matches!(conclude(&[], 151), Outcome::NotMeasured(_)));
    }
}
