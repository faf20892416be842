//! Packets for addresses that only Services have, but for none of their ports: what the kernel would send back where it came from is refused, and
//! pings are answered if the configuration says so.
//!
//! A router leads a load balancer's addresses here, and no host has them. The kernel would send a packet that no Service takes by its default route
//! to that router again, and so on until the TTL ends: 64 packets for one.

use super::Context;
use super::foreign::{foreign_source, is_tagged};
use super::refuse::{Refusal, refuse, to_kernel, towards_sender};
use crate::frame::{Frame, NextHopId, Outputs, Verdict};
use crate::icmp::EchoRequest;
use crate::observe::Observer;
use crate::parse::{Packet, array_at, link_header};
use crate::reason::Reason;
use crate::reject::{self, Class};
use crate::routes::RouteQuery;
use crate::services::{OnlyHere, UnusedPorts};
use crate::tuple::{Proto, Tuple, words_addr};
use crate::wire::{ethernet, ethertype, ipv4, ipv6};

/// A packet that no Service takes.
#[derive(Clone, Copy)]
pub(super) enum Unserved<'p> {
    /// With ports.
    Packet(&'p Packet),
    Ping(&'p EchoRequest),
    /// Without ports, or none that could be read.
    Other,
}

/// Leaves a packet to the kernel, unless that would send it back.
#[inline(never)]
pub(super) fn leave<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    unserved: Unserved<'_>,
    reason: Reason,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let (packet, readable) = match unserved {
        Unserved::Packet(packet) => (Some(*packet), Some(packet)),
        Unserved::Ping(echo) => (Some(echo.packet), None),
        Unserved::Other => (without_ports(frame), None),
    };
    let Some((packet, back)) = packet.and_then(|packet| Some((packet, comes_back(ctx, frame, &packet.tuple)?))) else {
        return to_kernel(ctx, frame, readable, reason);
    };
    let Back::To(owner) = back else { return Verdict::Drop(Reason::ServiceSource) };
    if let Some(foreign) = foreign_source(ctx, frame, &packet.tuple) {
        return Verdict::Drop(foreign);
    }
    // Nobody is told about an ICMP error, a later fragment, or a packet that could not be read (RFC 1122, 3.2.2).
    let told = matches!(unserved, Unserved::Ping(_)) || matches!(reason, Reason::NotOurs | Reason::OtherProtocol);
    let unused = match owner {
        _ if !told => return Verdict::Drop(reason),
        OnlyHere::ClusterIp => Reason::UnusedServicePort,
        OnlyHere::Unallocated => return Verdict::Drop(Reason::UnallocatedServiceAddress),
        OnlyHere::Outer => Reason::UnusedExternalPort,
    };
    match ctx.services.unused_ports {
        UnusedPorts::Refuse => refuse(ctx, frame, &packet, Refusal::by_service(unused, ctx.services, frame, &packet), out, observer),
        UnusedPorts::Drop | UnusedPorts::Kernel => Verdict::Drop(unused),
    }
}

/// Drops a packet for its [foreign source](foreign_source); a link-local one is the kernel's.
pub(super) fn refuse_source<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    unserved: Unserved<'_>,
    reason: Reason,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    if reason == Reason::LinkLocalSource { leave(ctx, frame, unserved, reason, out, observer) } else { Verdict::Drop(reason) }
}

/// What a packet is that the kernel would send back.
enum Back {
    /// For an address that only Services have.
    To(OnlyHere),
    /// From such an address, to a host: an answer that was made here, and whose receiver the routers do not know.
    From,
}

/// Whether the kernel would send a packet back to a router by the port that it came in by. Not the node's own packets, those from behind redirect ports,
/// and those of a VLAN: they came by another interface.
fn comes_back(ctx: &Context<'_>, frame: &Frame<'_>, tuple: &Tuple) -> Option<Back> {
    let services = ctx.services;
    let inside = ctx.routes.internal.is_some_and(|internal| internal.port == frame.port);
    if services.unused_ports == UnusedPorts::Kernel || inside || is_tagged(frame) {
        return None;
    }
    let back = match services.only_here(tuple.dst_addr()) {
        Some(owner) => Back::To(owner),
        None => services.only_here(tuple.src_addr()).map(|_| Back::From)?,
    };
    let sender = ethernet::field::SOURCE.get(frame.head())?;
    ctx.routes.leads_back(&RouteQuery::new(tuple, frame.port, tuple), sender).then_some(back)
}

/// A packet of which only the IP header is read, as if it were UDP without ports: then none of a rule's ports fits.
fn without_ports(frame: &Frame<'_>) -> Option<Packet> {
    let (ethertype, l3) = link_header(frame.head()).ok()?;
    let (src, dst, v6, l4, l4_len, ttl) = match ethertype {
        ethertype::IPV4 => {
            use ipv4::field::*;
            let header: &[u8; ipv4::HEADER_LEN] = array_at(frame.head(), l3)?;
            let l4_len = TOTAL_LEN.u16(header).checked_sub(ipv4::HEADER_LEN as u16)?;
            let (src, dst) = ([0, u64::from(SOURCE.u32(header))], [0, u64::from(DESTINATION.u32(header))]);
            (src, dst, false, l3 + ipv4::HEADER_LEN, l4_len, TTL.u8(header))
        }
        ethertype::IPV6 => {
            use ipv6::field::*;
            let header: &[u8; ipv6::HEADER_LEN] = array_at(frame.head(), l3)?;
            let [a, b, c, d] = ADDRESS_WORDS.map(|word| word.u64(header));
            ([a, b], [c, d], true, l3 + ipv6::HEADER_LEN, PAYLOAD_LEN.u16(header), HOP_LIMIT.u8(header))
        }
        _ => return None,
    };
    let tuple = Tuple { src, dst, sport: 0, dport: 0, proto: Proto::Udp, v6 };
    Some(Packet { tuple, l3: l3 as u16, l4: l4 as u16, l4_len, covered_len: 0, tcp_flags: 0, ttl, fragment: None })
}

/// Answers a ping to an address that only Services have, if the configuration says so. Others are the kernel's.
#[inline(never)]
pub(super) fn ping<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &mut Frame<'f>,
    echo: &EchoRequest,
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let tuple = &echo.packet.tuple;
    let answered = ctx.services.answer_ping
        && echo.is_plain()
        && frame.head()[0] & ethernet::GROUP == 0
        && matches!(ctx.services.only_here(tuple.dst_addr()), Some(OnlyHere::ClusterIp | OnlyHere::Outer));
    if !answered {
        return leave(ctx, frame, Unserved::Ping(echo), Reason::Icmp, out, observer);
    }
    if let Some(reason) = foreign_source(ctx, frame, tuple) {
        return refuse_source(ctx, frame, Unserved::Ping(echo), reason, out, observer);
    }
    let (table, now_ms) = (ctx.table, ctx.now_ms);
    let sender = reject::sender_hash(words_addr(tuple.src, tuple.v6), now_ms, |words| table.hash_words(words));
    if !ctx.worker.limiter.take(Class::Ping, sender, now_ms) {
        return Verdict::Drop(Reason::PingLimit);
    }
    echo.answer(frame);
    let head = frame.head_mut();
    let (to, from) = (ethernet::field::SOURCE.read(head), ethernet::field::DESTINATION.read(head));
    ethernet::field::DESTINATION.write(head, to);
    ethernet::field::SOURCE.write(head, from);
    towards_sender(ctx, frame.port, frame);
    ctx.counters.path.pings_answered.add(1);
    Verdict::Forward(frame.port, NextHopId(0))
}
