//! What nearly every packet is: the next one of a connection in its stride. No branch in here goes two ways often, nothing is allocated,
//! no instruction is locked, and usually nothing but the frame and the counters is written.
//!
//! Every answer it gives is the one that the general way would have given; whatever is not plain and simple is left to that,
//! unchanged.

use super::Context;
use crate::conntrack::{Ahead, Direction};
use crate::counters::Counters;
use crate::frame::{Frame, NextHopId, PortId};
use crate::plain::Plain;
use crate::rewrite;
use crate::wire::tcp;

/// The batch's part of the counters, added up first. All were known connections and went on.
#[derive(Default)]
pub(super) struct Tally {
    packets: u64,
    bytes: u64,
}

impl Tally {
    pub(super) fn add_to(&self, counters: &Counters) {
        counters.frames.received.add(self.packets, self.bytes);
        counters.frames.forwarded.add(self.packets, self.bytes);
        counters.conntrack.hit.add(self.packets);
    }
}

/// Where an ordinary packet of a known connection goes on; `None`, and nothing changed: the general way decides.
///
/// `V6` says what the packet says, at a time when the compiler hears it: so both families get a straight line of their own.
#[inline(always)]
pub(super) fn established<const V6: bool>(
    ctx: &mut Context<'_>,
    frame: &mut Frame<'_>,
    plain: &Plain,
    ahead: &Ahead<'_>,
    tally: &mut Tally,
) -> Option<(PortId, NextHopId)> {
    if (plain.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0) | frame.resubmitted {
        return None;
    }
    let head = frame.head_mut();
    let key = plain.key::<V6>(head);
    let hit = ctx.table.lookup_ahead(ahead, &key, V6)?;
    if ctx.now_ms.wrapping_sub(hit.seen_ms) >= ctx.worker.idle.settled(hit.phase, hit.direction) {
        return None;
    }
    let id = hit.cached_hop_or_none(ctx.routes.generation)?;
    let hop = ctx.routes.hop_or_none(id)?;
    rewrite::check(Plain::ttl::<V6>(head), plain.ip_len::<V6>(), hop).ok()?;
    if !rewrite::rewrite_plain::<V6>(head, plain.covered(), &key, &hit, hop) {
        return None;
    }

    let bytes = head.len() as u64;
    ctx.table.touch_seen(&hit, ctx.now_ms);
    let target = ctx.counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.add(1, bytes);
    tally.packets += 1;
    tally.bytes += bytes;
    Some((hop.port, id))
}
