//! Eviction from a full table, and from a full bucket of the reply filter.
//!
//! An eviction touches memory that no cache holds: the slots of a sample, four lines of the index, one of the reply filter. To stay cheap under a
//! SYN flood, each eviction chooses the next victim and prefetches its memory, some packets ahead of use.

use super::ending::silent;
use super::{Context, end};
use crate::conntrack::{Direction, EvictionRank, Flow, FlowRef, Hit, NoPort, Refused};
use crate::events::EndCause;
use crate::filter::ReplyFilter;
use crate::tuple::Tuple;

/// Slots sampled for a victim.
const EVICTION_PLACES: u32 = 64;
/// Closed, unconfirmed or doubtful flows of a sample that are compared. A handshake that completes before half of the table was replaced is the oldest of
/// eight with a probability of 0.5^8.
const EVICTION_COMPARED: u32 = 8;

/// Source ports whose holders are looked at to reclaim one. A client at its share, a quarter of the ports by default, holds eight of these.
const RECLAIM_LOOKED_AT: usize = 32;
/// Evictions for one announcement: other workers may take the places.
const ANNOUNCE_TRIES: u32 = 3;

/// A worker's eviction state.
#[derive(Default, Debug)]
pub(super) struct Evictor {
    /// Number of the next sample.
    from: u64,
    /// The next victim, unless it changes until then.
    chosen: Option<FlowRef>,
}

/// Makes room for a refused flow: evicts one of all flows, or one of those that fill its index buckets.
///
/// False when none of them may be evicted. The new flow is refused then, even without SNAT: its replies would not come back.
pub(super) fn make_room(ctx: &mut Context<'_>, refused: Refused, newcomer: &Flow) -> bool {
    match refused {
        Refused::Full => evict(ctx),
        Refused::Crowded(Direction::Original) => evict_neighbour(ctx, &newcomer.original()),
        Refused::Crowded(Direction::Reply) => evict_neighbour(ctx, &newcomer.reply()),
        Refused::Busy | Refused::Exists | Refused::ReplyTaken => false,
    }
}

/// Ends a flow with SNAT towards the newcomer's endpoint that may make room, and returns its source port. Of the holders of `ports` that are
/// looked at, the one with the lowest rank goes; of equals, the one idle for longest. At a share's limit only flows of the newcomer's client,
/// or its Service, count.
#[inline(never)]
pub(super) fn reclaim_port(
    ctx: &mut Context<'_>,
    newcomer: &Flow,
    ports: impl Iterator<Item = u16>,
    refused: Option<NoPort>,
) -> Option<u16> {
    let counts = |flow: &Flow| match refused {
        Some(NoPort::ClientShare) => flow.client == newcomer.client,
        Some(NoPort::ServiceShare) => (flow.service, flow.service_port) == (newcomer.service, newcomer.service_port),
        Some(NoPort::Exhausted) | None => true,
    };
    let mut victim: Option<(EvictionRank, Hit, u16)> = None;
    for port in ports.take(RECLAIM_LOOKED_AT) {
        let reply = Tuple { dport: port, ..newcomer.reply() };
        let Some(hit) = ctx.table.lookup(&reply, ctx.table.hash(&reply)) else { continue };
        let Some(rank) = rank(ctx, &hit.flow_ref()) else { continue };
        let goes_first = victim.as_ref().is_none_or(|(lowest, oldest, _)| (rank, hit.seen_ms) < (*lowest, oldest.seen_ms));
        if goes_first && ctx.table.flow(&hit).is_some_and(|flow| counts(&flow)) {
            victim = Some((rank, hit, port));
        }
    }
    let (rank, hit, port) = victim?;
    end(ctx, &hit, ctx.counters.conntrack.snat_reclaimed.of(rank), EndCause::PortReclaimed);
    Some(port)
}

/// Evicts the flow of a sample with the lowest [`EvictionRank`]; of equals the one idle for longest.
fn evict(ctx: &mut Context<'_>) -> bool {
    let ready = ctx.worker.evictor.chosen.take().and_then(|seen| ctx.table.revalidate(&seen));
    // Ranked again, since a handshake may have completed meanwhile. For the higher ranks a fresh sample may have a better victim.
    let ready = ready.and_then(|hit| Some((rank(ctx, &hit.flow_ref())?, hit))).filter(|(rank, _)| *rank < EvictionRank::IdleUdp);
    match ready {
        Some((rank, hit)) => end(ctx, &hit, ctx.counters.conntrack.evicted.of(rank), EndCause::Evicted),
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

/// Evicts a flow from the two full index buckets of a key. Buckets fill up shortly before the table does.
fn evict_neighbour(ctx: &mut Context<'_>, key: &Tuple) -> bool {
    let chosen = first_to_go(ctx, ctx.table.neighbours(key), u32::MAX);
    chosen.inspect(|chosen| end_chosen(ctx, *chosen)).is_some()
}

/// Announces the reply of the new flow in this slot, and the client's packets if only the announcement captures them. A full bucket of the reply
/// filter makes room as the table does. False when none of the flows in it may be evicted.
#[inline(always)]
pub(super) fn announce(ctx: &Context<'_>, flow: &Flow, slot: u32) -> bool {
    let Some(filter) = ctx.filter else { return true };
    let one = |tuple: &Tuple| filter.insert(tuple, slot) || announce_crowded(ctx, &filter, tuple, slot);
    if !one(&flow.reply()) {
        return false;
    }
    let all = !flow.is_direct() || one(&flow.original());
    if !all {
        filter.remove(&flow.reply());
    }
    all
}

#[cold]
#[inline(never)]
fn announce_crowded(ctx: &Context<'_>, filter: &ReplyFilter<'_>, reply: &Tuple, slot: u32) -> bool {
    let bucket = filter.bucket_of(reply);
    (0..ANNOUNCE_TRIES).map_while(|_| evict_announced(ctx, filter, bucket)).any(|()| filter.insert(reply, slot))
}

/// Evicts one of the flows that are announced in a bucket of the reply filter. `None`: none of them may be evicted.
fn evict_announced(ctx: &Context<'_>, filter: &ReplyFilter<'_>, bucket: u32) -> Option<()> {
    // What an owner says may be out of date: its slot's flow counts only when it is announced here.
    let announced = filter.owners(bucket).filter_map(|slot| {
        let (seen, flow) = ctx.table.flow_in(slot)?;
        let here = |tuple: &Tuple| filter.bucket_of(tuple) == bucket;
        (flow.announced && (here(&flow.reply()) || (flow.is_direct() && here(&flow.original())))).then_some(seen)
    });
    first_to_go(ctx, announced, u32::MAX).map(|chosen| end_chosen(ctx, chosen))
}

fn end_chosen(ctx: &Context<'_>, (rank, seen): (EvictionRank, FlowRef)) {
    // `None`: another worker has evicted it.
    if let Some(hit) = ctx.table.revalidate(&seen) {
        end(ctx, &hit, ctx.counters.conntrack.evicted.of(rank), EndCause::Evicted);
    }
}

fn rank(ctx: &Context<'_>, seen: &FlowRef) -> Option<EvictionRank> {
    if silent(seen.phase, seen.seen_ms, &ctx.worker.idle, ctx.now_ms) {
        return Some(EvictionRank::Closed);
    }
    seen.phase.eviction_rank(ctx.now_ms.saturating_sub(seen.seen_ms))
}

/// Picks the victim from the next sample.
fn choose(ctx: &mut Context<'_>) -> Option<(EvictionRank, FlowRef)> {
    let from = ctx.worker.evictor.from;
    ctx.worker.evictor.from = from.wrapping_add(u64::from(EVICTION_PLACES));
    first_to_go(ctx, ctx.table.sample(from, EVICTION_PLACES), EVICTION_COMPARED)
}

/// Picks the victim among flows, of which at most `compared_max` closed, unconfirmed or doubtful ones are compared.
fn first_to_go(ctx: &Context<'_>, connections: impl Iterator<Item = FlowRef>, compared_max: u32) -> Option<(EvictionRank, FlowRef)> {
    let (mut victim, mut compared): (Option<(EvictionRank, FlowRef)>, u32) = (None, 0);
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

/// Prefetches the memory that the victim's end will touch, and the next sample.
fn prepare(ctx: &Context<'_>, next: &FlowRef) {
    if let (Some(flow), Some(filter)) = (ctx.table.prefetch_end(next), &ctx.filter)
        && flow.announced
    {
        filter.prefetch(&flow.reply(), false);
    }
    ctx.table.prefetch_sample(ctx.worker.evictor.from);
}
