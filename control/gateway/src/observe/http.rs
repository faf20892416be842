//! The HTTP servers: the proxy's health, metrics, and the Services' `healthCheckNodePort`s, as kube-proxy has them.
//!
//! They run on one thread of their own, without privileges, so that no client keeps the control loop busy. What they tell lies behind one
//! short lock; for `/metrics` they ask the control loop, which alone may look at the edge.

mod checks;
mod listen;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_table::changes::Changes;
use nomagic_table::compile::HealthCheck;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::config::Config;
use crate::observe::events::{Event, Recorder};
use crate::observe::health::{FAMILIES, Health, Moment};
use crate::observe::metrics::gateway::Sample;
use crate::observe::metrics::proxy::{NoLocalEndpoints, ProxyMetrics};
use crate::observe::metrics::slis::Slis;
pub use checks::addresses;

/// Connections to the health server, and to the metrics server, at a time.
const HEALTH_CONNECTIONS_MAX: usize = 64;
const METRICS_CONNECTIONS_MAX: usize = 8;
/// Scrapes that wait for the control loop at the most.
const SCRAPES_MAX: usize = 4;
/// Sockets for health checks where the limit of open files cannot be read.
const SOCKETS_DEFAULT: usize = 256;

const JSON: &str = "application/json";
const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

/// Somebody who waits for a sample.
pub type Scrape = oneshot::Sender<Sample>;

/// What the servers and the control loop share.
struct Shared {
    state: Mutex<State>,
    scrapes: mpsc::Sender<Scrape>,
}

struct State {
    health: Health,
    proxy: ProxyMetrics,
    slis: Slis,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two fixed servers' sockets, opened while there are privileges.
#[derive(Debug)]
pub struct Listeners {
    healthz: Option<(SocketAddr, Option<TcpListener>)>,
    metrics: Option<(SocketAddr, Option<TcpListener>)>,
    sync_period: Duration,
}

impl Listeners {
    /// Listens on the configured addresses. What cannot be listened on is an event, too.
    ///
    /// # Errors
    /// With `bindAddressHardFail`, when one of them cannot be listened on. Without, that is said, and tried again later.
    pub fn open(config: &Config, events: &Recorder) -> Result<Listeners> {
        let open = |field: &str, what: &str, at: Option<SocketAddr>, event: fn(&str, &str) -> Event| {
            let Some(at) = at else { return Ok(None) };
            let opened = listen::open(at, false).with_context(|| format!("{field}: {what} cannot be answered on {at}"));
            if let Err(e) = &opened {
                events.record_here(|node| event(node, &format!("{e:#}")));
            }
            match opened {
                Ok(listener) => Ok(Some((at, Some(listener)))),
                Err(e) if config.bind_address_hard_fail => Err(e),
                Err(e) => {
                    tracing::error!("{e:#}; tried again every few seconds");
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

/// The running servers. They end with this.
pub struct Server {
    shared: Arc<Shared>,
    scrapes: mpsc::Receiver<Scrape>,
    checks: checks::Checks,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts the thread, and serves. `events`: who hears of health checks that cannot be answered.
    pub fn start(listeners: Listeners, events: Recorder) -> Result<Server> {
        let (sender, scrapes) = mpsc::channel(SCRAPES_MAX);
        let state =
            State { health: Health::new(listeners.sync_period), proxy: ProxyMetrics::new(Moment::now().wall), slis: Slis::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), scrapes: sender });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the HTTP servers")?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            if let Err(e) = nomagic_sys::capabilities::keep_nothing() {
                tracing::warn!("the HTTP servers could not give up capabilities: {e}");
            }
            let _ = runtime.block_on(stopped);
        };
        let thread = std::thread::Builder::new().name("nm-http".into()).spawn(run).context("cannot start the HTTP servers' thread")?;
        let servers = [
            ("/healthz", listeners.healthz, pages::health(shared.clone()), HEALTH_CONNECTIONS_MAX),
            ("/metrics", listeners.metrics, pages::metrics(shared.clone()), METRICS_CONNECTIONS_MAX),
        ];
        for (what, listener, router, connections_max) in servers {
            let permits = Arc::new(Semaphore::new(connections_max));
            match listener {
                Some((_, Some(listener))) => drop(handle.spawn(listen::serve(listener, router, permits))),
                Some((at, None)) => drop(handle.spawn(listen::serve_once_free(what, at, router, permits))),
                None => {}
            }
        }
        let checks = checks::Checks::new(sockets_max(), events);
        Ok(Server { shared, scrapes, checks, runtime: handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for somebody who wants a sample. Cancel-safe.
    pub async fn asked(&mut self) -> Option<Scrape> {
        self.scrapes.recv().await
    }

    /// Changes of objects were noticed at this moment, and wait to be in force. One table holds both families, so both wait.
    pub fn queued(&self, changes: &Changes, at: Moment) {
        let mut state = self.shared.lock();
        state.proxy.queued(changes, at);
        (0..FAMILIES.len()).for_each(|family| state.health.queued(family, at));
    }

    /// All changes are in force.
    pub fn in_force(&self, now: Moment, no_local: NoLocalEndpoints) {
        let mut state = self.shared.lock();
        state.proxy.in_force(now, no_local);
        (0..FAMILIES.len()).for_each(|family| state.health.updated(family, now));
    }

    /// Whether changes wait to be in force.
    pub fn behind(&self) -> bool {
        self.shared.lock().proxy.behind()
    }

    /// Whether load balancers may count on this node; see [`nomagic_table::objects::node_eligible`].
    pub fn set_node_eligible(&self, eligible: bool) {
        self.shared.lock().health.set_node_eligible(eligible);
    }

    /// Answers these `healthCheckNodePort`s on these addresses from now on, and no others; what failed before is tried again.
    pub fn follow_checks(&mut self, wanted: &BTreeMap<u16, HealthCheck>, addresses: &BTreeSet<IpAddr>) {
        self.checks.follow(wanted, addresses, &self.runtime, &self.shared);
    }

    /// What is wrong with them.
    pub fn problems(&self) -> &[String] {
        self.checks.problems()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the HTTP servers' thread had panicked");
        }
    }
}

/// Half of the files that this process may open: the rest is for packets.
fn sockets_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<usize>().ok());
    soft.map_or(SOCKETS_DEFAULT, |files| files / 2)
}
