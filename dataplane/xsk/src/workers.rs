//! All workers, for the control plane: start, wake, command, check and stop them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use nomagic_core::fragment_hold::FragmentHold;
use nomagic_core::frame::{BATCH_MAX, Wanted};
use nomagic_core::pipeline::WorkerState;
use nomagic_sys::capabilities::keep_nothing;
use nomagic_sys::cpu::pin_to_cpu;
use nomagic_sys::time::monotonic_ns;

use crate::bind::PortGroup;
use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::hold::{Hold, NeighbourRequester};
use crate::io::WorkerIo;
use crate::lanes::{Peer, mesh};
use crate::latency::Sampler;
use crate::pool::FramePool;
use crate::setup::SharedMemory;
use crate::shared::{WorkerCommand, WorkerShared};
use crate::tables::Readers;
use crate::taps::{TapSession, WorkerTaps};
use crate::worker::Worker;

/// Maximum number of commands queued for a worker.
const COMMANDS_MAX: usize = 256;
/// How long a worker may take to answer; it checks for commands once per round.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(1);

struct Handle {
    shared: Arc<WorkerShared>,
    commands: Sender<WorkerCommand>,
    thread: Option<JoinHandle<()>>,
}

/// The worker threads. They are stopped when this is dropped.
pub(crate) struct Workers {
    handles: Vec<Handle>,
    heartbeats: &'static [AtomicU64],
    grace_ns: u64,
}

impl Workers {
    /// Starts all workers, without queues.
    pub fn start(
        config: &EdgeConfig,
        groups: &[PortGroup],
        memory: &SharedMemory,
        readers: Vec<Readers>,
        wanted: &Sender<Wanted>,
    ) -> Result<Workers, EdgeError> {
        let count = config.workers.get() as usize;
        let all_shared: Vec<Arc<WorkerShared>> = (0..count)
            .map(|_| Ok(Arc::new(WorkerShared::new(config.targets_max).map_err(|e| EdgeError::io("creating an eventfd", e))?)))
            .collect::<Result<_, EdgeError>>()?;
        let frames_of_one: u32 = groups.iter().map(|g| g.frames.share()).sum();
        let lanes = mesh(count, config.ring_size.get() as usize, frames_of_one as usize);
        // If one cannot be started, dropping this stops the others.
        let mut workers = Workers { handles: Vec::new(), heartbeats: memory.heartbeats, grace_ns: config.grace.as_nanos() as u64 };
        for (id, readers) in readers.into_iter().enumerate() {
            let peer = |other: usize| {
                let (to, from) = (lanes[id][other].clone(), lanes[other][id].clone());
                Peer::new(to, from, all_shared[other].clone(), &memory.heartbeats[other], config.fresh.as_nanos() as u64)
            };
            let peers = (0..count).map(|other| (other != id).then(|| peer(other))).collect();
            let pools = groups.iter().map(|g| FramePool::of_worker(&g.frames, id as u32)).collect();
            let io = WorkerIo::new(id as u16, all_shared[id].clone(), pools, peers);
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
                state: WorkerState::with_timeouts(id as u16, config.timeouts).record_in(all_shared[id].events.clone()),
                hold: Hold::new(config.hold_frames_max.div_ceil(count), config.hold_max.as_nanos() as u64),
                fragments: FragmentHold::new(config.fragments_held_max()),
                fragments_seen_ns: 0,
                leaving: VecDeque::with_capacity(2 * BATCH_MAX),
                fragment: Vec::new(),
                requester: NeighbourRequester::new(wanted.clone()),
                taps: WorkerTaps::of_worker(id as u32),
                sampler: Sampler::default(),
                idle: config.idle,
                path: config.path,
                busy_ns: 0,
                housekept_ns: 0,
                probed_ns: 0,
            };
            let thread = Some(start_thread(id, worker, config.cpus.get(id).copied())?);
            workers.handles.push(Handle { shared: all_shared[id].clone(), commands, thread });
        }
        Ok(workers)
    }

    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// A worker's shared state, if it exists.
    pub fn shared(&self, worker: usize) -> Option<&WorkerShared> {
        self.handles.get(worker).map(|h| &*h.shared)
    }

    /// Whether its thread runs, even if stuck.
    pub fn runs(&self, worker: usize) -> bool {
        self.handles[worker].shared.alive.load(Relaxed)
    }

    /// Whether its thread runs and its heartbeat is within the grace period.
    pub fn live(&self, worker: usize) -> bool {
        self.runs(worker) && self.heartbeat_age_ns(worker) <= self.grace_ns
    }

    /// The indices of the live workers.
    pub fn all_live(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|&worker| self.live(worker))
    }

    pub fn heartbeat_age_ns(&self, worker: usize) -> u64 {
        monotonic_ns().saturating_sub(self.heartbeats[worker].load(Relaxed))
    }

    /// Wakes sleeping workers, to check for new tables or commands.
    pub fn wake(&self) {
        self.handles.iter().for_each(|h| h.shared.waker.wake());
    }

    /// Sends a worker a command.
    pub fn send_command(&self, worker: usize, command: WorkerCommand) -> Result<(), EdgeError> {
        let handle = &self.handles[worker];
        handle.commands.send_timeout(command, ANSWER_MAX).map_err(|_| silent(worker))?;
        handle.shared.waker.wake();
        Ok(())
    }

    /// Opens a tap on all workers. One that does not take it now is stuck, and nothing is seen of it.
    pub fn tap(&self, session: &TapSession) {
        for handle in &self.handles {
            let _ = handle.commands.try_send(WorkerCommand::Tap(session.clone()));
            handle.shared.waker.wake();
        }
    }

    /// Stops all workers and waits for them. Returns whether there were any and none had panicked.
    pub fn end(&mut self) -> bool {
        self.handles.iter().for_each(|h| h.shared.stop.store(true, Relaxed));
        self.wake();
        let ended: Vec<bool> = self.handles.iter_mut().filter_map(|h| h.thread.take()).map(|thread| thread.join().is_ok()).collect();
        if ended.contains(&false) {
            tracing::error!("a worker had panicked");
        }
        !ended.is_empty() && !ended.contains(&false)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn silent(worker: usize) -> EdgeError {
    EdgeError::Workers { what: format!("worker {worker} does not respond") }
}

/// Starts the thread and waits until it runs on its CPU.
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
