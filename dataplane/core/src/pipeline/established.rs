//! What nearly every packet is: the next one of a connection in its stride. No branch in here goes two ways often, nothing is allocated,
//! no instruction is locked, and usually nothing but the frame and the counters is written.
//!
//! Every answer it gives is the one that the general way would have given; whatever is not plain and simple is left to that,
//! unchanged.

use super::{Context, expired};
use crate::conntrack::{Candidate, Direction};
use crate::counters::Counters;
use crate::frame::{Frame, Verdict};
use crate::parse::Packet;
use crate::rewrite;

/// The batch's part of the counters, added up first.
#[derive(Default)]
pub(super) struct Tally {
    received: Sum,
    released: Sum,
    completed: u64,
}

#[derive(Default)]
struct Sum {
    packets: u64,
    bytes: u64,
}

impl Tally {
    /// All of these were known connections and go on.
    pub(super) fn add_to(&self, counters: &Counters) {
        let packets = self.received.packets + self.released.packets;
        if packets == 0 {
            return;
        }
        counters.received.add(self.received.packets, self.received.bytes);
        counters.released.add(self.released.packets, self.released.bytes);
        counters.forwarded.add(packets, self.received.bytes + self.released.bytes);
        counters.conntrack_hit.add(packets);
        counters.checksum_completed.add(self.completed);
    }
}

/// The verdict for an ordinary packet of a known connection; `None`, and nothing changed: the general way decides.
#[inline(always)]
pub(super) fn established(
    ctx: &mut Context<'_>,
    frame: &mut Frame<'_>,
    packet: &Packet,
    hash: u64,
    candidate: Candidate,
    tally: &mut Tally,
) -> Option<Verdict> {
    let hit = ctx.table.lookup_candidate(candidate, &packet.tuple, hash)?;
    if !packet.plain | !hit.phase.settled(hit.direction, packet.tcp_flags) | expired(&hit, &ctx.worker.idle, ctx.now_ms) {
        return None;
    }
    let id = hit.cached_hop(ctx.routes.generation)?;
    let hop = ctx.routes.hop(id)?;
    rewrite::check(packet.ttl, packet.ip_len(), hop).ok()?;

    let bytes = frame.total_len() as u64;
    tally.completed += u64::from(rewrite::rewrite_plain(frame, packet, &hit.new, hit.deltas, hop));
    ctx.table.touch_seen(&hit, ctx.now_ms);
    let target = ctx.counters.target(hit.stats);
    if hit.direction == Direction::Original { &target.forward } else { &target.reply }.add(1, bytes);
    let sum = if frame.resubmitted { &mut tally.released } else { &mut tally.received };
    sum.packets += 1;
    sum.bytes += bytes;
    Some(Verdict::Forward(hop.port, id))
}
