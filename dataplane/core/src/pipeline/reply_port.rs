//! Replies come in by a port that leads to their endpoint. The address alone could be forged by anybody on the clients' side.
//!
//! Others are dropped ([`Reason::ReplyPort`](crate::reason::Reason::ReplyPort)), not left to the kernel: it would forward a reply that was on its
//! way while its route ended or moved as it is, with the endpoint's address, and the client would answer it with a reset.

use super::Context;
use crate::conntrack::{Direction, Hit};
use crate::frame::PortId;
use crate::tuple::Tuple;

/// Whether a packet came in by the same port as the one before it in its direction. `None` for a reply that came in by a port that does not lead to
/// its endpoint: it is forged, or the route has just changed. A port is verified once for each generation of the routes, together with the next hop.
/// Any other port is remembered, so that the fast path takes the next packet.
pub(super) fn check_port(ctx: &Context<'_>, port: PortId, tuple: &Tuple, hit: &Hit) -> Option<bool> {
    let same = ctx.table.came_by(hit, port);
    if hit.direction == Direction::Reply {
        let verified = same && hit.cached_hop(ctx.routes.generation).is_some();
        if !verified && !ctx.routes.leads_by(tuple.src_addr(), port) {
            return None;
        }
    }
    if !same {
        ctx.table.remember_ingress(hit, port);
    }
    Some(same)
}
