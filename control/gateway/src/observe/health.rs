//! The proxy's own health, behind `/healthz`, `/livez` and the Services' health checks.
//!
//! Pure: time is an argument. The rules are those of kube-proxy v1.36 (`pkg/proxy/healthcheck/proxy_health.go`): the proxy is healthy
//! unless a family has had a change pending for two sync periods. A family that was never updated does not count.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// Names of the IP families in labels and responses. The position is the family's index elsewhere.
pub const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Name of the check that the node is eligible for load balancers.
pub const NODE_ELIGIBLE: &str = "node-eligible";

/// One moment on two clocks: monotonic for durations, wall clock for display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    pub steady: Instant,
    pub wall: Timestamp,
}

impl Moment {
    pub fn now() -> Moment {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::from_nanosecond(since_1970.as_nanos().cast_signed()).unwrap_or(Timestamp::UNIX_EPOCH);
        Moment { steady: Instant::now(), wall }
    }
}

/// The update state of one IP family.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// When the oldest pending change was queued.
    queued: Option<Instant>,
    /// When the last update was applied.
    updated: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Health {
    limit: Duration,
    families: [Progress; 2],
    node_eligible: bool,
    draining: bool,
}

impl Health {
    /// Starts healthy. The node counts as eligible until a Node object is known.
    pub fn new(sync_period: Duration) -> Health {
        Health { limit: sync_period * 2, families: [Progress::default(); 2], node_eligible: true, draining: false }
    }

    /// Records a pending change of a family (an index into [`FAMILIES`]).
    pub fn queued(&mut self, family: usize, now: Moment) {
        self.families[family].queued.get_or_insert(now.steady);
    }

    /// Records that all changes of a family are applied.
    pub fn updated(&mut self, family: usize, now: Moment) {
        self.families[family] = Progress { queued: None, updated: Some(now.wall) };
    }

    /// Sets whether the node is eligible for load balancers; see [`nomagic_table::objects::node_eligible`].
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// Sets whether `nomagic drain` asks load balancers to leave. For `/healthz` that is a node about to be deleted.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    fn eligible(&self) -> bool {
        self.node_eligible && !self.draining
    }

    /// Reports whether a `healthCheckNodePort` may attract traffic.
    pub fn attracts(&self, now: Moment) -> bool {
        self.healthy(now) && !self.draining
    }

    fn late(&self, progress: &Progress, now: Moment) -> bool {
        let waits = progress.queued.is_some_and(|since| now.steady.saturating_duration_since(since) >= self.limit);
        waits && progress.updated.is_some()
    }

    /// Reports whether no family is overdue.
    pub fn healthy(&self, now: Moment) -> bool {
        !self.families.iter().any(|f| self.late(f, now))
    }

    /// The single checks by name, for `/metrics/slis`: no family overdue, the node eligible.
    pub fn checks(&self, now: Moment) -> [(&'static str, bool); 3] {
        let [ipv4, ipv6] = [0, 1].map(|family| !self.late(&self.families[family], now));
        [("sync-ipv4", ipv4), ("sync-ipv6", ipv6), (NODE_ELIGIBLE, self.eligible())]
    }

    /// The response of `/healthz`: `(good, body)`. Also fails when the node is not eligible, e.g. about to be deleted.
    pub fn healthz(&self, now: Moment) -> (bool, String) {
        self.report(now, Some(self.eligible()))
    }

    /// The response of `/livez`: `(good, body)`. Ignores the node's eligibility: a node that is about to be deleted needs no proxy restart.
    pub fn livez(&self, now: Moment) -> (bool, String) {
        self.report(now, None)
    }

    fn report(&self, now: Moment, node_eligible: Option<bool>) -> (bool, String) {
        let healthy = self.healthy(now);
        let good = healthy && node_eligible != Some(false);
        let latest = self.families.iter().filter_map(|f| f.updated).max();
        let family = |f: &Progress| f.updated.map(|at| FamilyReport { last_updated: at.to_string(), healthy: !self.late(f, now) });
        let [ipv4, ipv6] = [family(&self.families[0]), family(&self.families[1])];
        let report = HealthReport {
            // Go's zero time if nothing was ever applied.
            last_updated: if good { Some(now.wall) } else { latest }.map_or("0001-01-01T00:00:00Z".into(), |at| at.to_string()),
            current_time: now.wall.to_string(),
            node_eligible,
            healthy,
            status: (ipv4.is_some() || ipv6.is_some()).then_some(Families { ipv4, ipv6 }),
        };
        (good, serde_json::to_string(&report).unwrap_or_default())
    }
}

/// The body of `/healthz` and `/livez`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthReport {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families>,
}

#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    ipv4: Option<FamilyReport>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    ipv6: Option<FamilyReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

#[cfg(test)]
mod tests;
