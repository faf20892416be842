//! The way on: the next hop of a packet, and whether its answers come back.

use super::Context;
use crate::conntrack::{Direction, Hit};
use crate::frame::{NextHopId, PortId, Verdict, Wait};
use crate::observe::Observer;
use crate::reason::Reason;
use crate::routes::{NextHop, Resolution, RouteQuery};
use crate::tuple::Tuple;

/// Where a rewritten packet goes.
pub(super) struct Onward {
    pub hop: NextHop,
    pub id: NextHopId,
    /// Behind the kernel, by an interface whose packets are not captured: [`answers_come_back`].
    pub hidden: bool,
}

/// The next hop of a packet, `received` with this tuple by this port, that goes on as `new`.
#[inline]
pub(super) fn resolve<'c>(
    ctx: &mut Context<'c>,
    received: (&Tuple, PortId),
    new: &Tuple,
    observer: &mut impl Observer<'c>,
) -> Result<Onward, Verdict> {
    let (seed, query) = (&ctx.services.seed, RouteQuery::new(received.0, received.1, new));
    let resolution = ctx.worker.route_cache.resolve(ctx.routes, &query, || new.hash(seed));
    observer.next_hop(new, &resolution);
    match resolution {
        Resolution::Hop(id) => {
            let hop = ctx.routes.hop(id).ok_or(Verdict::Drop(Reason::NoRoute))?;
            Ok(Onward { hop: *hop, id, hidden: false })
        }
        Resolution::Kernel { captured } => {
            let (hop, id) = ctx.routes.kernel_hop().ok_or(Verdict::Drop(Reason::NoInternalPort))?;
            Ok(Onward { hop, id, hidden: !captured })
        }
        Resolution::Ask(wanted) => Err(Verdict::Hold(Wait::Neighbour(wanted))),
        Resolution::Nowhere(reason) => Err(Verdict::Drop(reason)),
    }
}

/// What routing asks about a packet as it came in.
pub(super) struct Received<'p> {
    pub tuple: &'p Tuple,
    pub port: PortId,
    /// The flow's last packet of this direction came by the same port.
    pub same_port: bool,
}

/// The cached next hop of a flow's direction, or the one that the routes name now.
pub(super) fn next_hop<'c>(
    ctx: &mut Context<'c>,
    received: &Received<'_>,
    hit: &Hit,
    observer: &mut impl Observer<'c>,
) -> Result<(NextHop, NextHopId), Verdict> {
    let holds = received.same_port || !ctx.routes.depends_on_port(hit.new.v6);
    if let Some(id) = hit.cached_hop(ctx.routes.generation).filter(|_| holds) {
        observer.next_hop(&hit.new, &Resolution::Hop(id));
        return ctx.routes.hop(id).map(|hop| (*hop, id)).ok_or(Verdict::Drop(Reason::NoRoute));
    }
    let (hop, id) = fresh_hop(ctx, (received.tuple, received.port), hit, observer)?;
    ctx.table.cache_hop(hit, ctx.routes.generation, id);
    Ok((hop, id))
}

/// The next hop of a flow's direction that the routes name now, for a packet `received` with this tuple by this port.
pub(super) fn fresh_hop<'c>(
    ctx: &mut Context<'c>,
    received: (&Tuple, PortId),
    hit: &Hit,
    observer: &mut impl Observer<'c>,
) -> Result<(NextHop, NextHopId), Verdict> {
    let onward = resolve(ctx, received, &hit.new, observer)?;
    if hit.direction == Direction::Original && !answers_come_back(ctx, &hit.new, &onward) {
        // The routes have changed.
        return Err(Verdict::Drop(Reason::NextHopKernel));
    }
    Ok((onward.hop, onward.id))
}

/// Whether answers to a packet for a backend come back here, by the packet's source: for an endpoint behind the kernel the address that the
/// kernel routes to the internal port, or one to which answers are captured on their way out.
pub(super) fn answers_come_back(ctx: &Context<'_>, new: &Tuple, onward: &Onward) -> bool {
    let source = new.src_addr();
    let internal = ctx.services.snat.internal(new.v6) == Some(source);
    if onward.hidden { internal || ctx.routes.sees_answers_to(source) } else { !internal }
}
