//! The control loop's side of the HTTP servers: state updates and scrapes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nomagic_api::Status;

use super::tables::CompiledTables;
use crate::config::Config;
use crate::connections::Permits;
use crate::observe::events::{Event, Recorder};
use crate::observe::health::Moment;
use crate::observe::http::{Listeners, Scrape, Server, addresses};
use crate::observe::metrics::gateway::Sample;
use crate::observe::metrics::proxy::NoLocalEndpoints;
use crate::observe::metrics::reconciler::Reconciled;
use crate::observe::metrics::servers::ServerCounts;
use crate::observe::metrics::targets::sum_backends;
use nomagic_table::changes::Changes;
use nomagic_table::compile::{Compiled, HealthCheck};

/// How long a failing process waits until its event is sent.
const FINAL_FLUSH_MAX: Duration = Duration::from_secs(2);

/// What the HTTP servers need from the last compilation.
pub struct TableUpdate {
    changes: Changes,
    noticed: Moment,
    health_checks: Arc<BTreeMap<u16, HealthCheck>>,
    no_local: NoLocalEndpoints,
}

impl TableUpdate {
    /// The state before the first compilation.
    pub fn new() -> TableUpdate {
        TableUpdate {
            changes: Changes::default(),
            noticed: Moment::now(),
            health_checks: Arc::default(),
            no_local: NoLocalEndpoints::default(),
        }
    }

    pub fn health_checks(&self) -> &BTreeMap<u16, HealthCheck> {
        &self.health_checks
    }

    /// Records the compilation of `changes`, which were noticed at `noticed`.
    pub fn compiled(&mut self, changes: Changes, compiled: &Compiled, noticed: Moment) {
        (self.changes, self.noticed) = (changes, noticed);
        (self.health_checks, self.no_local) = (compiled.health_checks.clone(), compiled.no_local_endpoints);
    }
}

/// The HTTP servers and the event recorder.
pub struct Http {
    server: Server,
    events: Recorder,
    /// The control socket's permits; `/metrics` shows their counts.
    control_socket: Arc<Permits>,
    /// `/metrics` has a series for each backend.
    backend_series: bool,
}

impl Http {
    /// Starts the servers. `control_socket`: its permits, whose counts `/metrics` shows.
    pub fn start(config: &Config, control_socket: Arc<Permits>) -> Result<Http> {
        let events = match (&config.manifests, &config.kubernetes) {
            (None, Some(server)) => Recorder::start(server.clone(), config.node_name())?,
            _ => Recorder::off(),
        };
        // The error ends the process, so wait until its event is sent.
        let listeners = Listeners::open(config, &events).inspect_err(|_| events.flush(FINAL_FLUSH_MAX))?;
        let server = Server::start(listeners, events.clone())?;
        Ok(Http { server, events, control_socket, backend_series: config.metrics.backend_series })
    }

    /// Records that the gateway carries Services now.
    pub fn started(&self) {
        self.events.record_here(Event::starting);
    }

    /// Updates the node's eligibility for load balancers from its Node object.
    pub fn follow_node(&self, tables: &CompiledTables) {
        self.server.set_node_eligible(tables.node_eligible());
    }

    /// Sets whether load balancers are told to leave.
    pub fn set_draining(&self, draining: bool) {
        self.server.set_draining(draining);
    }

    /// Sets why the gateway cannot carry; nothing if it can.
    pub fn set_ready(&self, reasons: Vec<String>) {
        self.server.set_ready(reasons);
    }

    /// Reports whether no change of the objects has been pending for too long.
    pub fn changes_in_force(&self) -> bool {
        self.server.changes_in_force()
    }

    /// Waits for a request for `/metrics`. Cancel-safe.
    pub async fn next_scrape(&mut self) -> Option<Scrape> {
        self.server.next_scrape().await
    }

    /// Records that a table was compiled and is pending.
    pub fn queued(&self, tables: &CompiledTables) {
        let update = tables.last_update();
        self.follow_node(tables);
        self.server.queued(&update.changes, update.noticed);
    }

    /// Records that the latest table is in force, and updates the Services' health checks.
    pub fn in_force(&mut self, tables: &CompiledTables) {
        self.server.in_force(Moment::now(), tables.last_update().no_local);
        self.follow_checks(tables);
    }

    /// Opens and closes health check sockets to match the table in force. Retries those that could not be opened.
    pub fn follow_checks(&mut self, tables: &CompiledTables) {
        self.server.follow_checks(&tables.last_update().health_checks, &addresses(tables.settings_in_force()));
    }

    /// Reports whether a compiled table is not in force yet.
    pub fn has_pending(&self) -> bool {
        self.server.has_pending()
    }

    /// The servers' problems, as messages.
    pub fn problems(&self) -> &[String] {
        self.server.problems()
    }

    /// Answers a scrape.
    pub fn answer(&self, scrape: Scrape, status: Result<Status>, reconciled: Reconciled) {
        let counts = self.control_socket.counts();
        let control_socket = ServerCounts { server: "control_socket", peers: "processes", counts };
        match status {
            Ok(mut status) => {
                if !self.backend_series {
                    status.targets = sum_backends(std::mem::take(&mut status.targets));
                }
                // The scrape may have timed out; ignore a closed channel.
                drop(scrape.send(Sample { status, events: self.events.counts(), reconciled, control_socket }));
            }
            Err(e) => tracing::warn!("/metrics: {e:#}"),
        }
    }
}
