//! Medians with their intervals.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A median and an interval that contains the true median with a confidence of at least 95 %, if there are enough values.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// Number of values.
    pub n: u32,
}

impl Estimate {
    /// `None` without values, or if one is not a number.
    ///
    /// The interval is that of the sign test: the k-th smallest and the k-th largest value, with the largest k that a
    /// binomial distribution allows for 95 % (Conover, Practical Nonparametric Statistics, 3.2). With fewer than six
    /// values it is their range, which contains the median less surely.
    pub fn of(values: &[f64]) -> Option<Estimate> {
        let mut sorted = values.to_vec();
        if sorted.iter().any(|v| !v.is_finite()) || sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let k = cut(n);
        Some(Estimate { median: middle(&sorted), low: sorted[k], high: sorted[n - 1 - k], n: n as u32 })
    }

    pub fn single(value: f64) -> Estimate {
        Estimate { median: value, low: value, high: value, n: 1 }
    }
}

impl fmt::Display for Estimate {
    /// With as many digits as asked for: `{:.2}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = f.precision().unwrap_or(0);
        write!(f, "{:.p$}", self.median)?;
        if self.n > 1 { write!(f, " ({:.p$} to {:.p$})", self.low, self.high) } else { Ok(()) }
    }
}

/// The median of values in any order; 0 without values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { 0.0 } else { middle(&sorted) }
}

fn middle(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    if n % 2 == 1 { sorted[n / 2] } else { f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]) }
}

/// How many values to leave out at each end: the most for which P(Binomial(n, 1/2) <= k - 1) <= 2.5 %.
fn cut(n: usize) -> usize {
    let mut term = 0.5f64.powi(n as i32);
    let (mut below, mut k) = (0.0, 0);
    while k < n / 2 {
        below += term;
        if below > 0.025 {
            break;
        }
        term *= (n - k) as f64 / (k + 1) as f64;
        k += 1;
    }
    k.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_its_interval() {
        let values: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        // Tables of the sign test: for n = 10 the second smallest and second largest (97.9 %).
        assert_eq!(Estimate::of(&values), Some(Estimate { median: 5.5, low: 2.0, high: 9.0, n: 10 }));
        assert_eq!((cut(5), cut(6), cut(8), cut(9), cut(12), cut(15), cut(20)), (0, 0, 0, 1, 2, 3, 5));
        assert_eq!(Estimate::of(&[3.0, 1.0, 2.0]), Some(Estimate { median: 2.0, low: 1.0, high: 3.0, n: 3 }));
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, f64::NAN]), None);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }

    #[test]
    fn it_is_shown_with_the_digits_that_are_asked_for() {
        assert_eq!(format!("{:.2}", Estimate { median: 1.005, low: 0.5, high: 2.25, n: 10 }), "1.00 (0.50 to 2.25)");
        assert_eq!(format!("{:.1}", Estimate::single(3.0)), "3.0");
    }

    /// The interval holds the true median in at least 95 of 100 samples.
    #[test]
    fn the_interval_holds_what_it_promises() {
        let mut random = fastrand::Rng::with_seed(7);
        for n in [6usize, 10, 15, 30] {
            let hits = (0..20_000)
                .filter(|_| {
                    let e = Estimate::of(&(0..n).map(|_| random.f64()).collect::<Vec<_>>()).unwrap();
                    e.low <= 0.5 && 0.5 <= e.high
                })
                .count();
            assert!(hits >= 18_950, "n = {n}: {hits} of 20000");
        }
    }
}
