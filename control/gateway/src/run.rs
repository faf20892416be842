//! `nomagic run`: the control thread of a gateway.
//!
//! Start, in this order: the internal port, the kernel's routes, the objects known and compiled, the edge (sockets, then XDP), what the XDP
//! filter takes. Then one loop: routes follow the kernel, tables follow the objects, missing neighbours are asked for, requests are answered.

mod edge;
mod http;
mod local;
mod pods;
mod signals;
pub mod socket;
mod source;
mod startup;
mod surplus;
mod tables;
mod workers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_api::Status;
use nomagic_api::socket::{Request, Response};
use nomagic_core::counters::Counters;
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::routes::InternalPort;
use nomagic_core::rss::Rss;
use nomagic_xsk::{Condition, Edge, Link};
use tokio::sync::mpsc;

use self::http::Http;
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::local::LocalRoutes;
use crate::net::{Asked, Limits, Mirror, internal, node};
use crate::reconcile::Reconciler;
use crate::status::{self, TargetReader};
use edge::{edge_config, forward_wanted};
use local::LocalTraffic;
use pods::PodRanges;
use signals::Signals;
use socket::{Answer, ControlSocket};
use surplus::Surplus;
use tables::Tables;

/// How often the manifests are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often neighbours are kept alive and old filter rules looked at.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);
/// Neighbours kept alive in one go.
const STALE_MAX: usize = 256;

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
    /// Interface names in the order of their [`PortId`]s.
    ports: Vec<String>,
    internal: InternalPort,
    /// The kernel's end of the internal pair.
    kernel_side: String,
    mirror: Mirror,
    local: LocalTraffic,
    /// The kernel's routes have changed since pods were last looked for among them.
    pods_stale: bool,
    routes_generation: u64,
    /// How the ports spread what they receive over the workers, as the routes in force know it.
    rss: Vec<Option<Arc<Rss>>>,
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
        let links = config.interfaces.iter().map(|name| Link::query(name)).collect::<Result<Vec<_>, _>>()?;
        let mtu = links.iter().map(|l| l.mtu).max().unwrap_or(1500);
        let names = internal::Names::default();
        let pair = internal::ensure(&names, mtu)?;
        if let Err(e) = nomagic_xsk::prepare_kernel_side(&pair.kernel.name) {
            tracing::warn!(
                "interface {}: checksums and GRO could not be set, so onFailure: pass drops the node's own connections: {e}",
                pair.kernel.name
            );
        }
        let mut mirror = Mirror::start(Limits::default())?;

        let present = mirror.local_addresses();
        let mut tables = Tables::open(&config, present.clone())?;
        http.follow_node(&tables);
        tables.follow_pods(PodRanges::read(&config, &mirror));
        if !startup::wait_for_objects(&mut tables, &mut requests, signals, started).await? {
            if config.detach_on_exit {
                LocalRoutes::open()?.clear()?;
                internal::remove(&names)?;
            }
            return Ok(None);
        }
        let settings = tables.settings();
        let snat = &settings.snat;
        let own: Vec<_> = [snat.v4, snat.v6].into_iter().flatten().filter(|a| settings.node.ips.contains(a)).collect();
        node::check_snat_range(&own, snat.port_first, snat.port_last)?;
        for addr in [snat.internal_v4, snat.internal_v6].into_iter().flatten() {
            // An own address that is only configured cannot be a source.
            let own = settings.node.primary.iter().copied().find(|own| own.is_ipv6() == addr.is_ipv6() && present.contains(own));
            internal::route(&pair.kernel, addr, own)?;
        }
        tables.compile();

        let ports: Vec<String> = config.interfaces.iter().map(ToString::to_string).chain([pair.edge.name.clone()]).collect();
        let internal = InternalPort { port: PortId(config.interfaces.len() as u16), kernel_mac: pair.kernel.mac };
        let routes = mirror.routes(1, &ports, &BTreeSet::new(), Some(internal));
        let edge = Edge::start(edge_config(&config, &names), tables.services(), Arc::new(routes))?;
        // Everything that takes more than this is done; threads started from here on inherit what is left.
        if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
            tracing::warn!("capabilities that are no longer needed could not be given up: {e}");
        }
        let wanted = forward_wanted(&edge)?;
        let reconciler = Reconciler::start(edge.table(), edge.replies()).context(
            "the thread nm-reconcile, which ends UDP connections to endpoints that are gone, cannot be started: see the limits of threads and of \
             memory (pids.max and memory.max of the cgroup, `ulimit -u`)",
        )?;
        let mut gateway = Gateway {
            requests,
            targets: TargetReader::default(),
            http,
            started,
            workers_alive: config.workers.count.get() as usize,
            workers_following: config.workers.count.get() as usize,
            routes_generation: 1,
            rss: ports.iter().map(|_| None).collect(),
            pods_stale: false,
            local: LocalTraffic::open(config.local_traffic, &names.kernel)?,
            config,
            ports,
            internal,
            kernel_side: names.kernel.to_string(),
            mirror,
            tables,
            reconciler,
            surplus: Surplus::default(),
            edge,
            wanted,
        };
        gateway.follow_interfaces();
        gateway.http.queued(&gateway.tables);
        gateway.put_in_force()?;
        gateway.announce();
        gateway.http.started();
        Ok(Some(gateway))
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
            self.local.follow_filter(self.edge.filter_rules(), &self.mirror, self.tables.settings_in_force());
        }
        self.http.in_force(&self.tables);
        Ok(())
    }

    fn announce(&self) {
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
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_EVERY);
        for interval in [&mut look, &mut housekeeping] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                changed = self.mirror.changed() => {
                    changed?;
                    self.pods_stale = true;
                    self.follow_interfaces();
                }
                Some(wanted) = self.wanted.recv() => self.ask(wanted),
                Some(scrape) = self.http.asked() => {
                    let status = self.status();
                    self.http.answer(scrape, status, self.reconciler.done());
                }
                Some((request, answer)) = self.requests.recv() => answer.send(self.answer(&request)),
                changed = self.tables.changed() => if changed? {
                    self.tables.compile();
                    self.publish();
                },
                _ = look.tick() => self.look()?,
                asked = signals.next() => match asked {
                    signals::Asked::ToReload => self.reload(true),
                    signals::Asked::ToEnd => break,
                },
                _ = housekeeping.tick() => self.keep_house()?,
            }
        }
        tracing::info!("asked to end");
        Ok(())
    }

    /// Twice a second: workers, ports, manifests.
    fn look(&mut self) -> Result<()> {
        self.watch_workers()?;
        let unused = self.surplus.found();
        if !unused.rules().is_empty() {
            self.edge.narrow_filter(&unused)?;
            self.local.follow_filter(self.edge.filter_rules(), &self.mirror, self.tables.settings_in_force());
        }
        self.follow_interfaces();
        if std::mem::take(&mut self.pods_stale) && self.tables.follow_pods(PodRanges::read(&self.config, &self.mirror)) {
            self.publish();
        }
        self.reload(false);
        Ok(())
    }

    /// Ports are bound again, redirect ports come and go, and then the routes know of it.
    fn follow_interfaces(&mut self) {
        self.edge.tend();
        let patterns = &self.config.redirect_interfaces;
        let own = |name: &str| name == "lo" || name == self.kernel_side || self.ports.iter().any(|p| p == name);
        let fits = |name: &str| !own(name) && patterns.iter().any(|p| p.matches(name));
        let wanted: BTreeSet<String> =
            self.mirror.interfaces().map(|(name, _)| name).filter(|name| fits(name)).map(str::to_owned).collect();
        self.edge.redirect(&wanted);
        self.publish_routes();
        self.local.follow_kernel(self.edge.filter_rules(), &self.mirror, self.tables.settings_in_force());
    }

    fn publish_routes(&mut self) {
        let generation = self.routes_generation + 1;
        let captured = self.edge.redirects().iter().filter(|r| r.condition == Condition::Bound).map(|r| r.ifindex).collect();
        let (rss, internal) = (self.edge.rss(), Some(self.internal));
        let routes = if rss == self.rss {
            self.mirror.routes_if_changed(generation, &self.ports, &captured, internal)
        } else {
            Some(self.mirror.routes(generation, &self.ports, &captured, internal))
        };
        if let Some(routes) = routes {
            self.routes_generation = generation;
            self.edge.publish_routes(Arc::new(routes.with_rss(rss.iter().cloned())));
            self.rss = rss;
        }
    }

    fn ask(&mut self, wanted: Wanted) {
        match self.mirror.ask(&self.ports, &wanted) {
            Ok(Asked::Resolving | Asked::Lately) => {}
            Ok(Asked::Limited | Asked::NoPort) => tracing::debug!("neighbour {} not asked for: limit, or no port", wanted.addr),
            Err(e) => tracing::warn!("neighbour {}: {e}", wanted.addr),
        }
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

    fn keep_house(&mut self) -> Result<()> {
        for wanted in self.mirror.stale(&self.ports, STALE_MAX) {
            self.ask(wanted);
        }
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
            Request::Status {} => self.status().map(|status| Response::Status(Box::new(status))).map_err(|e| format!("{e:#}")),
        }
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
