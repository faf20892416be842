//! The search for the highest rate that meets a loss goal. Pure: the caller makes the trials.
//!
//! RFC 2544 (26.1) asks for the highest rate at which a trial of 60 s loses nothing. Its weaknesses are known: one
//! frame lost for a reason outside of the device (an interrupt, a neighbour on the host) ruins a trial, so results do
//! not repeat; most of the time goes into long trials far from the result; and a device that drops one frame in a
//! million at every rate has no result. So this search follows MLRsearch (draft-ietf-bmwg-mlrsearch, used by FD.io
//! CSIT): a rate holds when the majority of its trials meets the goal; there are two goals, no loss and 0.5 %; trials
//! are short; and repeated searches, interleaved with those of other devices, give a median and an interval.

use anyhow::{Result, ensure};

/// The lowest rate to try, in frames a second.
pub const RATE_MIN: u64 = 1_000;

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shot {
    /// Lost frames over sent frames.
    pub loss_share: f64,
    /// The generator kept the requested rate.
    pub offered: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Method {
    /// The bracket is narrow enough when its ends differ by this share.
    pub precision: f64,
    /// A rate holds when the majority of so many trials meets the goal; an odd number.
    pub tries: u32,
    /// The first bracket is the start divided and multiplied by this, then by its powers.
    pub step: f64,
    /// One trial with a loss above this share is enough to fail a rate.
    pub hopeless: f64,
    /// The most rates of one search.
    pub rates_max: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Found {
    /// The highest rate that held, frames a second; 0 when none did.
    pub pps: u64,
    /// The lowest rate that did not.
    pub above_pps: u64,
    /// The generator could not send more: the result is a lower bound.
    pub generator_limited: bool,
    pub trials: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rate {
    Holds,
    Fails,
    NotOffered,
}

/// A search in progress. [`Search::rate`] is the rate of the next trial and [`Search::record`] takes its result, so
/// that several searches can take turns.
#[derive(Clone, Debug)]
pub struct Search {
    method: Method,
    loss_max: f64,
    ceiling: u64,
    low: u64,
    high: u64,
    limited: bool,
    /// The rate of the next trial, and the step from it while one end of the bracket is missing.
    at: u64,
    factor: f64,
    /// Rates tried so far, and their trials.
    asked: u32,
    trials: u32,
    /// Trials of this rate that met the goal, and those that failed.
    held: u32,
    failed: u32,
    over: bool,
}

impl Search {
    /// Searches around `start` and up to `ceiling`, for a share of loss.
    pub fn new(method: &Method, loss_max: f64, start: u64, ceiling: u64) -> Result<Search> {
        ensure!(
            method.precision > 0.0 && method.step > 1.0 && method.tries % 2 == 1 && method.rates_max > 0,
            "a search needs a precision, a step above 1, an odd number of tries and at least one rate"
        );
        Ok(Search {
            method: *method,
            loss_max,
            ceiling,
            low: 0,
            high: ceiling.saturating_add(1),
            limited: false,
            at: start.clamp(RATE_MIN, ceiling.max(RATE_MIN)),
            factor: method.step,
            asked: 0,
            trials: 0,
            held: 0,
            failed: 0,
            over: false,
        })
    }

    /// The rate of the next trial; `None` once it is over.
    pub fn rate(&self) -> Option<u64> {
        (!self.over).then_some(self.at)
    }

    /// Takes the result of a trial at that rate.
    pub fn record(&mut self, shot: Shot) {
        self.trials += 1;
        let met = shot.loss_share <= self.loss_max;
        if met {
            self.held += 1;
        } else {
            self.failed += 1;
        }
        let majority = self.method.tries / 2 + 1;
        if !shot.offered {
            self.decide(Rate::NotOffered);
        } else if self.failed >= majority || (!met && shot.loss_share > self.method.hopeless) {
            self.decide(Rate::Fails);
        } else if self.held >= majority {
            self.decide(Rate::Holds);
        }
    }

    /// Narrows the bracket and chooses the next rate.
    fn decide(&mut self, rate: Rate) {
        match rate {
            Rate::Holds => self.low = self.at,
            Rate::Fails => (self.high, self.limited) = (self.at, false),
            // The generator set this end of the bracket, until a lower rate fails.
            Rate::NotOffered => (self.high, self.limited) = (self.at, true),
        }
        (self.asked, self.held, self.failed) = (self.asked + 1, 0, 0);
        let narrow = self.high as f64 / self.low.max(1) as f64 <= 1.0 + self.method.precision;
        self.over = narrow || self.high <= RATE_MIN || self.low >= self.ceiling || self.asked >= self.method.rates_max;
        if self.over {
            return;
        }
        let away = self.low == 0 || self.high > self.ceiling;
        self.at = match (self.low, self.high) {
            // No rate held yet, or all did: move away from the start in growing steps.
            (0, high) => ((high as f64 / self.factor) as u64).max(RATE_MIN),
            (low, high) if high > self.ceiling => ((low as f64 * self.factor) as u64).clamp(low + 1, self.ceiling),
            (low, high) => ((low as f64 * high as f64).sqrt() as u64).clamp(low + 1, high - 1),
        };
        if away {
            self.factor *= self.factor.min(2.0);
        }
    }

    pub fn found(&self) -> Found {
        let generator_limited = self.limited || self.low >= self.ceiling;
        Found { pps: self.low, above_pps: self.high, generator_limited, trials: self.trials }
    }
}

/// Runs a whole search. `shoot` makes a trial at a rate.
pub fn search(method: &Method, loss_max: f64, start: u64, ceiling: u64, mut shoot: impl FnMut(u64) -> Result<Shot>) -> Result<Found> {
    let mut search = Search::new(method, loss_max, start, ceiling)?;
    while let Some(pps) = search.rate() {
        search.record(shoot(pps)?);
    }
    Ok(search.found())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method = Method { precision: 0.01, tries: 3, step: 1.05, hopeless: 0.02, rates_max: 60 };

    /// A device that loses everything above its limit.
    fn device(limit: u64) -> impl FnMut(u64) -> Result<Shot> {
        move |pps| Ok(Shot { loss_share: (pps.saturating_sub(limit)) as f64 / pps as f64, offered: true })
    }

    #[test]
    fn the_limit_is_found_from_anywhere() {
        for limit in [1_500, 10_000, 480_000, 712_345, 14_880_952] {
            for start in [1_000, 100_000, 700_000, 20_000_000] {
                let found = search(&METHOD, 0.0, start, 20_000_000, device(limit)).unwrap();
                assert!(found.pps <= limit && found.above_pps > limit, "{limit} from {start}: {found:?}");
                assert!(found.above_pps as f64 / found.pps as f64 <= 1.0101, "{limit} from {start}: {found:?}");
                assert!(!found.generator_limited && found.trials <= 90, "{found:?}");
            }
        }
    }

    #[test]
    fn near_the_start_few_trials_are_enough() {
        let found = search(&METHOD, 0.0, 700_000, 2_000_000, device(712_345)).unwrap();
        assert!(found.trials <= 10, "{found:?}");
    }

    #[test]
    fn a_share_of_loss_is_a_higher_rate() {
        let none = search(&METHOD, 0.0, 500_000, 2_000_000, device(600_000)).unwrap();
        let some = search(&METHOD, 0.005, 500_000, 2_000_000, device(600_000)).unwrap();
        assert!(some.above_pps > none.above_pps, "{none:?} {some:?}");
        let limit = 600_000.0 / 0.995;
        assert!(some.pps as f64 <= limit && some.above_pps as f64 > limit, "{some:?}");
    }

    #[test]
    fn one_unlucky_trial_in_three_changes_nothing() {
        let mut n = 0;
        let mut honest = device(600_000);
        let unlucky = |pps| {
            n += 1;
            let shot = honest(pps)?;
            Ok(if n % 3 == 0 { Shot { loss_share: 1e-6, ..shot } } else { shot })
        };
        let found = search(&METHOD, 0.0, 500_000, 2_000_000, unlucky).unwrap();
        assert!(found.pps <= 600_000 && found.above_pps > 600_000, "{found:?}");
    }

    #[test]
    fn the_generator_s_limit_is_not_the_device_s() {
        let weak = |pps| Ok(Shot { loss_share: 0.0, offered: pps < 900_000 });
        let found = search(&METHOD, 0.0, 500_000, 2_000_000, weak).unwrap();
        assert!(found.generator_limited && found.pps < 900_000 && found.pps > 880_000, "{found:?}");
        let found = search(&METHOD, 0.0, 500_000, 600_000, weak).unwrap();
        assert!(found.generator_limited && found.pps == 600_000, "{found:?}");
    }

    #[test]
    fn a_rate_that_was_not_offered_says_nothing_when_a_lower_one_fails() {
        let mut honest = device(600_000);
        let found = search(&METHOD, 0.0, 950_000, 2_000_000, |pps| Ok(Shot { offered: pps < 900_000, ..honest(pps)? })).unwrap();
        assert!(!found.generator_limited && found.pps <= 600_000 && found.above_pps > 600_000, "{found:?}");
    }

    #[test]
    fn a_device_that_always_loses_has_no_rate() {
        let found = search(&METHOD, 0.0, 500_000, 2_000_000, |_| Ok(Shot { loss_share: 1e-6, offered: true })).unwrap();
        assert_eq!((found.pps, found.generator_limited), (0, false));
    }

    #[test]
    fn an_error_ends_it() {
        search(&METHOD, 0.0, 5_000, 10_000, |_| anyhow::bail!("unplugged")).unwrap_err();
    }
}
