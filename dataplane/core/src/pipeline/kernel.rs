//! What goes back to the kernel.

use std::net::IpAddr;

use super::Context;
use crate::frame::{Frame, Verdict};
use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, ethernet};
use crate::reason::Reason;
use crate::rewrite;

/// Not ours after all: to the kernel, as it came, with a checksum that holds anywhere. What the kernel itself sent here goes back too: only
/// what the node itself sends is led here, and what comes back is forwarded. Except for the addresses that lead here whoever sends: such a
/// packet would come again and again. The kernel's end of the internal port answers no ARP, so the kernel addresses its frames to that
/// itself; frames that were redirected from a pod's interface bear other addresses.
pub(super) fn to_kernel(ctx: &Context<'_>, frame: &mut Frame<'_>, packet: Option<&Packet>, reason: Reason) -> Verdict {
    let Some(internal) = ctx.routes.internal else { return Verdict::Drop(Reason::NoInternalPort) };
    if frame.port == internal.port && frame.head().first_chunk() == Some(&internal.kernel_mac) && leads_here(ctx, frame.head()) {
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

/// Whether the kernel routes a frame's destination to the internal port whoever sends, or might: it cannot be read.
fn leads_here(ctx: &Context<'_>, head: &[u8]) -> bool {
    let Ok((ether_type, l3)) = ethernet(head) else { return true };
    let range = &ctx.services.snat;
    let ip = head.get(l3..).unwrap_or_default();
    let dst = match ether_type {
        ETHERTYPE_IPV4 => ip.get(16..20).and_then(<[u8]>::first_chunk::<4>).map(|a| IpAddr::from(*a)),
        ETHERTYPE_IPV6 => ip.get(24..40).and_then(<[u8]>::first_chunk::<16>).map(|a| IpAddr::from(*a)),
        _ => None,
    };
    dst.is_none_or(|dst| range.internal(dst.is_ipv6()) == Some(dst))
}
