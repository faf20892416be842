//! Fragments: each goes where the first one of its datagram goes, in whatever order they come.
//!
//! Only the first fragment has ports, so it alone is judged. All workers share the result ([`Fragments`]). A later fragment without one is held until
//! there is one, or its time ends. What the first fragment's verdict was is the verdict about the others.

use super::fit::Fit;
use super::only_here::{Unserved, leave};
use super::reply_port::check_port;
use super::{Context, Received, count_hit, next_hop};
use crate::capture::takes_whole;
use crate::conntrack::{Datagram, Fate, Hit};
use crate::datagrams::Coverage;
use crate::frame::{Frame, Outputs, Verdict, Wait, Waiting};
use crate::observe::{FlowFate, Observer};
use crate::parse::{FirstFragment, LaterFragment, Packet};
use crate::reason::Reason;
use crate::rewrite;
use crate::tuple::{Proto, Tuple};

/// The verdict about a first fragment that need not be judged, or cannot be yet. An SCTP packet's CRC covers all fragments, and what other ports change
/// of it depends on their length: the first one waits for the last one.
pub(super) fn before_first<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    packet: &mut Packet,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Option<Verdict> {
    let first = packet.fragment.as_mut()?;
    let (fragments, tuple, now_ms) = (ctx.table.fragments(), packet.tuple, ctx.now_ms);
    let datagram = fragments.datagram(&tuple, first.id);
    let sctp = tuple.proto == Proto::Sctp;
    match fragments.lookup(datagram, &tuple, now_ms) {
        Some(Fate::Flow(_, end)) => {
            if end != first.end {
                fragments.drop(datagram, Reason::FragmentOverlap, now_ms);
            }
            Some(Verdict::Drop(Reason::FragmentOverlap))
        }
        Some(Fate::Length(len)) => {
            first.len = Some(len);
            None
        }
        Some(Fate::Drop(reason)) if sctp || reason == Reason::FragmentOverlap => Some(Verdict::Drop(reason)),
        Some(Fate::Kernel(reason)) if sctp => Some(leave(ctx, frame, Unserved::Other, reason, out, observer)),
        _ if sctp => Some(wait(ctx, frame, (&tuple, datagram, true), out, observer)),
        _ => None,
    }
}

/// Tells the later fragments what the first one met, unless it was sent on or is held.
pub(super) fn after_first(ctx: &Context<'_>, packet: &Packet, verdict: Verdict) {
    let Some(first) = packet.fragment else { return };
    let fragments = ctx.table.fragments();
    let datagram = fragments.datagram(&packet.tuple, first.id);
    match verdict {
        Verdict::Kernel(reason) => fragments.leave_to_kernel(datagram, reason, ctx.now_ms),
        Verdict::Drop(reason) => fragments.drop(datagram, reason, ctx.now_ms),
        Verdict::Forward(..) | Verdict::Fragment(..) | Verdict::Hold(_) => {}
    }
}

/// Tells the later fragments that the first one belongs to this flow.
pub(super) fn remember_first(ctx: &Context<'_>, packet: &Packet, first: FirstFragment, hit: &Hit) {
    let fragments = ctx.table.fragments();
    fragments.remember(fragments.datagram(&packet.tuple, first.id), hit, first.end, ctx.now_ms);
}

/// Decides about a later fragment as about its first one.
pub(super) fn later_fragment<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    fragment: &LaterFragment,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let (fragments, now_ms) = (ctx.table.fragments(), ctx.now_ms);
    let datagram = fragments.datagram(&fragment.tuple, fragment.id);
    let fate = fragments.lookup(datagram, &fragment.tuple, now_ms);
    let first_end = if let Some(Fate::Flow(_, end)) = fate { Some(end) } else { None };
    let datagrams = &mut ctx.worker.datagrams;
    let coverage = match frame.resubmitted {
        true => datagrams.release(datagram, first_end),
        false => datagrams.add(datagram, (fragment.offset, fragment.end), fragment.last, first_end, now_ms),
    };
    match coverage {
        Coverage::New => {}
        Coverage::Repeated => return Verdict::Drop(Reason::FragmentOverlap),
        Coverage::Scattered => return Verdict::Drop(Reason::FragmentTiny),
        Coverage::Overlaps => {
            fragments.drop(datagram, Reason::FragmentOverlap, now_ms);
            return Verdict::Drop(Reason::FragmentOverlap);
        }
    }
    let verdict = match fate {
        Some(Fate::Flow(hit, _)) => forward_later(ctx, frame, fragment, &hit, observer),
        Some(Fate::Kernel(reason)) => leave(ctx, frame, Unserved::Other, reason, out, observer),
        Some(Fate::Drop(reason)) => Verdict::Drop(reason),
        Some(Fate::Length(_)) | None => {
            if fragment.last && fragment.tuple.proto == Proto::Sctp {
                fragments.note_length(datagram, fragment.end, now_ms);
            }
            wait(ctx, frame, (&fragment.tuple, datagram, false), out, observer)
        }
    };
    if matches!(verdict, Verdict::Hold(_)) {
        ctx.worker.datagrams.hold(datagram);
    } else if ctx.worker.datagrams.finish(datagram) {
        fragments.forget(datagram);
    }
    verdict
}

/// Sends a later fragment where the first one went.
fn forward_later<'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'_>,
    fragment: &LaterFragment,
    hit: &Hit,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    observer.known_flow(hit, FlowFate::Continues);
    let Some(same_port) = check_port(ctx, frame.port, &fragment.tuple, hit) else { return Verdict::Drop(Reason::ReplyPort) };
    let received = Received { tuple: &fragment.tuple, port: frame.port, same_port };
    let (hop, id) = match next_hop(ctx, &received, hit, observer) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    let fit = match Fit::of(ctx, frame, (fragment.ttl, fragment.ip_len.into()), &hop) {
        Ok(fit) => fit,
        Err(reason) => return Verdict::Drop(reason),
    };
    let bytes = frame.total_len();
    rewrite::rewrite_later_fragment(frame, fragment, hit, &hop);
    count_hit(ctx.counters, hit, bytes);
    fit.verdict(ctx, &hop, id)
}

/// Holds a fragment until the others of its datagram are known, or gives it up. Then the kernel gets it, which knows what it had passed to the
/// kernel before, unless all that goes to its address is nomagic's.
fn wait<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    (t, datagram, first): (&Tuple, Datagram, bool),
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let reason = match (frame.evicted, frame.overdue) {
        (true, _) => Reason::FragmentHoldFull,
        (false, true) => Reason::FragmentTimeout,
        (false, false) => {
            let host = if t.v6 { 0 } else { t.src[1] };
            let sender = ctx.table.hash_words(&[t.src[0], host, u64::from(t.v6)]);
            return Verdict::Hold(Wait::Fragments(Waiting { datagram, sender, first }));
        }
    };
    if takes_whole(ctx.services, t.dst_addr()) { Verdict::Drop(reason) } else { leave(ctx, frame, Unserved::Other, reason, out, observer) }
}
