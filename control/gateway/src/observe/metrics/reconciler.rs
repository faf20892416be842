//! kube-proxy's conntrack reconciler metrics (`pkg/proxy/metrics/metrics.go`): connections ended because their endpoint was removed.

use std::time::Duration;

use super::Exposition;
use super::exposition::MetricType::{Counter, Histogram as Buckets};
use super::histogram::Histogram;
use crate::observe::health::FAMILIES;

/// Totals of [`crate::reconcile`].
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// Complete walks over the connection table.
    pub walks: u64,
    /// Connections ended, by family.
    pub ended: [u64; 2],
    took: Histogram,
}

impl Default for Reconciled {
    fn default() -> Reconciled {
        let took = Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)).collect());
        Reconciled { walks: 0, ended: [0; 2], took }
    }
}

impl Reconciled {
    /// Adds ended connections. `took` is the duration of a walk completed with them.
    pub fn add(&mut self, ended: [u64; 2], took: Option<Duration>) {
        self.ended.iter_mut().zip(ended).for_each(|(sum, n)| *sum += n);
        if let Some(took) = took {
            self.walks += 1;
            self.took.observe(took.as_secs_f64());
        }
    }

    /// Writes the metrics. A walk covers both families, so its duration is equal for both.
    pub fn write(&self, out: &mut Exposition) {
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
        out.begin(name, Buckets, "Walks over the connection table to end those whose endpoint no longer serves.");
        FAMILIES.iter().for_each(|f| self.took.write(out, name, ("ip_family", f)));
        let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
        out.begin(name, Counter, "Connections ended because their endpoint no longer serves.");
        FAMILIES.iter().zip(self.ended).for_each(|(f, n)| out.sample(name, &[("ip_family", f)], n));
    }
}
