//! Room in a full table.
//!
//! What is ended lies far away in memory: the slots of a sample, four lines of the index, one of the reply filter. A flood of SYNs must not cost more than it
//! has to, so each eviction prepares the next one, some packets ahead: it chooses who goes then, and asks for that memory.

use super::{Context, end};
use crate::conntrack::{EvictionRank, Glimpse};

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

/// Makes room by ending one connection, of a sample the one with the lowest [`EvictionRank`] that was idle for longest.
///
/// False when none of the sample may be ended. The newcomer is refused then, also without SNAT: nothing would lead its replies back.
pub(super) fn evict(ctx: &mut Context<'_>) -> bool {
    let ready = ctx.worker.evictor.chosen.take().and_then(|seen| ctx.table.again(&seen));
    // It is looked at again: meanwhile a handshake may have gone on. And of the higher ranks another sample may know a better one.
    let ready = ready.and_then(|hit| Some((rank(ctx, &hit.glimpse())?, hit))).filter(|(rank, _)| *rank < EvictionRank::Answered);
    let (rank, hit) = match ready {
        Some(ready) => ready,
        None => {
            let Some((rank, seen)) = choose(ctx) else { return false };
            // Gone already: another worker has made room.
            let Some(hit) = ctx.table.again(&seen) else { return true };
            (rank, hit)
        }
    };
    end(ctx, &hit, ctx.counters.conntrack_evicted(rank));
    if let Some((_, next)) = choose(ctx) {
        prepare(ctx, &next);
        ctx.worker.evictor.chosen = Some(next);
    }
    true
}

fn rank(ctx: &Context<'_>, seen: &Glimpse) -> Option<EvictionRank> {
    let idle_ms = ctx.now_ms.saturating_sub(seen.seen_ms);
    if idle_ms >= ctx.worker.idle.of(seen.phase) { Some(EvictionRank::Over) } else { seen.phase.eviction_rank(idle_ms) }
}

/// The one of the next sample that goes first.
fn choose(ctx: &mut Context<'_>) -> Option<(EvictionRank, Glimpse)> {
    let from = ctx.worker.evictor.from;
    ctx.worker.evictor.from = from.wrapping_add(u64::from(EVICTION_PLACES));
    let (mut victim, mut compared): (Option<(EvictionRank, Glimpse)>, u32) = (None, 0);
    for seen in ctx.table.sample(from, EVICTION_PLACES) {
        let Some(rank) = rank(ctx, &seen) else { continue };
        if victim.is_none_or(|(lowest, oldest)| (rank, seen.seen_ms) < (lowest, oldest.seen_ms)) {
            victim = Some((rank, seen));
        }
        compared += u32::from(rank < EvictionRank::Answered);
        if compared == EVICTION_COMPARED {
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
