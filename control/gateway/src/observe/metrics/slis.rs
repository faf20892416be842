//! `/metrics/slis`: how health was when it was asked for, as every Kubernetes component says it (KEP-3466, component-base `metrics/slis`).
//!
//! A check appears once it was made; the names are [`crate::observe::health::Health::checks`]'.

use std::collections::BTreeMap;

use super::Exposition;
use super::exposition::Kind::{Counter, Gauge};

/// One check's results.
#[derive(Clone, Copy, Default, Debug)]
struct Results {
    good_now: bool,
    good: u64,
    bad: u64,
}

/// The results of all checks, by name and by what asked (`healthz`, `livez`). Both come from short lists.
#[derive(Clone, Default, Debug)]
pub struct Slis {
    checks: BTreeMap<(&'static str, &'static str), Results>,
}

impl Slis {
    /// Somebody asked (`kind`: `healthz` or `livez`), and this is how the checks came out.
    pub fn observe(&mut self, kind: &'static str, checks: impl IntoIterator<Item = (&'static str, bool)>) {
        for (name, good) in checks {
            let results = self.checks.entry((name, kind)).or_default();
            results.good_now = good;
            *if good { &mut results.good } else { &mut results.bad } += 1;
        }
    }

    /// As text.
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
                // As a client library has it: what never happened has no series.
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
    fn the_last_result_and_all_of_them() {
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
