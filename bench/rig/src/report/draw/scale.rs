//! Axes: where values lie, and which of them are labelled.

use std::ops::Range;

use plotters::coord::ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;

use crate::report::number::short;
use crate::report::plot::{Axis, AxisKind};

/// Larger numbers are drawn as this one, so that axes stay finite.
const HUGE: f64 = 1e100;
const DECADES_MAX: f64 = 12.0;
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// A linear axis with chosen ticks.
pub struct Places {
    pub range: Range<f64>,
    pub ticks: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// An axis with its range. Places on it are linear; values become places by [`Scale::at`].
pub struct Scale<'a> {
    axis: &'a Axis,
    /// The first and the last place.
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl<'a> Scale<'a> {
    /// An axis that shows all values, with about `ticks` labels.
    pub fn covering(axis: &'a Axis, values: impl IntoIterator<Item = f64>, ticks: usize) -> Scale<'a> {
        let usable = |v: &f64| v.is_finite() && (axis.kind != AxisKind::Log || *v > 1.0 / HUGE);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.into_iter().filter(usable) {
            let v = if v.abs() < 1.0 / HUGE { 0.0 } else { v.clamp(-HUGE, HUGE) };
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        let range = match axis.kind {
            AxisKind::Percentile => place(axis.kind, PERCENTILES[0])..place(axis.kind, PERCENTILES[4]),
            AxisKind::Log => {
                let high = high.log10();
                let low = low.log10().max(high - DECADES_MAX);
                // At least from 1 to 2.
                let room = (0.3 - (high - low)).max(0.1) / 2.0;
                low - room..high + room
            }
            AxisKind::Linear => widened(low.min(0.0), high.max(0.0), 0.0, 0.05),
            AxisKind::Close => widened(low, high, 0.05, 0.05),
        };
        let ticks = match axis.kind {
            AxisKind::Percentile => PERCENTILES.map(|p| place(axis.kind, p)).to_vec(),
            AxisKind::Log => log_ticks(&range, ticks),
            AxisKind::Linear | AxisKind::Close => RangedCoordf64::from(range.clone()).key_points(BoldPoints(ticks.max(2))),
        };
        Scale { axis, range, ticks }
    }

    /// The place of a value; one out of range is drawn at the edge.
    pub fn at(&self, value: f64) -> f64 {
        let at = place(self.axis.kind, value);
        if at.is_nan() { self.range.start } else { at.clamp(self.range.start, self.range.end) }
    }

    /// The axis as plotters wants it.
    pub fn places(&self) -> Places {
        Places { range: self.range.clone(), ticks: self.ticks.clone() }
    }

    pub fn first(&self) -> f64 {
        self.range.start
    }

    pub fn last(&self) -> f64 {
        self.range.end
    }

    pub fn middle(&self) -> f64 {
        f64::midpoint(self.range.start, self.range.end)
    }

    /// The divisor and the unit of the labels.
    fn unit(&self) -> (f64, &'static str) {
        match self.axis.kind {
            AxisKind::Log | AxisKind::Percentile => (1.0, self.axis.quantity.base_unit()),
            AxisKind::Linear | AxisKind::Close => self.axis.quantity.unit(self.range.start.abs().max(self.range.end.abs())),
        }
    }

    /// The name of the axis with the unit of its labels.
    pub fn title(&self) -> String {
        match self.unit().1 {
            "" => self.axis.label.clone(),
            unit => format!("{} ({unit})", self.axis.label),
        }
    }

    pub fn label(&self, at: f64) -> String {
        let divisor = self.unit().0;
        match self.axis.kind {
            AxisKind::Percentile => {
                PERCENTILES.iter().find(|p| (self.at(**p) - at).abs() < 1e-9).map_or(String::new(), |p| format!("p{p}"))
            }
            AxisKind::Log => short(10f64.powf(at)),
            AxisKind::Linear | AxisKind::Close => {
                let step = self.ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min) / divisor;
                let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize;
                match at / divisor {
                    shown if shown.abs() >= 10_000.0 => short(shown),
                    shown => format!("{:.decimals$}", shown + 0.0),
                }
            }
        }
    }

    pub fn label_width(&self) -> u32 {
        self.ticks.iter().map(|t| super::width_of(&self.label(*t))).max().unwrap_or(0)
    }
}

fn place(kind: AxisKind, value: f64) -> f64 {
    match kind {
        AxisKind::Linear | AxisKind::Close => value,
        AxisKind::Log => value.log10(),
        AxisKind::Percentile => -(1.0 - value / 100.0).log10(),
    }
}

/// A range with room at its ends, in shares of its length.
fn widened(low: f64, high: f64, below: f64, above: f64) -> Range<f64> {
    let length = match high - low {
        0.0 if low == 0.0 => 1.0,
        0.0 => low.abs() * 0.2,
        length => length,
    };
    low - length * below..low.max(high - length) + length * (1.0 + above)
}

/// 1, 2 and 5 in every decade, or whole decades, or fewer.
fn log_ticks(range: &Range<f64>, most: usize) -> Vec<f64> {
    let decades = |every: i32, mantissas: &[f64]| -> Vec<f64> {
        let all = (range.start.floor() as i32..=range.end.ceil() as i32).filter(|power| power.rem_euclid(every) == 0);
        let ticks = all.flat_map(|power| mantissas.iter().map(move |m| m.log10() + f64::from(power)));
        ticks.filter(|t| range.contains(t)).collect()
    };
    let fine = decades(1, &[1.0, 2.0, 5.0]);
    let coarse = (1..).map(|every| decades(every, &[1.0]));
    std::iter::once(fine).chain(coarse).find(|ticks| ticks.len() <= most.max(4)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::number::Quantity;

    #[test]
    fn values_have_their_place_and_so_do_impossible_ones() {
        let [log, linear, percentile] =
            [AxisKind::Log, AxisKind::Linear, AxisKind::Percentile].map(|kind| Axis::new(kind, Quantity::Count, "n"));
        let log = Scale::covering(&log, [1.0, 100.0], 6);
        let linear = Scale::covering(&linear, [10.0], 6);
        let percentile = Scale::covering(&percentile, [], 6);
        assert!((log.at(10.0) - log.middle()).abs() < 1e-9);
        assert_eq!((log.at(0.0), log.at(1e9), log.at(f64::NAN)), (log.range.start, log.last(), log.range.start));
        assert_eq!((linear.at(0.0), linear.at(f64::INFINITY)), (0.0, linear.last()));
        let step = |a: f64, b: f64| percentile.at(b) - percentile.at(a);
        assert!((step(90.0, 99.0) - step(99.0, 99.9)).abs() < 1e-9);
    }

    #[test]
    fn labels_are_short_and_tell_ticks_apart() {
        let labels = |kind, quantity, values: &[f64]| -> Vec<String> {
            let axis = Axis::new(kind, quantity, "n");
            let scale = Scale::covering(&axis, values.iter().copied(), 6);
            scale.ticks.iter().map(|t| scale.label(*t)).collect()
        };
        assert_eq!(labels(AxisKind::Log, Quantity::Count, &[1.0, 10_000.0]), ["1", "10", "100", "1k", "10k"]);
        assert_eq!(labels(AxisKind::Percentile, Quantity::Count, &[]), ["p50", "p90", "p99", "p99.9", "p99.99"]);
        let linear = labels(AxisKind::Linear, Quantity::Pps, &[0.0, 640_000.0]);
        assert!(linear.first().is_some_and(|l| l == "0") && linear.contains(&"600".to_owned()), "{linear:?}");
    }

    #[test]
    fn every_range_can_be_drawn() {
        for kind in [AxisKind::Linear, AxisKind::Close, AxisKind::Log] {
            let axis = Axis::new(kind, Quantity::Count, "n");
            for values in [[1e-300, 1e300], [0.0, f64::MAX], [-1e300, 1e300], [5e-324, 1.0], [3.0, 3.0], [-2.0, -2.0], [0.0, 0.0]] {
                let scale = Scale::covering(&axis, values, 6);
                assert!(scale.range.start < scale.range.end && scale.ticks.len() <= 13, "{kind:?} {values:?}: {:?}", scale.range);
                for v in values {
                    assert!((scale.range.start..=scale.range.end).contains(&scale.at(v)), "{kind:?} {values:?}");
                }
            }
        }
    }
}
