//! Connections of a client to an endpoint itself, from a port from which it has a flow of a Service to the same endpoint.

use super::ending::{end, expired};
use super::fit::Fit;
use super::only_here::{Unserved, leave};
use super::{Context, answers_come_back, forward, open, resolve};
use crate::conntrack::Direction;
use crate::events::{EndCause, EventKind};
use crate::frame::{Frame, Outputs, Verdict};
use crate::observe::Observer;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::services::{Backend, Limits, Source};
use crate::tuple::Proto;
use crate::wire::tcp;

/// Opens a flow for such a connection, or [leaves](leave) the packet, which is no Service's for this reason, to the kernel.
pub(super) fn admit_or_leave<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    (packet, hash, reason): (&Packet, u64, Reason),
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    match admit(ctx, frame, packet, hash, observer) {
        Some(verdict) => verdict,
        None => leave(ctx, frame, Unserved::Packet(packet), reason, out, observer),
    }
}

/// Opens a flow for such a connection, with another source port, as the kernel's conntrack does: otherwise its answers would be those of the other
/// flow. Only its SYN is captured before ([`crate::filter::direct`]). `None`: the packet is none of these, or the kernel should handle it.
fn admit<'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'_>,
    packet: &Packet,
    hash: u64,
    observer: &mut impl Observer<'c>,
) -> Option<Verdict> {
    let tuple = &packet.tuple;
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) == tcp::SYN;
    if ctx.filter.is_none() || tuple.proto != Proto::Tcp || !opens {
        return None;
    }
    let answer = tuple.reversed();
    let other = ctx.table.lookup(&answer, ctx.table.hash(&answer)).filter(|hit| hit.direction == Direction::Reply)?;
    let timed_out = expired(&other, &ctx.worker.idle, ctx.now_ms);
    if timed_out || other.phase.reusable() {
        let cause = if timed_out { EndCause::TimedOut } else { EndCause::Replaced };
        end(ctx, &other, &ctx.counters.conntrack.replaced, cause);
        return None;
    }
    let onward = resolve(ctx, (tuple, frame.port), tuple, observer).ok()?;
    if onward.hidden || !answers_come_back(ctx, tuple, &onward) {
        return None;
    }
    let fit = Fit::of(ctx, frame, (packet.ttl, packet.ip_len()), &onward.hop).ok()?;
    let backend = Backend { addr: tuple.dst_addr(), port: tuple.dport, weight: 1, stats: 0 };
    let hit = open::open(ctx, packet, hash, &Limits::default(), &backend, Source::Client, &onward).ok()?;
    observer.opened(&hit);
    ctx.worker.recorder.flow(ctx.now_ms, frame, (tuple, &hit), EventKind::New(hit.phase.kind()));
    ctx.table.remember_ingress(&hit, frame.port);
    ctx.counters.conntrack.created.add(1);
    Some(forward(ctx, frame, packet, &hit, (&onward.hop, onward.id), fit))
}
