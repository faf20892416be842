//! The edge as control sees it: start, publish, ask, stop.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use crossbeam::channel::{Receiver, bounded};
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::Wanted;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::filter::FilterMaps;
use crate::hold::WANTED_MAX;
use crate::link::Link;
use crate::pins::Pins;
use crate::program::{self, Constants};
use crate::published::Published;
use crate::setup::{Handle, bind_ports, build_worker, port_info, reply_seed, share_memory, start_worker};
use crate::status::{EdgeStatus, PortInfo, PortStatus, WorkerStatus, XdpCounters};
use crate::sys;

/// The running dataplane.
pub struct Edge {
    pins: Pins,
    ports: Vec<PortInfo>,
    /// Keeps each port's program and maps open.
    programs: Vec<Ebpf>,
    stats: Vec<PerCpuArray<MapData, u64>>,
    /// A second descriptor of each socket, for its statistics: port by port, queue by queue.
    sockets: Vec<Vec<OwnedFd>>,
    filter: Mutex<FilterMaps>,
    services: Published<Services>,
    routes: Published<Routes>,
    wanted: Receiver<Wanted>,
    table: Conntrack<'static>,
    replies: ReplyFilter<'static>,
    replies_capacity: u64,
    heartbeats: &'static [AtomicU64],
    workers: Vec<Handle>,
}

impl Edge {
    /// Sets everything up in the calling thread's network namespace, starts the worker and attaches the XDP programs, in this
    /// order: no frame is taken before somebody listens. What an earlier process has pinned is taken over, its filter rules included:
    /// so the tables should be complete already. Ports are numbered as the interfaces are configured, the internal port comes last;
    /// [`Link::query`] tells their addresses beforehand.
    pub fn start(config: EdgeConfig, services: Arc<Services>, routes: Arc<Routes>) -> Result<Edge, EdgeError> {
        config.validate()?;
        let names: Vec<&str> =
            config.interfaces.iter().map(String::as_str).chain(config.internal.as_ref().map(|pair| pair.edge_side.as_str())).collect();
        let links = names.iter().map(|name| Link::query(name)).collect::<Result<Vec<_>, _>>()?;
        let existing = Pins::existing(&config.state_dir);
        links.iter().try_for_each(|link| program::check_free(link, existing.as_ref()))?;
        let locked_bytes = sys::raise_memory_lock();
        tracing::debug!(locked_bytes, "limit of locked memory");

        let pins = Pins::open(&config.state_dir)?;
        program::check_layout(&pins, config.reply_buckets)?;
        let seed = if config.hash_seed == 0 { RandomState::new().hash_one(std::process::id()) } else { config.hash_seed };
        let mut programs = Vec::new();
        for (i, link) in links.iter().enumerate() {
            let constants = Constants {
                reply_buckets: config.reply_buckets,
                reply_seed: reply_seed(seed),
                take_everything: i >= config.interfaces.len(),
            };
            programs.push(program::load(&link.name, constants, Some(&pins))?);
        }
        program::write_settings(&mut programs[0], &config)?;
        let memory = share_memory(&config, &mut programs[0], seed)?;
        let filter = FilterMaps::open(&mut programs[0])?;

        let mut bound = bind_ports(&config, &links)?;
        let mut sockets: Vec<Vec<OwnedFd>> = links.iter().map(|_| Vec::new()).collect();
        for queue in bound.groups.iter().flat_map(|g| &g.queues) {
            let port = usize::from(queue.port.0);
            program::connect_queue(&mut programs[port], queue.index, queue.fd(), 0)?;
            sockets[port].push(sys::duplicate(queue.fd()).map_err(|e| EdgeError::io("duplicating a socket", e))?);
        }
        let mut stats = Vec::new();
        for ebpf in &mut programs {
            stats.push(program::take_map(ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?);
        }

        let (wanted_sender, wanted) = bounded(WANTED_MAX);
        let (services, service_readers) = Published::new(services, 1);
        let (routes, route_readers) = Published::new(routes, 1);
        let ports: Vec<PortInfo> = links.iter().enumerate().map(|(i, link)| port_info(i, link, &bound)).collect();
        let mut edge = Edge {
            pins,
            ports,
            programs,
            stats,
            sockets,
            filter: Mutex::new(filter),
            services,
            routes,
            wanted,
            table: memory.table,
            replies: memory.replies,
            replies_capacity: u64::from(config.reply_buckets) * BUCKET_SLOTS as u64,
            heartbeats: memory.heartbeats,
            workers: Vec::new(),
        };
        // One worker owns everything for now; queues, readers and heartbeats are per worker already.
        for (id, readers) in service_readers.into_iter().zip(route_readers).enumerate() {
            let bound = std::mem::take(&mut bound);
            let worker = build_worker(&config, id as u32, bound, &memory, readers, wanted_sender.clone())?;
            edge.workers.push(start_worker(id, worker, config.cpu)?);
        }
        edge.attach(&links)?;
        edge.forget_other_interfaces();
        Ok(edge)
    }

    /// Attaches or replaces the programs; when one fails, those that were attached anew are detached again.
    fn attach(&mut self, links: &[Link]) -> Result<(), EdgeError> {
        let mut created: Vec<&Link> = Vec::new();
        for (i, link) in links.iter().enumerate() {
            match program::attach(&mut self.programs[i], link, &self.pins) {
                Ok(attachment) => {
                    self.ports[i].native = attachment.native;
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

    /// Waits until every worker uses this service table or a later one. False when the time is up.
    pub fn wait_services(&self, ticket: u64, timeout: Duration) -> bool {
        self.services.wait(ticket, timeout)
    }

    /// Waits until every worker uses these routes or later ones. False when the time is up.
    pub fn wait_routes(&self, ticket: u64, timeout: Duration) -> bool {
        self.routes.wait(ticket, timeout)
    }

    /// Waits until every worker uses all that has been published so far. False when the time is up.
    pub fn wait_applied(&self, timeout: Duration) -> bool {
        self.wait_services(self.services.sequence(), timeout) && self.wait_routes(self.routes.sequence(), timeout)
    }

    fn wake(&self) {
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
        self.table
    }

    /// A worker's counters of the packet path.
    pub fn counters(&self, worker: usize) -> Option<&Counters> {
        self.workers.get(worker).map(|w| &w.shared.counters)
    }

    /// Workers whose thread runs, and all of them.
    pub fn workers_alive(&self) -> (usize, usize) {
        (self.workers.iter().filter(|w| w.shared.alive.load(Relaxed)).count(), self.workers.len())
    }

    /// Everything that can be counted.
    pub fn status(&self) -> Result<EdgeStatus, EdgeError> {
        self.services.collect();
        self.routes.collect();
        let now_ns = sys::monotonic_ns();
        let age = |id: usize| now_ns.saturating_sub(self.heartbeats[id].load(Relaxed));
        let workers = self.workers.iter().enumerate().map(|(id, w)| WorkerStatus::read(id as u32, &w.shared, age(id))).collect();
        let mut ports = Vec::new();
        for (i, info) in self.ports.iter().enumerate() {
            let sockets = self.sockets[i].iter().map(|s| sys::xdp_statistics(s.as_fd()).unwrap_or_default().into()).collect();
            ports.push(PortStatus { info: info.clone(), xdp: XdpCounters::read(&self.stats[i])?, sockets });
        }
        Ok(EdgeStatus {
            workers,
            ports,
            flows_live: self.table.live(),
            flows_capacity: self.table.capacity(),
            replies_announced: self.replies.len() as u64,
            replies_capacity: self.replies_capacity,
            services_generation: self.services.current().generation,
            services_applied: self.services.applied() == self.services.sequence(),
            routes_generation: self.routes.current().generation,
            routes_applied: self.routes.applied() == self.routes.sequence(),
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
        for worker in &mut self.workers {
            if worker.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.join();
    }
}
