//! The story of a packet.
//!
//! A batch goes through in three short passes, so that the memory latency of one frame hides behind the work on the others: read and
//! hash all, fetch the flows that the index seems to name, then judge one after the other. [`judge`] and the functions below it hold the branches.

mod ahead;
mod ending;
mod established;
mod evict;
mod open;
mod source_ports;

use std::net::IpAddr;

use ahead::{Notes, look_ahead};
use arrayvec::ArrayVec;
use ending::{end, expired, withdraw};
use established::{Tally, established};
use evict::Evictor;

use crate::answer::{self, Limiter};
use crate::conntrack::{Conntrack, Direction, Hit, IdleTimes, PhaseKind, Sticky, Timeouts};
use crate::counters::Counters;
use crate::filter::ReplyFilter;
use crate::frame::{BATCH_MAX, Frame, NextHopId, Outputs, PortId, Verdict};
use crate::lately::Lately;
use crate::parse::{NotPacket, Packet, Piece, link_header, martian, parse};
use crate::plain::Plain;
use crate::reason::Reason;
use crate::rewrite;
use crate::routes::{NextHop, Routes, Way};
use crate::services::{Decision, Services, TcpReject};
use crate::tuple::{Proto, Tuple, addr_words};
use crate::wire::{ethernet, ethertype, ipv4, ipv6, tcp};

pub use ending::{end_connection, sweep};

/// What belongs to one worker alone.
#[derive(Debug)]
pub struct WorkerState {
    number: u16,
    /// Spreads the workers over the source ports.
    port_hint: u32,
    limiter: Limiter,
    idle: IdleTimes,
    lately: Lately,
    evictor: Evictor,
}

impl WorkerState {
    /// The state of worker number `worker`, with the default time-outs.
    pub fn new(worker: u16) -> WorkerState {
        WorkerState::with_timeouts(worker, Timeouts::default())
    }

    /// The state of worker number `worker`.
    pub fn with_timeouts(worker: u16, timeouts: Timeouts) -> WorkerState {
        WorkerState {
            number: worker,
            port_hint: u32::from(worker).wrapping_mul(0x9e37_79b9),
            limiter: Limiter::default(),
            idle: timeouts.table(),
            lately: Lately::default(),
            evictor: Evictor::default(),
        }
    }
}

/// What stands in a place whose frame was not judged yet.
const UNDECIDED: Verdict = Verdict::Forward(PortId(u16::MAX), NextHopId(0));

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
    assert!(frames.len() <= BATCH_MAX, "a batch is {BATCH_MAX} frames at the most");
    verdicts.clear();
    // Cannot fail: there is room for a batch.
    let _ = verdicts.try_extend_from_slice(&[UNDECIDED; BATCH_MAX][..frames.len()]);
    let mut notes = Notes::new();
    let (read, ahead) = look_ahead(ctx, frames, &mut notes);
    let mut tally = Tally::default();
    for (((frame, read), ahead), verdict) in frames.iter_mut().zip(read).zip(ahead).zip(verdicts) {
        let ordinary = match read {
            Some(plain) if plain.v6 => established::<true>(ctx, frame, plain, ahead, &mut tally),
            Some(plain) => established::<false>(ctx, frame, plain, ahead, &mut tally),
            None => None,
        };
        match ordinary {
            Some((port, hop)) => *verdict = Verdict::Forward(port, hop),
            None => *verdict = general(ctx, frame, read.as_ref().map(|plain| (plain, ahead.hash)), out),
        }
    }
    tally.add_to(ctx.counters);
}

/// One frame that is not simply the next one of a connection in its stride: any case, from the beginning.
#[inline(never)]
fn general<'f>(ctx: &mut Context<'_>, frame: &mut Frame<'f>, plain: Option<(&Plain, u64)>, out: &mut Outputs<'f>) -> Verdict {
    let (bytes, resubmitted) = (frame.total_len(), frame.resubmitted);
    let verdict = match plain {
        Some((plain, hash)) => match plain.packet(frame.head()) {
            packet if martian(packet.tuple.src, packet.tuple.v6) => Verdict::Drop(Reason::Martian),
            packet => judge(ctx, frame, &packet, hash, out),
        },
        None => match parse(frame) {
            Ok(packet) => {
                let hash = ctx.table.hash(&packet.tuple);
                judge(ctx, frame, &packet, hash, out)
            }
            Err(NotPacket::Malformed(reason)) => Verdict::Drop(reason),
            Err(NotPacket::Kernel(reason)) => to_kernel(ctx, frame, None, reason),
            Err(NotPacket::Later(piece)) => later_fragment(ctx, frame, &piece),
        },
    };
    ctx.counters.judged(&verdict, resubmitted, bytes);
    verdict
}

/// One packet: known connection, new connection, or neither.
#[inline(always)]
fn judge<'f>(ctx: &mut Context<'_>, frame: &mut Frame<'f>, packet: &Packet, hash: u64, out: &mut Outputs<'f>) -> Verdict {
    match ctx.table.lookup(&packet.tuple, hash) {
        Some(hit) if expired(&hit, &ctx.worker.idle, ctx.now_ms) => {
            end(ctx, &hit, &ctx.counters.conntrack.expired);
            unknown(ctx, frame, packet, hash, out)
        }
        Some(hit) if reopens(&hit, packet) => {
            end(ctx, &hit, &ctx.counters.conntrack.replaced);
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
        return refuse(ctx, frame, packet, reason, hop.mtu.into(), out);
    }
    note(ctx, packet, hit);
    forward(ctx, frame, packet, hit, &hop, id)
}

/// What one more packet makes of its connection.
fn note(ctx: &Context<'_>, packet: &Packet, hit: &Hit) {
    let phase = hit.phase_after(packet.tcp_flags, ctx.now_ms);
    if phase == hit.phase && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        // It does not prolong anything: a client that calls again and again from one port would never get another backend than the one that
        // does not answer (as in nf_conntrack_proto_tcp.c).
        ctx.counters.conntrack.syn_repeated.add(1);
        return;
    }
    if hit.phase.kind() == PhaseKind::Closed && phase.kind() != PhaseKind::Closed {
        ctx.counters.conntrack.revived.add(1);
    }
    ctx.table.touch(hit, phase, ctx.now_ms);
}

/// A packet that nothing stops any more.
#[inline]
fn forward(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: &Packet, hit: &Hit, hop: &NextHop, id: NextHopId) -> Verdict {
    let bytes = frame.total_len();
    if rewrite::rewrite(frame, packet, hit, hop) {
        ctx.counters.path.checksum_completed.add(1);
    }
    if let Some(id) = packet.fragment_id {
        ctx.table.remember_fragments(&packet.tuple, id, hit, ctx.now_ms);
    }
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
    rewrite::rewrite_piece(frame, piece, &hit, &hop);
    count_hit(ctx.counters, &hit, bytes);
    Verdict::Forward(hop.port, id)
}

/// The cached next hop of a connection's direction, or the one that the routes name now.
fn next_hop(ctx: &mut Context<'_>, hit: &Hit) -> Result<(NextHop, NextHopId), Verdict> {
    if let Some(id) = hit.cached_hop(ctx.routes.generation) {
        return ctx.routes.hop(id).map(|hop| (*hop, id)).ok_or(Verdict::Drop(Reason::NoRoute));
    }
    let onward = way(ctx, &hit.new)?;
    if hit.direction == Direction::Original && onward.needs_internal != from_internal(ctx, &hit.new) {
        // The routes have changed: from where this leads now no answer would find its way back.
        return Err(Verdict::Drop(Reason::NextHopKernel));
    }
    ctx.table.cache_hop(hit, ctx.routes.generation, onward.id);
    Ok((onward.hop, onward.id))
}

/// Whether a packet to a backend bears the address that the kernel routes to the internal port.
fn from_internal(ctx: &Context<'_>, new: &Tuple) -> bool {
    ctx.services.snat.internal(new.v6).is_some_and(|internal| new.src_addr() == internal)
}

fn count_hit(counters: &Counters, hit: &Hit, bytes: usize) {
    counters.conntrack.hit.add(1);
    let target = counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.count(bytes);
}

/// A packet that no connection is known for: the Service decides.
#[inline(always)]
fn unknown<'f>(ctx: &mut Context<'_>, frame: &mut Frame<'f>, packet: &Packet, hash: u64, out: &mut Outputs<'f>) -> Verdict {
    let services = ctx.services;
    let (table, now_ms, tuple) = (ctx.table, ctx.now_ms, &packet.tuple);
    let decision = services.decide_with(tuple, |affinity, pool, chosen| {
        let sticky = Sticky { id: affinity.id, client: tuple.src, v6: tuple.v6, timeout_s: affinity.timeout_s };
        pool.by_identity(table.stick(&sticky, now_ms, |identity| pool.by_identity(identity).is_some(), chosen.identity()))
    });
    let (backend, snat) = match decision {
        Decision::Pass(reason) => return to_kernel(ctx, frame, Some(packet), reason),
        Decision::Drop(_, reason) => return Verdict::Drop(reason),
        Decision::Reject(_, reason) => return refuse(ctx, frame, packet, reason, 0, out),
        Decision::Forward { backend, snat, .. } => (backend, snat),
    };
    open::fetch_likely(ctx, packet, hash, backend, snat);
    let (backend_addr, _) = addr_words(backend.addr);
    let to_backend = Tuple { dst: backend_addr, dport: backend.port, ..packet.tuple };
    let onward = match way(ctx, &to_backend) {
        Ok(onward) => onward,
        Err(verdict) => return verdict,
    };
    let source = match open::Source::choose(ctx, packet, snat, onward.needs_internal) {
        Ok(source) => source,
        Err(reason) => return Verdict::Drop(reason),
    };
    if let Err(reason) = open::may_open(packet, source) {
        return Verdict::Drop(reason);
    }
    if let Err(reason) = rewrite::check(packet.ttl, packet.ip_len(), &onward.hop) {
        return refuse(ctx, frame, packet, reason, onward.hop.mtu.into(), out);
    }
    match open::open(ctx, packet, hash, backend, source, &onward) {
        Ok(hit) => {
            ctx.counters.conntrack.created.add(1);
            if hit.phase.kind() == PhaseKind::PickedUp {
                ctx.counters.conntrack.mid_stream.add(1);
            }
            ctx.counters.target(hit.stats).flows.add(1);
            forward(ctx, frame, packet, &hit, &onward.hop, onward.id)
        }
        // Another worker has just created it: the loser uses the winner's.
        Err(Reason::ConntrackBusy) => {
            ctx.counters.conntrack.busy.add(1);
            match ctx.table.lookup(&packet.tuple, hash) {
                Some(hit) => known(ctx, frame, packet, &hit, out),
                None => Verdict::Drop(Reason::ConntrackBusy),
            }
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Where a rewritten packet goes.
struct Onward {
    hop: NextHop,
    id: NextHopId,
    /// An answer comes back only to an address that the kernel routes to the internal port.
    needs_internal: bool,
}

/// The way to a rewritten packet's destination.
#[inline]
fn way(ctx: &mut Context<'_>, new: &Tuple) -> Result<Onward, Verdict> {
    let seed = &ctx.services.seed;
    match ctx.worker.lately.resolve(ctx.routes, new.dst, new.v6, || new.hash(seed)) {
        Way::Hop(id) => {
            let hop = ctx.routes.hop(id).ok_or(Verdict::Drop(Reason::NoRoute))?;
            Ok(Onward { hop: *hop, id, needs_internal: false })
        }
        Way::Kernel { captured } => {
            let (hop, id) = ctx.routes.kernel_hop().ok_or(Verdict::Drop(Reason::NoInternalPort))?;
            Ok(Onward { hop, id, needs_internal: !captured })
        }
        Way::Ask(wanted) => Err(Verdict::Hold(wanted)),
        Way::Nowhere(reason) => Err(Verdict::Drop(reason)),
    }
}

/// Drops a packet and tells its sender why, within the limits.
fn refuse<'f>(ctx: &mut Context<'_>, frame: &Frame<'f>, packet: &Packet, reason: Reason, mtu: u32, out: &mut Outputs<'f>) -> Verdict {
    let dst = packet.tuple.dst_addr();
    let own = ctx.services.snat.addr(packet.tuple.v6).unwrap_or(dst);
    let (error, from) = match reason {
        Reason::TtlExceeded => (Some(answer::Error::TimeExceeded), own),
        Reason::TooBig => (Some(answer::Error::TooBig(mtu)), own),
        _ if resets(ctx.services, packet) => (None, dst),
        _ => (Some(answer::Error::PortUnreachable), dst),
    };
    let sent = ctx.worker.limiter.take(ctx.now_ms)
        && !out.made.is_full()
        && out.spare.pop().is_some_and(|mut spare| {
            let built = match error {
                Some(error) => answer::build(error, frame, packet, from, &mut spare),
                None => answer::build_reset(frame, packet, &mut spare),
            };
            if built {
                towards_sender(ctx, frame, &mut spare);
                ctx.counters.frames.made.count(spare.head_len());
                out.made.push((spare, frame.port, NextHopId(0)));
            } else {
                out.spare.push(spare);
            }
            built
        });
    if !sent {
        ctx.counters.path.made_suppressed.add(1);
    }
    Verdict::Drop(reason)
}

/// Whether the packet's sender is told by a reset that it is rejected. Not one that sends fragments: of those a reset cannot say how
/// much was received.
fn resets(services: &Services, packet: &Packet) -> bool {
    services.tcp_reject == TcpReject::Reset && packet.tuple.proto == Proto::Tcp && packet.fragment_id.is_none()
}

/// A frame that was made for a sender behind the kernel goes to the kernel's end of the internal port, which knows the way.
fn towards_sender(ctx: &Context<'_>, frame: &Frame<'_>, made: &mut Frame<'_>) {
    let behind = ctx.routes.internal.filter(|internal| internal.port == frame.port);
    if let (Some(internal), Ok((_, l3))) = (behind, link_header(made.head())) {
        let src = ctx.routes.port(internal.port).map_or([0; 6], |port| port.mac);
        rewrite::link(made, l3 as u16, src, internal.kernel_mac);
    }
}

/// Not ours after all: to the kernel, as it came, with a checksum that holds anywhere. What the kernel itself sent here goes back too: only
/// what the node itself sends is led here, and what comes back is forwarded. Except for the addresses that lead here whoever sends: such a
/// packet would come again and again. The kernel's end of the internal port answers no ARP, so the kernel addresses its frames to that
/// itself; frames that were redirected from a pod's interface bear other addresses.
fn to_kernel(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: Option<&Packet>, reason: Reason) -> Verdict {
    let Some(internal) = ctx.routes.internal else { return Verdict::Drop(Reason::NoInternalPort) };
    if frame.port == internal.port && frame.head().first_chunk() == Some(&internal.kernel_mac) && leads_here(ctx, frame.head()) {
        return Verdict::Drop(reason);
    }
    if packet.is_some_and(|p| rewrite::complete(frame, p)) {
        ctx.counters.path.checksum_completed.add(1);
    }
    let Ok((_, l3)) = link_header(frame.head()) else { return Verdict::Drop(Reason::EthernetTruncated) };
    let src = ethernet::field::SOURCE.read(frame.head());
    rewrite::link(frame, l3 as u16, src, internal.kernel_mac);
    Verdict::Kernel(reason)
}

/// Whether the kernel routes a frame's destination to the internal port whoever sends, or might: it cannot be read.
fn leads_here(ctx: &Context<'_>, head: &[u8]) -> bool {
    let Ok((ethertype, l3)) = link_header(head) else { return true };
    let range = &ctx.services.snat;
    let ip = head.get(l3..).unwrap_or_default();
    let dst = match ethertype {
        ethertype::IPV4 => ipv4::field::DESTINATION.get(ip).map(IpAddr::from),
        ethertype::IPV6 => ipv6::field::DESTINATION.get(ip).map(IpAddr::from),
        _ => None,
    };
    dst.is_none_or(|dst| range.internal(dst.is_ipv6()) == Some(dst))
}

/// Whether the packet is a client's SYN for a new connection from the port of one that is over (RFC 9293, 3.6.1; RFC 6191).
fn reopens(hit: &Hit, packet: &Packet) -> bool {
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) == tcp::SYN;
    opens && hit.direction == Direction::Original && hit.phase.reusable()
}
