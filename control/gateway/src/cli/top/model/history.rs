//! How full the tables were during the last minute, and when they will be full at this rate.

use std::collections::VecDeque;

use nomagic_api::Status;

/// How far a forecast looks back.
const WINDOW_NS: u64 = 60_000_000_000;
/// Maximum number of samples kept.
const SAMPLES_MAX: usize = 1_024;
/// A shorter time says nothing.
const SPAN_MIN_S: f64 = 5.0;
const SAMPLES_MIN: usize = 3;
/// The part of the variance that a straight line explains at least: what only goes up and down does not grow.
const FIT_MIN: f64 = 0.5;
/// Later than that, the forecast says nothing.
const FORECAST_MAX_S: f64 = 7.0 * 86_400.0;

/// A table with a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limited {
    Connections,
    ReplyFilter,
    SnatEndpoint,
    SnatClient,
    SnatService,
    DenyList,
}

impl Limited {
    pub const ALL: [Limited; 6] =
        [Limited::Connections, Limited::ReplyFilter, Limited::SnatEndpoint, Limited::SnatClient, Limited::SnatService, Limited::DenyList];

    pub fn name(self) -> &'static str {
        match self {
            Limited::Connections => "connections",
            Limited::ReplyFilter => "reply filter entries",
            Limited::SnatEndpoint => "SNAT ports to the fullest endpoint",
            Limited::SnatClient => "SNAT ports of one client",
            Limited::SnatService => "SNAT ports of one Service",
            Limited::DenyList => "denied prefixes",
        }
    }

    /// The number of used places, and of all.
    pub fn fill(self, status: &Status) -> (u64, u64) {
        let Status { conntrack, replies, snat, deny, .. } = status;
        match self {
            Limited::Connections => (conntrack.live, conntrack.capacity.into()),
            Limited::ReplyFilter => (replies.announced, replies.capacity),
            Limited::SnatEndpoint => (snat.fullest_endpoint, snat.ports),
            Limited::SnatClient => (snat.largest_client_share, snat.client_share_max),
            Limited::SnatService => (snat.largest_service_share, snat.service_share_max),
            Limited::DenyList => (deny.prefixes as u64, deny.prefixes_max as u64),
        }
    }
}

/// The last minute.
#[derive(Default, Debug)]
pub struct History {
    samples: VecDeque<(u64, [u64; Limited::ALL.len()])>,
}

impl History {
    pub fn push(&mut self, at_ns: u64, status: &Status) {
        self.samples.push_back((at_ns, Limited::ALL.map(|table| table.fill(status).0)));
        while self.samples.len() > SAMPLES_MAX || self.samples.front().is_some_and(|(at, _)| at + WINDOW_NS < at_ns) {
            self.samples.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// By how much a table grows a second; `None` if too little was seen, or if it only goes up and down.
    pub fn slope(&self, table: Limited) -> Option<f64> {
        let (first, _) = self.samples.front()?;
        let points: Vec<(f64, f64)> =
            self.samples.iter().map(|(at, used)| ((at - first) as f64 / 1e9, used[table as usize] as f64)).collect();
        if points.len() < SAMPLES_MIN || points.last()?.0 < SPAN_MIN_S {
            return None;
        }
        let (slope, fit) = line(&points);
        (fit >= FIT_MIN).then_some(slope)
    }

    /// Seconds until the table is full; `None` if it does not grow.
    pub fn full_in_s(&self, table: Limited, status: &Status) -> Option<f64> {
        let (used, capacity) = table.fill(status);
        let slope = self.slope(table).filter(|slope| *slope > 0.0)?;
        Some(capacity.saturating_sub(used) as f64 / slope).filter(|seconds| *seconds <= FORECAST_MAX_S)
    }
}

/// The slope of the straight line with the least squares, and the part of the variance that it explains.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>();
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    if xx == 0.0 || yy == 0.0 {
        // It did not move: that is exact.
        return (0.0, 1.0);
    }
    (xy / xx, xy * xy / (xx * yy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::Conntrack;

    fn status(live: u64) -> Status {
        Status { conntrack: Conntrack { live, capacity: 1_000, ..Conntrack::default() }, ..Status::default() }
    }

    fn history(of_second: impl Fn(u64) -> u64, seconds: u64) -> History {
        let mut history = History::default();
        (0..=seconds).for_each(|s| history.push(s * 1_000_000_000, &status(of_second(s))));
        history
    }

    #[test]
    fn a_table_that_grows_will_be_full() {
        let grows = history(|s| 100 + 2 * s, 60);
        assert_eq!(grows.full_in_s(Limited::Connections, &status(220)), Some(390.0));
        assert_eq!(grows.full_in_s(Limited::ReplyFilter, &status(220)), None, "another table does not grow");
        assert_eq!(grows.full_in_s(Limited::Connections, &status(1_000)), Some(0.0));
    }

    #[test]
    fn nothing_is_said_of_a_table_that_does_not_grow() {
        let shrinks = history(|s| 900 - 2 * s, 60);
        assert_eq!(shrinks.full_in_s(Limited::Connections, &status(780)), None);
        assert!((shrinks.slope(Limited::Connections).unwrap() + 2.0).abs() < 1e-9);
        let waves = history(|s| [500, 520, 490, 515][(s % 4) as usize], 60);
        assert_eq!(waves.full_in_s(Limited::Connections, &status(500)), None);
        assert_eq!(history(|_| 5, 60).full_in_s(Limited::Connections, &status(5)), None);
        assert_eq!(history(|s| s, 3).full_in_s(Limited::Connections, &status(3)), None, "too short");
        let slow = history(|s| s / 60, 60);
        assert_eq!(slow.full_in_s(Limited::Connections, &status(1)), None, "a step is no line");
    }

    #[test]
    fn only_the_last_minute_counts() {
        let mut history = history(|s| 10 * s, 60);
        (61..=130).for_each(|s| history.push(s * 1_000_000_000, &status(600)));
        assert_eq!((history.slope(Limited::Connections), history.samples.len()), (Some(0.0), 61));
        history.clear();
        assert_eq!(history.slope(Limited::Connections), None);
        (0..5_000).for_each(|i| history.push(i, &status(i)));
        assert_eq!(history.samples.len(), SAMPLES_MAX);
    }
}
