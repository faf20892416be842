//! How long to wait before the next attempt: longer each time, and never in step with other gateways.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubles from `min` to `max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, failures: 0 }
    }

    /// The pause after one more failure: between half of it and all of it by chance, and not less than the server asks for.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let full = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let jittered = half + half.mul_f64(chance());
        jittered.max(asked.unwrap_or_default().min(self.max))
    }

    /// It works: the next failure is the first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number from 0 to 1 that nobody guesses: the standard library seeds its hash tables at random.
pub(super) fn chance() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        for full in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let pause = backoff.pause(None).as_millis();
            assert!((full / 2..=full).contains(&pause), "{pause} of {full}");
        }
        (0..100).for_each(|_| assert!(backoff.pause(None) <= max));
        let first: Vec<Duration> = (0..20).map(|_| Backoff::new(min, max).pause(None)).collect();
        assert!(first.iter().any(|p| *p != first[0]), "{first:?}");
        backoff.reset();
        assert!(backoff.pause(None) <= min);
        assert_eq!(backoff.pause(Some(Duration::from_secs(1))), Duration::from_secs(1), "the server's wish");
        assert!(backoff.pause(Some(Duration::from_secs(1_000))) <= max, "within limits");
    }
}
