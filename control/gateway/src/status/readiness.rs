//! Whether the gateway can carry Service traffic: the reasons why not, in words.
//!
//! `/readyz`, `nomagic status` and the metric `nomagic_ready` have the same answer.

use std::time::{Duration, Instant};

use nomagic_xsk::{Condition, LinkState, PortInfo, TablesApplied};

/// How long workers may take to use a new table before the gateway is not ready. They need microseconds.
const APPLY_MAX: Duration = Duration::from_secs(1);

/// What readiness depends on, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub ports: &'a [PortInfo],
    pub workers_alive: usize,
    pub workers: usize,
    pub applied: TablesApplied,
    /// No change of the objects has waited for too long, see [`crate::observe::health`].
    pub changes_in_force: bool,
    /// The Node object is being deleted, or tainted for it.
    pub node_leaving: bool,
    /// `nomagic drain` was called.
    pub draining: bool,
    /// A signal has asked the process to end.
    pub stopping: bool,
}

/// Keeps since when a table is not in use.
#[derive(Default, Debug)]
pub struct Readiness {
    services_late: Option<Instant>,
    routes_late: Option<Instant>,
}

impl Readiness {
    /// Why the gateway is not ready; empty if it is.
    pub fn reasons(&mut self, facts: &Facts<'_>, now: Instant) -> Vec<String> {
        let mut reasons = Vec::new();
        if facts.stopping {
            reasons.push("the process is ending".to_owned());
        }
        if facts.draining {
            reasons.push("draining: `nomagic drain --undo` ends it".to_owned());
        }
        if facts.node_leaving {
            reasons.push("draining: the Node is about to be deleted".to_owned());
        }
        let (alive, all) = (facts.workers_alive, facts.workers);
        if alive < all {
            reasons.push(format!("{} of {all} workers are dead or stuck", all - alive));
        }
        reasons.extend(facts.ports.iter().filter_map(of_port));
        if late(&mut self.services_late, facts.applied.services, now) {
            reasons.push("not every worker uses the latest service table".to_owned());
        }
        if late(&mut self.routes_late, facts.applied.routes, now) {
            reasons.push("not every worker uses the latest routes".to_owned());
        }
        if !facts.changes_in_force {
            reasons.push("a change of the objects is still not in force: the log says why".to_owned());
        }
        reasons
    }
}

/// Why a port carries nothing.
fn of_port(port: &PortInfo) -> Option<String> {
    let name = &port.name;
    match (&port.condition, port.link) {
        (Condition::Bound, LinkState::Up) => None,
        (Condition::Bound, LinkState::Down) => Some(format!("port {name} is down (`ip link set dev {name} up`)")),
        (Condition::Bound, LinkState::NoCarrier) => Some(format!("port {name} has no carrier: check the cable and the other end")),
        (lost, _) => Some(format!("port {name} is {lost}")),
    }
}

/// Whether something has been amiss for longer than [`APPLY_MAX`].
fn late(since: &mut Option<Instant>, good: bool, now: Instant) -> bool {
    if good {
        *since = None;
        return false;
    }
    now.saturating_duration_since(*since.get_or_insert(now)) >= APPLY_MAX
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use nomagic_core::frame::PortId;
    use nomagic_xsk::RssError;

    /// A port in this state.
    pub(in crate::status) fn port(condition: Condition, link: LinkState) -> PortInfo {
        PortInfo {
            id: PortId(0),
            name: "eth0".into(),
            ifindex: 2,
            mac: [2; 6],
            mtu: 1500,
            native: true,
            zero_copy: false,
            queues: 1,
            owners: vec![0],
            condition,
            link,
            rebinds: 0,
            rss: Err(RssError::NotBound),
        }
    }

    const GOOD: Facts<'static> = Facts {
        ports: &[],
        workers_alive: 2,
        workers: 2,
        applied: TablesApplied { services: true, routes: true },
        changes_in_force: true,
        node_leaving: false,
        draining: false,
        stopping: false,
    };

    fn reasons(facts: Facts<'_>) -> String {
        Readiness::default().reasons(&facts, Instant::now()).join("; ")
    }

    #[test]
    fn each_fact_has_its_reason() {
        assert_eq!(reasons(GOOD), "");
        assert_eq!(reasons(Facts { workers_alive: 1, ..GOOD }), "1 of 2 workers are dead or stuck");
        assert!(reasons(Facts { changes_in_force: false, ..GOOD }).contains("not in force"));
        assert!(reasons(Facts { node_leaving: true, ..GOOD }).contains("about to be deleted"));
        assert!(reasons(Facts { draining: true, ..GOOD }).contains("drain --undo"));
        assert!(reasons(Facts { stopping: true, ..GOOD }).contains("ending"));
    }

    #[test]
    fn a_port_is_ready_only_if_it_is_bound_and_has_a_carrier() {
        let of = |condition, link| reasons(Facts { ports: &[port(condition, link)], ..GOOD });
        assert_eq!(of(Condition::Bound, LinkState::Up), "");
        assert!(of(Condition::Bound, LinkState::Down).contains("ip link set dev eth0 up"));
        assert!(of(Condition::Bound, LinkState::NoCarrier).contains("port eth0 has no carrier"));
        // A port that is gone has one reason, not two.
        assert_eq!(of(Condition::Missing, LinkState::Down), "port eth0 is missing");
        assert_eq!(of(Condition::Failed { error: "x".into() }, LinkState::Up), "port eth0 is not bound: x");
    }

    #[test]
    fn a_table_counts_once_it_is_late() {
        let (mut readiness, start) = (Readiness::default(), Instant::now());
        let unapplied = Facts { applied: TablesApplied { services: false, routes: true }, ..GOOD };
        let mut at = |facts: &Facts<'_>, ms: u64| readiness.reasons(facts, start + Duration::from_millis(ms));
        assert!(at(&unapplied, 0).is_empty() && at(&unapplied, 999).is_empty());
        assert_eq!(at(&unapplied, 1_000), ["not every worker uses the latest service table"]);
        assert!(at(&GOOD, 1_001).is_empty());
        assert!(at(&unapplied, 1_500).is_empty(), "counted anew");
    }
}
