//! The parts that [`crate::Edge`] is put together from: memory, worker threads.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use aya::Ebpf;
use crossbeam::channel::{Sender, bounded};
use nomagic_core::conntrack::Conntrack;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::Wanted;
use nomagic_core::pipeline::WorkerState;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_sys::capabilities::keep_nothing;
use nomagic_sys::cpu::pin_to_cpu;
use nomagic_sys::memory;
use nomagic_sys::time::monotonic_ns;

use crate::bind::Group;
use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::hold::{Asker, Hold};
use crate::io::Io;
use crate::lanes::{Peer, mesh};
use crate::limits::WorkerCount;
use crate::published::Reader;
use crate::region::Table;
use crate::shared::{Command, Shared};
use crate::topology::Topology;
use crate::worker::Worker;

/// Commands that wait for a worker at the most.
const COMMANDS_MAX: usize = 256;

/// A worker as control sees it.
pub(crate) struct Handle {
    pub shared: Arc<Shared>,
    pub commands: Sender<Command>,
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

/// The BPF arrays that are mapped into this process. The reply filter announces what the table's connections need, and nothing else.
pub(crate) fn share_memory(config: &EdgeConfig, ebpf: &mut Ebpf, table: &Table) -> Result<Memory, EdgeError> {
    let mapped = |map: &'static str, e| EdgeError::io(format!("mapping the BPF array {map}"), e);
    let map_fd = |ebpf: &Ebpf, map: &'static str| match ebpf.map(map) {
        Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| mapped(map, e)),
        _ => Err(EdgeError::Map { map: map.into(), detail: "missing in the embedded object".into() }),
    };
    let fd = map_fd(ebpf, "replies")?;
    let places = config.reply_buckets as usize * BUCKET_SLOTS;
    let words = memory::bpf_words32(fd.as_fd(), places).map_err(|e| mapped("replies", e))?;
    let seed = reply_seed(table.conntrack.seed());
    let replies = ReplyFilter::new(words, seed)
        .ok_or_else(|| EdgeError::Config(format!("{} reply buckets: not a power of two", config.reply_buckets)))?;
    match table.taken_over {
        Some(_) => announce(table.conntrack, replies, places, seed),
        None => replies.clear(),
    }
    let fd = map_fd(ebpf, "heartbeats")?;
    let heartbeats = memory::bpf_words64(fd.as_fd(), WorkerCount::MAX as usize).map_err(|e| mapped("heartbeats", e))?;
    Ok(Memory { table: table.conntrack, replies, heartbeats })
}

/// Announces the replies of the connections that were taken over. The pinned program of the process before still reads the filter, and drops what it
/// announces until a worker is there: so what was announced and still is stays in its place all the time. Else a reply would reach the
/// kernel and, with the backend's address as its sender, the client, which would reset the connection.
fn announce(table: Conntrack<'_>, replies: ReplyFilter<'_>, places: usize, seed: u32) {
    let words: Vec<AtomicU32> = (0..places).map(|_| AtomicU32::new(0)).collect();
    let Some(wanted) = ReplyFilter::new(&words, seed) else { return };
    let mut refused = 0;
    table.for_each(|hit, flow| {
        if flow.announced && !wanted.insert(&flow.reply()) {
            table.end(hit);
            refused += 1;
        }
    });
    if refused > 0 {
        tracing::warn!("{refused} connections found no room in the reply filter and were ended");
    }
    replies.become_like(&wanted);
}

/// The tables that a worker follows.
pub(crate) struct Readers {
    pub services: Reader<Services>,
    pub routes: Reader<Routes>,
    pub topology: Reader<Topology>,
}

/// Starts all workers, without queues yet.
pub(crate) fn start_workers(
    config: &EdgeConfig,
    groups: &[Group],
    memory: &Memory,
    readers: Vec<Readers>,
    wanted: &Sender<Wanted>,
) -> Result<Vec<Handle>, EdgeError> {
    let workers = config.workers.get() as usize;
    let all_shared: Vec<Arc<Shared>> = (0..workers)
        .map(|_| Ok(Arc::new(Shared::new(config.targets_max).map_err(|e| EdgeError::io("creating an eventfd", e))?)))
        .collect::<Result<_, EdgeError>>()?;
    let frames_of_one: u32 = groups.iter().map(|g| g.frames.share()).sum();
    let lanes = mesh(workers, config.ring_size.get() as usize, frames_of_one as usize);
    let mut handles = Vec::new();
    for (id, readers) in readers.into_iter().enumerate() {
        let peer = |other: usize| {
            let (to, from) = (lanes[id][other].clone(), lanes[other][id].clone());
            Peer::new(to, from, all_shared[other].clone(), &memory.heartbeats[other], config.fresh.as_nanos() as u64)
        };
        let peers = (0..workers).map(|other| (other != id).then(|| peer(other))).collect();
        let pools = groups.iter().map(|g| g.frames.pool(id as u32)).collect();
        let io = Io::new(id as u16, all_shared[id].clone(), pools, peers);
        let (commands, receiver) = bounded(COMMANDS_MAX);
        let worker = Worker {
            io,
            heartbeat: &memory.heartbeats[id],
            commands: receiver,
            services: readers.services,
            routes: readers.routes,
            topology: readers.topology,
            table: memory.table,
            sweep_flows: config.conntrack_capacity.div_ceil(config.workers.get()),
            filter: memory.replies,
            state: WorkerState::with_timeouts(id as u16, config.timeouts),
            hold: Hold::new(config.hold_frames_max.div_ceil(workers), config.hold_max.as_nanos() as u64),
            asker: Asker::new(wanted.clone()),
            idle: config.idle,
            path: config.path,
            busy_ns: 0,
            housekept_ns: 0,
            probed_ns: 0,
        };
        let thread = start_thread(id, worker, config.cpus.get(id).copied());
        let failed = thread.as_ref().err().is_some();
        if failed {
            // Those that run already end here; the error says why.
            handles.iter().for_each(|h: &Handle| h.shared.stop.store(true, Relaxed));
        }
        handles.push(Handle { shared: all_shared[id].clone(), commands, thread: Some(thread?) });
    }
    Ok(handles)
}

/// Starts the thread and waits until it runs where it should.
fn start_thread(id: usize, worker: Worker, cpu: Option<usize>) -> Result<JoinHandle<()>, EdgeError> {
    let (ready, started) = bounded(1);
    let run = move || {
        if let Some(cpu) = cpu
            && let Err(source) = pin_to_cpu(cpu)
        {
            let _ = ready.send(Err(EdgeError::Cpu { cpu, source }));
            return;
        }
        if let Err(e) = keep_nothing() {
            tracing::warn!("worker {id} could not give up its capabilities: {e}");
        }
        worker.heartbeat.store(monotonic_ns(), Relaxed);
        let _ = ready.send(Ok(()));
        worker.run();
    };
    let spawned = std::thread::Builder::new().name(format!("nm-worker-{id}")).spawn(run);
    let thread = spawned.map_err(|e| EdgeError::io("starting a worker thread", e))?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(EdgeError::io("starting a worker thread", std::io::Error::other("it ended at once"))),
    }
}
