//! The edge as control sees it: start, publish, ask, stop.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arrayvec::ArrayVec;
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use crossbeam::channel::{Receiver, Sender, bounded};
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::pipeline::WorkerState;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

use crate::bind::{Group, Member, Sizes, bind_group};
use crate::config::{EdgeConfig, QUEUES_MAX, WORKERS_MAX};
use crate::error::EdgeError;
use crate::filter::FilterMaps;
use crate::hold::{AskCounters, Asker, Hold, WANTED_MAX};
use crate::link::Link;
use crate::pins::Pins;
use crate::program::{self, Constants};
use crate::published::{Published, Reader};
use crate::queue::KickCounters;
use crate::status::{EdgeStatus, PortInfo, PortStatus, WorkerStatus, XdpCounters};
use crate::worker::{IoCounters, PortQueues, Shared, Worker};
use crate::{memory, sys};

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

/// A worker as control sees it.
struct Handle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What all workers read and write.
struct Memory {
    table: Conntrack<'static>,
    replies: ReplyFilter<'static>,
    heartbeats: &'static [AtomicU64],
}

impl Edge {
    /// Sets everything up in the calling thread's network namespace, starts the worker and attaches the XDP programs, in this
    /// order: no frame is taken before somebody listens. What an earlier process has pinned is taken over.
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
            stats.push(program::take_map(ebpf, "stats")?.try_into().map_err(|e: aya::maps::MapError| EdgeError::map("stats", &e))?);
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
        let detached = if detach {
            // The programs hold their links open, so the pins alone do not keep them.
            self.programs.clear();
            self.pins.remove_all()
        } else {
            Ok(())
        };
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

fn reply_seed(seed: u64) -> u32 {
    (seed ^ (seed >> 32)) as u32
}

/// The connection table, and the BPF arrays that are mapped into this process. The table starts empty, and so does the filter.
fn share_memory(config: &EdgeConfig, ebpf: &mut Ebpf, seed: u64) -> Result<Memory, EdgeError> {
    let words = memory::anonymous(Conntrack::words_needed(config.conntrack_capacity))
        .map_err(|e| EdgeError::io(format!("memory for {} connections", config.conntrack_capacity), e))?;
    let table = Conntrack::format(words, config.conntrack_capacity, seed, boot_id())
        .map_err(|e| EdgeError::Config(format!("conntrack capacity {}: {e:?}", config.conntrack_capacity)))?;
    let mapped = |map: &'static str, e| EdgeError::io(format!("mapping the BPF array {map}"), e);
    let map_fd = |ebpf: &Ebpf, map: &'static str| match ebpf.map(map) {
        Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| mapped(map, e)),
        _ => Err(EdgeError::Map { map: map.into(), detail: "missing in the embedded object".into() }),
    };
    let fd = map_fd(ebpf, "replies")?;
    let words = memory::bpf_words32(fd.as_fd(), config.reply_buckets as usize * BUCKET_SLOTS).map_err(|e| mapped("replies", e))?;
    let replies = ReplyFilter::new(words, reply_seed(seed))
        .ok_or_else(|| EdgeError::Config(format!("{} reply buckets: not a power of two", config.reply_buckets)))?;
    replies.clear();
    let fd = map_fd(ebpf, "heartbeats")?;
    let heartbeats = memory::bpf_words64(fd.as_fd(), WORKERS_MAX as usize).map_err(|e| mapped("heartbeats", e))?;
    Ok(Memory { table, replies, heartbeats })
}

/// Identifies this boot of the machine; zeroes when the kernel does not tell.
fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0);
    [(id >> 64) as u64, id as u64]
}

/// The sockets of all ports: the interfaces' group, and the internal port's.
#[derive(Default)]
struct Bound {
    groups: Vec<Group>,
    /// Receive queues by port.
    queues: Vec<u32>,
}

fn bind_ports(config: &EdgeConfig, links: &[Link]) -> Result<Bound, EdgeError> {
    let mut members = Vec::new();
    for (i, link) in links.iter().enumerate() {
        let queues = sys::rx_queues(&link.name).map_err(|e| EdgeError::io(format!("asking for the queues of {}", link.name), e))?;
        if queues > QUEUES_MAX {
            return Err(EdgeError::Config(format!("{} has {queues} queues: {QUEUES_MAX} at the most (`ethtool -L`)", link.name)));
        }
        members.push(Member { port: PortId(i as u16), name: link.name.clone(), queues });
    }
    let queues = members.iter().map(|m| m.queues).collect();
    let sizes = Sizes { ring: config.ring_size, frame: config.frame_size, held: config.hold_frames_max as u32 };
    let (outside, inside) = members.split_at(config.interfaces.len());
    let mut groups = vec![bind_group(0, outside, sizes, config.zero_copy)?];
    if !inside.is_empty() {
        // A veth offers no zero-copy.
        groups.push(bind_group(1, inside, sizes, false)?);
    }
    Ok(Bound { groups, queues })
}

fn port_info(i: usize, link: &Link, bound: &Bound) -> PortInfo {
    let zero_copy = bound.groups.iter().any(|g| g.zero_copy && g.queues.iter().any(|q| usize::from(q.port.0) == i));
    PortInfo {
        id: PortId(i as u16),
        name: link.name.clone(),
        ifindex: link.ifindex,
        mac: link.mac,
        mtu: link.mtu,
        native: false,
        zero_copy,
        queues: bound.queues[i],
    }
}

fn build_worker(
    config: &EdgeConfig,
    id: u32,
    bound: Bound,
    memory: &Memory,
    (services, routes): (Reader<Services>, Reader<Routes>),
    wanted: Sender<Wanted>,
) -> Result<Worker, EdgeError> {
    let shared = Shared {
        counters: Counters::new(config.targets_max),
        io: IoCounters::default(),
        kicks: KickCounters::default(),
        asks: AskCounters::default(),
        accounts: Mutex::new(Vec::new()),
        held: AtomicU64::new(0),
        waker: sys::Waker::new().map_err(|e| EdgeError::io("creating an eventfd", e))?,
        stop: AtomicBool::new(false),
        alive: AtomicBool::new(true),
    };
    let mut first = 0;
    let ports = bound.queues.iter().map(|&count| {
        let queues = PortQueues { first, count };
        first += count as usize;
        queues
    });
    let ports = ports.collect();
    let (mut pools, mut queues) = (Vec::new(), Vec::new());
    for group in bound.groups {
        pools.push(group.pool);
        queues.extend(group.queues);
    }
    Ok(Worker {
        shared: Arc::new(shared),
        heartbeat: &memory.heartbeats[id as usize],
        services,
        routes,
        table: memory.table,
        flows_max: config.conntrack_capacity,
        filter: memory.replies,
        state: WorkerState::new(id as u16),
        spares: pools.iter().map(|_| ArrayVec::new()).collect(),
        pools,
        queues,
        ports,
        hold: Hold::new(config.hold_frames_max, config.hold_max.as_nanos() as u64),
        asker: Asker::new(wanted),
        idle: config.idle,
        now_ns: 0,
        busy_ns: 0,
        housekept_ns: 0,
        probed_ns: 0,
    })
}

/// Starts the thread and waits until it runs where it should.
fn start_worker(id: usize, worker: Worker, cpu: Option<usize>) -> Result<Handle, EdgeError> {
    let shared = worker.shared.clone();
    let (ready, started) = bounded(1);
    let run = move || {
        if let Some(cpu) = cpu
            && let Err(source) = sys::pin_to_cpu(cpu)
        {
            worker.shared.alive.store(false, Relaxed);
            let _ = ready.send(Err(EdgeError::Cpu { cpu, source }));
            return;
        }
        worker.heartbeat.store(sys::monotonic_ns(), Relaxed);
        let _ = ready.send(Ok(()));
        worker.run();
    };
    let spawned = std::thread::Builder::new().name(format!("nm-worker-{id}")).spawn(run);
    let thread = spawned.map_err(|e| EdgeError::io("starting a worker thread", e))?;
    let handle = Handle { shared, thread: Some(thread) };
    match started.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(EdgeError::io("starting a worker thread", std::io::Error::other("it ended at once"))),
    }
}
