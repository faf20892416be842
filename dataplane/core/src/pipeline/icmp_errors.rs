//! ICMP errors about known flows: translated and sent to the end that sent the quoted packet.
//!
//! An error is proof of nothing: it opens no flow, prolongs none and changes none, not even its cached next hops. What it claims is compared with what the
//! flow knows, as far as that goes (RFC 5927).

use super::fit::Fit;
use super::foreign::link_local;
use super::only_here::{Unserved, leave};
use super::{Context, expired, fresh_hop};
use crate::conntrack::{Direction, Hit};
use crate::events::EventKind;
use crate::frame::{Frame, Outputs, PortId, Verdict};
use crate::icmp::{self, ErrorClass, IcmpError};
use crate::observe::{FlowFate, Observer};
use crate::reason::Reason;
use crate::reject;
use crate::routes::Resolution;
use crate::tuple::{AddrWords, words_addr};

/// Sends an error on to the end of its flow that sent the quoted packet. Without a flow the kernel gets it.
#[inline(never)]
pub(super) fn forward_error<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    error: &IcmpError,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let key = error.key();
    let known = ctx.table.lookup(&key, ctx.table.hash(&key)).filter(|hit| !expired(hit, &ctx.worker.idle, ctx.now_ms));
    let Some(hit) = known else { return about_unknown(ctx, frame, error, out, observer) };
    observer.known_flow(&hit, FlowFate::Continues);
    ctx.worker.recorder.belongs(&key, &hit);
    if let Err(reason) = check(ctx, frame, error, &hit) {
        return Verdict::Drop(reason);
    }
    let source = icmp::source_after(error, &hit);
    if link_local(source, key.v6) {
        return leave(ctx, frame, Unserved::Other, Reason::LinkLocalSource, out, observer);
    }
    let client = if hit.direction == Direction::Original { key.src } else { hit.new.dst };
    let class = ErrorClass::of(hit.phase);
    // A frame that was held has taken its token before.
    if !frame.resubmitted && !take(ctx, class, client, key.v6) {
        return Verdict::Drop(Reason::IcmpLimit);
    }
    let holds = !ctx.routes.depends_on_port(key.v6) || ctx.table.came_by(&hit, frame.port);
    let hop = match hit.cached_hop(ctx.routes.generation).filter(|_| holds) {
        Some(id) => {
            observer.next_hop(&hit.new, &Resolution::Hop(id));
            ctx.routes.hop(id).map(|hop| (*hop, id)).ok_or(Verdict::Drop(Reason::NoRoute))
        }
        // Not cached: the port by which replies come in is verified together with the cached hop, and no reply has come in.
        None => fresh_hop(ctx, (&key, frame.port), &hit, observer),
    };
    let (hop, id) = match hop {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    // No error about an error (RFC 1122, 3.2.2).
    let fit = match Fit::of(ctx, frame, (error.ttl, error.ip_len()), &hop) {
        Ok(fit) => fit,
        Err(reason) => return Verdict::Drop(reason),
    };
    icmp::translate(frame, error, &hit, source, &hop);
    ctx.counters.path.icmp_errors.of(class).add(1);
    ctx.worker.recorder.packet(ctx.now_ms, frame, EventKind::IcmpError);
    fit.verdict(ctx, &hop, id)
}

/// Compares an error with its flow, the cheapest first.
fn check(ctx: &Context<'_>, frame: &Frame<'_>, error: &IcmpError, hit: &Hit) -> Result<(), Reason> {
    if !comes_from_there(ctx, frame.port, error, hit) {
        return Err(Reason::IcmpPort);
    }
    // The node's own errors come in by the internal port: of its sockets, and of its routing behind the kernel.
    let sender = words_addr(error.sender, error.quoted.v6);
    let inside = ctx.routes.internal.is_some_and(|internal| internal.port == frame.port);
    if !inside && (ctx.services.snat.is_own(sender) || ctx.routes.is_local(sender)) {
        return Err(Reason::OwnSource);
    }
    let sequence = error.quoted_sequence(frame.head());
    if sequence.is_some_and(|number| !ctx.table.sequences().may_have_sent(hit, number)) {
        return Err(Reason::IcmpSequence);
    }
    if !icmp::has_right_checksum(frame, error) {
        return Err(Reason::IcmpChecksum);
    }
    Ok(())
}

/// Whether an error came in by a port that leads where the quoted packet went. Its sender may be any router on the way, at any address, so only the
/// way itself says something: nobody on the clients' side reports about the endpoints' side. Client and router may answer by another way than the one
/// to the client; where the client's own packets come in, errors do too.
fn comes_from_there(ctx: &Context<'_>, port: PortId, error: &IcmpError, hit: &Hit) -> bool {
    let by_client = hit.direction == Direction::Original && ctx.table.came_by(hit, port);
    by_client || ctx.routes.leads_by(error.quoted.dst_addr(), port)
}

/// Leaves an error that belongs to no known flow to the kernel, which may have a socket that sent the quoted packet.
fn about_unknown<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    error: &IcmpError,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    if !take(ctx, ErrorClass::Unknown, error.sender, error.quoted.v6) {
        return Verdict::Drop(Reason::IcmpLimit);
    }
    leave(ctx, frame, Unserved::Other, Reason::Icmp, out, observer)
}

/// Takes a token of a class for a client or a sender.
fn take(ctx: &mut Context<'_>, class: ErrorClass, of: AddrWords, v6: bool) -> bool {
    let (table, now_ms) = (ctx.table, ctx.now_ms);
    let hash = reject::sender_hash(words_addr(of, v6), now_ms, |words| table.hash_words(words));
    ctx.worker.errors.take(class, hash, now_ms)
}
