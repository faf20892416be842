//! Those of kube-proxy's metrics that apply to nomagic. Names, buckets and rules are kube-proxy v1.36's (`pkg/proxy/metrics/metrics.go`).

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;

use super::Exposition;
use super::exposition::MetricType::{Counter, Gauge, Histogram as Buckets};
use super::histogram::Histogram;
use crate::observe::health::{FAMILIES, Moment};
use nomagic_table::changes::Changes;

/// Maximum number of pending change triggers; further ones are not measured.
const TRIGGERS_MAX: usize = 100_000;

/// Number of Service ports with a Local policy that have endpoints, but none on this node: by family, as `(internal, external)` policy.
pub type NoLocalEndpoints = [(u64, u64); 2];

#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    /// The process's start: triggers before it are not measured.
    started: Timestamp,
    /// When the oldest pending change was noticed.
    waiting: Option<Instant>,
    triggers: Vec<(usize, Timestamp)>,
    sync: Histogram,
    programming: [Histogram; 2],
    queued_at: Option<Timestamp>,
    in_force_at: Option<Timestamp>,
    services_pending: u64,
    services_total: u64,
    slices_pending: u64,
    slices_total: u64,
    no_local: NoLocalEndpoints,
    /// Responses with status 200 and 503 of `/healthz` and of `/livez`.
    healthz: [u64; 2],
    livez: [u64; 2],
}

impl ProxyMetrics {
    pub fn new(started: Timestamp) -> ProxyMetrics {
        let sync = Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)).collect());
        let programming = Histogram::new(programming_bounds());
        ProxyMetrics {
            started,
            waiting: None,
            triggers: Vec::new(),
            sync,
            programming: [programming.clone(), programming],
            queued_at: None,
            in_force_at: None,
            services_pending: 0,
            services_total: 0,
            slices_pending: 0,
            slices_total: 0,
            no_local: NoLocalEndpoints::default(),
            healthz: [0; 2],
            livez: [0; 2],
        }
    }

    /// Records changes noticed at `at` as pending.
    pub fn queued(&mut self, changes: &Changes, at: Moment) {
        self.waiting.get_or_insert(at.steady);
        self.queued_at = Some(at.wall);
        self.services_pending += changes.services;
        self.services_total += changes.services;
        self.slices_pending += changes.slices;
        self.slices_total += changes.slices;
        let room = TRIGGERS_MAX - self.triggers.len();
        self.triggers.extend(changes.triggers.iter().filter(|(_, t)| *t > self.started).take(room));
    }

    /// Records that all pending changes are in force.
    pub fn in_force(&mut self, now: Moment, no_local: NoLocalEndpoints) {
        if let Some(since) = self.waiting.take() {
            self.sync.observe(now.steady.saturating_duration_since(since).as_secs_f64());
        }
        for (family, trigger) in self.triggers.drain(..) {
            self.programming[family].observe(now.wall.duration_since(trigger).as_secs_f64());
        }
        self.in_force_at = Some(now.wall);
        (self.services_pending, self.slices_pending) = (0, 0);
        self.no_local = no_local;
    }

    /// Reports whether changes are pending.
    pub fn has_pending(&self) -> bool {
        self.waiting.is_some()
    }

    pub fn count_healthz(&mut self, good: bool) {
        self.healthz[usize::from(!good)] += 1;
    }

    pub fn count_livez(&mut self, good: bool) {
        self.livez[usize::from(!good)] += 1;
    }

    /// Writes the metrics. One table holds both families, so the table's metrics are equal for both.
    pub fn write(&self, out: &mut Exposition) {
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        out.begin(name, Buckets, "Time from noticing an object change until every worker uses it.");
        FAMILIES.iter().for_each(|f| self.sync.write(out, name, ("ip_family", f)));
        let name = "kubeproxy_network_programming_duration_seconds";
        out.begin(name, Buckets, "Time from the trigger of an EndpointSlice change, by its annotation, until every worker uses it.");
        self.programming.iter().zip(FAMILIES).for_each(|(h, f)| h.write(out, name, ("ip_family", f)));
        let stamps = [
            ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Unix time when tables last came into force.", self.in_force_at),
            ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Unix time when a change was last noticed.", self.queued_at),
        ];
        for (name, help, at) in stamps {
            out.begin(name, Gauge, help);
            let seconds = at.map_or(0.0, |at| at.as_nanosecond() as f64 / 1e9);
            FAMILIES.iter().for_each(|f| out.sample(name, &[("ip_family", f)], seconds));
        }
        let pending = "not in force yet.";
        let total = "noticed.";
        let p = |what: &str, suffix: &str| format!("kubeproxy_sync_proxy_rules_{what}_changes_{suffix}");
        out.single(&p("endpoint", "pending"), Gauge, &format!("Changes of EndpointSlices {pending}"), self.slices_pending);
        out.single(&p("endpoint", "total"), Counter, &format!("Changes of EndpointSlices {total}"), self.slices_total);
        out.single(&p("service", "pending"), Gauge, &format!("Changes of Services {pending}"), self.services_pending);
        out.single(&p("service", "total"), Counter, &format!("Changes of Services {total}"), self.services_total);
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        out.begin(name, Gauge, "Service ports with a Local traffic policy that have endpoints, but none on this node.");
        for (family, (internal, external)) in FAMILIES.iter().zip(self.no_local) {
            out.sample(name, &[("ip_family", family), ("traffic_policy", "internal")], internal);
            out.sample(name, &[("ip_family", family), ("traffic_policy", "external")], external);
        }
        for (what, [good, bad]) in [("healthz", self.healthz), ("livez", self.livez)] {
            let name = format!("kubeproxy_proxy_{what}_total");
            out.begin(&name, Counter, &format!("Responses of /{what} by status code."));
            out.sample(&name, &[("code", "200")], good);
            out.sample(&name, &[("code", "503")], bad);
        }
    }
}

/// 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5, 120 to 300 by 30.
fn programming_bounds() -> Vec<f64> {
    let steps = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(steps.map(f64::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn page(metrics: &ProxyMetrics) -> String {
        let mut out = Exposition::default();
        metrics.write(&mut out);
        out.finish()
    }

    #[test]
    fn durations_are_measured_from_trigger_and_notice() {
        let start = Moment { steady: Instant::now(), wall: "2026-01-01T00:00:00Z".parse().unwrap() };
        let later = |ms: u64| Moment {
            steady: start.steady + Duration::from_millis(ms),
            wall: start.wall.checked_add(Duration::from_millis(ms)).unwrap(),
        };
        let mut m = ProxyMetrics::new(start.wall);
        let stamps = ["2025-12-31T23:59:59Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:09.5Z"].map(|t| (1, t.parse().unwrap()));
        m.queued(&Changes { services: 2, slices: 3, triggers: stamps.into() }, later(10_000));
        m.queued(&Changes { services: 1, slices: 0, triggers: vec![] }, later(10_010));
        assert!(m.has_pending());
        let text = page(&m);
        assert!(text.contains("\nkubeproxy_sync_proxy_rules_service_changes_pending 3\n"), "{text}");
        assert!(text.contains("\nkubeproxy_sync_proxy_rules_endpoint_changes_pending 3\n"));
        m.in_force(later(10_020), [(0, 1), (2, 0)]);
        assert!(!m.has_pending());
        let text = page(&m);
        for line in [
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 3",
            // 20 ms: over 16, under 32.
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.016\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.032\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"16.384\"} 1",
            // 0.52 s and 9.02 s; the trigger before the start is not counted.
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"1\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"10\"} 2",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 2",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1767225610.02",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1767225610.01",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn pending_triggers_are_bounded() {
        let now = Moment::now();
        let mut m = ProxyMetrics::new(Timestamp::UNIX_EPOCH);
        let many = Changes { triggers: vec![(0, now.wall); TRIGGERS_MAX - 1], ..Changes::default() };
        m.queued(&many, now);
        m.queued(&many, now);
        m.in_force(now, NoLocalEndpoints::default());
        assert!(page(&m).contains(&format!("network_programming_duration_seconds_count{{ip_family=\"IPv4\"}} {TRIGGERS_MAX}\n")));
    }

    #[test]
    fn buckets_are_kube_proxys() {
        let bounds = programming_bounds();
        assert_eq!((bounds.len(), bounds[61], bounds[72], *bounds.last().unwrap()), (2 + 59 + 12 + 7, 60.0, 115.0, 300.0));
    }
}
