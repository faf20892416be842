//! The parts that [`crate::Edge`] is put together from: memory, sockets, worker threads.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arrayvec::ArrayVec;
use aya::Ebpf;
use crossbeam::channel::{Sender, bounded};
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
use crate::hold::{AskCounters, Asker, Hold};
use crate::link::Link;
use crate::published::Reader;
use crate::queue::KickCounters;
use crate::status::PortInfo;
use crate::worker::{IoCounters, PortQueues, Shared, Worker};
use crate::{memory, sys};

/// A worker as control sees it.
pub(crate) struct Handle {
    pub shared: Arc<Shared>,
    pub thread: Option<JoinHandle<()>>,
}

/// What all workers read and write.
pub(crate) struct Memory {
    pub table: Conntrack<'static>,
    pub replies: ReplyFilter<'static>,
    pub heartbeats: &'static [AtomicU64],
}

/// The reply filter's seed, for the XDP program and the workers alike.
pub(crate) fn reply_seed(seed: u64) -> u32 {
    (seed ^ (seed >> 32)) as u32
}

/// The connection table, and the BPF arrays that are mapped into this process. The table starts empty, and so does the filter.
pub(crate) fn share_memory(config: &EdgeConfig, ebpf: &mut Ebpf, seed: u64) -> Result<Memory, EdgeError> {
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
pub(crate) struct Bound {
    pub groups: Vec<Group>,
    /// Receive queues by port.
    pub queues: Vec<u32>,
}

pub(crate) fn bind_ports(config: &EdgeConfig, links: &[Link]) -> Result<Bound, EdgeError> {
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

pub(crate) fn port_info(i: usize, link: &Link, bound: &Bound) -> PortInfo {
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

pub(crate) fn build_worker(
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
pub(crate) fn start_worker(id: usize, worker: Worker, cpu: Option<usize>) -> Result<Handle, EdgeError> {
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
