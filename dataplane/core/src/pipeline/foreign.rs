//! Sources that no packet from outside may have.

use super::Context;
use crate::frame::Frame;
use crate::reason::Reason;
use crate::tuple::{AddrWords, Tuple, words_addr};
use crate::wire::{ethernet, ethertype, vlan};

/// The VLAN's number in a tag (IEEE 802.1Q).
const VLAN_ID: u16 = 0x0fff;

/// Why a packet of an unknown flow is not carried that comes from outside with a source that is this node's own, a Service's, valid on one link
/// only, or not on this way (`rp_filter`). What the node itself sends arrives at the internal port, addressed to the kernel's end; what pods send there comes from outside too.
///
/// Own sources are dropped: the kernel does so at any interface (unless `accept_local` is set), but not where it would receive them from here.
/// Link-local ones are the kernel's.
#[inline]
pub(super) fn foreign_source(ctx: &Context<'_>, frame: &Frame<'_>, tuple: &Tuple) -> Option<Reason> {
    let Tuple { src, dst, v6, sport, proto, .. } = *tuple;
    // `explain` asks about a packet that came by no port.
    if ctx.routes.port(frame.port).is_none() || is_from_node(ctx, frame) {
        return None;
    }
    let addr = words_addr(src, v6);
    if ctx.services.snat.is_own(addr) {
        return Some(Reason::OwnSource);
    }
    if link_local(src, v6) {
        return Some(Reason::LinkLocalSource);
    }
    if ctx.routes.is_local(addr) {
        return Some(Reason::OwnSource);
    }
    // Only answers come from there. Two Services, or one and itself, would answer each other until the TTL ends.
    let services = ctx.services;
    let answers = src == dst || services.cluster_ips.contains(&addr) || services.frontend(addr, sport, proto).is_some();
    if answers {
        return Some(Reason::ServiceSource);
    }
    // Of what comes in by the internal port, nobody knows the interface; of a tagged frame it is another one.
    (!ctx.routes.passes_reverse_path(tuple, frame.port) && !is_tagged(frame)).then_some(Reason::ReversePath)
}

/// Whether the kernel would receive a frame by an interface of its VLAN. A priority tag is of none.
pub(super) fn is_tagged(frame: &Frame<'_>) -> bool {
    let tagged = ethernet::field::TYPE.get(frame.head()).is_some_and(|kind| ethertype::VLAN.contains(&u16::from_be_bytes(kind)));
    let tag = vlan::field::TCI.after(ethernet::HEADER_LEN).get(frame.head()).map_or(0, u16::from_be_bytes);
    tagged && tag & VLAN_ID != 0
}

/// Whether the kernel has sent a frame into the internal port. It addresses its own frames to its end of the pair, since that answers no ARP;
/// frames redirected from a pod's interface have other addresses.
pub(super) fn is_from_node(ctx: &Context<'_>, frame: &Frame<'_>) -> bool {
    ctx.routes.internal.is_some_and(|internal| frame.port == internal.port && frame.head().first_chunk() == Some(&internal.kernel_mac))
}

/// 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291, 2.5.6): no router forwards them.
pub(super) fn link_local(src: AddrWords, v6: bool) -> bool {
    if v6 { src[0] >> 54 == 0xfe80 >> 6 } else { src[1] >> 16 == 0xa9fe }
}
