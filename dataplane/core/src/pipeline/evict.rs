//! Room in a full table.
//!
//! What is ended lies far away in memory: the slots of a sample, four lines of the index, one of the reply filter. A flood of SYNs must not cost more than it
//! has to, so each eviction prepares the next one, some packets ahead: it chooses who goes then, and asks for that memory.

use super::ending::silent;
use super::{Context, end};
use crate::conntrack::{Direction, EvictionRank, Flow, Glimpse, Refused};
use crate::tuple::Tuple;

/// Places looked at for a connection to evict, at the most.
const EVICTION_PLACES: u32 = 64;
/// Half-open or ended connections found there that are compared, at the most. One that is established before half of the table was replaced is the oldest
/// of eight with a chance of 0.5^8.
const EVICTION_COMPARED: u32 = 8;

/// A worker's part of it.
#[derive(Default, Debug)]
pub(super) struct Evictor {
    /// Which sample of the table is looked at next.
    from: u64,
    /// Who goes next, unless it has changed by then.
    chosen: Option<Glimpse>,
}

/// Makes room for a connection that was refused, as far as that can help: by ending one of all, or of those that are in its way.
///
/// False when none of them may be ended. The newcomer is refused then, also without SNAT: nothing would lead its replies back.
pub(super) fn make_room(ctx: &mut Context<'_>, refused: Refused, newcomer: &Flow) -> bool {
    match refused {
        Refused::Full => evict(ctx),
        Refused::Crowded(Direction::Original) => evict_neighbour(ctx, &newcomer.original()),
        Refused::Crowded(Direction::Reply) => evict_neighbour(ctx, &newcomer.reply()),
        Refused::Busy | Refused::Exists | Refused::ReplyTaken => false,
    }
}

/// Ends one connection, of a sample the one with the lowest [`EvictionRank`] that was idle for longest.
fn evict(ctx: &mut Context<'_>) -> bool {
    let ready = ctx.worker.evictor.chosen.take().and_then(|seen| ctx.table.again(&seen));
    // It is looked at again: meanwhile a handshake may have gone on. And of the higher ranks another sample may know a better one.
    let ready = ready.and_then(|hit| Some((rank(ctx, &hit.glimpse())?, hit))).filter(|(rank, _)| *rank < EvictionRank::IdleUdp);
    match ready {
        Some((rank, hit)) => end(ctx, &hit, ctx.counters.conntrack.evicted.of(rank)),
        None => {
            let Some(chosen) = choose(ctx) else { return false };
            end_chosen(ctx, chosen);
        }
    }
    if let Some((_, next)) = choose(ctx) {
        prepare(ctx, &next);
        ctx.worker.evictor.chosen = Some(next);
    }
    true
}

/// The same where both of a key's buckets in the index are full, which happens shortly before the table is: one of those in them.
fn evict_neighbour(ctx: &mut Context<'_>, key: &Tuple) -> bool {
    let chosen = first_to_go(ctx, ctx.table.neighbours(key), u32::MAX);
    chosen.inspect(|chosen| end_chosen(ctx, *chosen)).is_some()
}

fn end_chosen(ctx: &Context<'_>, (rank, seen): (EvictionRank, Glimpse)) {
    // Gone already: another worker has made room.
    if let Some(hit) = ctx.table.again(&seen) {
        end(ctx, &hit, ctx.counters.conntrack.evicted.of(rank));
    }
}

fn rank(ctx: &Context<'_>, seen: &Glimpse) -> Option<EvictionRank> {
    if silent(seen.phase, seen.seen_ms, &ctx.worker.idle, ctx.now_ms) {
        return Some(EvictionRank::Closed);
    }
    seen.phase.eviction_rank(ctx.now_ms.saturating_sub(seen.seen_ms))
}

/// The one of the next sample that goes first.
fn choose(ctx: &mut Context<'_>) -> Option<(EvictionRank, Glimpse)> {
    let from = ctx.worker.evictor.from;
    ctx.worker.evictor.from = from.wrapping_add(u64::from(EVICTION_PLACES));
    first_to_go(ctx, ctx.table.sample(from, EVICTION_PLACES), EVICTION_COMPARED)
}

/// The one that goes first, of as many half-open or ended ones as are to be compared.
fn first_to_go(ctx: &Context<'_>, connections: impl Iterator<Item = Glimpse>, compared_max: u32) -> Option<(EvictionRank, Glimpse)> {
    let (mut victim, mut compared): (Option<(EvictionRank, Glimpse)>, u32) = (None, 0);
    for seen in connections {
        let Some(rank) = rank(ctx, &seen) else { continue };
        if victim.is_none_or(|(lowest, oldest)| (rank, seen.seen_ms) < (lowest, oldest.seen_ms)) {
            victim = Some((rank, seen));
        }
        compared += u32::from(rank < EvictionRank::IdleUdp);
        if compared == compared_max {
            break;
        }
    }
    victim
}

/// Asks for the memory that its end will touch, and for the sample after that.
fn prepare(ctx: &Context<'_>, next: &Glimpse) {
    if let (Some(flow), Some(filter)) = (ctx.table.prefetch_end(next), &ctx.filter)
        && flow.announced
    {
        filter.prefetch(&flow.reply());
    }
    ctx.table.prefetch_sample(ctx.worker.evictor.from);
}
