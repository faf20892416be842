//! Zero-loss and 0.5 %-loss rates of all subjects, in rounds in which they take turns.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

use super::bed::{Bed, Judge};
use super::trial::Way;
use crate::ndr::search::{Method, search};
use crate::results::{Estimate, Outcome, RateRow, RatioRow, Traffic, median};

/// The generator must be able to send so many times what a subject can carry, in its presence.
pub const GENERATOR_FACTOR: f64 = 1.5;
/// The rate at which flows become known before anything is measured.
const WARM_UP_PPS: u64 = 100_000;
/// Where the first search begins.
const START_PPS: u64 = 500_000;
/// The 0.5 % of the second goal.
pub const HALF_PERCENT: f64 = 0.005;

/// How rates are measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// One trial.
    pub trial: Duration,
    /// Rounds of those subjects that ratios are made of.
    pub rounds: u32,
    /// Every so many rounds the 0.5 % rate is searched too, and those subjects that no ratio is made of take part (their 0.5 % rate only in the first).
    pub every: u32,
    /// The search's first bracket and precision.
    pub method: Method,
}

impl Plan {
    /// For trials of this length and so many rounds.
    pub fn new(trial: Duration, rounds: u32) -> Plan {
        Plan { trial, rounds, every: 5, method: Method { precision: 0.01, tries: 3, step: 1.04, hopeless: 0.02, rates_max: 24 } }
    }
}

/// What the rounds have found about one subject.
#[derive(Clone, Default, Debug)]
pub struct Found {
    /// Zero-loss rate by round.
    pub zero_loss: BTreeMap<u32, f64>,
    /// 0.5 %-loss rate by round.
    pub half_percent: BTreeMap<u32, f64>,
    /// Frames a second that the generator can send at this subject, by round.
    pub generator: BTreeMap<u32, f64>,
    /// A search ended because the generator could not send more.
    pub limited: bool,
}

impl Found {
    /// The median of the zero-loss rates so far.
    pub fn rate(&self) -> Option<f64> {
        let values: Vec<f64> = self.zero_loss.values().copied().collect();
        (!values.is_empty()).then(|| median(&values))
    }

    fn generator_pps(&self) -> Option<f64> {
        let values: Vec<f64> = self.generator.values().copied().collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// Why the rates do not count, if they do not.
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

    /// The row of the results.
    pub fn row(&self, subject: &str, traffic: Traffic) -> RateRow {
        let outcome = |values: &BTreeMap<u32, f64>| match (self.doubt(), Estimate::of(&values.values().copied().collect::<Vec<_>>())) {
            (Some(why), _) => Outcome::NotMeasured(why),
            (None, None) => Outcome::NotMeasured("it was not searched for with this traffic".into()),
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

    /// One's rate over another's: the median of the ratios of those rounds in which both took part.
    pub fn over(&self, other: &Found, names: (&str, &str), traffic: Traffic) -> RatioRow {
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

/// One subject's turn in one round.
pub fn turn(judge: &mut Judge, way: &mut Way<'_>, plan: &Plan, round: u32, found: &mut Found, both: bool) -> Result<()> {
    // Flows that were forgotten since the last turn become known again.
    judge.trial(way, Some(WARM_UP_PPS), plan.trial.min(Duration::from_millis(150)))?;
    let flat_out = judge.trial(way, None, plan.trial)?;
    found.generator.insert(round, flat_out.offered_pps());
    let ceiling = flat_out.offered_pps() as u64;
    let start = found.zero_loss.last_key_value().map_or(START_PPS as f64, |(_, rate)| *rate) as u64;
    let zero = search(&plan.method, 0.0, start, ceiling, |pps| judge.shoot(way, pps, plan.trial))?;
    found.zero_loss.insert(round, zero.pps as f64);
    found.limited |= zero.generator_limited;
    if both {
        let start = found.half_percent.last_key_value().map_or(zero.pps as f64 * 1.02, |(_, rate)| *rate) as u64;
        let half = search(&plan.method, HALF_PERCENT, start, ceiling, |pps| judge.shoot(way, pps, plan.trial))?;
        found.half_percent.insert(round, half.pps as f64);
    }
    Ok(())
}

/// All rounds with established flows. `compared` says which subjects take part in every one; `say` tells progress.
pub fn rounds(
    judge: &mut Judge,
    beds: &mut [Bed<'_>],
    plan: &Plan,
    compared: impl Fn(&str) -> bool,
    mut say: impl FnMut(&str),
) -> Result<BTreeMap<String, Found>> {
    let mut all: BTreeMap<String, Found> = BTreeMap::new();
    for round in 0..plan.rounds {
        let thorough = round % plan.every == 0;
        // There and back, so that nobody always comes after the same neighbour.
        let mut order: Vec<usize> = (0..beds.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut line = format!("round {} of {}:", round + 1, plan.rounds);
        for n in order {
            let bed = &mut beds[n];
            let subject = &bed.running.subject;
            if !thorough && !compared(&subject.id) {
                continue;
            }
            let found = all.entry(subject.id.clone()).or_default();
            let both = thorough && (round == 0 || compared(&subject.id));
            turn(judge, &mut bed.way(), plan, round, found, both).with_context(|| subject.label.clone())?;
            line += &format!(" {} {:.0}k", subject.id, found.zero_loss.get(&round).copied().unwrap_or(0.0) / 1e3);
        }
        say(&line);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rates: &[f64], generator: f64) -> Found {
        let by_round = |values: Vec<f64>| (0..).zip(values).collect();
        Found { zero_loss: by_round(rates.to_vec()), generator: by_round(vec![generator; rates.len()]), ..Found::default() }
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        // The machine became slower; the ratio did not.
        let (a, b) = (found(&[100.0, 50.0, 20.0], 1e3), found(&[50.0, 25.0, 10.0], 1e3));
        let row = a.over(&b, ("a", "b"), Traffic::Established);
        assert_eq!((row.rounds.clone(), row.ratio.value().unwrap().median), (vec![2.0; 3], 2.0));
        let mut fewer = b.clone();
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
        assert!(why(Found::default().row("a", Traffic::Established).zero_loss).contains("no round"));
        assert!(why(found(&[0.0], 100.0).row("a", Traffic::Established).zero_loss).contains("every rate"));
    }
}
