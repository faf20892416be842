//! Limits of a Service's flows: see [`Limits`]. Checked before anything of a new flow is written, so that what is refused costs little.

use super::Context;
use crate::conntrack::{ClientCount, CountedClient};
use crate::reason::Reason;
use crate::services::Limits;
use crate::tuple::Tuple;

/// Counts a new flow, for its client and for the rate of its Service port. The client comes first: a client at its limit takes nothing of the
/// rate. `None`: the flow does not count for its client.
#[inline(always)]
pub(super) fn take(ctx: &Context<'_>, limits: &Limits, tuple: &Tuple) -> Result<Option<CountedClient>, Reason> {
    if limits.is_off() { Ok(None) } else { take_limited(ctx, limits, tuple) }
}

#[inline(never)]
fn take_limited(ctx: &Context<'_>, limits: &Limits, tuple: &Tuple) -> Result<Option<CountedClient>, Reason> {
    let counted = match &limits.per_client {
        Some(limit) => {
            let client = ctx.table.clients().client(limit.service, tuple.src, tuple.v6);
            match ctx.table.clients().take(client, u64::from(limit.most.get())) {
                ClientCount::Counted => Some(client),
                ClientCount::AtLimit => return Err(Reason::ClientConnectionLimit),
                ClientCount::NoRoom => {
                    ctx.counters.conntrack.client_uncounted.add(1);
                    None
                }
            }
        }
        None => None,
    };
    if limits.rate.as_ref().is_some_and(|rate| !rate.take(ctx.now_ms)) {
        counted.inspect(|client| ctx.table.clients().give_back(*client));
        return Err(Reason::ServiceRateLimited);
    }
    Ok(counted)
}

/// Reverses [`take`] for a flow that could not be created.
#[cold]
#[inline(never)]
pub(super) fn give_back(ctx: &Context<'_>, limits: &Limits, counted: Option<CountedClient>) {
    counted.inspect(|client| ctx.table.clients().give_back(*client));
    limits.rate.iter().for_each(|rate| rate.give_back());
}
