//! From values to places on a drawing, and which values to write at an axis.

/// How values are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Evenly, from zero: for lengths.
    Linear,
    /// Evenly, around the values: for places.
    Close,
    /// By the logarithm.
    Log,
    /// Percentiles by how rare their rest is, as HdrHistogram plots them: 90, 99, 99.9 are equally far apart.
    Percentile,
}

/// Decades of a log scale at the most; what is smaller is drawn at its edge.
const DECADES_MAX: f64 = 12.0;
/// Larger numbers are drawn as this one, and smaller than its inverse as none: scales stay finite.
const HUGE: f64 = 1e100;
/// Percentiles that an axis names.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// An axis: from a range of values to one of pixels.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scale {
    kind: Kind,
    /// Smallest value.
    pub low: f64,
    /// Largest value.
    pub high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// One that shows all of `values`, rounded outwards to "nice" numbers.
    pub fn covering(kind: Kind, values: impl IntoIterator<Item = f64>) -> Scale {
        let usable = |v: &f64| v.is_finite() && (kind != Kind::Log || *v > 1.0 / HUGE);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.into_iter().filter(usable) {
            let v = if v.abs() < 1.0 / HUGE { 0.0 } else { v.clamp(-HUGE, HUGE) };
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        let (low, high) = match kind {
            Kind::Percentile => (PERCENTILES[0], PERCENTILES[4]),
            Kind::Log => nice_log(low, high),
            Kind::Linear => nice_linear(low.min(0.0), high.max(0.0)),
            Kind::Close => nice_linear(low, high),
        };
        Scale { kind, low, high, from: 0.0, to: 1.0 }
    }

    /// The same, drawn between these two pixels.
    pub fn between(self, from: f64, to: f64) -> Scale {
        Scale { from, to, ..self }
    }

    /// Where a value is drawn; one out of range at the edge.
    pub fn at(&self, value: f64) -> f64 {
        let along = |v: f64| match self.kind {
            Kind::Linear | Kind::Close => v,
            Kind::Log => v.log10(),
            Kind::Percentile => -(1.0 - v / 100.0).log10(),
        };
        // Also what is not a number has a place, so that no drawing is broken by one.
        let value = if value.is_finite() { value.clamp(self.low, self.high) } else { self.low };
        let share = (along(value) - along(self.low)) / (along(self.high) - along(self.low));
        self.from + share * (self.to - self.from)
    }

    /// At most about `most` (four or more) values to write at the axis.
    pub fn ticks(&self, most: usize) -> Vec<f64> {
        match self.kind {
            Kind::Linear | Kind::Close => {
                let step = nice_step((self.high - self.low) / most.max(1) as f64);
                let first = (self.low / step - 1e-9).ceil();
                let count = ((self.high / step + 1e-9).floor() - first) as usize;
                (0..=count).map(|i| (first + i as f64) * step).collect()
            }
            Kind::Percentile => PERCENTILES.to_vec(),
            Kind::Log => {
                let fine = log_ticks(self.low, self.high, &[1.0, 2.0, 5.0], 1);
                let coarser = (1..).map(|every| log_ticks(self.low, self.high, &[1.0], every));
                std::iter::once(fine).chain(coarser).find(|ticks| ticks.len() <= most.max(4)).unwrap_or_default()
            }
        }
    }

    /// Decimals that tell the ticks of a linear axis apart, if values are shown divided by `divisor`.
    pub fn decimals(&self, most: usize, divisor: f64) -> usize {
        let step = nice_step((self.high - self.low) / most.max(1) as f64) / divisor;
        (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `rough`.
fn nice_step(rough: f64) -> f64 {
    if !(rough.is_finite() && rough > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * (1.0 - 1e-9)).unwrap_or(power * 10.0)
}

fn nice_linear(low: f64, high: f64) -> (f64, f64) {
    // A range of nothing is made one around it.
    let (low, high) = match low == high {
        true if low == 0.0 => (0.0, 1.0),
        true => (low - low.abs() * 0.1, high + high.abs() * 0.1),
        false => (low, high),
    };
    let step = nice_step((high - low) / 5.0);
    ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step)
}

/// Outwards to 1, 2 or 5 times a power of ten, a factor of five at least.
fn nice_log(low: f64, high: f64) -> (f64, f64) {
    let low = low.max(high / 10f64.powf(DECADES_MAX));
    let high = nice_step(high);
    let power = 10f64.powf((low.log10() + 1e-9).floor());
    let low = [5.0, 2.0, 1.0].into_iter().map(|m| m * power).find(|v| *v <= low * (1.0 + 1e-9)).unwrap_or(power);
    if high / low < 4.99 { (low, low * if low.log10().fract() == 0.0 { 10.0 } else { 5.0 }) } else { (low, high) }
}

fn log_ticks(low: f64, high: f64, mantissas: &[f64], every: i32) -> Vec<f64> {
    let (first, last) = ((low.log10() + 1e-9).floor() as i32, (high.log10() + 1e-9).floor() as i32);
    (first..=last)
        .filter(|power| power.rem_euclid(every) == 0)
        .flat_map(|power| mantissas.iter().map(move |m| m * 10f64.powi(power)))
        .filter(|v| *v >= low * (1.0 - 1e-9) && *v <= high * (1.0 + 1e-9))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_ticks_are_nice() {
        type Case<'c> = (Kind, &'c [f64], (f64, f64), usize, &'c [f64]);
        let cases: [Case<'_>; 10] = [
            (Kind::Linear, &[0.3, 1.24], (0.0, 1.5), 4, &[0.0, 0.5, 1.0, 1.5]),
            (Kind::Linear, &[], (0.0, 1.0), 5, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (Kind::Linear, &[0.0], (0.0, 1.0), 4, &[0.0, 0.5, 1.0]),
            (Kind::Linear, &[-3.0, 7.0, f64::NAN], (-4.0, 8.0), 5, &[0.0, 5.0]),
            (Kind::Close, &[0.93, 1.06], (0.90, 1.10), 4, &[0.9, 0.95, 1.0, 1.05, 1.1]),
            (Kind::Log, &[1.0, 10_000.0], (1.0, 10_000.0), 6, &[1.0, 10.0, 100.0, 1_000.0, 10_000.0]),
            (Kind::Log, &[30.0, 90.0, -1.0, 0.0], (20.0, 100.0), 6, &[20.0, 50.0, 100.0]),
            (Kind::Log, &[7.0], (5.0, 25.0), 4, &[5.0, 10.0, 20.0]),
            (Kind::Log, &[1e-3, 1e9], (1e-3, 1e9), 7, &[1e-2, 1.0, 1e2, 1e4, 1e6, 1e8]),
            (Kind::Percentile, &[], (50.0, 99.99), 3, &[50.0, 90.0, 99.0, 99.9, 99.99]),
        ];
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1e-6);
        for (kind, values, (low, high), most, ticks) in cases {
            let scale = Scale::covering(kind, values.iter().copied());
            assert!(near(scale.low, low) && near(scale.high, high), "{kind:?} {values:?}: {scale:?}");
            let found = scale.ticks(most);
            assert!(found.len() == ticks.len() && found.iter().zip(ticks).all(|(a, b)| near(*a, *b)), "{kind:?} {values:?}: {found:?}");
        }
    }

    #[test]
    fn values_have_their_place_also_impossible_ones() {
        let log = Scale::covering(Kind::Log, [1.0, 100.0]).between(0.0, 200.0);
        let linear = Scale::covering(Kind::Linear, [10.0]).between(100.0, 0.0);
        let percentile = Scale::covering(Kind::Percentile, []).between(0.0, 1.0);
        for (scale, value, place) in [
            (log, 10.0, 100.0),
            (log, 0.0, 0.0),
            (log, 1e9, 200.0),
            (log, f64::NAN, 0.0),
            (linear, 0.0, 100.0),
            (linear, 2.5, 75.0),
            (linear, f64::INFINITY, 100.0),
            (percentile, 99.99, 1.0),
        ] {
            assert!((scale.at(value) - place).abs() < 1e-9, "{scale:?} {value}: {}", scale.at(value));
        }
        let step = |a: f64, b: f64| percentile.at(b) - percentile.at(a);
        assert!((step(90.0, 99.0) - step(99.0, 99.9)).abs() < 1e-9);
    }

    #[test]
    fn every_range_can_be_drawn() {
        for kind in [Kind::Linear, Kind::Close, Kind::Log] {
            for values in [[1e-300, 1e300], [0.0, f64::MAX], [-1e300, 1e300], [5e-324, 1.0], [3.0, 3.0], [-2.0, -2.0]] {
                let scale = Scale::covering(kind, values).between(0.0, 100.0);
                assert!(scale.ticks(6).len() <= 13, "{kind:?} {values:?}: {:?}", scale.ticks(6));
                for v in values {
                    assert!((0.0..=100.0).contains(&scale.at(v)), "{kind:?} {values:?}: {scale:?} {}", scale.at(v));
                }
            }
        }
    }
}
