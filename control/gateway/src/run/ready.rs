//! The control loop's readiness: recomputed twice a second, and told to `/readyz`, to `status` and to the log.

use std::time::Instant;

use super::RunningGateway;
use crate::status::readiness::{Facts, Readiness};

/// Whether the gateway can carry, and what was last said about it.
#[derive(Default)]
pub(super) struct ReadyState {
    readiness: Readiness,
    reasons: Vec<String>,
    stopping: bool,
}

impl ReadyState {
    /// Why the gateway cannot carry; empty if it can.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }
}

impl RunningGateway {
    /// Looks whether the gateway can carry, and tells it.
    pub(super) fn follow_readiness(&mut self) {
        let (workers_alive, workers) = self.edge.workers_alive();
        let facts = Facts {
            ports: self.edge.ports(),
            workers_alive,
            workers,
            applied: self.edge.tables_applied(),
            changes_in_force: self.http.changes_in_force(),
            node_leaving: self.tables.node_leaving(),
            draining: self.drain.is_on(),
            stopping: self.ready.stopping,
        };
        let reasons = self.ready.readiness.reasons(&facts, Instant::now());
        if reasons != self.ready.reasons {
            match &reasons[..] {
                [] => tracing::info!("ready again"),
                why => tracing::warn!("not ready: {}", why.join("; ")),
            }
            self.ready.reasons.clone_from(&reasons);
        }
        if self.ready.stopping {
            self.supervisor.stopping("ending");
        } else {
            self.supervisor.running(&reasons);
        }
        self.http.set_ready(reasons);
    }

    /// From now on the gateway says that it is not ready.
    pub(super) fn announce_end(&mut self) {
        self.ready.stopping = true;
        self.follow_readiness();
    }
}
