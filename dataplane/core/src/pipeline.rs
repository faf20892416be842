//! The way of a packet from frame to verdict.
//!
//! A batch takes three short passes, so that the memory latency of one frame hides behind the work on the others: parse and hash all frames,
//! prefetch the flows that the index seems to name, then decide frame by frame. [`dispatch`] and the functions below it hold the branches, and
//! tell each decision to an [`Observer`].

mod context;
mod direct;
mod ending;
mod evict;
mod fast_path;
mod fit;
mod foreign;
mod fragments;
mod icmp_errors;
mod idle_reset;
mod limits;
mod only_here;
mod open;
mod prefetched;
mod recorder;
mod refuse;
mod reply_port;
mod source_ports;
mod ways;

use arrayvec::ArrayVec;
use ending::{end, expired, withdraw};
use fast_path::{Tally, fast_path};
use fit::Fit;
use foreign::foreign_source;
use fragments::{after_first, before_first, later_fragment, remember_first};
use icmp_errors::forward_error;
use only_here::{Unserved, leave, ping, refuse_source};
use prefetched::{Ahead, BatchScratch, read_and_prefetch};
use refuse::{Refusal, count_refused, refuse, refuse_opening, refuse_way};
use reply_port::check_port;
use ways::{Received, answers_come_back, fresh_hop, next_hop, resolve};

use crate::conntrack::{Direction, Hit, PhaseKind, Sticky};
use crate::counters::Counters;
use crate::events::{EndCause, EventKind};
use crate::fast_parse::Plain;
use crate::frame::{BATCH_MAX, Frame, NextHopId, Outputs, PortId, Verdict};
use crate::observe::{FlowFate, Observer, Silent};
use crate::parse::{NotPacket, Packet, martian, parse};
use crate::reason::Reason;
use crate::rewrite;
use crate::routes::NextHop;
use crate::services::{Decision, Matched, Source};
use crate::tap::{self, NoTap, Notes, Tap};
use crate::tuple::{Tuple, addr_words};
use crate::wire::tcp;

pub use context::{Context, WorkerState};
pub use ending::{end_connection, sweep, take_out};

/// Placeholder verdict for frames that are not processed yet.
const UNDECIDED: Verdict = Verdict::Forward(PortId::NONE, NextHopId(0));

/// Decides and rewrites a batch: one verdict a frame, in order.
///
/// # Panics
/// With more than [`BATCH_MAX`] frames: a caller's error.
pub fn process<'f>(ctx: &mut Context<'_>, frames: &mut [Frame<'f>], verdicts: &mut ArrayVec<Verdict, BATCH_MAX>, out: &mut Outputs<'f>) {
    process_tapped(ctx, frames, verdicts, out, &mut NoTap);
}

/// Like [`process`], and `tap` watches the packets that it wants.
///
/// # Panics
/// With more than [`BATCH_MAX`] frames: a caller's error.
#[inline(always)]
pub fn process_tapped<'f, T: Tap>(
    ctx: &mut Context<'_>,
    frames: &mut [Frame<'f>],
    verdicts: &mut ArrayVec<Verdict, BATCH_MAX>,
    out: &mut Outputs<'f>,
    tap: &mut T,
) {
    assert!(frames.len() <= BATCH_MAX, "a batch is {BATCH_MAX} frames at the most");
    verdicts.clear();
    // Cannot fail: there is room for a batch.
    let _ = verdicts.try_extend_from_slice(&[UNDECIDED; BATCH_MAX][..frames.len()]);
    let mut scratch = BatchScratch::new();
    let ahead = read_and_prefetch(ctx, frames, &mut scratch);
    let mut tally = Tally::default();
    let touch_ms = ctx.touch_ms();
    for ((frame, Ahead { read, prefetched }), verdict) in frames.iter_mut().zip(ahead).zip(verdicts) {
        let plain = || read.as_ref().map(|plain| (plain, prefetched.hash));
        if T::WATCHES {
            let view = tap::view(ctx.services, &ctx.table, frame, plain());
            let packet = view.packet;
            if tap.wants(&view, frame) {
                *verdict = watched(ctx, frame, (plain(), packet), out, tap);
                continue;
            }
        }
        let ordinary = match read {
            Some(plain) if plain.v6 => fast_path::<true>(ctx, frame, plain, prefetched, touch_ms, &mut tally),
            Some(plain) => fast_path::<false>(ctx, frame, plain, prefetched, touch_ms, &mut tally),
            None => None,
        };
        match ordinary {
            Some((port, hop)) => *verdict = Verdict::Forward(port, hop),
            None => *verdict = slow_path(ctx, frame, plain(), out, &mut Silent),
        }
    }
    tally.add_to(ctx.counters);
}

/// Like [`process`], but every frame takes the slow path, and `observer` hears its decisions. The verdicts are those of [`process`].
///
/// # Panics
/// With more than [`BATCH_MAX`] frames: a caller's error.
pub fn process_observed<'f, 'c>(
    ctx: &mut Context<'c>,
    frames: &mut [Frame<'f>],
    verdicts: &mut ArrayVec<Verdict, BATCH_MAX>,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) {
    assert!(frames.len() <= BATCH_MAX, "a batch is {BATCH_MAX} frames at the most");
    verdicts.clear();
    verdicts.extend(frames.iter_mut().map(|frame| slow_path(ctx, frame, None, out, observer)));
}

/// Handles a frame that a tap watches.
fn watched<'f>(
    ctx: &mut Context<'_>,
    frame: &mut Frame<'f>,
    (plain, packet): (Option<(&Plain, u64)>, Option<Tuple>),
    out: &mut Outputs<'f>,
    tap: &mut impl Tap,
) -> Verdict {
    let (mut notes, made) = (Notes { packet, ..Notes::default() }, out.made.len());
    let verdict = slow_path(ctx, frame, plain, out, &mut notes);
    tap.judged(frame, &verdict, &notes, out.made.get(made..).unwrap_or_default());
    verdict
}

/// Handles every frame that the fast path declines.
#[inline(never)]
fn slow_path<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    plain: Option<(&Plain, u64)>,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let (bytes, resubmitted) = (frame.total_len(), frame.resubmitted);
    ctx.worker.recorder.begin();
    let verdict = match plain {
        Some((plain, hash)) => {
            let packet = plain.packet(frame.head());
            ctx.worker.recorder.read(&packet.tuple);
            match martian(packet.tuple.src, packet.tuple.v6) {
                true => Verdict::Drop(Reason::Martian),
                false => dispatch(ctx, frame, &packet, hash, out, observer),
            }
        }
        None => match parse(frame).inspect(|packet| ctx.worker.recorder.read(&packet.tuple)) {
            Ok(mut packet) => match before_first(ctx, frame, &mut packet, out, observer) {
                Some(verdict) => verdict,
                None => {
                    let hash = ctx.table.hash(&packet.tuple);
                    let verdict = dispatch(ctx, frame, &packet, hash, out, observer);
                    after_first(ctx, &packet, verdict);
                    verdict
                }
            },
            Err(NotPacket::Malformed(reason)) => Verdict::Drop(reason),
            Err(NotPacket::Kernel(reason)) => leave(ctx, frame, Unserved::Other, reason, out, observer),
            Err(NotPacket::Later(fragment)) => {
                ctx.worker.recorder.read(&fragment.tuple);
                later_fragment(ctx, frame, &fragment, out, observer)
            }
            Err(NotPacket::Error(error)) => {
                ctx.worker.recorder.read(&error.quoted);
                forward_error(ctx, frame, &error, out, observer)
            }
            Err(NotPacket::Echo(echo)) => {
                ctx.worker.recorder.read(&echo.packet.tuple);
                ping(ctx, frame, &echo, out, observer)
            }
        },
    };
    // Whatever would hold it once more.
    let verdict = if frame.overdue && matches!(verdict, Verdict::Hold(_)) { Verdict::Drop(Reason::NeighbourTimeout) } else { verdict };
    observer.verdict(&verdict);
    ctx.worker.recorder.judged(ctx.now_ms, (frame.port, bytes, resubmitted), &verdict);
    ctx.counters.judged(&verdict, resubmitted, bytes);
    verdict
}

/// Sends a packet on as part of a known flow, of a new one, or of neither.
#[inline(always)]
fn dispatch<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    packet: &Packet,
    hash: u64,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    observer.parsed(packet);
    match ctx.table.lookup(&packet.tuple, hash) {
        Some(hit) if expired(&hit, &ctx.worker.idle, ctx.now_ms) => {
            observer.known_flow(&hit, FlowFate::TimedOut);
            end(ctx, &hit, &ctx.counters.conntrack.expired, EndCause::TimedOut);
            admit_new(ctx, frame, packet, hash, out, observer)
        }
        Some(hit) if reopens(&hit, packet) => {
            observer.known_flow(&hit, FlowFate::Replaced);
            end(ctx, &hit, &ctx.counters.conntrack.replaced, EndCause::Replaced);
            admit_new(ctx, frame, packet, hash, out, observer)
        }
        Some(hit) => forward_known(ctx, frame, packet, &hit, out, observer),
        None => admit_new(ctx, frame, packet, hash, out, observer),
    }
}

/// Forwards a packet of a known flow.
fn forward_known<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    packet: &Packet,
    hit: &Hit,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    observer.known_flow(hit, FlowFate::Continues);
    ctx.worker.recorder.belongs(&packet.tuple, hit);
    let Some(same_port) = check_port(ctx, frame.port, &packet.tuple, hit) else { return Verdict::Drop(Reason::ReplyPort) };
    let received = Received { tuple: &packet.tuple, port: frame.port, same_port };
    let (hop, id) = match next_hop(ctx, &received, hit, observer) {
        Ok(way) => way,
        Err(verdict) => return refuse_way(ctx, frame, packet, verdict, out, observer),
    };
    let fit = match Fit::of(ctx, frame, (packet.ttl, packet.ip_len()), &hop) {
        Ok(fit) => fit,
        Err(reason) => return refuse(ctx, frame, packet, Refusal::by_next_hop(reason, &hop, Some(hit)), out, observer),
    };
    update_state(ctx, frame, packet, hit);
    forward(ctx, frame, packet, hit, (&hop, id), fit)
}

/// Updates the phase, the last-seen time and the sequence numbers of a flow.
fn update_state(ctx: &Context<'_>, frame: &Frame<'_>, packet: &Packet, hit: &Hit) {
    let numbers = packet.tcp_numbers(frame.head());
    let phase = ctx.table.sequences().phase_after(hit, packet.tcp_flags, numbers.as_ref(), ctx.now_ms);
    if phase == hit.phase && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        // A repeated SYN does not refresh the flow, as in nf_conntrack_proto_tcp.c: otherwise a client that retries from one port would
        // stay with a backend that does not answer.
        ctx.counters.conntrack.syn_repeated.add(1);
        return;
    }
    if phase == hit.phase && phase.kind() == PhaseKind::SynReceived && hit.direction == Direction::Original && numbers.is_some() {
        // Nor does a packet that should complete the handshake and does not.
        return;
    }
    if hit.phase.kind() == PhaseKind::Closed && phase.kind() != PhaseKind::Closed {
        ctx.counters.conntrack.revived.add(1);
    }
    if let Some(numbers) = numbers {
        ctx.table.sequences().remember(hit, packet.tcp_flags, phase, &numbers, (ctx.now_ms, ctx.touch_ms()));
    }
    ctx.table.touch(hit, phase, ctx.now_ms);
    if phase.kind() != hit.phase.kind() {
        ctx.worker.recorder.flow(ctx.now_ms, frame, (&packet.tuple, hit), EventKind::Changed(phase.kind()));
    }
}

/// Rewrites and counts a packet that passed all checks.
#[inline]
fn forward(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: &Packet, hit: &Hit, (hop, id): (&NextHop, NextHopId), fit: Fit) -> Verdict {
    let bytes = frame.total_len();
    if ctx.services.mss.lower(frame, packet, hop.mtu.min(ctx.routes.mtu_of(frame.port))) {
        ctx.counters.path.mss_lowered.add(1);
    }
    if rewrite::rewrite(frame, packet, hit, hop) {
        ctx.counters.path.checksum_completed.add(1);
    }
    if let Some(first) = packet.fragment {
        remember_first(ctx, packet, first, hit);
    }
    count_hit(ctx.counters, hit, bytes);
    fit.verdict(ctx, hop, id)
}

fn count_hit(counters: &Counters, hit: &Hit, bytes: usize) {
    counters.conntrack.hit.add(1);
    let target = counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.count(bytes);
}

/// Opens a flow for a packet of an unknown one, if its Service says so.
#[inline(always)]
fn admit_new<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    packet: &Packet,
    hash: u64,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    if let Some(reason) = foreign_source(ctx, frame, &packet.tuple) {
        return refuse_source(ctx, frame, Unserved::Packet(packet), reason, out, observer);
    }
    let services = ctx.services;
    let (table, now_ms, tuple) = (ctx.table, ctx.now_ms, &packet.tuple);
    let decision = services.decide_with(tuple, |affinity, pool, chosen| {
        let sticky = Sticky { id: affinity.id, client: tuple.src, v6: tuple.v6, timeout_s: affinity.timeout_s };
        let (identity, remembered) =
            table.affinity().stick(&sticky, now_ms, |identity| pool.by_identity(identity).is_some(), chosen.identity());
        observer.affinity(remembered);
        pool.by_identity(identity)
    });
    observer.service(&decision);
    let (backend, snat, port) = match decision {
        Decision::Pass(reason) => return direct::admit_or_leave(ctx, frame, (packet, hash, reason), out, observer),
        Decision::Drop(matched, reason) => return drop_by_service(matched, reason),
        Decision::Reject(matched, reason) => {
            matched.iter().for_each(|m| m.frontend.port.refused.count_rejected());
            return refuse(ctx, frame, packet, Refusal::by_service(reason, services, frame, packet), out, observer);
        }
        Decision::Forward { matched, backend, snat, .. } => (backend, snat, &matched.frontend.port),
    };
    if let Err(reason) = open::may_open(packet, snat.is_some()) {
        return refuse_opening(ctx, frame, packet, reason, out, observer);
    }
    open::prefetch_reply_key(ctx, packet, hash, backend, snat);
    let (backend_addr, _) = addr_words(backend.addr);
    let to_backend = Tuple { dst: backend_addr, dport: backend.port, ..packet.tuple };
    let onward = match resolve(ctx, (&packet.tuple, frame.port), &to_backend, observer) {
        Ok(onward) => onward,
        Err(verdict) => return refuse_way(ctx, frame, packet, verdict, out, observer),
    };
    let needs_internal = open::needs_internal(ctx, packet, snat, &onward);
    let source = open::choose_source(ctx, packet, hash, snat, needs_internal);
    observer.source(source, needs_internal);
    let source = match source {
        Ok(source) => source,
        Err(reason) => return Verdict::Drop(reason),
    };
    // The way on may ask for SNAT as well.
    if let Err(reason) = open::may_open(packet, source != Source::Client) {
        return refuse_opening(ctx, frame, packet, reason, out, observer);
    }
    let fit = match Fit::of(ctx, frame, (packet.ttl, packet.ip_len()), &onward.hop) {
        Ok(fit) => fit,
        Err(reason) => return refuse(ctx, frame, packet, Refusal::by_next_hop(reason, &onward.hop, None), out, observer),
    };
    match open::open(ctx, packet, hash, &port.limits, backend, source, &onward) {
        Ok(hit) => {
            observer.opened(&hit);
            ctx.worker.recorder.flow(ctx.now_ms, frame, (&packet.tuple, &hit), EventKind::New(hit.phase.kind()));
            ctx.table.remember_ingress(&hit, frame.port);
            ctx.counters.conntrack.created.add(1);
            ctx.counters.conntrack.mid_stream.add(u64::from(hit.phase.kind() == PhaseKind::PickedUp));
            ctx.counters.target(hit.stats).flows.add(1);
            forward(ctx, frame, packet, &hit, (&onward.hop, onward.id), fit)
        }
        // Another worker has just created the flow: use that one.
        Err(Reason::ConntrackBusy) => {
            ctx.counters.conntrack.busy.add(1);
            match ctx.table.lookup(&packet.tuple, hash) {
                Some(hit) => forward_known(ctx, frame, packet, &hit, out, observer),
                None => Verdict::Drop(Reason::ConntrackBusy),
            }
        }
        Err(reason) => {
            port.refused.count_dropped();
            count_refused(ctx.counters, backend, reason);
            refuse_opening(ctx, frame, packet, reason, out, observer)
        }
    }
}

/// Drops a packet in silence, as its Service says.
fn drop_by_service(matched: Option<Matched<'_>>, reason: Reason) -> Verdict {
    matched.iter().for_each(|m| m.frontend.port.refused.count_dropped());
    Verdict::Drop(reason)
}

/// Whether the packet is a client's SYN that reuses the port of a closed flow (RFC 9293, 3.6.1; RFC 6191).
fn reopens(hit: &Hit, packet: &Packet) -> bool {
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) == tcp::SYN;
    opens && hit.direction == Direction::Original && hit.phase.reusable()
}
