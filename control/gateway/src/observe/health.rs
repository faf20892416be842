//! Is the proxy itself in order? kube-proxy's answer, in its words: `/healthz`, `/livez` and the Services' health checks ask here.
//!
//! Pure: moments are arguments. The rules are those of kube-proxy v1.36 (`pkg/proxy/healthcheck/proxy_health.go`): healthy as long as no
//! family has had a change waiting for two sync periods; a family in which nothing has ever been put in force does not count.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// The families by their name in labels and answers, IPv4 first: the place of a family's values in pairs.
pub const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The name of the check whether load balancers may count on this node.
pub const NODE_ELIGIBLE: &str = "node-eligible";

/// One moment on both clocks: the steady one tells how long, the wall's is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Never goes back.
    pub steady: Instant,
    /// What people read.
    pub wall: Timestamp,
}

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp::from_nanosecond(since_1970.as_nanos() as i128).unwrap_or(Timestamp::UNIX_EPOCH);
        Moment { steady: Instant::now(), wall }
    }
}

/// How far one family is.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// The oldest change that is not in force.
    queued: Option<Instant>,
    /// When something was last put in force.
    updated: Option<Timestamp>,
}

/// What health follows from.
#[derive(Clone, Debug)]
pub struct Health {
    limit: Duration,
    families: [Progress; 2],
    node_eligible: bool,
}

impl Health {
    /// Nothing has happened yet: healthy. Without a Node object to look at, the node is eligible.
    pub fn new(sync_period: Duration) -> Health {
        Health { limit: sync_period * 2, families: [Progress::default(); 2], node_eligible: true }
    }

    /// A change of a family (its place in [`FAMILIES`]) waits to be put in force.
    pub fn queued(&mut self, family: usize, now: Moment) {
        self.families[family].queued.get_or_insert(now.steady);
    }

    /// All changes of a family are in force.
    pub fn updated(&mut self, family: usize, now: Moment) {
        self.families[family] = Progress { queued: None, updated: Some(now.wall) };
    }

    /// Whether load balancers may count on this node; see [`node_eligible`].
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    fn late(&self, progress: &Progress, now: Moment) -> bool {
        let waits = progress.queued.is_some_and(|since| now.steady.saturating_duration_since(since) >= self.limit);
        waits && progress.updated.is_some()
    }

    /// Whether every family is up to date, or not late yet.
    pub fn healthy(&self, now: Moment) -> bool {
        !self.families.iter().any(|f| self.late(f, now))
    }

    /// What health is made of, by name, for `/metrics/slis`: whether each family is up to date or not late yet, and the node eligible.
    pub fn checks(&self, now: Moment) -> [(&'static str, bool); 3] {
        let [ipv4, ipv6] = [0, 1].map(|family| !self.late(&self.families[family], now));
        [("sync-ipv4", ipv4), ("sync-ipv6", ipv6), (NODE_ELIGIBLE, self.node_eligible)]
    }

    /// What `/healthz` answers: `(good, body)`. Not good where the node is about to go, too.
    pub fn healthz(&self, now: Moment) -> (bool, String) {
        self.report(now, Some(self.node_eligible))
    }

    /// What `/livez` answers: `(good, body)`. A node that is about to go does not need a new proxy.
    pub fn livez(&self, now: Moment) -> (bool, String) {
        self.report(now, None)
    }

    fn report(&self, now: Moment, node_eligible: Option<bool>) -> (bool, String) {
        let healthy = self.healthy(now);
        let good = healthy && node_eligible != Some(false);
        let latest = self.families.iter().filter_map(|f| f.updated).max();
        let family = |f: &Progress| f.updated.map(|at| FamilyReport { last_updated: at.to_string(), healthy: !self.late(f, now) });
        let [ipv4, ipv6] = [family(&self.families[0]), family(&self.families[1])];
        let report = Report {
            // Go's zero time, where nothing was ever put in force.
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
struct Report {
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
