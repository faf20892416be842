//! The story of a packet.
//!
//! A batch goes through in three short passes, so that the memory latency of one frame hides behind the work on the others: parse and
//! hash all, fetch the flows the index seems to name, then judge one after the other. [`judge`] and the functions below it hold the branches.

use arrayvec::ArrayVec;

use crate::answer::{self, Limiter};
use crate::conntrack::{Conntrack, Direction, Flow, Hit, Phase, Refused, Timeouts};
use crate::counters::Counters;
use crate::filter::ReplyFilter;
use crate::frame::{BATCH_MAX, Frame, NextHopId, Outputs, Verdict};
use crate::parse::{NotPacket, Packet, Piece, ethernet, parse, tcp};
use crate::reason::Reason;
use crate::rewrite;
use crate::routes::{NextHop, Routes, Way};
use crate::services::{Backend, Decision, Services, SnatCause};
use crate::tuple::{Proto, Tuple, addr_words, fast_range};

/// Source ports tried for one connection at the most.
const SOURCE_PORTS_TRIED_MAX: u16 = 128;
/// Other source ports tried when a client's own clashes, at the most.
const CLIENT_PORTS_TRIED_MAX: u16 = 16;
/// Places looked at for a connection to evict when the table is full.
const EVICTION_PLACES: u32 = 64;

/// What belongs to one worker alone.
#[derive(Debug)]
pub struct WorkerState {
    /// Spreads the workers over the source ports.
    port_hint: u32,
    limiter: Limiter,
    timeouts: Timeouts,
}

impl WorkerState {
    /// The state of worker number `worker`, with the default time-outs.
    pub fn new(worker: u16) -> WorkerState {
        WorkerState::with_timeouts(worker, Timeouts::default())
    }

    /// The state of worker number `worker`.
    pub fn with_timeouts(worker: u16, timeouts: Timeouts) -> WorkerState {
        WorkerState { port_hint: u32::from(worker).wrapping_mul(0x9e37_79b9), limiter: Limiter::default(), timeouts }
    }
}

/// Everything a batch is judged by.
pub struct Context<'c> {
    /// Milliseconds of a clock that never goes back.
    pub now_ms: u64,
    /// The service table.
    pub services: &'c Services,
    /// Routes and neighbours.
    pub routes: &'c Routes,
    /// The connection table.
    pub table: Conntrack<'c>,
    /// The reply filter; `None`: every frame comes up anyway (tests, benchmarks).
    pub filter: Option<ReplyFilter<'c>>,
    /// The worker's counters.
    pub counters: &'c Counters,
    /// The worker's own state.
    pub worker: &'c mut WorkerState,
}

/// Judges and rewrites a batch: one verdict a frame, in order.
///
/// # Panics
/// When there are more than [`BATCH_MAX`] frames: a caller's error.
pub fn process<'f>(ctx: &mut Context<'_>, frames: &mut [Frame<'f>], verdicts: &mut ArrayVec<Verdict, BATCH_MAX>, out: &mut Outputs<'f>) {
    verdicts.clear();
    let mut parsed: ArrayVec<(Result<Packet, NotPacket>, u64), BATCH_MAX> = ArrayVec::new();
    for frame in frames.iter() {
        let packet = parse(frame);
        let hash = packet.as_ref().map_or(0, |p| ctx.table.hash(&p.tuple));
        if packet.is_ok() {
            ctx.table.prefetch_index(hash);
        }
        parsed.push((packet, hash));
    }
    for (_, hash) in parsed.iter().filter(|(p, _)| p.is_ok()) {
        ctx.table.prefetch_flow(*hash);
    }
    for (frame, (packet, hash)) in frames.iter_mut().zip(&parsed) {
        let bytes = frame.total_len();
        let verdict = judge(ctx, frame, packet, *hash, out);
        count(ctx.counters, frame.resubmitted, bytes, &verdict);
        verdicts.push(verdict);
    }
}

/// Looks at the next `places` of the connection table and ends what has timed out.
pub fn sweep(ctx: &mut Context<'_>, places: u32) {
    let (now_ms, timeouts) = (ctx.now_ms, ctx.worker.timeouts);
    ctx.table.sweep(
        places,
        ctx.routes.generation,
        |hit| expired(hit, &timeouts, now_ms),
        |flow| {
            ctx.counters.conntrack_expired.add(1);
            withdraw(ctx.filter, &flow);
        },
    );
}

fn count(counters: &Counters, resubmitted: bool, bytes: usize, verdict: &Verdict) {
    if resubmitted { &counters.released } else { &counters.received }.count(bytes);
    match verdict {
        Verdict::Forward(..) => counters.forwarded.count(bytes),
        Verdict::Kernel(reason) => {
            counters.kernel.count(bytes);
            counters.reason(*reason).add(1);
        }
        Verdict::Drop(reason) => counters.drop_frame(*reason, bytes),
        Verdict::Hold(_) => counters.held.count(bytes),
    }
}

/// One frame: known connection, new connection, or neither.
fn judge<'f>(
    ctx: &mut Context<'_>,
    frame: &mut Frame<'f>,
    packet: &Result<Packet, NotPacket>,
    hash: u64,
    out: &mut Outputs<'f>,
) -> Verdict {
    let packet = match packet {
        Ok(packet) => packet,
        Err(NotPacket::Malformed(reason)) => return Verdict::Drop(*reason),
        Err(NotPacket::Kernel(reason)) => return to_kernel(ctx, frame, None, *reason),
        Err(NotPacket::Later(piece)) => return later_fragment(ctx, frame, piece),
    };
    match ctx.table.lookup(&packet.tuple, hash) {
        Some(hit) if expired(&hit, &ctx.worker.timeouts, ctx.now_ms) => {
            end(ctx, &hit, &ctx.counters.conntrack_expired);
            unknown(ctx, frame, packet, hash, out)
        }
        Some(hit) if reopens(&hit, packet) => {
            end(ctx, &hit, &ctx.counters.conntrack_replaced);
            unknown(ctx, frame, packet, hash, out)
        }
        Some(hit) => known(ctx, frame, packet, &hit, out),
        None => unknown(ctx, frame, packet, hash, out),
    }
}

/// A packet of a known connection.
fn known<'f>(ctx: &mut Context<'_>, frame: &mut Frame<'f>, packet: &Packet, hit: &Hit, out: &mut Outputs<'f>) -> Verdict {
    let (hop, id) = match next_hop(ctx, hit) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    if let Err(reason) = rewrite::check(packet.ttl, packet.ip_len(), &hop) {
        return refuse(ctx, frame, packet, reason, hop.mtu, out);
    }
    let bytes = frame.total_len();
    if rewrite::rewrite(frame, packet, &hit.new, hit.deltas, &hop) {
        ctx.counters.checksum_completed.add(1);
    }
    if let Some(id) = packet.fragment_id {
        ctx.table.remember_fragments(&packet.tuple, id, hit, ctx.now_ms);
    }
    ctx.table.touch(hit, hit.phase.after(hit.direction, packet.tcp_flags), ctx.now_ms);
    count_hit(ctx.counters, hit, bytes);
    Verdict::Forward(hop.port, id)
}

/// A later fragment: to where its first one went. Without that one it is the kernel's; so is one that comes before it.
fn later_fragment(ctx: &mut Context<'_>, frame: &mut Frame<'_>, piece: &Piece) -> Verdict {
    let Some(hit) = ctx.table.lookup_fragment(piece, ctx.now_ms) else { return to_kernel(ctx, frame, None, Reason::Fragment) };
    let (hop, id) = match next_hop(ctx, &hit) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    if let Err(reason) = rewrite::check(piece.ttl, usize::from(piece.ip_len), &hop) {
        return Verdict::Drop(reason);
    }
    let bytes = frame.total_len();
    rewrite::rewrite_piece(frame, piece, &hit.new, hit.deltas, &hop);
    count_hit(ctx.counters, &hit, bytes);
    Verdict::Forward(hop.port, id)
}

/// The cached next hop of a connection's direction, or the one that the routes name now.
fn next_hop(ctx: &Context<'_>, hit: &Hit) -> Result<(NextHop, NextHopId), Verdict> {
    if let Some(id) = ctx.table.cached_hop(hit, ctx.routes.generation) {
        return ctx.routes.hop(id).map(|hop| (*hop, id)).ok_or(Verdict::Drop(Reason::NoRoute));
    }
    let way = way(ctx, &hit.new, hit.direction)?;
    ctx.table.cache_hop(hit, ctx.routes.generation, way.1);
    Ok(way)
}

fn count_hit(counters: &Counters, hit: &Hit, bytes: usize) {
    counters.conntrack_hit.add(1);
    let target = counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.count(bytes);
}

/// A packet that no connection is known for: the Service decides.
fn unknown<'f>(ctx: &mut Context<'_>, frame: &mut Frame<'f>, packet: &Packet, hash: u64, out: &mut Outputs<'f>) -> Verdict {
    let services = ctx.services;
    let (backend, snat) = match services.decide(&packet.tuple) {
        Decision::Pass(reason) => return to_kernel(ctx, frame, Some(packet), reason),
        Decision::Drop(_, reason) => return Verdict::Drop(reason),
        Decision::Reject(_, reason) => return refuse(ctx, frame, packet, reason, 0, out),
        Decision::Forward { backend, snat, .. } => (backend, snat),
    };
    if let Err(reason) = may_open(packet, snat) {
        return Verdict::Drop(reason);
    }
    let (backend_addr, _) = addr_words(backend.addr);
    let to_backend = Tuple { dst: backend_addr, dport: backend.port, ..packet.tuple };
    let hop = match way(ctx, &to_backend, Direction::Original) {
        Ok((hop, _)) => hop,
        Err(verdict) => return verdict,
    };
    if let Err(reason) = rewrite::check(packet.ttl, packet.ip_len(), &hop) {
        return refuse(ctx, frame, packet, reason, hop.mtu, out);
    }
    match open(ctx, packet, hash, backend, snat) {
        Ok(hit) => {
            ctx.counters.conntrack_created.add(1);
            ctx.counters.target(hit.stats).flows.add(1);
            known(ctx, frame, packet, &hit, out)
        }
        // Another worker has just created it: the loser uses the winner's.
        Err(Reason::ConntrackBusy) => match ctx.table.lookup(&packet.tuple, hash) {
            Some(hit) => known(ctx, frame, packet, &hit, out),
            None => Verdict::Drop(Reason::ConntrackBusy),
        },
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Which first packets may open a connection. The kernel's conntrack has the same rules (a connection met in its middle is picked up,
/// a lone RST or FIN or SYN+ACK is invalid), except that one whose source port would have to be invented now is refused.
fn may_open(packet: &Packet, snat: Option<SnatCause>) -> Result<(), Reason> {
    if packet.tuple.proto == Proto::Udp {
        return Ok(());
    }
    match packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) {
        tcp::SYN => Ok(()),
        tcp::ACK if snat.is_none() => Ok(()),
        tcp::ACK => Err(Reason::MidFlowSnat),
        _ => Err(Reason::TcpFlags),
    }
}

/// Creates the connection.
fn open(ctx: &mut Context<'_>, packet: &Packet, hash: u64, backend: &Backend, snat: Option<SnatCause>) -> Result<Hit, Reason> {
    let t = &packet.tuple;
    let source = match snat {
        None => t.src,
        Some(_) => addr_words(ctx.services.snat.addr(t.v6).ok_or(Reason::SnatAddressMissing)?).0,
    };
    let flow = Flow {
        proto: t.proto,
        v6: t.v6,
        // Answers to replaced sources are known by their address and port; others must be announced.
        announced: snat.is_none() && ctx.filter.is_some(),
        client: t.src,
        client_port: t.sport,
        service: t.dst,
        service_port: t.dport,
        backend: addr_words(backend.addr).0,
        backend_port: backend.port,
        source,
        source_port: t.sport,
        stats: backend.stats,
    };
    let phase = Phase::first(t.proto, packet.tcp_flags);
    let ports = SourcePorts::new(ctx, packet, hash, snat);
    let reserve = |ctx: &Context<'_>| ctx.table.reserve(flow, hash, phase, ctx.now_ms, ports.clone());
    let pending = match reserve(ctx) {
        Err(Refused::Full) if evict(ctx) => reserve(ctx),
        other => other,
    };
    let pending = pending.map_err(|refused| match refused {
        Refused::Full => Reason::ConntrackFull,
        Refused::Busy | Refused::Exists => Reason::ConntrackBusy,
        Refused::ReplyTaken if snat.is_some() => Reason::SnatPortsExhausted,
        Refused::ReplyTaken => Reason::ReplyKeyTaken,
    })?;
    let created = pending.flow;
    if created.announced && !ctx.filter.is_none_or(|f| f.insert(&created.reply())) {
        ctx.table.abort(pending);
        return Err(Reason::ReplyFilterFull);
    }
    ctx.table.commit(pending).map_err(|_| {
        withdraw(ctx.filter, &created);
        Reason::ConntrackBusy
    })
}

/// The source ports to try for a new connection, best first.
#[derive(Clone)]
struct SourcePorts {
    first: Option<u16>,
    base: u16,
    range: u32,
    at: u32,
    left: u16,
}

impl SourcePorts {
    fn new(ctx: &Context<'_>, packet: &Packet, hash: u64, snat: Option<SnatCause>) -> SourcePorts {
        let snat_range = &ctx.services.snat;
        let (first, base, last, tries) = match snat {
            Some(_) => (None, snat_range.port_first, snat_range.port_last, SOURCE_PORTS_TRIED_MAX),
            // The client's own port; in the middle of a connection only that one.
            None if packet.tcp_flags & tcp::SYN == 0 && packet.tuple.proto != Proto::Udp => (Some(packet.tuple.sport), 1, 0, 0),
            None => (Some(packet.tuple.sport), 1_024, u16::MAX, CLIENT_PORTS_TRIED_MAX),
        };
        let range = (u32::from(last) + 1).saturating_sub(u32::from(base));
        let at = fast_range((hash as u32).wrapping_add(ctx.worker.port_hint), range);
        SourcePorts { first, base, range, at, left: tries.min(range.min(u32::from(u16::MAX)) as u16) }
    }
}

impl Iterator for SourcePorts {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        self.left = self.left.checked_sub(1)?;
        let port = self.base + self.at as u16;
        self.at = (self.at + 1) % self.range;
        Some(port)
    }
}

/// The table is full: makes room by ending one connection that nobody has agreed on yet or that is over. False when none was found nearby.
///
/// Established connections stay. A DNAT-only connection cannot be served without an entry either: nothing would lead its replies back.
fn evict(ctx: &mut Context<'_>) -> bool {
    let (now_ms, timeouts) = (ctx.now_ms, ctx.worker.timeouts);
    let found = std::cell::Cell::new(false);
    let ends = |hit: &Hit| !found.get() && (expired(hit, &timeouts, now_ms) || hit.phase.evictable());
    ctx.table.sweep(EVICTION_PLACES, ctx.routes.generation, ends, |flow| {
        found.set(true);
        ctx.counters.conntrack_evicted.add(1);
        withdraw(ctx.filter, &flow);
    });
    found.get()
}

/// The way to a rewritten packet's destination. What lies behind the kernel can only be reached by replies: a request sent there
/// would be answered past this dataplane.
fn way(ctx: &Context<'_>, new: &Tuple, direction: Direction) -> Result<(NextHop, NextHopId), Verdict> {
    match ctx.routes.resolve(new.dst_addr(), new.hash(&ctx.services.seed)) {
        Way::Hop(id) => ctx.routes.hop(id).map(|hop| (*hop, id)).ok_or(Verdict::Drop(Reason::NoRoute)),
        Way::Ask(wanted) => Err(Verdict::Hold(wanted)),
        Way::Nowhere(Reason::NextHopKernel) if direction == Direction::Reply => {
            ctx.routes.kernel_hop().map(|hop| (hop, NextHopId(0))).ok_or(Verdict::Drop(Reason::NoInternalPort))
        }
        Way::Nowhere(reason) => Err(Verdict::Drop(reason)),
    }
}

/// Drops a packet and tells its sender why, within the limits.
fn refuse<'f>(ctx: &mut Context<'_>, frame: &Frame<'f>, packet: &Packet, reason: Reason, mtu: u32, out: &mut Outputs<'f>) -> Verdict {
    let dst = packet.tuple.dst_addr();
    let own = ctx.services.snat.addr(packet.tuple.v6).unwrap_or(dst);
    let (error, from) = match reason {
        Reason::TtlExceeded => (answer::Error::TimeExceeded, own),
        Reason::TooBig => (answer::Error::TooBig(mtu), own),
        _ => (answer::Error::PortUnreachable, dst),
    };
    let sent = ctx.worker.limiter.take(ctx.now_ms)
        && !out.made.is_full()
        && out.spare.pop().is_some_and(|mut spare| {
            let built = answer::build(error, frame, packet, from, &mut spare);
            if built {
                ctx.counters.made.count(spare.head_len());
                out.made.push((spare, frame.port, NextHopId(0)));
            } else {
                out.spare.push(spare);
            }
            built
        });
    if !sent {
        ctx.counters.made_suppressed.add(1);
    }
    Verdict::Drop(reason)
}

/// Not ours after all: to the kernel, as it came, with a checksum that holds anywhere. What the kernel itself sent here does not go
/// back to it: that would never end.
fn to_kernel(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: Option<&Packet>, reason: Reason) -> Verdict {
    let Some(internal) = ctx.routes.internal else { return Verdict::Drop(Reason::NoInternalPort) };
    if frame.port == internal.port {
        return Verdict::Drop(reason);
    }
    if packet.is_some_and(|p| rewrite::complete(frame, p)) {
        ctx.counters.checksum_completed.add(1);
    }
    let Ok((_, l3)) = ethernet(frame.head()) else { return Verdict::Drop(Reason::EthernetTruncated) };
    let mut src = [0; 6];
    src.copy_from_slice(&frame.head()[6..12]);
    rewrite::link(frame, l3 as u16, src, internal.kernel_mac);
    Verdict::Kernel(reason)
}

/// Whether the packet is a client's SYN for a new connection from the port of one that is over (RFC 9293, 3.6.1; RFC 6191).
fn reopens(hit: &Hit, packet: &Packet) -> bool {
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
    opens && hit.direction == Direction::Original && hit.phase.reusable()
}

fn expired(hit: &Hit, timeouts: &Timeouts, now_ms: u64) -> bool {
    now_ms.saturating_sub(hit.seen_ms) >= timeouts.of(hit.phase)
}

fn end(ctx: &Context<'_>, hit: &Hit, counter: &crate::counters::Counter) {
    if let Some(flow) = ctx.table.end(hit) {
        counter.add(1);
        withdraw(ctx.filter, &flow);
    }
}

fn withdraw(filter: Option<ReplyFilter<'_>>, flow: &Flow) {
    if let (Some(filter), true) = (filter, flow.announced) {
        filter.remove(&flow.reply());
    }
}
