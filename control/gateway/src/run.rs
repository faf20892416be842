//! `nomagic run`: the control thread of a gateway.
//!
//! The start order is: internal port, mirror of the kernel's routes, objects read and compiled, edge (sockets, then XDP), filter rules.
//! Then one loop applies route and object changes, resolves missing neighbours and answers requests.

mod answers;
mod compiling;
mod deny;
pub(crate) mod drain;
mod edge;
mod farewell;
pub(crate) mod findings;
mod http;
mod local;
pub(crate) mod lock;
mod pods;
mod ready;
mod routing;
pub(crate) mod signals;
pub(crate) mod socket;
mod source;
mod startup;
mod supervisor;
mod surplus;
mod table_file;
mod tables;
mod workers;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_api::socket::Request;
use nomagic_core::events::EventRing;
use nomagic_core::frame::Wanted;
use nomagic_xsk::{Edge, OnFailure};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use self::http::Http;
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::local::LocalRoutes;
use crate::net::{Mirror, MirrorLimits, internal};
use crate::reconcile::Reconciler;
use crate::seed::Seed;
use crate::status::TargetReader;
use crate::taps::Taps;
use deny::DenyControl;
use drain::Drain;
use edge::forward_wanted;
use local::LocalTraffic;
use pods::PodRanges;
use ready::ReadyState;
use routing::Routing;
use signals::{SignalRequest, Signals};
use socket::{ControlSocket, Responder};
use supervisor::Supervisor;
use surplus::Surplus;
use tables::{Changed, CompiledTables, NodeAddresses};

/// Interval for checking workers, interfaces and manifests.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Interval for refreshing neighbours, searching unused filter rules and repairing local routes.
const PERIODIC_EVERY: Duration = Duration::from_secs(5);

/// Runs a gateway until SIGTERM or SIGINT. `seed` is the hash seed that the configuration sets, if it does. `drop_in` is a kube-proxy configuration that completes `config`; `node_name` overrides both.
pub fn run(mut config: Config, seed: Option<Seed>, drop_in: Option<&DropIn>, node_name: Option<&str>) -> Result<()> {
    let runtime = control_runtime().context("cannot start the control runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        if let Some(drop_in) = drop_in {
            startup::complete_config(&mut config, drop_in)?;
            table_file::choose(&mut config);
        }
        if let Some(name) = node_name {
            config.node.name = Some(name.to_owned());
        }
        let mut signals = Signals::catch()?;
        let Some(mut gateway) = RunningGateway::start(config, seed, &mut signals).await? else { return Ok(()) };
        let outcome = gateway.serve(&mut signals).await;
        gateway.stop()?;
        outcome
    })
}

fn control_runtime() -> io::Result<Runtime> {
    // tokio panics if it cannot have the descriptors for its signals, so we look whether there are as many.
    let (read, _write) = UnixStream::pair()?;
    let _copy = read.try_clone()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A running gateway.
struct RunningGateway {
    config: Config,
    routing: Routing,
    local: LocalTraffic,
    /// The kernel's routes or addresses have changed since the tables last followed them.
    kernel_changed: bool,
    tables: CompiledTables,
    /// Declared before the edge, so that its threads are joined first: they read the edge's tables.
    reconciler: Reconciler,
    surplus: Surplus,
    deny: DenyControl,
    edge: Edge,
    wanted: mpsc::Receiver<Wanted>,
    requests: mpsc::Receiver<(Request, Responder)>,
    /// Keeps traffic counters by backend from one status to the next.
    targets: TargetReader,
    http: Http,
    ready: ReadyState,
    drain: Drain,
    taps: Taps,
    /// Flows that were ended by command. Whoever records there holds the lock: one thread at a time.
    commanded: (Arc<EventRing>, Arc<Mutex<()>>),
    supervisor: Supervisor,
    /// What happens to traffic when no process runs.
    on_failure: OnFailure,
    /// Live workers at the last check.
    workers_alive: usize,
    /// The problem of the connection table's file that was last logged.
    table_file_problem: Option<String>,
    /// Workers that use the table that last came into force.
    workers_following: usize,
    started: Instant,
}

impl RunningGateway {
    /// Returns `None` if a signal requested the end while waiting for objects.
    async fn start(config: Config, seed: Option<Seed>, signals: &mut Signals) -> Result<Option<RunningGateway>> {
        let started = Instant::now();
        startup::raise_limits();
        let control_socket = ControlSocket::open(&config.state_dir, config.socket_group.as_ref())?;
        let http = Http::start(&config, control_socket.permits())?;
        let mut requests = control_socket.serve();
        let (drain, mut supervisor) = (Drain::open(&config.state_dir), Supervisor::from_environment());
        http.set_draining(drain.is_on());
        let pair = startup::make_internal_pair(&config)?;
        let mut mirror = Mirror::start(MirrorLimits::default())?;
        startup::keep_api_server_reachable(&config);
        let mut tables = startup::open_tables(&config, seed, &mut mirror, &http)?;
        if !startup::wait_for_objects(&mut tables, &http, &mut supervisor, &mut requests, signals).await? {
            startup::undo(&config)?;
            return Ok(None);
        }
        tables.choose_seed()?;
        startup::prepare_sources(&tables.settings(), &mirror.local_addresses(), &pair)?;
        tables.compile_first();
        let routing = Routing::new(&config, mirror, &pair);
        let (mut edge, on_failure) = startup::start_edge(&config, &tables, &routing)?;
        let mut gateway = RunningGateway {
            wanted: forward_wanted(&edge)?,
            reconciler: startup::start_reconciler(&edge)?,
            local: LocalTraffic::open(&config, &pair.kernel.name)?,
            workers_alive: config.workers.count.get() as usize,
            workers_following: config.workers.count.get() as usize,
            kernel_changed: true,
            table_file_problem: edge.table_file_problem(),
            surplus: Surplus::default(),
            deny: DenyControl::start(&config.deny, &mut edge),
            targets: TargetReader::default(),
            config,
            routing,
            tables,
            edge,
            requests,
            http,
            ready: ReadyState::default(),
            drain,
            taps: Taps::default(),
            commanded: Default::default(),
            supervisor,
            on_failure,
            started,
        };
        gateway.take_over()?;
        Ok(Some(gateway))
    }

    /// Puts the first tables in force; from then on the XDP filter takes frames.
    fn take_over(&mut self) -> Result<()> {
        self.follow_interfaces();
        self.http.queued(&self.tables);
        self.put_in_force()?;
        self.follow_readiness();
        self.http.started();
        // Last: who reads it may ask `/readyz` at once.
        self.log_ready();
        Ok(())
    }

    /// Waits until the workers use the latest tables, then updates the reconciler, the XDP filter, local routes and health.
    fn put_in_force(&mut self) -> Result<()> {
        self.surplus.opened(self.tables.opened());
        let applied = workers::wait(&mut self.edge)?;
        self.workers_following = applied.workers();
        self.reconciler.follow(self.tables.serving());
        // Only now: the filter must not take frames that the workers' tables do not cover.
        applied.widen_filter(self.tables.opened(), &self.tables.services().kernel_ips)?;
        if self.tables.in_force() {
            self.local.follow_filter(self.edge.filter_rules(), &self.routing.mirror, &self.tables);
        }
        self.http.in_force(&self.tables);
        Ok(())
    }

    fn log_ready(&self) {
        for port in self.edge.ports() {
            let mode = if port.native { "native XDP" } else { "generic XDP (slow; large packets of local senders may be lost)" };
            let copy = if port.zero_copy { "zero-copy" } else { "copy mode (no zero-copy support in the driver)" };
            tracing::info!("port {}: {mode}, {copy}, {} queue(s)", port.name, port.queues);
        }
        let services = self.tables.services();
        tracing::info!("nomagic is ready: {} Service ports on {} addresses", services.ports, services.frontend_count());
    }

    /// The control loop. Returns after a signal or a fatal error.
    async fn serve(&mut self, signals: &mut Signals) -> Result<()> {
        let mut poll = tokio::time::interval(POLL_EVERY);
        let mut periodic = tokio::time::interval(PERIODIC_EVERY);
        for interval in [&mut poll, &mut periodic] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                changed = self.routing.changed() => {
                    changed?;
                    self.kernel_changed = true;
                    self.follow_interfaces();
                    self.follow_readiness();
                }
                Some(wanted) = self.wanted.recv() => self.routing.resolve(&wanted),
                Some(scrape) = self.http.next_scrape() => {
                    let status = self.status();
                    self.http.answer(scrape, status, self.reconciler.done());
                }
                Some((request, responder)) = self.requests.recv() => self.answer(&request, responder),
                changed = self.tables.changed() => match changed? {
                    Changed::Nothing => {}
                    Changed::Objects => self.compile(),
                    Changed::Table => {
                        self.publish();
                        if self.tables.is_behind() {
                            self.compile();
                        }
                    }
                },
                _ = poll.tick() => self.poll()?,
                request = signals.next() => match request {
                    SignalRequest::Reload => {
                        self.deny.tend(&mut self.edge, true);
                        self.tables.reload(true);
                    }
                    SignalRequest::Stop => break,
                },
                _ = periodic.tick() => self.run_periodic()?,
            }
        }
        tracing::info!("stopping on a signal: {}", farewell::text(&self.config, self.on_failure));
        self.announce_end();
        Ok(())
    }

    /// Checks workers, the deny list, ports, pod ranges and manifests.
    fn poll(&mut self) -> Result<()> {
        self.watch_workers()?;
        self.watch_table_file();
        self.deny.tend(&mut self.edge, false);
        let unused = self.surplus.found();
        if !unused.rules().is_empty() {
            self.edge.narrow_filter(&unused)?;
            self.local.follow_filter(self.edge.filter_rules(), &self.routing.mirror, &self.tables);
        }
        self.follow_interfaces();
        if std::mem::take(&mut self.kernel_changed) {
            let pods = self.tables.follow_pods(PodRanges::read(&self.config, &self.routing.mirror));
            if self.tables.follow_addresses(NodeAddresses::read(&self.routing.mirror)) || pods {
                self.publish();
            }
        }
        self.tables.reload(false);
        self.follow_readiness();
        self.tables.tend();
        self.taps.tend();
        Ok(())
    }

    /// Rebinds ports, attaches and detaches redirect ports, then publishes routes that match them.
    fn follow_interfaces(&mut self) {
        self.edge.tend();
        let redirects = self.routing.redirect_interfaces(&self.config.redirect_interfaces);
        self.routing.follow_mtu(&redirects);
        self.edge.redirect(&redirects);
        self.routing.publish(&mut self.edge);
        self.local.follow_kernel(self.edge.filter_rules(), &self.routing.mirror, &self.tables);
    }

    /// Compiles changed objects; a large change is published later.
    fn compile(&mut self) {
        if self.tables.compile() {
            self.publish();
        }
    }

    /// Puts the latest tables in force: first in the workers, then in the filter.
    fn publish(&mut self) {
        self.http.queued(&self.tables);
        self.reconciler.hold();
        self.edge.publish_services(self.tables.services());
        // Not fatal: if the filter is full, for instance, it keeps its rules, and a later period retries.
        if let Err(e) = self.put_in_force() {
            tracing::error!("{e:#}");
        }
        let services = self.tables.services();
        tracing::debug!(generation = services.generation, ports = services.ports, "new service table in force");
        if self.tables.has_new_manifests() {
            tracing::info!("the changed manifests are in force");
        }
    }

    fn run_periodic(&mut self) -> Result<()> {
        self.routing.keep_neighbours_alive();
        self.surplus.start_search(&mut self.tables, self.edge.filter_rules(), self.edge.table());
        self.local.check();
        if self.http.has_pending() {
            // A retry; the first failure was logged.
            let _ = self.put_in_force();
        } else {
            self.http.follow_checks(&self.tables);
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        let detach = self.config.detach_on_exit;
        drop((self.reconciler, self.surplus));
        if detach {
            LocalRoutes::open()?.clear()?;
        }
        self.edge.stop(detach)?;
        if detach {
            internal::remove(&internal::PairNames::default())?;
        }
        Ok(())
    }
}
