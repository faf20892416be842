//! The search for the highest rate that meets a loss goal. Pure: trials are somebody else's.
//!
//! RFC 2544 (26.1) asks for the highest rate at which a trial of 60 s loses nothing, found by trials at lower and higher rates. What is known against
//! it: one frame lost to something that has nothing to do with the device (an interrupt, a neighbour on the host) ruins a trial, so results do
//! not repeat; most of the time goes into long trials far from the result; and a device that drops one frame in a million at every rate has
//! none. Hence, as MLRsearch does it (draft-ietf-bmwg-mlrsearch, in use at FD.io CSIT): a rate holds when the majority of its trials meets the
//! goal; goals are a loss of nothing and one of 0.5 % beside it; trials are short while the bracket narrows; and repetitions of the whole search,
//! interleaved with the other devices', give a median and an interval instead of a single number.

use anyhow::{Result, ensure};

/// The lowest rate that is tried, in frames a second.
pub const RATE_MIN: u64 = 1_000;

/// What a trial has shown.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shot {
    /// Share of the frames that were lost.
    pub loss_share: f64,
    /// The generator sent at the rate that was asked for.
    pub offered: bool,
}

/// How to search.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Method {
    /// The bracket is narrow enough when its ends differ by this share.
    pub precision: f64,
    /// A rate holds when the majority of so many trials meets the goal; an odd number.
    pub tries: u32,
    /// The first bracket's ends are the start divided and multiplied by this, and then by its powers.
    pub step: f64,
    /// A loss above this share is no accident: one such trial is enough.
    pub hopeless: f64,
    /// Rates that one search tries at the most.
    pub rates_max: u32,
}

/// What a search has found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Found {
    /// The highest rate that held, frames a second; 0 when none did.
    pub pps: u64,
    /// The lowest rate that did not.
    pub above_pps: u64,
    /// The generator could not send more: the result is a lower bound.
    pub generator_limited: bool,
    /// Trials that it took.
    pub trials: u32,
}

/// What became of a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rate {
    Holds,
    Fails,
    NotOffered,
}

/// Searches around `start`, up to `ceiling`. `shoot` makes a trial at a rate.
pub fn search(method: &Method, loss_max: f64, start: u64, ceiling: u64, mut shoot: impl FnMut(u64) -> Result<Shot>) -> Result<Found> {
    ensure!(
        method.precision > 0.0 && method.step > 1.0 && method.tries % 2 == 1,
        "a search needs a precision, a step and an odd number of tries"
    );
    let mut trials = 0;
    let mut ask = |pps: u64| -> Result<Rate> {
        let (mut held, mut failed) = (0, 0);
        while held.max(failed) <= method.tries / 2 {
            let shot = shoot(pps)?;
            trials += 1;
            if !shot.offered {
                return Ok(Rate::NotOffered);
            }
            if shot.loss_share > loss_max && shot.loss_share > method.hopeless {
                return Ok(Rate::Fails);
            }
            if shot.loss_share <= loss_max { held += 1 } else { failed += 1 }
        }
        Ok(if held > failed { Rate::Holds } else { Rate::Fails })
    };
    let (mut low, mut high, mut limited) = (0u64, ceiling.saturating_add(1), false);
    let (mut at, mut factor, mut asked) = (start.clamp(RATE_MIN, ceiling.max(RATE_MIN)), method.step, 0);
    while asked < method.rates_max {
        asked += 1;
        match ask(at)? {
            Rate::Holds => low = at,
            Rate::Fails => (high, limited) = (at, false),
            // What set this end of the bracket is the generator, as long as no lower rate fails.
            Rate::NotOffered => (high, limited) = (at, true),
        }
        let narrow = high as f64 / low.max(1) as f64 <= 1.0 + method.precision;
        if narrow || high <= RATE_MIN || low >= ceiling {
            break;
        }
        at = match (low, high) {
            // Nothing held yet, or everything: away from the start, in growing steps.
            (0, _) => ((high as f64 / factor) as u64).max(RATE_MIN),
            (_, h) if h > ceiling => ((low as f64 * factor) as u64).clamp(low + 1, ceiling),
            _ => ((low as f64 * high as f64).sqrt() as u64).clamp(low + 1, high - 1),
        };
        if low == 0 || high > ceiling {
            factor *= factor.min(2.0);
        }
    }
    Ok(Found { pps: low, above_pps: high, generator_limited: limited || low >= ceiling, trials })
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
        assert!(search(&METHOD, 0.0, 5_000, 10_000, |_| anyhow::bail!("unplugged")).is_err());
    }
}
