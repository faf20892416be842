//! The worker: one thread that owns queues and carries their frames through the packet path.
//!
//! A round: housekeeping, new tables, frames handed over by other workers, each queue (completions, refill, receive, process, send), then
//! idling if there was no work.

mod fragmenting;
mod fragments;
mod idling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;
use crossbeam::channel::Receiver;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::BatchSize;
use nomagic_core::filter::ReplyFilter;
use nomagic_core::fragment_hold::FragmentHold;
use nomagic_core::frame::{BATCH_MAX, Frame, OUTPUT_MAX, Outputs, PortId, Verdict, Wait};
use nomagic_core::pipeline::{Context, WorkerState, process_tapped, sweep};
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_sys::time::monotonic_ns;

use crate::config::{Idle, PacketPath};
use crate::hold::{GivenUp, Hold, NeighbourRequester, OwnedFrame};
use crate::io::WorkerIo;
use crate::latency::Sampler;
use crate::pool::{FrameAccount, FramePool};
use crate::published::Reader;
use crate::queue::Origin;
use crate::shared::{WorkerCommand, WorkerShared};
use crate::taps::WorkerTaps;
use crate::topology::Topology;
use crate::umem::{SEGMENTS_MAX, Token};

/// Minimum nanoseconds between two rounds of housekeeping.
const HOUSEKEEPING_NS: u64 = 1_000_000;
/// Nanoseconds between checks of a port that is down.
const PROBE_NS: u64 = 100_000_000;
/// Nanoseconds in which all workers together sweep the whole connection table once.
const SWEEP_PERIOD_NS: u64 = 10_000_000_000;
/// Maximum number of flows swept per housekeeping.
const SWEEP_MAX: u64 = 16_384;

pub(crate) struct Worker {
    pub io: WorkerIo,
    pub heartbeat: &'static AtomicU64,
    pub commands: Receiver<WorkerCommand>,
    pub services: Reader<Services>,
    pub routes: Reader<Routes>,
    pub topology: Reader<Topology>,
    pub table: Conntrack<'static>,
    /// The number of flows this worker sweeps per period.
    pub sweep_flows: u32,
    pub filter: ReplyFilter<'static>,
    pub state: WorkerState,
    pub hold: Hold,
    pub fragments: FragmentHold<OwnedFrame>,
    /// When they were last looked through.
    pub fragments_seen_ns: u64,
    /// Fragments that are not held any longer.
    pub leaving: VecDeque<OwnedFrame>,
    /// Where a fragment is put together before it gets frames.
    pub fragment: Vec<u8>,
    pub requester: NeighbourRequester,
    pub taps: WorkerTaps,
    pub sampler: Sampler,
    pub idle: Idle,
    pub path: PacketPath,
    /// The beginning of the last round that had work.
    pub busy_ns: u64,
    pub housekept_ns: u64,
    pub probed_ns: u64,
}

/// Marks the worker as ended when its thread ends, also by a panic.
struct Alive(Arc<WorkerShared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
    }
}

impl Worker {
    /// Runs until stopped.
    pub fn run(mut self) {
        let shared = self.io.shared.clone();
        let _alive = Alive(shared.clone());
        self.io.plan(self.topology.table());
        self.busy_ns = monotonic_ns();
        while !shared.stop.load(Relaxed) {
            self.begin_round(monotonic_ns());
            self.handle_commands();
            self.housekeep();
            self.take_tables();
            let handed = self.io.drain_handovers();
            let frames: usize = (0..self.io.queues.len()).map(|q| self.serve(q)).sum();
            self.tend_fragments();
            self.io.kick();
            self.sampler.sent(&shared.latencies);
            self.io.return_foreign_frames();
            self.idle(handed + frames);
        }
        self.finish();
    }

    /// Begins a round and counts the time of the one before, if that had work: then `idle` has noted its time.
    fn begin_round(&mut self, now_ns: u64) {
        let WorkerIo { shared, now_ns: before_ns, .. } = &mut self.io;
        if self.busy_ns == *before_ns {
            shared.io.busy_ns.add(now_ns.saturating_sub(*before_ns));
        }
        *before_ns = now_ns;
        shared.io.rounds.add(1);
    }

    /// Completions, refill, receive, process, send. Returns the number of received frames.
    fn serve(&mut self, q: usize) -> usize {
        let queue = &mut self.io.queues[q];
        let pool = &mut self.io.pools[queue.pool];
        queue.complete(pool);
        queue.refill(pool);
        let mut packets: ArrayVec<OwnedFrame, BATCH_MAX> = ArrayVec::new();
        let (port, index) = (queue.port, queue.index);
        let take = |pool: &FramePool, token: Token| {
            let (start, len) = (pool.data_start(&token), token.head_len());
            packets.push(OwnedFrame { token, start, len, port, queue: index, held_since_ns: None, given_up: None });
        };
        let (shared, now_ns) = (&self.io.shared, self.io.now_ns);
        let too_long = |bytes| {
            shared.counters.judged(&Verdict::Drop(Reason::FrameTooLong), false, bytes);
            shared.record_drop(now_ns, Reason::FrameTooLong, bytes);
        };
        let frames = queue.receive(pool, BATCH_MAX, take, too_long);
        if frames > 0 {
            shared.io.batches.of(BatchSize::of(frames)).add(1);
            self.sampler.received(frames);
        }
        if !packets.is_empty() {
            let pool = queue.pool;
            self.process_batch(pool, &mut packets);
            self.submit_leaving();
        }
        frames
    }

    /// Runs a batch of one pool's frames through the packet path and applies the verdicts. The arrays are emptied, not moved: they are
    /// kilobytes long regardless of their contents.
    fn process_batch(&mut self, pool: usize, packets: &mut ArrayVec<OwnedFrame, BATCH_MAX>) {
        let mut verdicts: ArrayVec<Verdict, BATCH_MAX> = ArrayVec::new();
        let mut extents: ArrayVec<(usize, usize), BATCH_MAX> = ArrayVec::new();
        let mut made: ArrayVec<(usize, usize, usize, PortId), OUTPUT_MAX> = ArrayVec::new();
        let WorkerIo { pools, spares, shared, now_ns, .. } = &mut self.io;
        let home = &pools[pool];
        {
            let mut tails = tails_for(packets);
            let mut tails = tails.iter_mut();
            let mut out = Outputs::default();
            lend(home, &mut spares[pool], &mut out);
            let overdue = |p: &OwnedFrame| self.hold.is_overdue(p, *now_ns);
            let mut frames: ArrayVec<Frame<'_>, BATCH_MAX> =
                packets.iter_mut().enumerate().map(|(i, p)| view(home, i, overdue(p), p, &mut tails)).collect();
            let mut context = Context {
                now_ms: *now_ns / 1_000_000,
                services: self.services.table(),
                routes: self.routes.table(),
                table: self.table,
                filter: Some(self.filter),
                counters: &shared.counters,
                worker: &mut self.state,
            };
            if self.taps.is_empty() {
                (self.path)(&mut context, &mut frames, &mut verdicts, &mut out);
            } else {
                self.taps.tend(*now_ns);
                process_tapped(&mut context, &mut frames, &mut verdicts, &mut out, &mut self.taps);
            }
            extents.extend(frames.iter().map(|f| (f.start(), f.head_len())));
            made.extend(made_frames(&out));
        }
        debug_assert_eq!(verdicts.len(), packets.len(), "one verdict a frame");
        let queue = packets.first().map_or(0, |p| p.queue);
        for ((mut packet, (start, len)), verdict) in packets.drain(..).zip(extents.iter().copied()).zip(verdicts.drain(..)) {
            (packet.start, packet.len) = (start, len);
            self.apply_verdict(packet, verdict);
        }
        self.send_made(pool, queue, &mut made);
        self.io.flush();
    }

    fn apply_verdict(&mut self, packet: OwnedFrame, verdict: Verdict) {
        match verdict {
            Verdict::Forward(port, _) => self.io.send(packet, port, Origin::Forward),
            Verdict::Fragment(port, _, mtu) => self.send_fragments(packet, port, mtu),
            Verdict::Kernel(reason) => self.send_to_kernel(packet, reason),
            Verdict::Drop(_) => self.io.free(packet.token),
            Verdict::Hold(Wait::Fragments(waiting)) => self.hold_fragment(packet, waiting),
            Verdict::Hold(Wait::Neighbour(wanted)) => {
                self.requester.ask(wanted, self.io.now_ns / 1_000_000, &self.io.shared.neighbours);
                if let Err(packet) = self.hold.keep(packet, wanted, self.io.now_ns) {
                    self.io.shared.counters.held_failed(Reason::HoldFull, packet.total_len());
                    self.io.shared.record_drop(self.io.now_ns, Reason::HoldFull, packet.total_len());
                    self.io.free(packet.token);
                }
            }
        }
    }

    /// Sends the frames the packet path built, and lends it new ones.
    fn send_made(&mut self, pool: usize, queue: u32, made: &mut ArrayVec<(usize, usize, usize, PortId), OUTPUT_MAX>) {
        if made.is_empty() {
            return;
        }
        // In descending order, so that each removal leaves the remaining indices valid.
        made.sort_unstable_by_key(|m| std::cmp::Reverse(m.0));
        for (place, start, len, port) in made.drain(..) {
            let token = self.io.spares[pool].swap_remove(place);
            self.io.send(OwnedFrame { token, start, len, port, queue, held_since_ns: None, given_up: None }, port, Origin::Made);
        }
        self.io.refill_spares(pool);
    }

    /// Sends a frame to the kernel's end of the internal pair; the packet path has set its MAC addresses.
    fn send_to_kernel(&mut self, packet: OwnedFrame, reason: Reason) {
        match self.routes.table().internal {
            Some(internal) => self.io.send(packet, internal.port, Origin::Kernel(reason)),
            None => {
                self.io.shared.counters.kernel_failed(reason, Reason::NoInternalPort, packet.total_len());
                self.io.shared.record_drop(self.io.now_ns, Reason::NoInternalPort, packet.total_len());
                self.io.free(packet.token);
            }
        }
    }

    /// Switches to newly published tables; held frames are resubmitted after new routes.
    fn take_tables(&mut self) {
        self.services.refresh();
        if self.topology.refresh() {
            self.io.plan(self.topology.table());
        }
        if self.routes.refresh() {
            self.resubmit();
        }
    }

    fn resubmit(&mut self) {
        let mut left = self.hold.len();
        while left > 0
            && let Some(pool) = self.hold.front_pool()
        {
            let mut packets = ArrayVec::new();
            while left > 0
                && !packets.is_full()
                && let Some(packet) = self.hold.pop_of_pool(pool)
            {
                packets.push(packet);
                left -= 1;
            }
            self.process_batch(pool, &mut packets);
        }
    }

    /// Submits frames that were held for too long once more: their senders are told.
    fn give_up_overdue(&mut self, now_ns: u64) {
        while let Some(pool) = self.hold.overdue_pool(now_ns) {
            let mut packets = ArrayVec::new();
            while !packets.is_full()
                && self.hold.overdue_pool(now_ns) == Some(pool)
                && let Some(packet) = self.hold.pop()
            {
                packets.push(packet);
            }
            self.process_batch(pool, &mut packets);
        }
    }

    /// Handles the edge's commands.
    fn handle_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            // The requester may have timed out; ignore a closed channel.
            match command {
                WorkerCommand::Add(queues, done) => {
                    self.io.add(queues);
                    let _ = done.try_send(());
                }
                WorkerCommand::Remove(port, gone) => {
                    let _ = gone.try_send(self.io.remove(port));
                }
                WorkerCommand::Reclaimed(tokens) => self.io.reclaim(tokens),
                WorkerCommand::Tap(session) => self.taps.add(session),
            }
            self.io.plan(self.topology.table());
        }
    }

    /// About once a millisecond: heartbeat, held frames, the table's sweep, ports that were down, the frame accounts.
    fn housekeep(&mut self) {
        let now_ns = self.io.now_ns;
        let elapsed_ns = now_ns.saturating_sub(self.housekept_ns);
        if elapsed_ns < HOUSEKEEPING_NS {
            return;
        }
        self.heartbeat.store(now_ns, Relaxed);
        self.housekept_ns = now_ns;
        self.taps.tend(now_ns);
        self.give_up_overdue(now_ns);
        self.io.reclaim_from_dead_peers();
        self.sweep((u64::from(self.sweep_flows) * elapsed_ns.min(SWEEP_PERIOD_NS) / SWEEP_PERIOD_NS).clamp(1, SWEEP_MAX));
        (0..self.io.pools.len()).for_each(|pool| self.io.refill_spares(pool));
        if now_ns.saturating_sub(self.probed_ns) >= PROBE_NS {
            self.probed_ns = now_ns;
            self.io.probe();
        }
        self.publish_account();
    }

    /// Ends timed-out flows, and sends their resets if the configuration wants some: they are built in the first pool's spare frames.
    fn sweep(&mut self, flows: u64) {
        let mut made: ArrayVec<(usize, usize, usize, PortId), OUTPUT_MAX> = ArrayVec::new();
        let WorkerIo { pools, spares, shared, now_ns, .. } = &mut self.io;
        {
            let mut out = Outputs::default();
            if let (true, Some(home), Some(spares)) = (self.services.table().reset_idle, pools.first(), spares.first_mut()) {
                lend(home, spares, &mut out);
            }
            let mut context = Context {
                now_ms: *now_ns / 1_000_000,
                services: self.services.table(),
                routes: self.routes.table(),
                table: self.table,
                filter: Some(self.filter),
                counters: &shared.counters,
                worker: &mut self.state,
            };
            sweep(&mut context, flows as u32, &mut out);
            made.extend(made_frames(&out));
        }
        if !made.is_empty() {
            self.send_made(0, 0, &mut made);
            self.io.flush();
        }
    }

    fn publish_account(&self) {
        let WorkerIo { shared, pools, .. } = &self.io;
        shared.held.store((self.hold.len() + self.fragments.len()) as u64, Relaxed);
        // If a reader holds the lock, the account is published a millisecond later.
        if let Ok(mut accounts) = shared.accounts.try_lock() {
            accounts.clear();
            let held = |pool| self.hold.of_pool(pool) + self.fragments_of_pool(pool);
            accounts.extend((0..pools.len()).map(|pool| FrameAccount { held: held(pool), ..self.io.account(pool) }));
            debug_assert!(accounts.iter().all(FrameAccount::closes), "frames got lost: {accounts:?}");
        }
    }

    /// Drops held and staged frames; the sockets close when the worker is dropped.
    fn finish(&mut self) {
        while let Some(packet) = self.hold.pop().or_else(|| self.fragments.pop()) {
            self.io.shared.counters.held_failed(Reason::Shutdown, packet.total_len());
            self.io.free(packet.token);
        }
        self.io.drain_handovers();
        self.io.kick();
        self.io.return_foreign_frames();
        self.publish_account();
    }
}

/// The data of the frames behind a packet's first one.
type Tail<'f> = ArrayVec<&'f [u8], SEGMENTS_MAX>;

/// Room for the tails of a batch, one for each packet that has one. Most batches have none, and do not touch this memory.
fn tails_for<'f>(packets: &[OwnedFrame]) -> ArrayVec<Tail<'f>, BATCH_MAX> {
    packets.iter().filter(|packet| packet.token.segments() > 1).map(|_| ArrayVec::new()).collect()
}

/// A packet as the packet path sees it.
fn view<'f, 'p: 'f>(
    pool: &'p FramePool,
    place: usize,
    overdue: bool,
    packet: &'p mut OwnedFrame,
    tails: &mut impl Iterator<Item = &'f mut Tail<'p>>,
) -> Frame<'f> {
    let OwnedFrame { token, start, len, port, .. } = packet;
    let tail = if token.segments() > 1 { tails.next() } else { None };
    let mut frame = match tail {
        Some(tail) => {
            let head = pool.bytes_and_tail(token, tail);
            Frame::new(head, *start, *len, *port, place as u64).with_tail(tail)
        }
        None => Frame::new(pool.bytes(token), *start, *len, *port, place as u64),
    };
    frame.resubmitted = packet.held_since_ns.is_some();
    frame.overdue = overdue || packet.given_up == Some(GivenUp::Overdue);
    frame.evicted = packet.given_up == Some(GivenUp::Evicted);
    frame
}

/// Lends spare frames of a pool to the packet path; their tokens are their places.
fn lend<'f>(pool: &'f FramePool, spares: &'f mut [Token], out: &mut Outputs<'f>) {
    for (place, token) in spares.iter_mut().enumerate() {
        let start = pool.data_start(token);
        out.spare.push(Frame::new(pool.bytes(token), start, 0, PortId(0), place as u64));
    }
}

/// The frames that the packet path built: place, start, length, port.
fn made_frames<'f>(out: &'f Outputs<'_>) -> impl Iterator<Item = (usize, usize, usize, PortId)> + 'f {
    out.made.iter().map(|(f, port, _)| (f.token as usize, f.start(), f.head_len(), *port))
}

#[cfg(test)]
mod tests;
