//! Times of the workers' clock as times of day.

use std::time::{SystemTime, UNIX_EPOCH};

use nomagic_sys::time::monotonic_ns;

/// How far CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, as of one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    ahead_ns: u64,
}

impl WallClock {
    pub fn now() -> WallClock {
        let realtime_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        WallClock { ahead_ns: realtime_ns.saturating_sub(monotonic_ns()) }
    }

    /// Nanoseconds since 1970.
    pub fn unix_ns(self, monotonic_ns: u64) -> u64 {
        self.ahead_ns.saturating_add(monotonic_ns)
    }

    /// RFC 3339 in UTC, with milliseconds.
    pub fn time(self, monotonic_ns: u64) -> String {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.unix_ns(monotonic_ns)));
        time.map_or_else(|_| String::new(), |time| format!("{time:.3}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_have_milliseconds() {
        let clock = WallClock { ahead_ns: 1_790_000_000_000_000_000 };
        assert_eq!(clock.time(7_000_000), "2026-09-21T14:13:20.007Z");
        assert_eq!(WallClock { ahead_ns: u64::MAX }.unix_ns(5), u64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(WallClock::now().unix_ns(monotonic_ns()).abs_diff(now) < 1_000_000_000);
    }
}
