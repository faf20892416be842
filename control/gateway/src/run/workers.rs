//! Supervision of the workers: which are alive, and which tables they use.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nomagic_xsk::{Applied, Edge};

use super::RunningGateway;

/// Time limit for the workers to switch to a new table. They need microseconds; a sleeping worker needs a wake-up.
const APPLY_MAX: Duration = Duration::from_secs(1);

/// Waits until the workers use the latest tables. Afterwards no worker creates connections to removed endpoints, so that the reconciler
/// can end the existing ones.
pub(super) fn wait(edge: &mut Edge) -> Result<Applied<'_>> {
    let applied = edge.wait_applied(APPLY_MAX);
    applied.with_context(|| format!("the workers did not switch to the new tables within {APPLY_MAX:?}; the XDP filter is not changed"))
}

impl RunningGateway {
    /// Logs dead workers, which affect only their own queues.
    ///
    /// # Errors
    /// If no worker is alive: the process exits and its supervisor restarts it.
    pub(super) fn watch_workers(&mut self) -> Result<()> {
        let (alive, all) = self.edge.workers_alive();
        if alive == 0 {
            bail!("none of {all} workers is alive: see the log above; packets to Services are dropped until onFailure applies");
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
            // The latest tables came into force without this worker.
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

    /// Logs a new problem of the connection table's file.
    pub(super) fn watch_table_file(&mut self) {
        let problem = self.edge.table_file_problem();
        if problem != self.table_file_problem {
            problem.iter().for_each(|problem| tracing::error!("{problem}"));
            self.table_file_problem = problem;
        }
    }
}
