//! The HTTP servers for health, metrics and the Services' `healthCheckNodePort`s, with kube-proxy's paths and responses.
//!
//! They run on one separate, unprivileged thread, so that clients cannot block the control loop. The state they serve is behind one
//! briefly held lock; for `/metrics` they ask the control loop, because only it may access the edge.

mod checks;
mod clients;
mod listen;
mod pages;
mod scrape;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_table::changes::Changes;
use nomagic_table::compile::HealthCheck;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::observe::events::{Event, Recorder};
use crate::observe::health::{FAMILIES, Health, Moment};
use crate::observe::metrics::gateway::Sample;
use crate::observe::metrics::proxy::{NoLocalEndpoints, ProxyMetrics};
use crate::observe::metrics::slis::Slis;
use crate::observe::readyz::Readyz;
use crate::threads;
pub use checks::addresses;
use clients::{Clients, ServerKind};

/// Maximum number of scrapes waiting for the control loop.
const SCRAPES_MAX: usize = 4;
/// Maximum number of health check sockets if the limit of open files cannot be read.
const SOCKETS_DEFAULT: usize = 256;

const JSON: &str = "application/json";
const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

/// A pending scrape; the control loop sends the sample.
pub type Scrape = oneshot::Sender<Sample>;

struct HttpShared {
    state: Mutex<HttpState>,
    scrapes: mpsc::Sender<Scrape>,
    pages: scrape::Pages,
    clients: Arc<Clients>,
}

struct HttpState {
    health: Health,
    readyz: Readyz,
    proxy: ProxyMetrics,
    slis: Slis,
}

impl HttpShared {
    fn lock(&self) -> MutexGuard<'_, HttpState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets of the health and the metrics server, opened before privileges are dropped.
#[derive(Debug)]
pub struct Listeners {
    healthz: Option<(SocketAddr, Option<listen::Sockets>)>,
    metrics: Option<(SocketAddr, Option<listen::Sockets>)>,
    sync_period: Duration,
}

impl Listeners {
    /// Listens on the configured addresses. Records an event for each failure.
    ///
    /// # Errors
    /// With `bindAddressHardFail`, if an address cannot be listened on. Without it, the failure is logged and listening is retried later.
    pub fn open(config: &Config, events: &Recorder) -> Result<Listeners> {
        let open = |field: &str, what: &str, at: Option<SocketAddr>, event: fn(&str, &str) -> Event| {
            let Some(at) = at else { return Ok(None) };
            let opened = listen::open_for_node_too(at).with_context(|| format!("{field}: cannot serve {what} on {at}"));
            if let Err(e) = &opened {
                events.record_here(|node| event(node, &format!("{e:#}")));
            }
            match opened {
                Ok(sockets) => Ok(Some((at, Some(sockets)))),
                Err(e) if config.bind_address_hard_fail => Err(e),
                Err(e) => {
                    tracing::error!("{e:#}; retrying every few seconds");
                    Ok(Some((at, None)))
                }
            }
        };
        Ok(Listeners {
            healthz: open("healthzBindAddress", "/healthz", config.healthz_bind_address, Event::no_healthz)?,
            metrics: open("metricsBindAddress", "/metrics", config.metrics_bind_address, Event::no_metrics)?,
            sync_period: Duration::from_millis(config.sync_period_ms.into()),
        })
    }
}

/// The running servers. Dropping it stops them.
pub struct Server {
    shared: Arc<HttpShared>,
    scrapes: mpsc::Receiver<Scrape>,
    checks: checks::Checks,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts the thread and the servers. Health checks that cannot be served are recorded in `events`.
    pub fn start(listeners: Listeners, events: Recorder) -> Result<Server> {
        let (sender, scrapes) = mpsc::channel(SCRAPES_MAX);
        let now = Moment::now();
        let state = HttpState {
            health: Health::new(listeners.sync_period),
            readyz: Readyz::starting(now.steady),
            proxy: ProxyMetrics::new(now.wall),
            slis: Slis::default(),
        };
        let (pages, clients) = (scrape::Pages::default(), Arc::new(Clients::new()));
        let shared = Arc::new(HttpShared { state: Mutex::new(state), scrapes: sender, pages, clients });
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move |runtime: &Runtime| {
            if let Err(e) = nomagic_sys::capabilities::keep_nothing() {
                tracing::warn!("the HTTP thread cannot drop its capabilities: {e}");
            }
            let _ = runtime.block_on(stopped);
        };
        let (handle, thread) = threads::start("nm-http", run).context("cannot start the HTTP servers' thread")?;
        let servers = [
            ("/healthz", listeners.healthz, pages::health(shared.clone()), ServerKind::Health),
            ("/metrics", listeners.metrics, pages::metrics(shared.clone()), ServerKind::Metrics),
        ];
        for (what, sockets, router, kind) in servers {
            let server = listen::Server { router, clients: shared.clients.clone(), kind };
            match sockets {
                Some((_, Some(sockets))) => drop(handle.spawn(server.serve_both(sockets))),
                Some((at, None)) => drop(handle.spawn(server.serve_once_free(what, at))),
                None => {}
            }
        }
        let checks = checks::Checks::new(sockets_max(), events);
        Ok(Server { shared, scrapes, checks, runtime: handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for a scrape that has not timed out. Cancel-safe.
    pub async fn next_scrape(&mut self) -> Option<Scrape> {
        loop {
            let scrape = self.scrapes.recv().await?;
            // A sample for a scrape that has timed out would be made for nothing.
            if !scrape.is_closed() {
                return Some(scrape);
            }
        }
    }

    /// Records changes noticed at `at` as pending. One table holds both families, so both are pending.
    pub fn queued(&self, changes: &Changes, at: Moment) {
        let mut state = self.shared.lock();
        state.proxy.queued(changes, at);
        (0..FAMILIES.len()).for_each(|family| state.health.queued(family, at));
    }

    /// Records that all changes are in force.
    pub fn in_force(&self, now: Moment, no_local: NoLocalEndpoints) {
        let mut state = self.shared.lock();
        state.proxy.in_force(now, no_local);
        (0..FAMILIES.len()).for_each(|family| state.health.updated(family, now));
    }

    /// Reports whether changes are pending.
    pub fn has_pending(&self) -> bool {
        self.shared.lock().proxy.has_pending()
    }

    /// Sets whether the node is eligible for load balancers; see [`nomagic_table::objects::node_eligible`].
    pub fn set_node_eligible(&self, eligible: bool) {
        self.shared.lock().health.set_node_eligible(eligible);
    }

    /// Sets whether `nomagic drain` asks load balancers to leave.
    pub fn set_draining(&self, draining: bool) {
        self.shared.lock().health.set_draining(draining);
    }

    /// Sets why the gateway cannot carry; nothing if it can. Repeat it a few times a second: otherwise `/readyz` fails.
    pub fn set_ready(&self, reasons: Vec<String>) {
        self.shared.lock().readyz.say(reasons, Instant::now());
    }

    /// Reports whether no change has been pending for too long.
    pub fn changes_in_force(&self) -> bool {
        self.shared.lock().health.healthy(Moment::now())
    }

    /// Serves exactly these `healthCheckNodePort`s on these addresses. Retries sockets that could not be opened before.
    pub fn follow_checks(&mut self, wanted: &BTreeMap<u16, HealthCheck>, addresses: &BTreeSet<IpAddr>) {
        self.checks.follow(wanted, addresses, &self.runtime, &self.shared);
    }

    /// The health check sockets that cannot be opened, as messages.
    pub fn problems(&self) -> &[String] {
        self.checks.problems()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the HTTP thread has panicked");
        }
    }
}

/// Half of the process's limit of open files; the rest is left to the data plane.
fn sockets_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok());
    soft.map_or(SOCKETS_DEFAULT, |files| files / 2)
}
