//! The edge as control sees it: start, publish, ask, stop.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use nomagic_core::conntrack::{Conntrack, Recovered};
use nomagic_core::counters::SocketCounts;
use nomagic_core::counters::{Counters, XdpCounts};
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::routes::Routes;
use nomagic_core::rss::Rss;
use nomagic_core::services::Services;
use nomagic_sys::process::raise_memory_lock;
use nomagic_sys::time::monotonic_ns;
use nomagic_sys::xdp_socket::statistics;

use crate::bind::{Group, Member, bind_ports};
use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::filter::FilterMaps;
use crate::hold::WANTED_MAX;
use crate::limits::InterfaceName;
use crate::link::Link;
use crate::pins::Pins;
use crate::pool::FrameAccount;
use crate::ports::{Binding, port_info, rx_queues};
use crate::program::{self, Constants};
use crate::published::Published;
use crate::redirect::Redirects;
use crate::region::Table;
use crate::setup::{Handle, Readers, reply_seed, share_memory, start_workers};
use crate::status::{Condition, EdgeStatus, PortInfo, PortStatus, RedirectStatus, WorkerStatus, read_xdp, socket_counts};
use crate::topology::Topology;

/// The running dataplane.
pub struct Edge {
    pub(crate) pins: Pins,
    pub(crate) ports: Vec<PortInfo>,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) groups: Vec<Group>,
    pub(crate) workers: Vec<Handle>,
    pub(crate) topology: Published<Topology>,
    /// `None` without an internal port.
    pub(crate) redirects: Option<Redirects>,
    filter: Mutex<FilterMaps>,
    services: Published<Services>,
    routes: Published<Routes>,
    wanted: Receiver<Wanted>,
    table: Table,
    replies: ReplyFilter<'static>,
    replies_capacity: u64,
    heartbeats: &'static [AtomicU64],
    grace_ns: u64,
}

impl Edge {
    /// Sets everything up in the calling thread's network namespace, starts the workers and attaches the XDP programs, in this
    /// order: no frame is taken before somebody listens. What an earlier process has pinned is taken over, its filter rules included:
    /// so the tables should be complete already. Ports are numbered as the interfaces are configured, the internal port comes last;
    /// [`Link::query`] tells their addresses beforehand.
    pub fn start(config: EdgeConfig, services: Arc<Services>, routes: Arc<Routes>) -> Result<Edge, EdgeError> {
        config.validate()?;
        let names: Vec<&str> = config
            .interfaces
            .iter()
            .map(InterfaceName::as_str)
            .chain(config.internal.as_ref().map(|pair| pair.edge_side.as_str()))
            .collect();
        let links = names.iter().map(|name| Link::query(name)).collect::<Result<Vec<_>, _>>()?;
        let existing = Pins::existing(&config.state_dir);
        links.iter().try_for_each(|link| program::check_free(link, existing.as_ref()))?;
        let member =
            |(i, link): (usize, &Link)| Ok(Member { port: PortId(i as u16), name: link.name.clone(), queues: rx_queues(&link.name)? });
        let members = links.iter().enumerate().map(member).collect::<Result<Vec<_>, EdgeError>>()?;
        let locked_bytes = raise_memory_lock();
        tracing::debug!(locked_bytes, "limit of locked memory");

        let pins = Pins::open(&config.state_dir)?;
        program::check_layout(&pins, config.reply_buckets)?;
        let table = Table::open(&config, &services)?;
        // Its seed, not a new one: what an earlier process has announced with it goes on.
        let seed = reply_seed(table.conntrack.seed());
        let mut bindings = Vec::new();
        for (i, link) in links.iter().enumerate() {
            let constants = Constants {
                reply_buckets: config.reply_buckets,
                reply_seed: seed,
                take_everything: i >= config.interfaces.len(),
                redirect_to: 0,
                internal: config.internal.as_ref().map_or([None; 2], |pair| pair.addresses),
            };
            bindings.push(Binding::load(link, constants, &pins)?);
        }
        let first = &mut bindings[0].ebpf;
        program::write_settings(first, &config)?;
        let memory = share_memory(&config, first, &table)?;
        let filter = FilterMaps::open(first)?;

        let redirects = config.internal.as_ref().map(|pair| {
            let redirect_to = Link::query(&pair.kernel_side)?.ifindex;
            let constants = Constants {
                reply_buckets: config.reply_buckets,
                reply_seed: seed,
                take_everything: false,
                redirect_to,
                internal: pair.addresses,
            };
            Ok::<_, EdgeError>(Redirects::new(constants, config.interfaces.len()))
        });

        let (outside, inside) = members.split_at(config.interfaces.len());
        let bound = bind_ports(&config, outside, inside)?;
        let (wanted_sender, wanted) = bounded(WANTED_MAX);
        let workers = config.workers.get() as usize;
        let (services, service_readers) = Published::new(services, workers);
        let (routes, route_readers) = Published::new(routes, workers);
        let (topology, topology_readers) = Published::new(Arc::new(Topology::default()), workers);
        let readers = service_readers.into_iter().zip(route_readers).zip(topology_readers);
        let readers = readers.map(|((services, routes), topology)| Readers { services, routes, topology }).collect();
        let mut edge = Edge {
            pins,
            ports: links.iter().enumerate().map(|(i, link)| port_info(PortId(i as u16), link)).collect(),
            bindings,
            workers: start_workers(&config, &bound.groups, &memory, readers, &wanted_sender)?,
            groups: bound.groups,
            topology,
            redirects: redirects.transpose()?,
            filter: Mutex::new(filter),
            services,
            routes,
            wanted,
            table,
            replies: memory.replies,
            replies_capacity: u64::from(config.reply_buckets) * BUCKET_SLOTS as u64,
            heartbeats: memory.heartbeats,
            grace_ns: config.grace.as_nanos() as u64,
        };
        for (port, (group, queues)) in bound.ports.into_iter().enumerate() {
            edge.bindings[port].group = group;
            edge.install(port, queues)?;
        }
        edge.say_who_is_idle();
        edge.attach(&links)?;
        edge.forget_other_interfaces();
        Ok(edge)
    }

    fn say_who_is_idle(&self) {
        for worker in 0..self.workers.len() as u16 {
            if !self.ports.iter().any(|p| p.owners.contains(&worker)) {
                tracing::warn!("worker {worker} owns no queue: there are fewer queues than workers");
            }
        }
    }

    /// Attaches or replaces the programs; when one fails, those that were attached anew are detached again.
    fn attach(&mut self, links: &[Link]) -> Result<(), EdgeError> {
        let mut created: Vec<&Link> = Vec::new();
        for (i, link) in links.iter().enumerate() {
            match program::attach(&mut self.bindings[i].ebpf, link, &self.pins, &self.pins.link(&link.name)) {
                Ok(attachment) => {
                    self.ports[i].native = attachment.native;
                    self.ports[i].condition = Condition::Bound;
                    self.bindings[i].program_id = program::id(&mut self.bindings[i].ebpf)?;
                    if attachment.created {
                        created.push(link);
                    }
                    tracing::info!(
                        interface = link.name,
                        native = attachment.native,
                        taken_over = !attachment.created,
                        zero_copy = self.ports[i].zero_copy,
                        queues = self.ports[i].queues,
                        "XDP filter attached"
                    );
                }
                Err(e) => {
                    for link in created {
                        if let Err(undo) = self.pins.remove_interface(&link.name) {
                            tracing::warn!(interface = link.name, "{undo}");
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Interfaces that an earlier configuration named are left to the kernel.
    fn forget_other_interfaces(&self) {
        for name in self.pins.interfaces() {
            if !self.ports.iter().any(|p| p.name == name) {
                match self.pins.remove_interface(&name) {
                    Ok(()) => tracing::info!(interface = name, "no longer configured: XDP filter detached"),
                    Err(e) => tracing::warn!(interface = name, "no longer configured, but its pins could not be removed: {e}"),
                }
            }
        }
    }

    /// The ports: the interfaces in the order of the configuration, then the internal port.
    pub fn ports(&self) -> &[PortInfo] {
        &self.ports
    }

    /// How the ports spread what they receive over the workers, as far as that is known: for [`Routes::with_rss`].
    pub fn rss(&self) -> Vec<Option<Arc<Rss>>> {
        self.ports.iter().map(|port| port.rss.clone().ok()).collect()
    }

    /// The redirect ports.
    pub fn redirects(&self) -> Vec<RedirectStatus> {
        self.redirects.as_ref().map(Redirects::status).unwrap_or_default()
    }

    /// Puts a new service table in force. The ticket is for [`Edge::wait_services`].
    pub fn publish_services(&self, services: Arc<Services>) -> u64 {
        let ticket = self.services.publish(services);
        self.wake();
        ticket
    }

    /// Puts new routes in force; held frames are submitted again. The ticket is for [`Edge::wait_routes`].
    pub fn publish_routes(&self, routes: Arc<Routes>) -> u64 {
        let ticket = self.routes.publish(routes);
        self.wake();
        ticket
    }

    /// Waits until every worker that is alive uses this service table or a later one. False when the time is up.
    pub fn wait_services(&self, ticket: u64, timeout: Duration) -> bool {
        self.services.wait(ticket, timeout, |w| self.live(w))
    }

    /// Waits until every worker that is alive uses these routes or later ones. False when the time is up.
    pub fn wait_routes(&self, ticket: u64, timeout: Duration) -> bool {
        self.routes.wait(ticket, timeout, |w| self.live(w))
    }

    /// Waits until every worker that is alive uses all that has been published so far. False when the time is up.
    pub fn wait_applied(&self, timeout: Duration) -> bool {
        self.wait_services(self.services.sequence(), timeout) && self.wait_routes(self.routes.sequence(), timeout)
    }

    /// Whether a worker runs and has shown a sign of life within the grace period.
    pub(crate) fn live(&self, worker: usize) -> bool {
        self.workers[worker].shared.alive.load(Relaxed) && self.heartbeat_age_ns(worker) <= self.grace_ns
    }

    fn heartbeat_age_ns(&self, worker: usize) -> u64 {
        monotonic_ns().saturating_sub(self.heartbeats[worker].load(Relaxed))
    }

    pub(crate) fn wake(&self) {
        self.workers.iter().for_each(|w| w.shared.waker.wake());
    }

    /// Neighbours that frames are waiting for. Each is repeated a few times a second while frames ask for it.
    pub fn wanted(&self) -> &Receiver<Wanted> {
        &self.wanted
    }

    /// What the XDP filter takes.
    pub fn filter(&self) -> MutexGuard<'_, FilterMaps> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.workers.get(worker).map(|w| &w.shared.counters)
    }

    /// Workers that are alive, and all of them. One that is dead or stuck for longer than the grace period does not count.
    pub fn workers_alive(&self) -> (usize, usize) {
        ((0..self.workers.len()).filter(|&w| self.live(w)).count(), self.workers.len())
    }

    /// Everything that can be counted.
    pub fn status(&self) -> Result<EdgeStatus, EdgeError> {
        self.services.collect();
        self.routes.collect();
        self.topology.collect();
        let worker = |id: usize| WorkerStatus::read(id as u32, &self.workers[id].shared, self.heartbeat_age_ns(id));
        let workers: Vec<WorkerStatus> = (0..self.workers.len()).map(worker).collect();
        let of_pool = |pool: usize| workers.iter().filter_map(move |w| w.pools.get(pool));
        let sum = |pool| of_pool(pool).fold(FrameAccount::default(), |sum, account| sum.and(account));
        let pools = (0..self.groups.len()).map(sum).collect();
        let mut ports = Vec::new();
        for (info, binding) in self.ports.iter().zip(&self.bindings) {
            let sockets =
                binding.sockets.iter().map(|s| statistics(s).map_or_else(|_| SocketCounts::default(), |raw| socket_counts(&raw))).collect();
            ports.push(PortStatus { info: info.clone(), xdp: read_xdp(&binding.stats)?, sockets });
        }
        Ok(EdgeStatus {
            workers,
            ports,
            redirects: self.redirects.as_ref().map(Redirects::status).unwrap_or_default(),
            redirects_xdp: self.redirects.as_ref().map_or(Ok(XdpCounts::default()), Redirects::counters)?,
            pools,
            flows_live: self.table.conntrack.live(),
            flows_capacity: self.table.conntrack.capacity(),
            replies_announced: self.replies.len() as u64,
            source_ports: self.table.conntrack.source_ports(),
            source_ports_fullest: self.table.conntrack.fullest_endpoint(),
            source_ports_largest: self.table.conntrack.largest_share(),
            replies_capacity: self.replies_capacity,
            services_generation: self.services.current().generation,
            services_applied: self.services.applied(|w| self.live(w)) == self.services.sequence(),
            routes_generation: self.routes.current().generation,
            routes_applied: self.routes.applied(|w| self.live(w)) == self.routes.sequence(),
        })
    }

    /// Ends the workers. `detach`: the interfaces are given back to the kernel first; else the filter stays pinned, drops our frames
    /// for the grace period and then does what `on_failure` says, until a new process takes over.
    pub fn stop(mut self, detach: bool) -> Result<(), EdgeError> {
        let detached = if detach { self.pins.remove_all() } else { Ok(()) };
        self.join();
        detached
    }

    fn join(&mut self) {
        self.workers.iter().for_each(|w| w.shared.stop.store(true, Relaxed));
        self.wake();
        let ended: Vec<bool> = self.workers.iter_mut().filter_map(|w| w.thread.take()).map(|thread| thread.join().is_ok()).collect();
        if ended.contains(&false) {
            tracing::error!("a worker had panicked");
        } else if !ended.is_empty() {
            self.table.conntrack.detach();
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.join();
    }
}
