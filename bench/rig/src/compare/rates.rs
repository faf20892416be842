//! Zero-loss and 0.5 %-loss rates of all subjects. In a round they take turns trial by trial, so that a slow phase of
//! the machine affects all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::test_bed::TestBed;
use super::trial::Path;
use super::trial_runner::TrialRunner;
use crate::ndr::search::{Method, Search, search};
use crate::results::{Estimate, Outcome, RateRow, RatioRow, Subject, Traffic, median};

/// The generator must be able to send so many times a subject's rate while that subject works.
pub const GENERATOR_FACTOR: f64 = 1.5;
/// The rate at which flows are established before a measurement.
const WARM_UP_PPS: u64 = 100_000;
const START_PPS: u64 = 500_000;
/// Precision of a rate that only sets a load.
const PRECISION_NOW: f64 = 0.04;
/// The loss of the second goal.
pub const HALF_PERCENT: f64 = 0.005;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub trial: Duration,
    pub rounds: u32,
    /// The search's first bracket and precision.
    pub method: Method,
}

impl Plan {
    pub fn new(trial: Duration, rounds: u32) -> Plan {
        Plan { trial, rounds, method: Method { precision: 0.01, tries: 3, step: 1.04, hopeless: 0.02, rates_max: 24 } }
    }
}

/// The rates of one subject, by round.
#[derive(Clone, Default, Debug)]
pub struct RateSearch {
    pub zero_loss: BTreeMap<u32, f64>,
    pub half_percent: BTreeMap<u32, f64>,
    /// Frames a second that the generator managed while this subject worked, by round.
    pub generator: BTreeMap<u32, f64>,
    /// A search ended because the generator could not send more.
    pub limited: bool,
}

impl RateSearch {
    /// The median of the zero-loss rates so far.
    pub fn rate(&self) -> Option<f64> {
        let values: Vec<f64> = self.zero_loss.values().copied().collect();
        (!values.is_empty()).then(|| median(&values))
    }

    fn generator_pps(&self) -> Option<f64> {
        let values: Vec<f64> = self.generator.values().copied().collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// Why the rates do not count, if so.
    pub fn doubt(&self) -> Option<String> {
        let (Some(rate), Some(generator)) = (self.rate(), self.generator_pps()) else { return Some("it took part in no round".into()) };
        if rate <= 0.0 {
            return Some("it lost frames at every rate".into());
        }
        let factor = generator / rate;
        if factor < GENERATOR_FACTOR {
            return Some(format!("the generator sends at most {factor:.2} times this rate in its presence, less than {GENERATOR_FACTOR}"));
        }
        self.limited.then(|| "the generator could not send faster in some round".into())
    }

    pub fn row(&self, subject: &str, traffic: Traffic) -> RateRow {
        let outcome = |values: &BTreeMap<u32, f64>| match (self.doubt(), Estimate::of(&values.values().copied().collect::<Vec<_>>())) {
            (Some(why), _) => Outcome::NotMeasured(why),
            (None, None) => Outcome::NotMeasured("not searched with this traffic".into()),
            (None, Some(estimate)) => Outcome::Measured(estimate),
        };
        RateRow {
            subject: subject.into(),
            traffic,
            zero_loss: outcome(&self.zero_loss),
            half_percent: outcome(&self.half_percent),
            generator_pps: self.generator_pps(),
            rounds: self.zero_loss.values().copied().collect(),
        }
    }

    /// This rate over another subject's: the median of the ratios of the rounds in which both took part.
    pub fn over(&self, other: &RateSearch, names: (&str, &str), traffic: Traffic) -> RatioRow {
        let of_round = |(round, rate): (&u32, &f64)| other.zero_loss.get(round).filter(|o| **o > 0.0).map(|o| rate / o);
        let rounds: Vec<f64> = self.zero_loss.iter().filter_map(of_round).collect();
        let doubt = self.doubt().map(|why| format!("{}: {why}", names.0)).or(other.doubt().map(|why| format!("{}: {why}", names.1)));
        let ratio = match (doubt, Estimate::of(&rounds)) {
            (Some(why), _) => Outcome::NotMeasured(why),
            (None, None) => Outcome::NotMeasured("no round had both".into()),
            (None, Some(estimate)) => Outcome::Measured(estimate),
        };
        RatioRow { subject: names.0.into(), over: names.1.into(), traffic, ratio, rounds }
    }
}

/// One subject's searches in one round.
struct Turn {
    generator_pps: f64,
    zero: Search,
    /// Search the 0.5 % rate after the zero-loss rate.
    both: bool,
    half: Option<Search>,
}

impl Turn {
    /// Establishes flows that timed out since the last round, then measures the generator's highest rate.
    fn begin(runner: &mut TrialRunner, path: &mut Path<'_>, plan: &Plan, found: &RateSearch, both: bool) -> Result<Turn> {
        runner.trial(path, Some(WARM_UP_PPS), plan.trial.min(Duration::from_millis(150)))?;
        let generator_pps = runner.trial(path, None, plan.trial)?.offered_pps();
        let start = found.zero_loss.last_key_value().map_or(START_PPS as f64, |(_, rate)| *rate) as u64;
        Ok(Turn { generator_pps, zero: Search::new(&plan.method, 0.0, start, generator_pps as u64)?, both, half: None })
    }

    /// Makes one trial. False when all searches are over.
    fn step(&mut self, runner: &mut TrialRunner, path: &mut Path<'_>, plan: &Plan, found: &RateSearch) -> Result<bool> {
        let zero_over = self.zero.rate().is_none();
        if zero_over && self.both && self.half.is_none() {
            let start = found.half_percent.last_key_value().map_or(self.zero.found().pps as f64 * 1.02, |(_, rate)| *rate) as u64;
            self.half = Some(Search::new(&plan.method, HALF_PERCENT, start, self.generator_pps as u64)?);
        }
        let search = if zero_over { self.half.as_mut() } else { Some(&mut self.zero) };
        let Some((search, pps)) = search.and_then(|search| search.rate().map(|pps| (search, pps))) else { return Ok(false) };
        search.record(runner.shoot(path, pps, plan.trial)?);
        Ok(true)
    }

    fn end(self, round: u32, found: &mut RateSearch) {
        let zero = self.zero.found();
        found.generator.insert(round, self.generator_pps);
        found.zero_loss.insert(round, zero.pps as f64);
        found.limited |= zero.generator_limited;
        if let Some(half) = self.half {
            found.half_percent.insert(round, half.found().pps as f64);
        }
    }
}

/// The approximate zero-loss rate of this moment, for a measurement at a share of it: a shared machine is not always
/// as fast as in the median of the rounds. The search begins at `known_pps`.
pub fn rate_now(runner: &mut TrialRunner, path: &mut Path<'_>, plan: &Plan, known_pps: f64) -> Result<f64> {
    runner.trial(path, Some(WARM_UP_PPS), plan.trial.min(Duration::from_millis(150)))?;
    let ceiling = runner.trial(path, None, plan.trial)?.offered_pps() as u64;
    let method = Method { precision: PRECISION_NOW, ..plan.method };
    let found = search(&method, 0.0, known_pps as u64, ceiling, |pps| runner.shoot(path, pps, plan.trial))?;
    Ok(found.pps as f64)
}

/// A participant of a round.
pub struct Entrant<'e, 'w> {
    pub subject: &'e Subject,
    pub path: Path<'w>,
    pub found: &'e mut RateSearch,
    pub both: bool,
}

/// One round: the entrants take turns, one trial each, until all searches are over.
pub fn round(runner: &mut TrialRunner, plan: &Plan, number: u32, entrants: &mut [Entrant<'_, '_>]) -> Result<()> {
    let mut turns = Vec::with_capacity(entrants.len());
    for e in entrants.iter_mut() {
        turns.push(Turn::begin(runner, &mut e.path, plan, e.found, e.both).with_context(|| e.subject.label.clone())?);
    }
    let mut going = vec![true; turns.len()];
    while going.contains(&true) {
        for ((e, turn), going) in entrants.iter_mut().zip(&mut turns).zip(&mut going).filter(|(_, going)| **going) {
            *going = turn.step(runner, &mut e.path, plan, e.found).with_context(|| e.subject.label.clone())?;
        }
    }
    turns.into_iter().zip(entrants).for_each(|(turn, e)| turn.end(number, e.found));
    Ok(())
}

/// All rounds with established flows. `say` tells progress.
pub fn rounds(
    runner: &mut TrialRunner,
    beds: &mut [TestBed<'_>],
    plan: &Plan,
    mut say: impl FnMut(&str),
) -> Result<BTreeMap<String, RateSearch>> {
    let mut founds = vec![RateSearch::default(); beds.len()];
    for number in 0..plan.rounds {
        let mut entrants = Vec::new();
        for (bed, found) in beds.iter_mut().zip(&mut founds) {
            let TestBed { running, counter, generator } = bed;
            let policy = running.policy;
            if number % policy.every == 0 {
                let path = Path { generator, counter, gateway: &running.topology.gateway };
                entrants.push(Entrant { subject: &running.subject, path, found, both: number % policy.half_percent_every == 0 });
            }
        }
        // Reverse every second round, so that no subject always follows the same neighbour.
        if number % 2 == 1 {
            entrants.reverse();
        }
        round(runner, plan, number, &mut entrants)?;
        let rates =
            entrants.iter().map(|e| format!(" {} {:.0}k", e.subject.id, e.found.zero_loss.get(&number).copied().unwrap_or(0.0) / 1e3));
        say(&format!("round {} of {}:{}", number + 1, plan.rounds, rates.collect::<String>()));
    }
    Ok(beds.iter().map(|b| b.running.subject.id.clone()).zip(founds).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rates: &[f64], generator: f64) -> RateSearch {
        let by_round = |values: Vec<f64>| (0..).zip(values).collect();
        RateSearch { zero_loss: by_round(rates.to_vec()), generator: by_round(vec![generator; rates.len()]), ..RateSearch::default() }
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        // The machine became slower; the ratio did not.
        let (a, b) = (found(&[100.0, 50.0, 20.0], 1e3), found(&[50.0, 25.0, 10.0], 1e3));
        let row = a.over(&b, ("a", "b"), Traffic::Established);
        assert_eq!((row.rounds.clone(), row.ratio.value().unwrap().median), (vec![2.0; 3], 2.0));
        let mut fewer = b;
        fewer.zero_loss.remove(&1);
        assert_eq!(a.over(&fewer, ("a", "b"), Traffic::Established).rounds.len(), 2);
    }

    #[test]
    fn a_weak_generator_means_not_measured() {
        let (strong, weak) = (found(&[100.0; 10], 150.0), found(&[100.0; 10], 149.0));
        assert!(strong.doubt().is_none() && strong.row("a", Traffic::Established).zero_loss.value().is_some());
        let why = |outcome: Outcome<Estimate>| match outcome {
            Outcome::NotMeasured(why) => why,
            Outcome::Measured(_) => panic!("measured"),
        };
        assert!(why(weak.row("a", Traffic::Established).zero_loss).contains("1.49 times"));
        assert!(why(strong.over(&weak, ("a", "b"), Traffic::Established).ratio).starts_with("b: the generator"));
        assert!(why(RateSearch::default().row("a", Traffic::Established).zero_loss).contains("no round"));
        assert!(why(found(&[0.0], 100.0).row("a", Traffic::Established).zero_loss).contains("every rate"));
    }
}
