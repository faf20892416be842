//! Numbers for readers: three significant digits, a unit, separated thousands.

use crate::results::Estimate;

/// The kind of a number, which decides its unit and its format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quantity {
    /// Frames a second.
    Pps,
    /// Other events a second.
    PerSecond,
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    Ratio,
    /// 0 to 1, shown in percent.
    Share,
    Count,
}

/// Larger values are shown with an exponent.
const HUGE: f64 = 1e15;

impl Quantity {
    /// The divisor and the unit in which values up to `most` are shown.
    pub fn unit(self, most: f64) -> (f64, &'static str) {
        let steps: &[(f64, &str)] = match self {
            Quantity::Pps => &[(1e6, "Mpps"), (1e3, "kpps"), (1.0, "pps")],
            Quantity::PerSecond => &[(1.0, "/s")],
            Quantity::Ns => &[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")],
            Quantity::Us => &[(1e6, "s"), (1e3, "ms"), (1.0, "us")],
            Quantity::Ms => &[(1e3, "s"), (1.0, "ms"), (1e-3, "us")],
            Quantity::Ratio | Quantity::Count => &[(1.0, "")],
            Quantity::Share => &[(0.01, "%")],
        };
        // 999.9 thousand rounds to a million, and is shown as one. Zero has the plain unit.
        let rounded = most.abs() * 1.0005;
        let plain = steps.iter().find(|s| s.0 == 1.0).or(steps.last());
        let fitting = if rounded == 0.0 { plain } else { steps.iter().find(|s| rounded >= s.0).or(steps.last()) };
        fitting.copied().unwrap_or((1.0, ""))
    }

    /// The unit of stored values, for scripts and log axes.
    pub fn base_unit(self) -> &'static str {
        match self {
            Quantity::Pps => "pps",
            Quantity::PerSecond => "/s",
            Quantity::Ns => "ns",
            Quantity::Us => "us",
            Quantity::Ms => "ms",
            Quantity::Ratio | Quantity::Share | Quantity::Count => "",
        }
    }

    /// "1.24 Mpps", "35.0 us", "0.980", "99.2 %".
    pub fn show(self, value: f64) -> String {
        let (divisor, unit) = self.unit(value);
        let number = match self {
            Quantity::Count | Quantity::PerSecond => grouped(value),
            _ => significant(value / divisor),
        };
        if unit.is_empty() { number } else { format!("{number} {unit}") }
    }

    /// The interval in the median's unit and with its digits: "1.20 to 1.27".
    pub fn interval(self, e: &Estimate) -> String {
        let (divisor, _) = self.unit(e.median);
        let digits = decimals(e.median / divisor);
        let end = |v: f64| match self {
            Quantity::Count | Quantity::PerSecond => grouped(v),
            _ => fixed(v / divisor, digits),
        };
        format!("{} to {}", end(e.low), end(e.high))
    }

    /// Median and interval: "1.24 Mpps (1.20 to 1.27)"; a single value has no interval.
    pub fn estimate(self, e: &Estimate) -> String {
        if e.n > 1 { format!("{} ({})", self.show(e.median), self.interval(e)) } else { self.show(e.median) }
    }
}

/// Decimals that leave three significant digits, at most three.
fn decimals(value: f64) -> usize {
    let magnitude = value.abs() * 1.0005;
    if magnitude == 0.0 { 0 } else { (2 - magnitude.log10().floor() as i32).clamp(0, 3) as usize }
}

fn fixed(value: f64, decimals: usize) -> String {
    if value.abs() >= HUGE {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.decimals$}");
    if text.starts_with('-') && text.trim_start_matches(['-', '0', '.']).is_empty() { text[1..].into() } else { text }
}

pub fn significant(value: f64) -> String {
    fixed(value, decimals(value))
}

/// A whole number with separated thousands: "1,234,567".
pub fn grouped(value: f64) -> String {
    let text = fixed(value, 0);
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return text;
    }
    let mut out = String::from(sign);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A label of a log axis: "0.1", "20", "5k", "1M".
pub fn short(value: f64) -> String {
    let trim = |v: f64| {
        let text = format!("{v:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        v if v >= 1e12 || (v > 0.0 && v < 1e-3) => format!("{value:.0e}"),
        v if v >= 1e9 => trim(value / 1e9) + "G",
        v if v >= 1e6 => trim(value / 1e6) + "M",
        v if v >= 1e3 => trim(value / 1e3) + "k",
        _ => trim(value),
    }
}

/// A duration: "45 s", "2 h 05 min".
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_people_write_them() {
        for (quantity, value, text) in [
            (Quantity::Pps, 1_240_000.0, "1.24 Mpps"),
            (Quantity::Pps, 999_900.0, "1.00 Mpps"),
            (Quantity::Pps, 61_400.0, "61.4 kpps"),
            (Quantity::Pps, 0.0, "0 pps"),
            (Quantity::Us, 35.04, "35.0 us"),
            (Quantity::Us, 1_250.0, "1.25 ms"),
            (Quantity::Ms, 0.25, "250 us"),
            (Quantity::Ms, 0.0, "0 ms"),
            (Quantity::Ms, 12_500.0, "12.5 s"),
            (Quantity::Ns, 42.42, "42.4 ns"),
            (Quantity::Ratio, 0.9804, "0.980"),
            (Quantity::Ratio, 12.345, "12.3"),
            (Quantity::Share, 0.9921, "99.2 %"),
            (Quantity::Share, 1.0, "100 %"),
            (Quantity::Share, -0.000_001, "0.000 %"),
            (Quantity::PerSecond, 12_345.6, "12,346 /s"),
            (Quantity::Count, 1_234_567.0, "1,234,567"),
            (Quantity::Count, -1_234.0, "-1,234"),
            (Quantity::Ratio, 1e300, "1.00e300"),
        ] {
            assert_eq!(quantity.show(value), text, "{quantity:?} {value}");
        }
    }

    #[test]
    fn an_interval_has_the_median_s_unit_and_digits() {
        let e = Estimate { median: 1_240_000.0, low: 998_000.0, high: 1_300_400.0, n: 10 };
        assert_eq!(Quantity::Pps.estimate(&e), "1.24 Mpps (1.00 to 1.30)");
        assert_eq!(Quantity::Pps.estimate(&Estimate::single(5.0)), "5.00 pps");
    }

    #[test]
    fn places_on_log_axes_and_times_are_short() {
        let labels: Vec<String> = [0.02, 1.0, 500.0, 2e3, 1e6, 5e9, 1e13, 1e-5].into_iter().map(short).collect();
        assert_eq!(labels, ["0.02", "1", "500", "2k", "1M", "5G", "1e13", "1e-5"]);
        assert_eq!([duration(59), duration(150), duration(7500)], ["59 s", "2 min 30 s", "2 h 05 min"]);
    }
}
