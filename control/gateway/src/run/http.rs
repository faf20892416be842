//! What the HTTP servers are told by the control loop, and what they ask it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nomagic_api::Status;

use super::tables::Tables;
use crate::config::Config;
use crate::observe::events::{Event, Recorder};
use crate::observe::health::Moment;
use crate::observe::http::{Listeners, Scrape, Server, addresses};
use crate::observe::metrics::gateway::Sample;
use crate::observe::metrics::proxy::NoLocalEndpoints;
use crate::observe::metrics::reconciler::Reconciled;
use nomagic_table::changes::Changes;
use nomagic_table::compile::{Compiled, HealthCheck};

/// How long a process that ends by a fault waits for its event to be sent.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// What a compilation means to those who watch.
pub struct News {
    changes: Changes,
    noticed: Moment,
    health_checks: Arc<BTreeMap<u16, HealthCheck>>,
    no_local: NoLocalEndpoints,
}

impl News {
    /// Nothing was compiled yet.
    pub fn new() -> News {
        News { changes: Changes::default(), noticed: Moment::now(), health_checks: Arc::default(), no_local: NoLocalEndpoints::default() }
    }

    pub fn health_checks(&self) -> &BTreeMap<u16, HealthCheck> {
        &self.health_checks
    }

    /// These changes, noticed at this moment, have been compiled.
    pub fn compiled(&mut self, changes: Changes, compiled: &Compiled, noticed: Moment) {
        (self.changes, self.noticed) = (changes, noticed);
        (self.health_checks, self.no_local) = (compiled.health_checks.clone(), compiled.no_local_endpoints);
    }
}

/// The servers, and what they have to remember from one question to the next.
pub struct Http {
    server: Server,
    events: Recorder,
}

impl Http {
    /// Serves; there is nothing to tell yet.
    pub fn start(config: &Config) -> Result<Http> {
        let events = match (&config.manifests, &config.kubernetes) {
            (None, Some(server)) => Recorder::start(server.clone(), config.node_name())?,
            _ => Recorder::off(),
        };
        // What cannot be listened on ends the process: the event is sent before.
        let listeners = Listeners::open(config, &events).inspect_err(|_| events.flush(LAST_WORDS_MAX))?;
        let server = Server::start(listeners, events.clone())?;
        Ok(Http { server, events })
    }

    /// Services are carried from now on.
    pub fn started(&self) {
        self.events.record_here(Event::starting);
    }

    /// What the Node object says about this node.
    pub fn follow_node(&self, tables: &Tables) {
        self.server.set_node_eligible(tables.node_eligible());
    }

    /// Waits until somebody asks for `/metrics`. Cancel-safe.
    pub async fn asked(&mut self) -> Option<Scrape> {
        self.server.asked().await
    }

    /// A table was compiled and waits to be in force.
    pub fn queued(&self, tables: &Tables) {
        let news = tables.news();
        self.follow_node(tables);
        self.server.queued(&news.changes, news.noticed);
    }

    /// It is in force: the Services' health checks follow it.
    pub fn in_force(&mut self, tables: &Tables) {
        self.server.in_force(Moment::now(), tables.news().no_local);
        self.follow_checks(tables);
    }

    /// Opens and closes the sockets of health checks; those that could not be opened are tried again.
    pub fn follow_checks(&mut self, tables: &Tables) {
        self.server.follow_checks(&tables.news().health_checks, &addresses(tables.settings_in_force()));
    }

    /// Whether a table waits to be in force.
    pub fn behind(&self) -> bool {
        self.server.behind()
    }

    /// What is wrong with the servers.
    pub fn problems(&self) -> &[String] {
        self.server.problems()
    }

    /// Answers a question for metrics.
    pub fn answer(&self, scrape: Scrape, status: Result<Status>, reconciled: Reconciled) {
        match status {
            // The asker may have gone.
            Ok(status) => drop(scrape.send(Sample { status, events: self.events.counts(), reconciled })),
            Err(e) => tracing::warn!("/metrics: {e:#}"),
        }
    }
}
