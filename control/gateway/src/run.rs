//! `nomagic run`: the control thread of a gateway.
//!
//! Start, in this order: the internal port, the kernel's routes, the objects known and compiled, the edge (sockets, then XDP), what the XDP
//! filter takes. Then one loop: routes follow the kernel, tables follow the objects, missing neighbours are asked for, requests are answered.

mod edge;
mod http;
mod local;
mod pods;
mod routing;
mod signals;
pub mod socket;
mod source;
mod startup;
mod surplus;
mod tables;
mod workers;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_api::socket::{Request, Response};
use nomagic_api::{Status, explain};
use nomagic_core::counters::Counters;
use nomagic_core::frame::Wanted;
use nomagic_sys::time::monotonic_ns;
use nomagic_table::explain::{LiveState, parse_flow};
use nomagic_xsk::Edge;
use tokio::sync::mpsc;

use self::http::Http;
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::local::LocalRoutes;
use crate::net::{Limits, Mirror, internal};
use crate::reconcile::Reconciler;
use crate::status::{self, TargetReader};
use edge::forward_wanted;
use local::LocalTraffic;
use pods::PodRanges;
use routing::Routing;
use signals::Signals;
use socket::{Answer, ControlSocket};
use surplus::Surplus;
use tables::Tables;

/// How often the manifests are looked at.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// How often neighbours are kept alive and old filter rules looked at.
const PERIODIC_EVERY: Duration = Duration::from_secs(5);

/// Runs a gateway until SIGTERM or SIGINT. `drop_in` is a kube-proxy's file that completes the configuration, `node_name` comes before what
/// both say.
pub fn run(mut config: Config, drop_in: Option<&DropIn>, node_name: Option<&str>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the control runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        if let Some(drop_in) = drop_in {
            startup::complete_config(&mut config, drop_in)?;
        }
        if let Some(name) = node_name {
            config.node.name = Some(name.to_owned());
        }
        let mut signals = Signals::catch()?;
        let Some(mut gateway) = Gateway::start(config, &mut signals).await? else { return Ok(()) };
        let outcome = gateway.serve(&mut signals).await;
        gateway.stop()?;
        outcome
    })
}

/// A running gateway.
struct Gateway {
    config: Config,
    routing: Routing,
    local: LocalTraffic,
    /// The kernel's routes have changed since pods were last looked for among them.
    pods_stale: bool,
    tables: Tables,
    /// Before the edge: they end first.
    reconciler: Reconciler,
    surplus: Surplus,
    edge: Edge,
    wanted: mpsc::Receiver<Wanted>,
    requests: mpsc::Receiver<(Request, Answer)>,
    /// What backends carried, as shown before.
    targets: TargetReader,
    http: Http,
    /// When they were last counted.
    workers_alive: usize,
    /// When a table last came into force.
    workers_following: usize,
    started: Instant,
}

impl Gateway {
    /// `None`: asked to end before there was anything to do.
    async fn start(config: Config, signals: &mut Signals) -> Result<Option<Gateway>> {
        let started = Instant::now();
        let mut requests = ControlSocket::open(&config.state_dir)?.serve();
        let http = Http::start(&config)?;
        let pair = startup::make_internal_pair(&config)?;
        let mut mirror = Mirror::start(Limits::default())?;
        let mut tables = startup::open_tables(&config, &mut mirror, &http)?;
        if !startup::wait_for_objects(&mut tables, &mut requests, signals, started).await? {
            startup::undo(&config)?;
            return Ok(None);
        }
        startup::prepare_sources(&tables.settings(), &mirror.local_addresses(), &pair)?;
        tables.compile();
        let routing = Routing::new(&config, mirror, &pair);
        let edge = startup::start_edge(&config, &tables, &routing)?;
        let mut gateway = Gateway {
            wanted: forward_wanted(&edge)?,
            reconciler: startup::start_reconciler(&edge)?,
            local: LocalTraffic::open(config.local_traffic, &pair.kernel.name)?,
            workers_alive: config.workers.count.get() as usize,
            workers_following: config.workers.count.get() as usize,
            pods_stale: false,
            surplus: Surplus::default(),
            targets: TargetReader::default(),
            config,
            routing,
            tables,
            edge,
            requests,
            http,
            started,
        };
        gateway.take_over()?;
        Ok(Some(gateway))
    }

    /// The first tables come into force, and the XDP filter takes frames.
    fn take_over(&mut self) -> Result<()> {
        self.follow_interfaces();
        self.http.queued(&self.tables);
        self.put_in_force()?;
        self.log_ready();
        self.http.started();
        Ok(())
    }

    /// What was compiled last comes into force, and those who watch hear of it.
    fn put_in_force(&mut self) -> Result<()> {
        self.surplus.opened(self.tables.opened());
        let applied = workers::wait(&mut self.edge)?;
        self.workers_following = applied.workers();
        self.reconciler.follow(self.tables.serving());
        // What the workers know is now taken.
        applied.widen_filter(self.tables.opened())?;
        if self.tables.in_force() {
            self.local.follow_filter(self.edge.filter_rules(), &self.routing.mirror, self.tables.settings_in_force());
        }
        self.http.in_force(&self.tables);
        Ok(())
    }

    fn log_ready(&self) {
        for port in self.edge.ports() {
            let mode = if port.native { "native XDP" } else { "generic XDP (slow, and large packets of local senders may get lost)" };
            let copy = if port.zero_copy { "zero-copy" } else { "copy mode: the driver offers no zero-copy" };
            tracing::info!("port {}: {mode}, {copy}, {} queue(s)", port.name, port.queues);
        }
        let services = self.tables.services();
        tracing::info!("nomagic is ready: {} Service ports on {} addresses", services.ports, services.frontend_count());
    }

    /// The loop. Ends by a signal, or when it cannot go on.
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
                    self.pods_stale = true;
                    self.follow_interfaces();
                }
                Some(wanted) = self.wanted.recv() => self.routing.resolve(&wanted),
                Some(scrape) = self.http.asked() => {
                    let status = self.status();
                    self.http.answer(scrape, status, self.reconciler.done());
                }
                Some((request, answer)) = self.requests.recv() => answer.send(self.answer(&request)),
                changed = self.tables.changed() => if changed? {
                    self.tables.compile();
                    self.publish();
                },
                _ = poll.tick() => self.poll()?,
                asked = signals.next() => match asked {
                    signals::Asked::ToReload => self.reload(true),
                    signals::Asked::ToEnd => break,
                },
                _ = periodic.tick() => self.run_periodic()?,
            }
        }
        tracing::info!("asked to end");
        Ok(())
    }

    /// Twice a second: workers, ports, manifests.
    fn poll(&mut self) -> Result<()> {
        self.watch_workers()?;
        let unused = self.surplus.found();
        if !unused.rules().is_empty() {
            self.edge.narrow_filter(&unused)?;
            self.local.follow_filter(self.edge.filter_rules(), &self.routing.mirror, self.tables.settings_in_force());
        }
        self.follow_interfaces();
        if std::mem::take(&mut self.pods_stale) && self.tables.follow_pods(PodRanges::read(&self.config, &self.routing.mirror)) {
            self.publish();
        }
        self.reload(false);
        Ok(())
    }

    /// Ports are bound again, redirect ports come and go, and then the routes know of it.
    fn follow_interfaces(&mut self) {
        self.edge.tend();
        self.edge.redirect(&self.routing.redirect_interfaces(&self.config.redirect_interfaces));
        self.routing.publish(&mut self.edge);
        self.local.follow_kernel(self.edge.filter_rules(), &self.routing.mirror, self.tables.settings_in_force());
    }

    /// Takes changed manifests over.
    fn reload(&mut self, always: bool) {
        if self.tables.reload(always) {
            self.publish();
            tracing::info!("the changed manifests are in force");
        }
    }

    /// Puts the latest tables in force: first in the workers, then in the filter.
    fn publish(&mut self) {
        self.http.queued(&self.tables);
        self.reconciler.hold();
        self.edge.publish_services(self.tables.services());
        // A filter that is full refuses the new rules: said, and the rest goes on.
        if let Err(e) = self.put_in_force() {
            tracing::error!("{e:#}");
        }
        let services = self.tables.services();
        tracing::debug!(generation = services.generation, ports = services.ports, "new service table in force");
    }

    fn run_periodic(&mut self) -> Result<()> {
        self.routing.keep_neighbours_alive();
        self.surplus.look(&mut self.tables, self.edge.filter_rules(), self.edge.table());
        self.local.check();
        if self.http.behind() {
            // What failed is tried again; why was said when it did.
            let _ = self.put_in_force();
        } else {
            self.http.follow_checks(&self.tables);
        }
        Ok(())
    }

    fn answer(&mut self, request: &Request) -> Result<Response, String> {
        match request {
            Request::Explain { flow } => self.explain(flow).map(|answer| Response::Explain(Box::new(answer))),
            Request::Status {} => self.status().map(|status| Response::Status(Box::new(status))).map_err(|e| format!("{e:#}")),
        }
    }

    /// Nothing of the living table changes: the packet goes through the packet path with a table of its own.
    fn explain(&self, flow: &str) -> Result<explain::Answer, String> {
        let tuple = parse_flow(flow)?;
        let live = LiveState {
            table: self.edge.table(),
            routes: &self.routing.in_force,
            ports: &self.routing.ports,
            timeouts: self.config.conntrack.timeouts.into(),
            now_ms: monotonic_ns() / 1_000_000,
        };
        Ok(self.tables.explainer().with_state(live).answer(flow.trim(), &tuple))
    }

    fn status(&mut self) -> Result<Status> {
        let services = self.tables.services();
        let mut own = self.local.problems();
        own.extend(self.reconciler.problem().map(str::to_owned));
        let (tables, edge) = (&self.tables, &self.edge);
        let counters: Vec<&Counters> = (0..edge.workers_alive().1).filter_map(|worker| edge.counters(worker)).collect();
        let control = status::Control {
            services: &services,
            reconciled: &self.reconciler.done(),
            problems: [tables.problems(), self.http.problems(), &own].concat(),
            api: tables.source_status(),
            uptime_s: self.started.elapsed().as_secs(),
            table_file: self.config.conntrack.file.as_deref(),
            targets: self.targets.read(tables.targets(), |key| tables.port_number(key), &counters),
        };
        Ok(status::collect(edge, control)?)
    }

    fn stop(self) -> Result<()> {
        let detach = self.config.detach_on_exit;
        drop((self.reconciler, self.surplus));
        if detach {
            LocalRoutes::open()?.clear()?;
        }
        self.edge.stop(detach)?;
        if detach {
            internal::remove(&internal::Names::default())?;
        }
        Ok(())
    }
}
