//! The worker: one thread that owns queues and carries their frames through the packet path.
//!
//! A round: keep house, take new tables, serve each queue (completions, refill, receive, judge, send), rest when idle.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use arrayvec::ArrayVec;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::{Counter, Counters, Traffic};
use nomagic_core::filter::ReplyFilter;
use nomagic_core::frame::{BATCH_MAX, Frame, OUTPUT_MAX, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process, sweep};
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

use crate::config::Idle;
use crate::hold::{AskCounters, Asker, Hold, Packet};
use crate::pool::{CopyError, FrameAccount, Pool, Token};
use crate::published::Reader;
use crate::queue::{KickCounters, Origin, Queue};
use crate::sys::{Waker, monotonic_ns, poll};

/// Nanoseconds between two rounds of housekeeping at the least.
const HOUSEKEEPING_NS: u64 = 1_000_000;
/// Nanoseconds after which a port that is down is tried again.
const PROBE_NS: u64 = 100_000_000;
/// Longest sleep in ms: well below the time a heartbeat stays fresh.
const SLEEP_MAX_MS: i32 = 100;
/// The whole connection table is looked at once in this time, in ns.
const SWEEP_PERIOD_NS: u64 = 10_000_000_000;
/// Flows that one housekeeping looks at, at the most.
const SWEEP_MAX: u64 = 16_384;

/// What a worker shows to other threads.
pub(crate) struct Shared {
    pub counters: Counters,
    pub io: IoCounters,
    pub kicks: KickCounters,
    pub asks: AskCounters,
    /// Where the frames are, by pool, as of the last housekeeping.
    pub accounts: Mutex<Vec<FrameAccount>>,
    /// Held frames.
    pub held: AtomicU64,
    pub waker: Waker,
    pub stop: AtomicBool,
    pub alive: AtomicBool,
}

/// A worker's own work beside the packet path.
#[derive(Default, Debug)]
pub(crate) struct IoCounters {
    /// Rounds of the loop.
    pub rounds: Counter,
    /// Sleeps.
    pub sleeps: Counter,
    /// Frames copied from one pool to another.
    pub copied: Traffic,
    /// Made frames (rejects) that could not be sent.
    pub made_failed: Counter,
}

/// The queues of a port in the worker's list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortQueues {
    pub first: usize,
    pub count: u32,
}

/// What a worker is made of.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub heartbeat: &'static AtomicU64,
    pub services: Reader<Services>,
    pub routes: Reader<Routes>,
    pub table: Conntrack<'static>,
    pub flows_max: u32,
    pub filter: ReplyFilter<'static>,
    pub state: WorkerState,
    pub pools: Vec<Pool>,
    /// Free frames, lent to the packet path with each batch; by pool.
    pub spares: Vec<ArrayVec<Token, OUTPUT_MAX>>,
    pub queues: Vec<Queue>,
    /// By [`PortId`].
    pub ports: Vec<PortQueues>,
    pub hold: Hold,
    pub asker: Asker,
    pub idle: Idle,
    pub now_ns: u64,
    pub busy_ns: u64,
    pub housekept_ns: u64,
    pub probed_ns: u64,
}

/// Says that the thread has ended, however it did.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
    }
}

impl Worker {
    /// Works until told to stop.
    pub fn run(mut self) {
        let _alive = Alive(self.shared.clone());
        self.busy_ns = monotonic_ns();
        while !self.shared.stop.load(Relaxed) {
            self.now_ns = monotonic_ns();
            self.shared.io.rounds.add(1);
            self.keep_house();
            self.take_tables();
            let frames: usize = (0..self.queues.len()).map(|q| self.serve(q)).sum();
            self.kick();
            self.rest(frames);
        }
        self.finish();
    }

    /// Completions, refill, receive, judge, send. The number of frames received.
    fn serve(&mut self, q: usize) -> usize {
        let queue = &mut self.queues[q];
        let pool = &mut self.pools[queue.pool];
        queue.complete(pool);
        queue.refill(pool);
        let mut packets: ArrayVec<Packet, BATCH_MAX> = ArrayVec::new();
        let (port, index) = (queue.port, queue.index);
        queue.receive(pool, BATCH_MAX, |token| {
            let (start, len) = (pool.data_start(&token), token.data_len());
            packets.push(Packet { token, start, len, port, queue: index, held_since_ns: None });
        });
        let frames = packets.len();
        if frames > 0 {
            let pool = queue.pool;
            self.judge(pool, packets);
        }
        frames
    }

    /// Runs a batch of one pool's frames through the packet path and does what it says.
    fn judge(&mut self, pool: usize, mut packets: ArrayVec<Packet, BATCH_MAX>) {
        let mut verdicts = ArrayVec::new();
        let mut extents: ArrayVec<(usize, usize), BATCH_MAX> = ArrayVec::new();
        let mut made: ArrayVec<(usize, usize, usize, PortId), OUTPUT_MAX> = ArrayVec::new();
        let home = &self.pools[pool];
        {
            let mut out = Outputs::default();
            for (i, token) in self.spares[pool].iter_mut().enumerate() {
                let start = home.data_start(token);
                out.spare.push(Frame::new(home.bytes(token), start, 0, PortId(0), i as u64));
            }
            let mut frames: ArrayVec<Frame<'_>, BATCH_MAX> = packets.iter_mut().enumerate().map(|(i, p)| view(home, i, p)).collect();
            let mut context = Context {
                now_ms: self.now_ns / 1_000_000,
                services: self.services.table(),
                routes: self.routes.table(),
                table: self.table,
                filter: Some(self.filter),
                counters: &self.shared.counters,
                worker: &mut self.state,
            };
            process(&mut context, &mut frames, &mut verdicts, &mut out);
            extents.extend(frames.iter().map(|f| (f.start(), f.head_len())));
            made.extend(out.made.iter().map(|(f, port, _)| (f.token as usize, f.start(), f.head_len(), *port)));
        }
        debug_assert_eq!(verdicts.len(), packets.len(), "one verdict a frame");
        let queue = packets.first().map_or(0, |p| p.queue);
        for ((mut packet, (start, len)), verdict) in packets.into_iter().zip(extents).zip(verdicts) {
            (packet.start, packet.len) = (start, len);
            self.act(packet, verdict);
        }
        self.send_made(pool, queue, made);
        self.flush();
    }

    fn act(&mut self, packet: Packet, verdict: Verdict) {
        match verdict {
            Verdict::Forward(port, _) => self.send(packet, port, Origin::Forward),
            Verdict::Kernel(_) => self.send_to_kernel(packet),
            Verdict::Drop(_) => self.free(packet.token),
            Verdict::Hold(wanted) => {
                self.asker.ask(wanted, self.now_ns / 1_000_000, &self.shared.asks);
                if let Err(packet) = self.hold.keep(packet, self.now_ns) {
                    self.shared.counters.held_failed(Reason::HoldFull, packet.len);
                    self.free(packet.token);
                }
            }
        }
    }

    /// Sends the frames that the packet path made, and lends it new ones.
    fn send_made(&mut self, pool: usize, queue: u32, mut made: ArrayVec<(usize, usize, usize, PortId), OUTPUT_MAX>) {
        if made.is_empty() {
            return;
        }
        // From the last place on, so that taking one does not move another.
        made.sort_unstable_by_key(|m| std::cmp::Reverse(m.0));
        for (place, start, len, port) in made {
            let token = self.spares[pool].swap_remove(place);
            self.send(Packet { token, start, len, port, queue, held_since_ns: None }, port, Origin::Made);
        }
        self.lend(pool);
    }

    /// Fills up the spare frames.
    fn lend(&mut self, pool: usize) {
        while !self.spares[pool].is_full()
            && let Some(token) = self.pools[pool].take()
        {
            self.spares[pool].push(token);
        }
    }

    /// To the kernel's end of the internal pair; the packet path has addressed it.
    fn send_to_kernel(&mut self, packet: Packet) {
        match self.routes.table().internal {
            Some(internal) => self.send(packet, internal.port, Origin::Kernel),
            None => {
                self.shared.counters.kernel_failed(Reason::NoInternalPort, packet.len);
                self.free(packet.token);
            }
        }
    }

    /// Stages a frame for a port; what cannot be sent is counted and freed.
    fn send(&mut self, packet: Packet, port: PortId, origin: Origin) {
        let len = packet.len;
        if let Err((token, reason)) = self.stage(packet, port, origin) {
            self.free(token);
            self.failed(origin, reason, len);
        }
    }

    fn stage(&mut self, packet: Packet, port: PortId, origin: Origin) -> Result<(), (Token, Reason)> {
        let Packet { mut token, start, len, queue, .. } = packet;
        let Some(place) = self.ports.get(usize::from(port.0)) else { return Err((token, Reason::PortDown)) };
        let q = place.first + (queue % place.count) as usize;
        let (home, target) = (usize::from(token.pool()), self.queues[q].pool);
        if self.queues[q].down {
            return Err((token, Reason::PortDown));
        }
        if home != target {
            token = self.copy(token, target, start, len)?;
        } else if !self.pools[home].place(&mut token, start, len) {
            return Err((token, Reason::FrameTooLong));
        }
        if let Err(token) = self.queues[q].stage(token, origin) {
            self.flush_queue(q);
            self.queues[q].stage(token, origin).map_err(|token| (token, Reason::TxFull))?;
        }
        Ok(())
    }

    /// A copy in another pool; the original is free again.
    fn copy(&mut self, mut token: Token, target: usize, start: usize, len: usize) -> Result<Token, (Token, Reason)> {
        let home = usize::from(token.pool());
        let Ok([home, target]) = self.pools.get_disjoint_mut([home, target]) else { return Err((token, Reason::PortDown)) };
        let copied = target.copy_from(&home.bytes(&mut token)[start..start + len]);
        match copied {
            Ok(copy) => {
                home.give(token);
                self.shared.io.copied.count(len);
                Ok(copy)
            }
            Err(CopyError::Empty) => Err((token, Reason::PoolEmpty)),
            Err(CopyError::TooLong) => Err((token, Reason::FrameTooLong)),
        }
    }

    fn flush(&mut self) {
        (0..self.queues.len()).for_each(|q| self.flush_queue(q));
    }

    fn flush_queue(&mut self, q: usize) {
        let queue = &mut self.queues[q];
        let pool = &mut self.pools[queue.pool];
        let unsent = queue.flush(pool, &self.shared.kicks);
        let reason = if queue.down { Reason::PortDown } else { Reason::TxFull };
        for frame in unsent {
            self.failed(frame.origin, reason, frame.len);
        }
    }

    /// Corrects the counters for a frame that was not sent after all.
    fn failed(&self, origin: Origin, reason: Reason, len: usize) {
        match origin {
            Origin::Forward => self.shared.counters.forward_failed(reason, len),
            Origin::Kernel => self.shared.counters.kernel_failed(reason, len),
            Origin::Made => self.shared.io.made_failed.add(1),
        }
    }

    fn free(&mut self, token: Token) {
        self.pools[usize::from(token.pool())].give(token);
    }

    fn kick(&mut self) {
        for queue in &mut self.queues {
            queue.kick(&mut self.pools[queue.pool], &self.shared.kicks);
        }
    }

    /// Uses what control has published; new routes may be what held frames waited for.
    fn take_tables(&mut self) {
        self.services.refresh();
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
            self.judge(pool, packets);
        }
    }

    /// About once a millisecond: heartbeat, held frames, the table's sweep, ports that were down, the frame account.
    fn keep_house(&mut self) {
        let elapsed_ns = self.now_ns.saturating_sub(self.housekept_ns);
        if elapsed_ns < HOUSEKEEPING_NS {
            return;
        }
        self.heartbeat.store(self.now_ns, Relaxed);
        self.housekept_ns = self.now_ns;
        while let Some(packet) = self.hold.expired(self.now_ns) {
            self.shared.counters.held_failed(Reason::NeighbourTimeout, packet.len);
            self.free(packet.token);
        }
        self.sweep((u64::from(self.flows_max) * elapsed_ns.min(SWEEP_PERIOD_NS) / SWEEP_PERIOD_NS).clamp(1, SWEEP_MAX));
        (0..self.pools.len()).for_each(|pool| self.lend(pool));
        if self.now_ns.saturating_sub(self.probed_ns) >= PROBE_NS {
            self.probed_ns = self.now_ns;
            for queue in &mut self.queues {
                queue.probe(&mut self.pools[queue.pool], &self.shared.kicks);
            }
        }
        self.publish_account();
    }

    fn sweep(&mut self, flows: u64) {
        let mut context = Context {
            now_ms: self.now_ns / 1_000_000,
            services: self.services.table(),
            routes: self.routes.table(),
            table: self.table,
            filter: Some(self.filter),
            counters: &self.shared.counters,
            worker: &mut self.state,
        };
        sweep(&mut context, flows as u32);
    }

    fn account(&self, pool: usize) -> FrameAccount {
        let mut account = FrameAccount {
            total: self.pools[pool].total(),
            free: self.pools[pool].free(),
            held: self.hold.of_pool(pool),
            in_hand: self.spares[pool].len() as u32,
            ..FrameAccount::default()
        };
        for queue in self.queues.iter().filter(|q| q.pool == pool) {
            let (fill, tx) = queue.outstanding();
            account.fill += fill;
            account.tx += tx;
        }
        account
    }

    fn publish_account(&self) {
        self.shared.held.store(self.hold.len() as u64, Relaxed);
        // A reader that holds the lock sees this account a millisecond later.
        if let Ok(mut accounts) = self.shared.accounts.try_lock() {
            accounts.clear();
            accounts.extend((0..self.pools.len()).map(|pool| self.account(pool)));
            debug_assert!(accounts.iter().all(FrameAccount::closes), "frames got lost: {accounts:?}");
        }
    }

    /// Sleeps if there is nothing to do and the configuration says so.
    fn rest(&mut self, frames: usize) {
        if frames > 0 || self.queues.iter().any(Queue::kick_due) {
            self.busy_ns = self.now_ns;
            return;
        }
        match self.idle {
            Idle::Sleep { after_us } if self.now_ns.saturating_sub(self.busy_ns) >= after_us * 1000 => self.sleep(),
            _ => std::hint::spin_loop(),
        }
    }

    fn sleep(&mut self) {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // poll() passes over negative descriptors: a port that is down must not wake us again and again.
        let mut fds: Vec<libc::pollfd> = self.queues.iter().map(|q| entry(if q.down { -1 } else { q.fd() })).collect();
        fds.push(entry(self.shared.waker.fd()));
        self.shared.io.sleeps.add(1);
        if poll(&mut fds, SLEEP_MAX_MS).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for (queue, fd) in self.queues.iter_mut().zip(&fds) {
            queue.down |= fd.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
        }
        if fds.last().is_some_and(|fd| fd.revents != 0) {
            self.shared.waker.clear();
        }
    }

    /// Ends what waits; the sockets close when the worker is dropped.
    fn finish(&mut self) {
        while let Some(packet) = self.hold.pop() {
            self.shared.counters.held_failed(Reason::Shutdown, packet.len);
            self.free(packet.token);
        }
        self.kick();
        self.publish_account();
    }
}

/// A frame as the packet path sees it.
fn view<'f>(pool: &'f Pool, place: usize, packet: &'f mut Packet) -> Frame<'f> {
    let mut frame = Frame::new(pool.bytes(&mut packet.token), packet.start, packet.len, packet.port, place as u64);
    frame.resubmitted = packet.held_since_ns.is_some();
    frame
}
