//! How long frames stay in a worker: from the moment when it takes them off a ring until the kernel has been told to send them. Sampled, since two
//! looks at the clock for each frame would cost more than most else.

use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use nomagic_sys::time::monotonic_ns;

/// One frame in so many is timed.
const SAMPLE_EVERY: usize = 1_024;
/// Longest time that is told apart, nanoseconds.
const LONGEST_NS: u64 = 10_000_000_000;
/// Significant decimal digits.
const DIGITS: u8 = 2;

/// Times of a worker's sampled frames, since its start.
#[derive(Debug)]
pub(crate) struct Latencies(Mutex<Option<Times>>);

#[derive(Debug)]
struct Times {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

/// A summary of the times.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Latency {
    /// Number of timed frames.
    pub samples: u64,
    pub sum_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
    /// Frames within each of [`Latency::BOUNDS_NS`], cumulative.
    pub within: Vec<u64>,
}

impl Latency {
    /// Upper bounds for metrics: each four times the one before.
    pub const BOUNDS_NS: [u64; 11] = {
        let (mut bounds, mut at) = ([1_000; 11], 1);
        while at < bounds.len() {
            bounds[at] = bounds[at - 1] * 4;
            at += 1;
        }
        bounds
    };
}

impl Default for Latencies {
    fn default() -> Latencies {
        // Cannot fail: the bounds are constants that fit.
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).ok();
        Latencies(Mutex::new(histogram.map(|histogram| Times { histogram, sum_ns: 0 })))
    }
}

impl Latencies {
    /// Called by the worker only. It never waits: while a reader looks, a sample is not recorded.
    fn record(&self, ns: u64) {
        if let Ok(mut times) = self.0.try_lock()
            && let Some(times) = times.as_mut()
        {
            times.histogram.saturating_record(ns);
            times.sum_ns = times.sum_ns.saturating_add(ns);
        }
    }

    pub fn read(&self) -> Latency {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Times { histogram: times, sum_ns }) = times.as_ref() else { return Latency::default() };
        Latency {
            samples: times.len(),
            sum_ns: *sum_ns,
            p50_ns: times.value_at_quantile(0.5),
            p99_ns: times.value_at_quantile(0.99),
            p999_ns: times.value_at_quantile(0.999),
            max_ns: times.max(),
            within: Latency::BOUNDS_NS.iter().map(|bound| times.count_between(0, *bound)).collect(),
        }
    }
}

/// Chooses the frames that a worker times.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// Frames until the next one.
    left: usize,
    /// When the frame that is timed was received.
    since_ns: Option<u64>,
}

impl Default for Sampler {
    fn default() -> Sampler {
        // The first frame of all tells more about the start than about the traffic.
        Sampler { left: SAMPLE_EVERY, since_ns: None }
    }
}

impl Sampler {
    /// So many frames were received just now.
    #[inline]
    pub fn received(&mut self, frames: usize) {
        if frames < self.left {
            self.left -= frames;
            return;
        }
        self.left = SAMPLE_EVERY;
        self.since_ns = Some(monotonic_ns());
    }

    /// All that was received has been sent, as far as it goes.
    #[inline]
    pub fn sent(&mut self, latencies: &Latencies) {
        if let Some(since_ns) = self.since_ns.take() {
            latencies.record(monotonic_ns().saturating_sub(since_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_in_so_many_is_timed() {
        let (mut sampler, latencies) = (Sampler::default(), Latencies::default());
        for _ in 0..1_000 {
            sampler.received(64);
            sampler.sent(&latencies);
        }
        // The frames beyond a sample's place in its batch are left out, so they are a few fewer.
        let samples = latencies.read().samples;
        assert_eq!(samples, 1_000 * 64 / SAMPLE_EVERY as u64);
        sampler.sent(&latencies);
        assert_eq!(latencies.read().samples, samples, "no frame, no time");
    }

    #[test]
    fn times_are_summed_up() {
        let latencies = Latencies::default();
        (1..=1_000).for_each(|n| latencies.record(n * 1_000));
        latencies.record(u64::MAX);
        let read = latencies.read();
        assert_eq!((read.samples, read.within[0], read.within[5]), (1_001, 1, 1_000));
        assert!(read.p50_ns.abs_diff(500_000) < 10_000 && read.p99_ns.abs_diff(990_000) < 20_000, "{read:?}");
        assert!(read.max_ns >= LONGEST_NS && read.within.is_sorted(), "{read:?}");
        assert_eq!(Latency::BOUNDS_NS[10], 1_048_576_000);
    }
}
