//! The edge as control sees it: start, publish, ask, stop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use nomagic_core::capture::FilterRules;
use nomagic_core::conntrack::{Conntrack, Recovered};
use nomagic_core::counters::{Counters, XdpCounts};
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::Wanted;
use nomagic_core::routes::Routes;
use nomagic_core::rss::Rss;
use nomagic_core::services::Services;
use nomagic_core::unused::Unused;
use nomagic_sys::process::raise_memory_lock;

use crate::bind::bind_ports;
use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::filter::FilterMaps;
use crate::hold::WANTED_MAX;
use crate::limits::InterfaceName;
use crate::link::Link;
use crate::pins::Pins;
use crate::pool::FrameAccount;
use crate::ports::{Binding, Ports, members};
use crate::program::{self, Constants};
use crate::redirect::Redirects;
use crate::region::Table;
use crate::setup::{reply_seed, share_memory};
use crate::status::{EdgeStatus, PortInfo, RedirectStatus, WorkerStatus};
use crate::tables::Tables;
use crate::workers::Workers;

/// The running dataplane.
pub struct Edge {
    pins: Pins,
    ports: Ports,
    /// `None` without an internal port.
    redirects: Option<Redirects>,
    workers: Workers,
    tables: Tables,
    filter: FilterMaps,
    wanted: Receiver<Wanted>,
    table: Table,
    replies: ReplyFilter<'static>,
    replies_capacity: u64,
}

/// Every worker that is alive uses all that has been published. Only now, and only until the next publication, may the XDP filter take more:
/// what it takes before the workers know it would be refused or go astray.
///
/// ```compile_fail,E0499
/// # use std::{sync::Arc, time::Duration};
/// # use nomagic_core::{capture::FilterRules, services::Services};
/// # fn f(edge: &mut nomagic_xsk::Edge, services: Arc<Services>, rules: &FilterRules) {
/// let applied = edge.wait_applied(Duration::from_secs(1)).unwrap();
/// edge.publish_services(services);
/// applied.widen_filter(rules); // not known to the workers yet
/// # }
/// ```
pub struct Applied<'e> {
    filter: &'e mut FilterMaps,
    workers: usize,
}

impl Applied<'_> {
    /// How many workers that is.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Lets the XDP filter take this too; rules that exist stay. Refused as a whole when a limit would be exceeded. An SNAT address has one range:
    /// adding another replaces it.
    pub fn widen_filter(self, rules: &FilterRules) -> Result<(), EdgeError> {
        self.filter.add(rules)
    }
}

impl Edge {
    /// Sets everything up in the calling thread's network namespace, starts the workers and attaches the XDP programs, in this
    /// order: no frame is taken before somebody listens. What an earlier process has pinned is taken over, its filter rules included:
    /// so the tables should be complete already. Ports are numbered as the interfaces are configured, the internal port comes last;
    /// [`Link::query`] tells their addresses beforehand.
    pub fn start(config: EdgeConfig, services: Arc<Services>, routes: Arc<Routes>) -> Result<Edge, EdgeError> {
        config.validate()?;
        let links = free_links(&config)?;
        let members = members(&links)?;
        let locked_bytes = raise_memory_lock();
        tracing::debug!(locked_bytes, "limit of locked memory");

        let pins = Pins::open(&config.state_dir)?;
        program::check_layout(&pins, config.reply_buckets)?;
        let table = Table::open(&config, &services)?;
        let constants = Constants {
            reply_buckets: config.reply_buckets,
            // Of the table's seed, not a new one: what an earlier process has announced with it goes on.
            reply_seed: reply_seed(table.conntrack.seed()),
            take_everything: false,
            redirect_to: 0,
            internal: config.internal.as_ref().map_or([None; 2], |pair| pair.addresses),
        };
        let mut bindings = load_programs(&config, &links, constants, &pins)?;
        let first = &mut bindings[0].ebpf;
        program::write_settings(first, &config)?;
        let memory = share_memory(&config, first, &table)?;
        let filter = FilterMaps::open(first)?;
        let redirects = open_redirects(&config, constants, &pins)?;

        let (outside, inside) = members.split_at(config.interfaces.len());
        let bound = bind_ports(&config, outside, inside)?;
        let (wanted_sender, wanted) = bounded(WANTED_MAX);
        let (tables, topology, readers) = Tables::new(services, routes, config.workers.get() as usize);
        let workers = Workers::start(&config, &bound.groups, &memory, readers, &wanted_sender)?;
        let mut edge = Edge {
            ports: Ports::new(pins.clone(), &links, bindings, bound.groups, topology),
            pins,
            redirects,
            workers,
            tables,
            filter,
            wanted,
            table,
            replies: memory.replies,
            replies_capacity: u64::from(config.reply_buckets) * BUCKET_SLOTS as u64,
        };
        edge.ports.install_all(bound.ports, &edge.workers)?;
        edge.ports.attach(&links)?;
        edge.ports.forget_others();
        Ok(edge)
    }

    /// The ports: the interfaces in the order of the configuration, then the internal port.
    pub fn ports(&self) -> &[PortInfo] {
        self.ports.infos()
    }

    /// How the ports spread what they receive over the workers, as far as that is known: for [`Routes::with_rss`].
    pub fn rss(&self) -> Vec<Option<Arc<Rss>>> {
        self.ports().iter().map(|port| port.rss.clone().ok()).collect()
    }

    /// The redirect ports.
    pub fn redirects(&self) -> Vec<RedirectStatus> {
        self.redirects.as_ref().map(Redirects::status).unwrap_or_default()
    }

    /// Looks after the ports; to be called a few times a second, and when an interface has changed. What had to be done is logged and
    /// shows in [`Edge::ports`]. Returns whether anything did.
    pub fn tend(&mut self) -> bool {
        self.ports.tend(&self.workers)
    }

    /// Makes exactly these interfaces redirect ports: attaches what is new, detaches what is gone. An interface that another program
    /// holds, or that cannot be attached to, is left alone and reported. Returns whether anything has changed. Cheap when nothing did;
    /// to be called when interfaces have come or gone, and now and then.
    pub fn redirect(&mut self, names: &BTreeSet<String>) -> bool {
        // The internal port is the last one, and has one queue.
        let owner = self.ports.infos().last().and_then(|internal| internal.owners.first().copied());
        self.redirects.as_mut().is_some_and(|redirects| redirects.follow(names, owner))
    }

    /// Gives the workers a new service table.
    pub fn publish_services(&mut self, services: Arc<Services>) {
        self.tables.services.publish(services);
        self.workers.wake();
    }

    /// Gives the workers new routes; held frames are submitted again.
    pub fn publish_routes(&mut self, routes: Arc<Routes>) {
        self.tables.routes.publish(routes);
        self.workers.wake();
    }

    /// Waits until every worker that is alive uses all that has been published so far. `None` when the time is up.
    pub fn wait_applied(&mut self, limit: Duration) -> Option<Applied<'_>> {
        let applied = self.tables.wait(limit, |worker| self.workers.live(worker));
        let workers = self.workers_alive().0;
        applied.then_some(Applied { filter: &mut self.filter, workers })
    }

    /// What the XDP filter takes now.
    pub fn filter_rules(&self) -> &FilterRules {
        self.filter.rules()
    }

    /// Lets the XDP filter take no more what no flow needs; rules that do not exist are passed over.
    pub fn narrow_filter(&mut self, unused: &Unused) -> Result<(), EdgeError> {
        self.filter.remove(unused.rules())
    }

    /// Neighbours that frames are waiting for. Each is repeated a few times a second while frames ask for it.
    pub fn wanted(&self) -> &Receiver<Wanted> {
        &self.wanted
    }

    /// The connection table, for scans.
    pub fn table(&self) -> Conntrack<'static> {
        self.table.conntrack
    }

    /// What is announced to the XDP filter: for who ends connections of the table, see [`nomagic_core::pipeline::end_connection`].
    pub fn replies(&self) -> ReplyFilter<'static> {
        self.replies
    }

    /// What was taken over from an earlier process, see [`EdgeConfig::conntrack_file`].
    pub fn taken_over(&self) -> Option<Recovered> {
        self.table.taken_over
    }

    /// A worker's counters of the packet path.
    pub fn counters(&self, worker: usize) -> Option<&Counters> {
        self.workers.shared(worker).map(|shared| &shared.counters)
    }

    /// Workers that are alive, and all of them. One that is dead or stuck for longer than the grace period does not count.
    pub fn workers_alive(&self) -> (usize, usize) {
        (self.workers.all_live().count(), self.workers.len())
    }

    /// Everything that can be counted.
    pub fn status(&self) -> Result<EdgeStatus, EdgeError> {
        let Tables { services, routes } = &self.tables;
        services.collect();
        routes.collect();
        let shown = (0..self.workers.len()).filter_map(|id| Some((id, self.workers.shared(id)?)));
        let workers: Vec<WorkerStatus> =
            shown.map(|(id, shared)| WorkerStatus::read(id as u32, shared, self.workers.heartbeat_age_ns(id))).collect();
        let of_pool = |pool: usize| workers.iter().filter_map(move |w| w.pools.get(pool));
        let sum = |pool| of_pool(pool).fold(FrameAccount::default(), |sum, account| sum.and(account));
        let pools = (0..self.ports.pools()).map(sum).collect();
        let live = |worker: usize| self.workers.live(worker);
        Ok(EdgeStatus {
            workers,
            ports: self.ports.status()?,
            redirects: self.redirects.as_ref().map(Redirects::status).unwrap_or_default(),
            redirects_xdp: self.redirects.as_ref().map_or(Ok(XdpCounts::default()), Redirects::counters)?,
            pools,
            flows_live: self.table.conntrack.live(),
            flows_capacity: self.table.conntrack.capacity(),
            replies_announced: self.replies.len() as u64,
            source_ports: self.table.conntrack.snat_ports().in_use(),
            source_ports_fullest: self.table.conntrack.snat_ports().fullest_endpoint(),
            source_ports_largest: self.table.conntrack.snat_ports().largest_share(),
            replies_capacity: self.replies_capacity,
            services_generation: services.current().generation,
            services_applied: services.applied(live) == services.sequence(),
            routes_generation: routes.current().generation,
            routes_applied: routes.applied(live) == routes.sequence(),
        })
    }

    /// Ends the workers. `detach`: the interfaces are given back to the kernel first; else the filter stays pinned, drops our frames
    /// for the grace period and then does what `on_failure` says, until a new process takes over.
    pub fn stop(mut self, detach: bool) -> Result<(), EdgeError> {
        let detached = if detach { self.pins.remove_all() } else { Ok(()) };
        self.end();
        detached
    }

    /// What follows in the table is no worker's any more: the next process is told so.
    fn end(&mut self) {
        if self.workers.end() {
            self.table.conntrack.detach();
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.end();
    }
}

/// The configured interfaces, then the internal port, none of which is somebody else's.
fn free_links(config: &EdgeConfig) -> Result<Vec<Link>, EdgeError> {
    let inside = config.internal.as_ref().map(|pair| pair.edge_side.as_str());
    let names = config.interfaces.iter().map(InterfaceName::as_str).chain(inside);
    let links = names.map(Link::query).collect::<Result<Vec<_>, _>>()?;
    let existing = Pins::existing(&config.state_dir);
    links.iter().try_for_each(|link| program::check_free(link, existing.as_ref()))?;
    Ok(links)
}

/// The program of each port. That of the internal port takes everything.
fn load_programs(config: &EdgeConfig, links: &[Link], constants: Constants, pins: &Pins) -> Result<Vec<Binding>, EdgeError> {
    let load = |(port, link)| Binding::load(link, Constants { take_everything: port >= config.interfaces.len(), ..constants }, pins);
    links.iter().enumerate().map(load).collect()
}

/// Redirect ports lead to the kernel's end of the internal pair.
fn open_redirects(config: &EdgeConfig, constants: Constants, pins: &Pins) -> Result<Option<Redirects>, EdgeError> {
    let Some(pair) = &config.internal else { return Ok(None) };
    let redirect_to = Link::query(&pair.kernel_side)?.ifindex;
    Ok(Some(Redirects::new(pins.clone(), Constants { redirect_to, ..constants })))
}
