//! Exponential backoff with jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delay doubles from `min` to `max`.
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

    /// The delay after one more failure: 50 to 100 % of the current one, and at least `retry_after`.
    pub(crate) fn pause(&mut self, retry_after: Option<Duration>) -> Duration {
        let full = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let jittered = half + half.mul_f64(random());
        jittered.max(retry_after.unwrap_or_default().min(self.max))
    }

    /// After a success: the next failure counts as the first one.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number from 0 to 1, from the random seeds of the standard library's hash tables.
pub(super) fn random() -> f64 {
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
        assert_eq!(backoff.pause(Some(Duration::from_secs(1))), Duration::from_secs(1), "the server's Retry-After");
        assert!(backoff.pause(Some(Duration::from_secs(1_000))) <= max, "within limits");
    }
}
