//! Ways that lead back where a packet came from.
//!
//! A router sends its packets here because it takes this node for the way to their destination. If the kernel's route leads through a router out
//! of the interface that they came in by, they go round until their TTL ends. On a link of its own, a destination is a host: there is no loop.

use std::net::IpAddr;

use super::{RouteKind, RouteQuery, Routes};
use crate::frame::PortId;
use crate::tuple::words_addr;

impl Routes {
    /// Whether a packet may leave by the port that it came in by, to a router. Of a multipath route, any leg counts.
    pub fn leads_back(&self, query: &RouteQuery) -> bool {
        let dst = words_addr(query.dst, query.v6);
        let rules = &self.rules[usize::from(query.v6)];
        self.decide(query, dst, rules).is_ok_and(|kind| ports_to_routers(kind, dst).any(|port| port == query.port))
    }

    /// The ports by which packets to a destination may leave to a router, by the route of any table: which one counts depends on the packet.
    pub fn ports_to_routers(&self, dst: IpAddr) -> impl Iterator<Item = PortId> {
        self.all_kinds(dst).flat_map(move |kind| ports_to_routers(kind, dst))
    }
}

fn ports_to_routers(kind: &RouteKind, dst: IpAddr) -> impl Iterator<Item = PortId> {
    let legs = if let RouteKind::Unicast(legs) = kind { &legs[..] } else { &[] };
    legs.iter().filter(move |leg| leg.gateway.is_some_and(|gateway| gateway != dst)).filter_map(|leg| leg.port)
}
