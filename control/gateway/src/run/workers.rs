//! The control loop's eye on the workers: which are alive, and which tables they use.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Gateway;

/// How long workers may take to use a new table; they need microseconds, a sleeping one a wake-up.
const APPLY_MAX: Duration = Duration::from_secs(1);

impl Gateway {
    /// Waits until the workers use the latest tables. From then on they open no connection to an endpoint that is gone, and those that
    /// there are can be ended.
    pub(super) fn follow_workers(&mut self) -> Result<()> {
        if !self.edge.wait_applied(APPLY_MAX) {
            bail!("the workers did not take the new tables within {APPLY_MAX:?}; the XDP filter stays as it was");
        }
        self.workers_following = self.edge.workers_alive().0;
        self.reconciler.follow(self.tables.serving());
        Ok(())
    }

    /// A worker that is gone takes only its own queues with it; when none is left, the process ends, for whoever supervises it.
    pub(super) fn watch_workers(&mut self) -> Result<()> {
        let (alive, all) = self.edge.workers_alive();
        if alive == 0 {
            bail!("no worker is left of {all}: see the log above; Services' packets are dropped, then onFailure applies");
        }
        if alive < self.workers_alive {
            tracing::error!(
                "{} of {all} workers are dead or stuck: the frames of their queues are dropped, then onFailure applies",
                all - alive
            );
        } else if alive > self.workers_alive {
            tracing::info!("{alive} of {all} workers are alive again");
        }
        self.workers_alive = alive;
        if alive > self.workers_following {
            // Nobody has waited for it when the latest tables came into force.
            self.reconciler.distrust();
            self.reconciler.hold();
            if let Err(e) = self.follow_workers() {
                tracing::error!("{e:#}");
            }
        }
        Ok(())
    }
}
