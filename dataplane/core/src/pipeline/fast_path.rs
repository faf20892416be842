//! The fast path: the next packet of an established flow, which is nearly every packet. No branch here often goes both ways, nothing is
//! allocated, no instruction is locked, and usually only the frame and the counters are written.
//!
//! Its answers are those of the slow path. It declines every frame that is not plain, and leaves that unchanged.

use super::Context;
use crate::conntrack::{Direction, Prefetched, SEEN_RESOLUTION_MS};
use crate::counters::Counters;
use crate::fast_parse::Plain;
use crate::frame::{Frame, NextHopId, PortId};
use crate::rewrite;
use crate::wire::tcp;

/// Counts of one batch, added to the counters once. All these packets hit known flows and were forwarded.
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

/// The port and next hop of an ordinary packet of a known flow. `None`: nothing has changed, and the slow path decides.
///
/// `touch_ms`: hits within this time after the last one that was noted write nothing. `V6` repeats the packet's address family as a const generic, so each family gets its own branch-free copy.
#[inline(always)]
pub(super) fn fast_path<const V6: bool>(
    ctx: &mut Context<'_>,
    frame: &mut Frame<'_>,
    plain: &Plain,
    prefetched: &Prefetched<'_>,
    touch_ms: u64,
    tally: &mut Tally,
) -> Option<(PortId, NextHopId)> {
    if (plain.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0) | frame.resubmitted {
        return None;
    }
    let port = frame.port;
    let head = frame.head_mut();
    let key = plain.key::<V6>(head).by_port(port);
    let hit = ctx.table.lookup_prefetched(prefetched, &key, V6)?;
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
    if ctx.now_ms.wrapping_sub(hit.seen_ms) >= touch_ms {
        refresh(ctx, head, plain, hit.place(), hit.seen_ms, hit.direction == Direction::Reply);
    }
    let target = ctx.counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.add(1, bytes);
    tally.packets += 1;
    tally.bytes += bytes;
    Some((hop.port, id))
}

/// Updates the last-seen time if that is due, and by a reply the TCP sequence numbers. Takes plain words of the hit, which so can stay in registers.
#[cold]
#[inline(never)]
fn refresh(ctx: &Context<'_>, head: &[u8], plain: &Plain, (slot, state): (u32, u64), seen_ms: u64, reply: bool) {
    if ctx.now_ms.wrapping_sub(seen_ms) >= SEEN_RESOLUTION_MS {
        ctx.table.set_seen(slot, state, ctx.now_ms);
    }
    if reply && let Some(numbers) = plain.packet(head).tcp_numbers(head) {
        ctx.table.sequences().refresh(slot, state, &numbers);
    }
}
