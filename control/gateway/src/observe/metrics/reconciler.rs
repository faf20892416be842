//! kube-proxy's metrics about connections that are ended because their endpoint is gone (`pkg/proxy/metrics/metrics.go`).

use std::time::Duration;

use super::Exposition;
use super::exposition::Kind::{Counter, Histogram as Buckets};
use super::histogram::Histogram;
use crate::observe::health::FAMILIES;

/// What [`crate::reconcile`] has done.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// Walks over the whole table.
    pub walks: u64,
    /// Connections ended, IPv4 and IPv6.
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
    /// Connections were ended; `took`: with that a walk is complete, which took so long.
    pub fn add(&mut self, ended: [u64; 2], took: Option<Duration>) {
        self.ended.iter_mut().zip(ended).for_each(|(sum, n)| *sum += n);
        if let Some(took) = took {
            self.walks += 1;
            self.took.observe(took.as_secs_f64());
        }
    }

    /// As text. A walk is about both families.
    pub fn write(&self, out: &mut Exposition) {
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
        out.begin(name, Buckets, "Walks over the connection table to end those whose endpoint no longer serves.");
        FAMILIES.iter().for_each(|f| self.took.write(out, name, ("ip_family", f)));
        let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
        out.begin(name, Counter, "Connections ended because their endpoint no longer serves.");
        FAMILIES.iter().zip(self.ended).for_each(|(f, n)| out.sample(name, &[("ip_family", f)], n));
    }
}
