//! The edge's interface for the control plane: start, publish, query, stop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use nomagic_core::capture::FilterRules;
use nomagic_core::conntrack::{Conntrack, Recovered};
use nomagic_core::counters::{Counters, XdpCounts};
use nomagic_core::events::EventRing;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::Wanted;
use nomagic_core::hash::WordSet;
use nomagic_core::routes::Routes;
use nomagic_core::rss::Rss;
use nomagic_core::services::{Services, UnusedPorts};
use nomagic_core::tuple::Prefix;
use nomagic_core::unused::Unused;
use nomagic_sys::process::raise_memory_lock;
use nomagic_sys::time::monotonic_ns;
use nomagic_sys::xdp_socket::knows_segments;

use crate::addressed::Configured;
use crate::answers::{AnswerConstants, Answers};
use crate::bind::bind_ports;
use crate::config::EdgeConfig;
use crate::denied::{Denied, DeniedMaps};
use crate::error::EdgeError;
use crate::filter::FilterMaps;
use crate::hold::WANTED_MAX;
use crate::limits::InterfaceName;
use crate::link::Link;
use crate::outer::OuterWays;
use crate::pins::Pins;
use crate::pool::FrameAccount;
use crate::ports::{Binding, Ports, members};
use crate::program::{self, Constants};
use crate::redirect::Redirects;
use crate::region::ConntrackMemory;
use crate::reply_key;
use crate::setup::share_memory;
use crate::status::{AnswerCounts, Condition, EdgeStatus, PortInfo, RedirectStatus, WorkerStatus};
use crate::tables::{Tables, TablesApplied};
use crate::taps::{self, TapOptions, TapReader};
use crate::workers::Workers;

/// The running dataplane.
pub struct Edge {
    pins: Pins,
    ports: Ports,
    /// `None` without an internal port.
    redirects: Option<Redirects>,
    /// `None` without an internal port, or if the kernel refuses the program.
    answers: Option<Answers>,
    workers: Workers,
    tables: Tables,
    filter: FilterMaps,
    outer: OuterWays,
    denied: DeniedMaps,
    wanted: Receiver<Wanted>,
    table: ConntrackMemory,
    replies: ReplyFilter<'static>,
    replies_capacity: u64,
}

/// Proof that every live worker uses everything published so far. Only now, and only until the next publication, may the XDP filter be
/// widened: frames captured before the workers know their rules would be rejected or lost.
///
/// ```compile_fail,E0499
/// # use std::{sync::Arc, time::Duration};
/// # use nomagic_core::{capture::FilterRules, services::Services};
/// # fn f(edge: &mut nomagic_xsk::Edge, services: Arc<Services>, rules: &FilterRules) {
/// let applied = edge.wait_applied(Duration::from_secs(1)).unwrap();
/// edge.publish_services(services);
/// applied.widen_filter(rules, &Default::default()); // not known to the workers yet
/// # }
/// ```
pub struct Applied<'e> {
    edge: &'e mut Edge,
    workers: usize,
}

impl Applied<'_> {
    /// The number of live workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Adds rules to the XDP filter; existing rules stay. `kernel_ips` are the addresses that the table leaves to the kernel
    /// ([`Services::kernel_ips`]). If a limit would be exceeded, as many rules are added as fit, and an error says so.
    pub fn widen_filter(self, rules: &FilterRules, kernel_ips: &WordSet<IpAddr>) -> Result<(), EdgeError> {
        // Rules first. A cluster IP that the node has from now on needs rules for its ports before the rest of it is left to the kernel: packets of
        // its connections must not reach the kernel in between. The opposite is harmless: workers hand the kernel what is its own.
        let added = self.edge.filter.add(rules);
        let kernel = self.edge.filter.set_kernel_addresses(kernel_ips);
        self.edge.follow_outer();
        kernel.and(added)
    }
}

impl Edge {
    /// Sets everything up in the calling thread's network namespace, starts the workers and attaches the XDP programs, in this order: no
    /// frame is captured before a worker runs. Objects pinned by an earlier process are reused, including the filter rules, so the tables
    /// should already be complete. Ports are numbered in the order of the configured interfaces; the internal port comes last.
    /// [`Link::query`] returns their addresses in advance.
    pub fn start(mut config: EdgeConfig, services: Arc<Services>, routes: Arc<Routes>) -> Result<Edge, EdgeError> {
        config.validate()?;
        let links = free_links(&config)?;
        let members = members(&links)?;
        let locked_bytes = raise_memory_lock();
        tracing::debug!(locked_bytes, "limit of locked memory");
        config.segments &= knows_segments().map_err(|e| EdgeError::io("asking for AF_XDP with packets of several frames", e))?;

        let pins = Pins::open(&config.state_dir)?;
        program::check_layout(&pins)?;
        let reply_key = reply_key::take_over(&pins, config.reply_buckets)?;
        let table = ConntrackMemory::open(&config, &services)?;
        let constants = Constants {
            reply_buckets: config.reply_buckets,
            reply_key,
            take_everything: false,
            // The tables to come say the same.
            refuse_unused: services.unused_ports != UnusedPorts::Kernel,
            answer_ping: services.answer_ping,
            redirect_to: 0,
            segments: config.segments,
            internal: config.internal.as_ref().map_or([None; 2], |pair| pair.addresses),
            configured: Configured::new(&config.mac_addresses, &config.vlans),
        };
        let mut bindings = load_programs(&config, &links, constants, &pins)?;
        let first = &mut bindings[0].ebpf;
        program::write_settings(first, &config)?;
        let memory = share_memory(&config, first, &table, reply_key)?;
        let (filter, denied) = (FilterMaps::open(first)?, DeniedMaps::open(first)?);
        let redirects = open_redirects(&config, constants, &pins)?;
        let answers = redirects.as_ref().and_then(|redirects| load_answers(&pins, redirects.constants()));

        let (outside, inside) = members.split_at(config.interfaces.len());
        let bound = bind_ports(&config, outside, inside)?;
        let (wanted_sender, wanted) = bounded(WANTED_MAX);
        let (tables, topology, readers) = Tables::new(services, routes, config.workers.get() as usize);
        let workers = Workers::start(&config, &bound.groups, &memory, readers, &wanted_sender)?;
        let mut edge = Edge {
            ports: Ports::new(pins.clone(), &links, bindings, bound.groups, topology),
            pins,
            redirects,
            answers,
            workers,
            tables,
            filter,
            outer: OuterWays::default(),
            denied,
            wanted,
            table,
            replies: memory.replies,
            replies_capacity: u64::from(config.reply_buckets) * BUCKET_SLOTS as u64,
        };
        edge.ports.install_all(bound.ports, &edge.workers)?;
        edge.ports.attach(&links)?;
        edge.ports.forget_others();
        edge.follow_answers();
        Ok(edge)
    }

    /// The ports: the interfaces in configuration order, then the internal port.
    pub fn ports(&self) -> &[PortInfo] {
        self.ports.infos()
    }

    /// The receive side scaling of each port, where known, for [`Routes::with_rss`].
    pub fn rss(&self) -> Vec<Option<Arc<Rss>>> {
        self.ports().iter().map(|port| port.rss.clone().ok()).collect()
    }

    /// Whether answers that the kernel sends out of each port are captured, for [`Routes::with_answers_seen`]. The internal port stands for all
    /// redirect ports.
    pub fn answers_seen(&self) -> Vec<bool> {
        let seen = |name: &str| self.answers.as_ref().is_some_and(|answers| answers.sees(name));
        let behind = self.redirects().iter().filter(|port| port.condition == Condition::Bound).all(|port| seen(&port.name));
        let mut ports: Vec<bool> = self.ports().iter().map(|port| seen(&port.name)).collect();
        if self.redirects.is_some() {
            ports.last_mut().into_iter().for_each(|internal| *internal = behind);
        }
        ports
    }

    fn answer_counts(&self) -> Result<AnswerCounts, EdgeError> {
        let counts = self.answers.as_ref().map_or(Ok(AnswerCounts::default()), Answers::counts)?;
        let ports = self.ports().iter().zip(self.answers_seen());
        Ok(AnswerCounts { unseen_ports: ports.filter(|(_, seen)| !seen).map(|(port, _)| port.name.clone()).collect(), ..counts })
    }

    pub fn redirects(&self) -> Vec<RedirectStatus> {
        self.redirects.as_ref().map(Redirects::status).unwrap_or_default()
    }

    /// Checks and repairs the ports. Call it a few times a second, and after an interface has changed. Repairs are logged and visible in
    /// [`Edge::ports`]. Returns whether anything changed.
    pub fn tend(&mut self) -> bool {
        let changed = self.ports.tend(&self.workers);
        if changed {
            self.follow_outer();
        }
        self.follow_answers() || changed
    }

    /// Makes exactly these interfaces redirect ports: attaches new ones, detaches removed ones. An interface that another program holds, or
    /// that cannot be attached to, is left alone and reported. Returns whether anything changed. Cheap if nothing did. Call it when
    /// interfaces appear or disappear, and periodically.
    pub fn redirect(&mut self, names: &BTreeSet<String>) -> bool {
        let owner = self.internal_owner();
        let changed = self.redirects.as_mut().is_some_and(|redirects| redirects.follow(names, owner));
        self.follow_answers() || changed
    }

    /// The worker of the internal port: the last one, with one queue.
    fn internal_owner(&self) -> Option<u16> {
        self.ports.infos().last().and_then(|internal| internal.owners.first().copied())
    }

    /// Captures answers on all ports and redirect ports that are there now.
    fn follow_answers(&mut self) -> bool {
        let owner = self.internal_owner();
        let Some(answers) = &mut self.answers else { return false };
        // The last one is the internal port.
        let ports = self.ports.infos().split_last().map_or(&[][..], |(_, ports)| ports);
        let bound = ports.iter().filter(|port| port.condition == Condition::Bound).map(|port| (port.name.clone(), port.ifindex));
        let redirects = self.redirects.iter().flat_map(Redirects::status).filter(|port| port.condition == Condition::Bound);
        let wanted: BTreeMap<String, u32> = bound.chain(redirects.map(|port| (port.name, port.ifindex))).collect();
        answers.follow(&wanted, owner)
    }

    /// Publishes a new service table to the workers.
    pub fn publish_services(&mut self, services: Arc<Services>) {
        self.tables.services.publish(services);
        self.workers.wake();
    }

    /// Publishes new routes to the workers; they resubmit held frames.
    pub fn publish_routes(&mut self, routes: Arc<Routes>) {
        self.tables.routes.publish(routes);
        self.workers.wake();
        self.follow_outer();
    }

    /// Tells the XDP filter of load balancer and external IPs, and of their ways out. It needs no agreement with the workers: what they do not refuse,
    /// they hand to the kernel.
    fn follow_outer(&mut self) {
        // The last one is the internal port, where every frame is captured.
        let inside = usize::from(self.redirects.is_some());
        let ports = self.ports.infos();
        let interfaces = ports[..ports.len().saturating_sub(inside)].iter().map(|port| port.ifindex).collect();
        let (services, routes) = (self.tables.services.current(), self.tables.routes.current());
        if let Err(e) = self.outer.follow(&mut self.filter, &services, &routes, interfaces) {
            tracing::warn!("packets for unused ports of load balancer and external IPs may go to the kernel: {e}");
        }
    }

    /// How many load balancer and external IPs the XDP filter has no room for.
    pub fn outer_left_out(&self) -> usize {
        self.outer.left_out()
    }

    /// Waits until every live worker uses everything published so far. `None` on timeout.
    pub fn wait_applied(&mut self, limit: Duration) -> Option<Applied<'_>> {
        let applied = self.tables.wait(limit, |worker| self.workers.live(worker));
        let workers = self.workers_alive().0;
        applied.then_some(Applied { edge: self, workers })
    }

    /// The rules the XDP filter applies now.
    pub fn filter_rules(&self) -> &FilterRules {
        self.filter.rules()
    }

    /// Removes rules that no flow needs from the XDP filter; missing rules are ignored.
    pub fn narrow_filter(&mut self, unused: &Unused) -> Result<(), EdgeError> {
        let removed = self.filter.remove(unused.rules());
        // A cluster IP that goes may be another Service's load balancer IP.
        self.outer.forget();
        self.follow_outer();
        removed
    }

    /// The deny list of the XDP filter; at first, what an earlier process left.
    pub fn denied(&self) -> &Denied {
        self.denied.known()
    }

    /// Makes the deny list of the XDP filter exactly this one. Prefixes that stay keep their counters. Needs no agreement with the workers: they
    /// never see a denied frame.
    pub fn deny(&mut self, wanted: &Denied) -> Result<(), EdgeError> {
        self.denied.follow(wanted)
    }

    /// How many packets the XDP filter has dropped for a denied prefix.
    pub fn packets_denied(&self, prefix: &Prefix) -> Result<u64, EdgeError> {
        self.denied.packets(prefix)
    }

    /// Neighbours that held frames wait for. Each is repeated a few times a second while frames need it.
    pub fn wanted(&self) -> &Receiver<Wanted> {
        &self.wanted
    }

    /// The connection table, for scans.
    pub fn table(&self) -> Conntrack<'static> {
        self.table.conntrack
    }

    /// The replies announced to the XDP filter, for ending connections with [`nomagic_core::pipeline::end_connection`].
    pub fn replies(&self) -> ReplyFilter<'static> {
        self.replies
    }

    /// What is wrong with the table's file, see [`EdgeConfig::conntrack_file`].
    pub fn table_file_problem(&self) -> Option<String> {
        self.table.file.as_ref()?.problem()
    }

    /// What was recovered from an earlier process's table, see [`EdgeConfig::conntrack_file`].
    pub fn taken_over(&self) -> Option<Recovered> {
        self.table.taken_over
    }

    /// A worker's packet path counters.
    pub fn counters(&self, worker: usize) -> Option<&Counters> {
        self.workers.shared(worker).map(|shared| &shared.counters)
    }

    /// Watches packets from now on. Of more than [`TAPS_MAX`](crate::TAPS_MAX) taps the oldest one ends.
    pub fn tap(&self, options: TapOptions) -> TapReader {
        let (session, reader) = taps::open(options, monotonic_ns());
        self.workers.tap(&session);
        reader
    }

    /// The last events of each worker.
    pub fn events(&self) -> Vec<Arc<EventRing>> {
        (0..self.workers.len()).filter_map(|worker| self.workers.shared(worker)).map(|shared| shared.events.clone()).collect()
    }

    /// The numbers of live workers and of all workers. A worker is not live if it has ended, or has been stuck for longer than the grace
    /// period.
    pub fn workers_alive(&self) -> (usize, usize) {
        (self.workers.all_live().count(), self.workers.len())
    }

    /// Whether every live worker uses the tables published last.
    pub fn tables_applied(&self) -> TablesApplied {
        self.tables.applied(|worker| self.workers.live(worker))
    }

    /// Reads all counters.
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
        let applied = self.tables_applied();
        Ok(EdgeStatus {
            workers,
            ports: self.ports.status()?,
            redirects: self.redirects.as_ref().map(Redirects::status).unwrap_or_default(),
            redirects_xdp: self.redirects.as_ref().map_or(Ok(XdpCounts::default()), Redirects::counters)?,
            answers: self.answer_counts()?,
            pools,
            flows_live: self.table.conntrack.live(),
            flows_capacity: self.table.conntrack.capacity(),
            replies_announced: self.replies.len() as u64,
            source_ports: self.table.conntrack.snat_ports().in_use(),
            source_ports_fullest: self.table.conntrack.snat_ports().fullest_endpoint(),
            source_port_shares: self.table.conntrack.snat_ports().largest_shares(),
            replies_capacity: self.replies_capacity,
            services_generation: services.current().generation,
            services_applied: applied.services,
            routes_generation: routes.current().generation,
            routes_applied: applied.routes,
        })
    }

    /// Stops the workers. With `detach`, the interfaces are first returned to the kernel. Otherwise the filter stays pinned, drops
    /// nomagic's frames for the grace period and then applies `on_failure`, until a new process takes over.
    pub fn stop(mut self, detach: bool) -> Result<(), EdgeError> {
        let detached = if detach { self.pins.remove_all().map(drop) } else { Ok(()) };
        self.end();
        detached
    }

    /// Marks the table as detached once no worker can write to it, so that the next process knows of the orderly end.
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

/// The configured interfaces, then the internal port. Fails if another XDP program holds one of them.
fn free_links(config: &EdgeConfig) -> Result<Vec<Link>, EdgeError> {
    let inside = config.internal.as_ref().map(|pair| pair.edge_side.as_str());
    let names = config.interfaces.iter().map(InterfaceName::as_str).chain(inside);
    let links = names.map(Link::query).collect::<Result<Vec<_>, _>>()?;
    let existing = Pins::existing(&config.state_dir)?;
    links.iter().try_for_each(|link| program::check_free(link, existing.as_ref()))?;
    Ok(links)
}

/// Loads the program of each port. The internal port's captures everything.
fn load_programs(config: &EdgeConfig, links: &[Link], constants: Constants, pins: &Pins) -> Result<Vec<Binding>, EdgeError> {
    let load = |(port, link)| Binding::load(link, Constants { take_everything: port >= config.interfaces.len(), ..constants }, pins);
    links.iter().enumerate().map(load).collect()
}

/// Redirect ports redirect to the kernel's end of the internal pair.
fn open_redirects(config: &EdgeConfig, constants: Constants, pins: &Pins) -> Result<Option<Redirects>, EdgeError> {
    let Some(pair) = &config.internal else { return Ok(None) };
    let redirect_to = Link::query(&pair.kernel_side)?.ifindex;
    Ok(Some(Redirects::new(pins.clone(), Constants { redirect_to, ..constants })))
}

/// The program for answers. A kernel that refuses it costs endpoints behind the kernel the addresses of their clients, and nothing else.
fn load_answers(pins: &Pins, constants: &Constants) -> Option<Answers> {
    let Constants { reply_buckets, reply_key, redirect_to, .. } = *constants;
    let loaded = Answers::load(pins.clone(), AnswerConstants { reply_buckets, reply_key, redirect_to });
    loaded.inspect_err(|e| tracing::warn!("{e}: endpoints of this node behind the kernel see snat.internalAddresses")).ok()
}
