//! Rate control: a token bucket over time.

/// The most traffic to catch up with after a pause, in nanoseconds.
const CATCH_UP_NS: u64 = 1_000_000;
/// The smallest burst limit, in frames.
const BURST_MIN: f64 = 32.0;
const SECOND_NS: f64 = 1e9;

/// Tells how many frames may be sent now.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// Frames a nanosecond.
    rate: f64,
    tokens: f64,
    burst: f64,
    last_ns: u64,
    forgone: f64,
}

impl Pacer {
    /// Paces `pps` frames a second from `now_ns` on.
    pub fn new(pps: u64, now_ns: u64) -> Pacer {
        let rate = pps as f64 / SECOND_NS;
        Pacer { rate, tokens: 0.0, burst: (rate * CATCH_UP_NS as f64).max(BURST_MIN), last_ns: now_ns, forgone: 0.0 }
    }

    /// How many of `wanted` frames may be sent at `now_ns`.
    pub fn take(&mut self, now_ns: u64, wanted: u32) -> u32 {
        self.tokens += now_ns.saturating_sub(self.last_ns) as f64 * self.rate;
        self.last_ns = self.last_ns.max(now_ns);
        if self.tokens > self.burst {
            self.forgone += self.tokens - self.burst;
            self.tokens = self.burst;
        }
        let taken = (self.tokens as u32).min(wanted);
        self.tokens -= f64::from(taken);
        taken
    }

    /// Returns frames that could not be sent.
    pub fn give_back(&mut self, frames: u32) {
        self.tokens += f64::from(frames);
    }

    /// Nanoseconds until the next frame may be sent.
    pub fn wait_ns(&self) -> u64 {
        ((1.0 - self.tokens).max(0.0) / self.rate).ceil() as u64
    }

    /// Frames that were due and never sent, because the generator was late.
    pub fn forgone(&self) -> u64 {
        self.forgone as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_exactly_over_time() {
        for pps in [1, 999, 50_000, 14_880_952] {
            let mut pacer = Pacer::new(pps, 1_000);
            let step = (1_000_000_000 / pps / 3).clamp(1, 500_000);
            let sent: u64 = (1..=2_000_000_000 / step).map(|n| u64::from(pacer.take(1_000 + n * step, u32::MAX))).sum();
            assert!(sent.abs_diff(pps * 2) <= 1, "{pps}: {sent}");
            assert_eq!(pacer.forgone(), 0);
        }
    }

    #[test]
    fn a_pause_is_caught_up_for_a_millisecond_only() {
        let mut pacer = Pacer::new(1_000_000, 0);
        assert_eq!(pacer.take(500_000, u32::MAX), 500);
        assert_eq!(pacer.take(100_500_000, u32::MAX), 1_000);
        assert_eq!(pacer.forgone(), 99_000);
        assert_eq!(pacer.take(100_500_000, u32::MAX), 0);
    }

    #[test]
    fn what_is_not_wanted_stays() {
        let mut pacer = Pacer::new(1_000_000, 0);
        assert_eq!(pacer.take(100_000, 64), 64);
        assert_eq!(pacer.take(100_000, 64), 36);
        assert_eq!(pacer.wait_ns(), 1_000);
        pacer.give_back(5);
        assert_eq!((pacer.wait_ns(), pacer.take(100_000, 64)), (0, 5));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut pacer = Pacer::new(1_000_000, 1_000_000);
        assert_eq!(pacer.take(0, 10), 0);
        assert_eq!(pacer.take(1_010_000, 20), 10);
    }
}
