//! Histograms.

use super::Exposition;

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending, without +Inf.
    bounds: Vec<f64>,
    /// Per bucket, not cumulative; the last is +Inf.
    counts: Vec<u64>,
    sum_s: f64,
}

impl Histogram {
    /// Creates a histogram with these upper bounds in seconds.
    pub fn new(bounds: Vec<f64>) -> Histogram {
        Histogram { counts: vec![0; bounds.len() + 1], bounds, sum_s: 0.0 }
    }

    /// Counts a duration in seconds. Negative ones (after a clock step) count as 0.
    pub fn observe(&mut self, seconds: f64) {
        let seconds = seconds.max(0.0);
        let bucket = self.bounds.partition_point(|&b| b < seconds);
        self.counts[bucket] += 1;
        self.sum_s += seconds;
    }

    /// Writes the samples under a name and one label.
    pub fn write(&self, out: &mut Exposition, name: &str, label: (&str, &str)) {
        let (bucket, mut so_far) = (format!("{name}_bucket"), 0);
        for (i, count) in self.counts.iter().enumerate() {
            so_far += count;
            let end = self.bounds.get(i).map_or("+Inf".into(), f64::to_string);
            out.sample(&bucket, &[label, ("le", &end)], so_far);
        }
        out.sample(&format!("{name}_sum"), &[label], self.sum_s);
        out.sample(&format!("{name}_count"), &[label], so_far);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_bounds_are_inclusive() {
        let mut h = Histogram::new(vec![0.5, 1.0]);
        [-3.0, 0.5, 0.75, 1.0, 2.0].into_iter().for_each(|s| h.observe(s));
        let mut out = Exposition::default();
        h.write(&mut out, "x", ("f", "4"));
        assert_eq!(
            out.finish(),
            "x_bucket{f=\"4\",le=\"0.5\"} 2\nx_bucket{f=\"4\",le=\"1\"} 4\nx_bucket{f=\"4\",le=\"+Inf\"} 5\nx_sum{f=\"4\"} 4.25\nx_count{f=\"4\"} 5\n"
        );
    }
}
