//! Packets that are not forwarded: rejects to their sender, and frames handed back to the kernel.

use std::net::IpAddr;

use super::Context;
use super::foreign::is_from_node;
use crate::conntrack::{Hit, PhaseKind};
use crate::counters::Counters;
use crate::frame::{Frame, NextHopId, OUTPUT_MAX, Outputs, PortId, Verdict};
use crate::observe::Observer;
use crate::parse::{Packet, link_header};
use crate::reason::Reason;
use crate::reject::{self, Answer, Class, Error};
use crate::rewrite;
use crate::routes::NextHop;
use crate::services::{Backend, Services, TcpReject};
use crate::tuple::Proto;
use crate::wire::{ethernet, ethertype, ipv4, ipv6, tcp};

/// Why a packet is dropped, and what its sender is told.
pub(super) struct Refusal {
    reason: Reason,
    answer: Answer,
    class: Class,
}

impl Refusal {
    /// The packet cannot go on by a next hop, see [`rewrite::check`]. `flow`: the known one that it belongs to.
    pub fn by_next_hop(reason: Reason, hop: &NextHop, flow: Option<&Hit>) -> Refusal {
        let (error, class) = match reason {
            Reason::TtlExceeded => (Error::TimeExceeded, Class::TimeExceeded),
            _ => (Error::TooBig(hop.mtu.into()), too_big(flow)),
        };
        Refusal { reason, answer: Answer::Icmp(error), class }
    }

    /// Its Service rejects the packet. Fragments of a SYN get ICMP: a reset would have to acknowledge a length that the first fragment does not
    /// tell. Connections that are open already get a reset however Services reject: no ICMP error ends them.
    pub fn by_service(reason: Reason, services: &Services, frame: &Frame<'_>, packet: &Packet) -> Refusal {
        if let Some(ending) = Refusal::of_unknown_connection(reason, frame, packet) {
            return ending;
        }
        let resets = services.tcp_reject == TcpReject::Reset && packet.tuple.proto == Proto::Tcp && packet.fragment.is_none();
        let answer = if resets { Answer::Reset } else { Answer::Icmp(Error::PortUnreachable) };
        Refusal { reason, answer, class: Class::Unreachable }
    }

    /// The packet is in the middle of a connection that is not known and cannot be picked up.
    fn of_unknown_connection(reason: Reason, frame: &Frame<'_>, packet: &Packet) -> Option<Refusal> {
        reject::ending(frame, packet).map(|answer| Refusal { reason, answer, class: Class::Reset })
    }
}

/// The class of "too big" in a flow. The client of a TCP connection that is never evicted is not forged; over UDP forged packets can do as
/// much as real ones.
fn too_big(flow: Option<&Hit>) -> Class {
    match flow.map(|hit| (hit.phase.kind(), hit.phase.eviction_rank(0))) {
        Some((PhaseKind::Replied | PhaseKind::Confirmed | PhaseKind::Stream, _)) => Class::TooBigAnswered,
        Some((_, None)) => Class::TooBigConfirmed,
        _ => Class::TooBig,
    }
}

/// Drops a packet and tells its sender why, within the limits.
pub(super) fn refuse<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &Frame<'f>,
    packet: &Packet,
    refusal: Refusal,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let Refusal { reason, answer, class } = refusal;
    let sent = answer_sender(ctx, frame, packet, &refusal, out);
    let rejects = &ctx.counters.path;
    if sent { &rejects.rejects_made } else { &rejects.rejects_suppressed }.of(class).add(1);
    observer.rejected(reason, answer, sent);
    ctx.worker.recorder.rejected(ctx.now_ms, frame, reason, answer, sent);
    Verdict::Drop(reason)
}

/// Drops a packet that may not open a flow. In the middle of a connection its sender gets a reset at once, since otherwise it would send again
/// for a quarter of an hour: a host without the connection does the same. But not where sending again may help: the flow could be picked up
/// when there is room again.
pub(super) fn refuse_opening<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &Frame<'f>,
    packet: &Packet,
    reason: Reason,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let for_good = matches!(reason, Reason::MidFlowSnat | Reason::TcpFlags | Reason::ReplyKeyTaken);
    match Refusal::of_unknown_connection(reason, frame, packet).filter(|_| for_good) {
        Some(refusal) => refuse(ctx, frame, packet, refusal, out, observer),
        None => Verdict::Drop(reason),
    }
}

/// The verdict about a packet that has no next hop now. Its sender is told if there is no way, as by a router (RFC 1812, 5.2.7.1; RFC 4443, 3.1). A
/// packet that was held for too long is not held again. A reset, where Services reject by resets, answers only a SYN: a route may be back in a moment,
/// and open connections survive an ICMP error.
pub(super) fn refuse_way<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &Frame<'f>,
    packet: &Packet,
    verdict: Verdict,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let reason = match verdict {
        Verdict::Hold(_) if frame.overdue => Reason::NeighbourTimeout,
        Verdict::Drop(reason) => reason,
        other => return other,
    };
    let error = match reason {
        Reason::NoRoute => Error::NoRoute,
        Reason::Unreachable => Error::RouteUnreachable,
        Reason::RouteProhibited => Error::Prohibited,
        Reason::NeighbourTimeout => Error::HostUnreachable,
        _ => return Verdict::Drop(reason),
    };
    let opens = packet.tuple.proto == Proto::Tcp && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN && packet.fragment.is_none();
    let resets = ctx.services.tcp_reject == TcpReject::Reset && opens;
    let answer = if resets { Answer::Reset } else { Answer::Icmp(error) };
    refuse(ctx, frame, packet, Refusal { reason, answer, class: Class::Unreachable }, out, observer)
}

/// Counts a refused flow by its Service port, where a limit of clients or Services is the cause.
pub(super) fn count_refused(counters: &Counters, backend: &Backend, reason: Reason) {
    let target = counters.target(backend.stats);
    match reason {
        Reason::SnatShare | Reason::SnatPortsExhausted => target.snat_refused.add(1),
        Reason::ServiceRateLimited => target.rate_limited.add(1),
        Reason::ClientConnectionLimit => target.client_limited.add(1),
        _ => {}
    }
}

/// Builds an answer to a packet's sender. False when it may not be sent, is over a limit, or there is no room for it.
fn answer_sender<'f>(ctx: &mut Context<'_>, frame: &Frame<'f>, packet: &Packet, refusal: &Refusal, out: &mut Outputs<'f>) -> bool {
    let Refusal { answer, class, reason } = *refusal;
    if out.made.len() >= made_max(class) || out.spare.is_empty() || !reject::may_answer(answer, frame, packet) {
        return false;
    }
    let (table, now_ms) = (ctx.table, ctx.now_ms);
    let sender = reject::sender_hash(packet.tuple.src_addr(), now_ms, |words| table.hash_words(words));
    if !ctx.worker.limiter.take(class, sender, now_ms) {
        return false;
    }
    let dst = packet.tuple.dst_addr();
    // What a router says comes from an address of its own, what a host says from the one that the packet was for.
    let by_router = match class {
        Class::TooBigConfirmed | Class::TooBigAnswered | Class::TooBig | Class::TimeExceeded => true,
        Class::Unreachable => is_about_way(reason),
        Class::Reset | Class::Idle | Class::Ping => false,
    };
    let own = ctx.services.snat.addrs(packet.tuple.v6).first().copied();
    let from = own.filter(|_| by_router).unwrap_or(dst);
    let Some(mut spare) = out.spare.pop() else { return false };
    if !reject::build(answer, frame, packet, from, &mut spare) {
        out.spare.push(spare);
        return false;
    }
    towards_sender(ctx, frame.port, &mut spare);
    ctx.counters.frames.made.count(spare.head_len());
    out.made.push((spare, frame.port, NextHopId(0)));
    true
}

/// Whether a packet is refused because of the way on, and not by a Service.
fn is_about_way(reason: Reason) -> bool {
    matches!(reason, Reason::NoRoute | Reason::Unreachable | Reason::RouteProhibited | Reason::NeighbourTimeout)
}

/// Frames of a batch that a class may be the last to take: the others leave some to "too big".
fn made_max(class: Class) -> usize {
    match class {
        Class::TooBigConfirmed => OUTPUT_MAX,
        Class::TooBigAnswered | Class::TooBig => OUTPUT_MAX - OUTPUT_MAX / 8,
        Class::TimeExceeded | Class::Unreachable | Class::Reset | Class::Idle | Class::Ping => OUTPUT_MAX - OUTPUT_MAX / 4,
    }
}

/// Addresses an answer to what came in by `port`, for a sender behind the kernel, to the kernel's end of the internal port, which knows the way.
pub(super) fn towards_sender(ctx: &Context<'_>, port: PortId, made: &mut Frame<'_>) {
    let behind = ctx.routes.internal.filter(|internal| internal.port == port);
    if let (Some(internal), Ok((_, l3))) = (behind, link_header(made.head())) {
        let src = ctx.routes.port(internal.port).map_or([0; 6], |port| port.mac);
        rewrite::link(made, l3 as u16, src, internal.kernel_mac);
    }
}

/// Hands a frame back to the kernel unchanged, with a complete checksum. Frames that the kernel routed to the internal port go back as well,
/// unless their destination is always routed there: returning those would loop.
pub(super) fn to_kernel(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: Option<&Packet>, reason: Reason) -> Verdict {
    let Some(internal) = ctx.routes.internal else { return Verdict::Drop(Reason::NoInternalPort) };
    if is_from_node(ctx, frame) && leads_here(ctx, frame.head()) {
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

/// Whether the kernel always routes a frame's destination to the internal port. Also true for a destination that cannot be read.
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
