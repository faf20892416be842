//! Packets that are not forwarded: rejects to their sender, and frames handed back to the kernel.

use std::net::IpAddr;

use super::Context;
use crate::frame::{Frame, NextHopId, Outputs, Verdict};
use crate::observe::Observer;
use crate::parse::{Packet, link_header};
use crate::reason::Reason;
use crate::reject;
use crate::rewrite;
use crate::services::{Services, TcpReject};
use crate::tuple::Proto;
use crate::wire::{ethernet, ethertype, ipv4, ipv6};

/// Drops a packet and tells its sender why, within the rate limit. `mtu` is for [`Reason::TooBig`].
pub(super) fn refuse<'f, 'c>(
    ctx: &mut Context<'c>,
    frame: &Frame<'f>,
    packet: &Packet,
    (reason, mtu): (Reason, u32),
    out: &mut Outputs<'f>,
    observer: &mut impl Observer<'c>,
) -> Verdict {
    let dst = packet.tuple.dst_addr();
    let own = ctx.services.snat.addr(packet.tuple.v6).unwrap_or(dst);
    let (error, from) = match reason {
        Reason::TtlExceeded => (Some(reject::Error::TimeExceeded), own),
        Reason::TooBig => (Some(reject::Error::TooBig(mtu)), own),
        _ if resets(ctx.services, packet) => (None, dst),
        _ => (Some(reject::Error::PortUnreachable), dst),
    };
    let sent = ctx.worker.limiter.take(ctx.now_ms)
        && !out.made.is_full()
        && out.spare.pop().is_some_and(|mut spare| {
            let built = match error {
                Some(error) => reject::build(error, frame, packet, from, &mut spare),
                None => reject::build_reset(frame, packet, &mut spare),
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
    observer.rejected(reason, sent);
    Verdict::Drop(reason)
}

/// Whether a reset rejects this packet. Fragments get ICMP: a reset would have to acknowledge a length that the first fragment does not tell.
fn resets(services: &Services, packet: &Packet) -> bool {
    services.tcp_reject == TcpReject::Reset && packet.tuple.proto == Proto::Tcp && packet.fragment_id.is_none()
}

/// Addresses a reject for a sender behind the kernel to the kernel's end of the internal port, which knows the way.
fn towards_sender(ctx: &Context<'_>, frame: &Frame<'_>, made: &mut Frame<'_>) {
    let behind = ctx.routes.internal.filter(|internal| internal.port == frame.port);
    if let (Some(internal), Ok((_, l3))) = (behind, link_header(made.head())) {
        let src = ctx.routes.port(internal.port).map_or([0; 6], |port| port.mac);
        rewrite::link(made, l3 as u16, src, internal.kernel_mac);
    }
}

/// Hands a frame back to the kernel unchanged, with a complete checksum. Frames that the kernel routed to the internal port go back as well,
/// unless their destination is always routed there: returning those would loop. The kernel addresses its own frames to its end of the
/// internal port, since that answers no ARP; frames redirected from a pod's interface have other addresses.
pub(super) fn to_kernel(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: Option<&Packet>, reason: Reason) -> Verdict {
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
