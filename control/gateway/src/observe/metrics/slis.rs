//! `/metrics/slis`: the results of health checks, in the format of all Kubernetes components (KEP-3466, component-base `metrics/slis`).
//!
//! A check appears after its first run; the names are those of [`crate::observe::health::Health::checks`].

use std::collections::BTreeMap;

use super::Exposition;
use super::exposition::MetricType::{Counter, Gauge};

#[derive(Clone, Copy, Default, Debug)]
struct CheckResults {
    good_now: bool,
    good: u64,
    bad: u64,
}

/// The results of all checks, by name and endpoint (`healthz`, `livez`); both sets are small and fixed.
#[derive(Clone, Default, Debug)]
pub struct Slis {
    checks: BTreeMap<(&'static str, &'static str), CheckResults>,
}

impl Slis {
    /// Records the results of the checks for one request to `kind` (`healthz` or `livez`).
    pub fn observe(&mut self, kind: &'static str, checks: impl IntoIterator<Item = (&'static str, bool)>) {
        for (name, good) in checks {
            let results = self.checks.entry((name, kind)).or_default();
            results.good_now = good;
            *if good { &mut results.good } else { &mut results.bad } += 1;
        }
    }

    pub fn write(&self, out: &mut Exposition) {
        let name = "kubernetes_healthcheck";
        out.begin(name, Gauge, "[STABLE] This metric records the result of a single healthcheck.");
        for ((check, kind), results) in &self.checks {
            out.sample(name, &[("name", check), ("type", kind)], u8::from(results.good_now));
        }
        let name = "kubernetes_healthchecks_total";
        out.begin(name, Counter, "[STABLE] This metric records the results of all healthcheck.");
        for ((check, kind), results) in &self.checks {
            for (status, n) in [("error", results.bad), ("success", results.good)] {
                // Like Prometheus' client libraries: a label value that never occurred has no series.
                if n > 0 {
                    out.sample(name, &[("name", check), ("status", status), ("type", kind)], n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_result_and_totals_are_exposed() {
        let mut slis = Slis::default();
        slis.observe("livez", [("a", true)]);
        slis.observe("healthz", [("a", true), ("b", false)]);
        slis.observe("healthz", [("a", false), ("b", false)]);
        let mut out = Exposition::default();
        slis.write(&mut out);
        let text = out.finish();
        let samples: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "kubernetes_healthcheck{name=\"a\",type=\"healthz\"} 0",
                "kubernetes_healthcheck{name=\"a\",type=\"livez\"} 1",
                "kubernetes_healthcheck{name=\"b\",type=\"healthz\"} 0",
                "kubernetes_healthchecks_total{name=\"a\",status=\"error\",type=\"healthz\"} 1",
                "kubernetes_healthchecks_total{name=\"a\",status=\"success\",type=\"healthz\"} 1",
                "kubernetes_healthchecks_total{name=\"a\",status=\"success\",type=\"livez\"} 1",
                "kubernetes_healthchecks_total{name=\"b\",status=\"error\",type=\"healthz\"} 2",
            ]
        );
    }
}
