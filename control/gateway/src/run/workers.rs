//! The control loop's eye on the workers: which are alive, and which tables they use.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nomagic_xsk::{Applied, Edge};

use super::Gateway;

/// How long workers may take to use a new table; they need microseconds, a sleeping one a wake-up.
const APPLY_MAX: Duration = Duration::from_secs(1);

/// Waits until the workers use the latest tables. From then on they open no connection to an endpoint that is gone, and those that
/// there are can be ended.
pub(super) fn wait(edge: &mut Edge) -> Result<Applied<'_>> {
    let applied = edge.wait_applied(APPLY_MAX);
    applied.with_context(|| format!("the workers did not take the new tables within {APPLY_MAX:?}; the XDP filter stays as it was"))
}

impl Gateway {
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
            match wait(&mut self.edge) {
                Ok(applied) => {
                    self.workers_following = applied.workers();
                    self.reconciler.follow(self.tables.serving());
                }
                Err(e) => tracing::error!("{e:#}"),
            }
        }
        Ok(())
    }
}
