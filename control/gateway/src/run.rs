//! `nomagic run`: the control thread of a gateway.
//!
//! The start order is: internal port, mirror of the kernel's routes, objects read and compiled, edge (sockets, then XDP), filter rules.
//! Then one loop applies route and object changes, resolves missing neighbours and answers requests.

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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_api::events::{EventFilter, EventsFrom, EventsPage};
use nomagic_api::flows::{CountBy, FlowFilter};
use nomagic_api::socket::{Request, Response};
use nomagic_api::taps::TapPage;
use nomagic_api::{Status, explain};
use nomagic_core::conntrack::Timeouts;
use nomagic_core::counters::Counters;
use nomagic_core::events::EventRing;
use nomagic_core::frame::Wanted;
use nomagic_sys::time::monotonic_ns;
use nomagic_table::explain::{LiveState, parse_flow};
use nomagic_xsk::{Edge, OnFailure};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use self::http::Http;
use crate::clock::WallClock;
use crate::config::Config;
use crate::events::{EventSelection, EventSource};
use crate::flows::{FlowSource, Selection};
use crate::kubeproxy::DropIn;
use crate::log::{self, LogLevel};
use crate::net::local::LocalRoutes;
use crate::net::{Mirror, MirrorLimits, internal};
use crate::reconcile::Reconciler;
use crate::seed::Seed;
use crate::status::{self, TargetReader};
use crate::taps::{TapNames, Taps};
use deny::DenyControl;
use drain::Drain;
use edge::{forward_wanted, outer_problem};
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

/// Changes the log level, if one is named. Answers with the level now.
fn follow_log(level: Option<&str>) -> Result<Response, String> {
    if let Some(level) = level {
        let level = LogLevel::parse(level)?;
        log::set_level(level)?;
        tracing::info!("the log level is {} now", level.name());
    }
    Ok(Response::Log { level: log::level().name().to_owned() })
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

    fn answer(&mut self, request: &Request, responder: Responder) {
        let answer = match request {
            Request::Flows { filter, count_by, from } => return self.read_flows(filter, *count_by, *from, responder),
            Request::Events { filter, from } => self.read_events(filter, from).map(Response::Events),
            Request::TapOpen(tap) => self.taps.open(&self.edge, tap).map(|id| Response::TapOpen { id }),
            Request::TapRead { id } => self.read_tap(*id).map(Response::TapRead),
            Request::TapClose { id } => {
                self.taps.close(*id);
                Ok(Response::TapClose {})
            }
            Request::FlowsEnd { filter, from, all } => return self.end_flows(filter, *from, *all, responder),
            Request::Services { filter, from } => self.tables.list_services(filter, from.as_deref()).map(Response::Services),
            Request::Explain { flow, as_new } => self.explain(flow, *as_new).map(|answer| Response::Explain(Box::new(answer))),
            Request::DenyAdd { prefix, for_s } => self.deny.add(&mut self.edge, prefix, *for_s).map(Response::DenyChange),
            Request::DenyRemove { prefix } => self.deny.remove(&mut self.edge, prefix).map(Response::DenyChange),
            Request::Drain { on } => self.set_draining(*on).map(|()| Response::Drain { on: *on }),
            Request::Log { level } => follow_log(level.as_deref()),
            Request::DenyList {} => self.deny.report(&self.edge).map(Response::DenyReport),
            Request::Status {} => self.status().map(|status| Response::Status(Box::new(status))).map_err(|e| format!("{e:#}")),
        };
        responder.send(answer);
    }

    /// Reads a part of the connection table on another thread: it may be large.
    fn read_flows(&self, filter: &FlowFilter, count_by: Option<CountBy>, from: u32, responder: Responder) {
        let selection = match Selection::parse(filter) {
            Ok(selection) => selection,
            Err(e) => return responder.send(Err(e)),
        };
        let (table, services) = (self.edge.table(), self.tables.services());
        let idle = Timeouts::from(self.config.conntrack.timeouts).table();
        let page = tokio::task::spawn_blocking(move || {
            let source = FlowSource { table, services: &services, idle: &idle, now_ms: monotonic_ns() / 1_000_000 };
            source.page(&selection, count_by, from)
        });
        tokio::task::spawn_local(async move {
            responder.send(page.await.map(Response::Flows).map_err(|e| format!("the flows could not be read: {e}")));
        });
    }

    /// Ends flows on another thread, as [`RunningGateway::read_flows`] reads them.
    fn end_flows(&self, filter: &FlowFilter, from: u32, all: bool, responder: Responder) {
        if !all && *filter == FlowFilter::default() {
            return responder.send(Err("no filter: `all` ends all flows".into()));
        }
        let selection = match Selection::parse(filter) {
            Ok(selection) => selection,
            Err(e) => return responder.send(Err(e)),
        };
        let (table, replies, services) = (self.edge.table(), self.edge.replies(), self.tables.services());
        let (events, one_at_a_time) = self.commanded.clone();
        let idle = Timeouts::from(self.config.conntrack.timeouts).table();
        let done = tokio::task::spawn_blocking(move || {
            let source = FlowSource { table, services: &services, idle: &idle, now_ms: monotonic_ns() / 1_000_000 };
            let _turn = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
            source.end(&selection, replies, &events, from)
        });
        tokio::task::spawn_local(async move {
            let done = done.await.map(|(ended, next)| Response::FlowsEnd { ended, next });
            responder.send(done.map_err(|e| format!("the flows could not be ended: {e}")));
        });
    }

    fn read_events(&self, filter: &EventFilter, from: &EventsFrom) -> Result<EventsPage, String> {
        let selection = EventSelection::parse(filter)?;
        let (rings, services, clock) = (self.event_rings(), self.tables.services(), WallClock::now());
        let workers = self.edge.workers_alive().1;
        Ok(EventSource { rings: &rings, workers, services: &services, ports: &self.routing.ports, clock }.page(&selection, from))
    }

    /// The workers' rings, and those of the control plane.
    fn event_rings(&self) -> Vec<Arc<EventRing>> {
        let mut rings = self.edge.events();
        rings.push(self.reconciler.events());
        rings.push(self.commanded.0.clone());
        rings
    }

    fn read_tap(&mut self, id: u64) -> Result<TapPage, String> {
        let (services, routing) = (self.tables.services(), &self.routing);
        let names = TapNames { services: &services, routes: &routing.in_force, ports: &routing.ports, clock: WallClock::now() };
        self.taps.read(id, &names)
    }

    /// Reads the live tables without changing them: the packet runs through the packet path with a scratch connection table that has copies
    /// of the entries that matter.
    fn explain(&self, flow: &str, as_new: bool) -> Result<explain::Answer, String> {
        let tuple = parse_flow(flow)?;
        let live = LiveState {
            table: self.edge.table(),
            routes: &self.routing.in_force,
            ports: &self.routing.ports,
            timeouts: self.config.conntrack.timeouts.into(),
            now_ms: monotonic_ns() / 1_000_000,
        };
        let explainer = self.tables.explainer().with_state(live).with_denied(self.deny.in_force());
        Ok(if as_new { explainer.answer_as_new(flow.trim(), &tuple) } else { explainer.answer(flow.trim(), &tuple) })
    }

    fn status(&mut self) -> Result<Status> {
        self.follow_readiness();
        let services = self.tables.services();
        let mut own = self.local.problems();
        own.extend(self.reconciler.problem().map(str::to_owned));
        own.extend(self.deny.problems());
        own.extend_from_slice(self.routing.problems());
        own.extend(self.table_file_problem.clone());
        own.extend(outer_problem(self.edge.outer_left_out()));
        let (tables, edge) = (&self.tables, &self.edge);
        let counters: Vec<&Counters> = (0..edge.workers_alive().1).filter_map(|worker| edge.counters(worker)).collect();
        let control = status::ControlStatus {
            services: &services,
            deny: self.deny.size(),
            reconciled: &self.reconciler.done(),
            not_ready: self.ready.reasons().to_vec(),
            problems: [tables.problems(), self.http.problems(), &own].concat(),
            set_aside: tables.set_aside(),
            hash_seed_source: tables.seed_source(),
            api: tables.source_status(),
            uptime_s: self.started.elapsed().as_secs(),
            table_file: self.config.conntrack.file.as_deref(),
            service_ports: status::service_ports(tables.ports(), |key| tables.port_number(key)),
            targets: self.targets.read(tables.targets(), |key| tables.port_number(key), &counters),
        };
        Ok(Status { draining: self.drain.is_on(), ..status::collect(edge, control)? })
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
