//! Ways that lead back where a packet came from.
//!
//! A router sends its packets here because it takes this node for the way to their destination. If the kernel's route leads through a router out
//! of the interface that they came in by, they go round until their TTL ends. On a link of its own, a destination is a host: there is no loop.

use std::net::IpAddr;

use super::{Leg, Mac, NextHop, RouteKind, RouteQuery, Routes};
use crate::frame::PortId;
use crate::tuple::words_addr;

impl Routes {
    /// Whether a packet may leave by the port that it came in by, to a router. Of a multipath route, any leg counts. A host on this link may use this
    /// node as a router on the way to that other one: what it sends itself does not come back, but what the router with the MAC address `sender` does.
    pub fn leads_back(&self, query: &RouteQuery, sender: Mac) -> bool {
        let (src, dst) = (words_addr(query.src, query.v6), words_addr(query.dst, query.v6));
        let kind = self.decide(query, dst, &self.rules[usize::from(query.v6)]);
        let Ok(RouteKind::Unicast(legs)) = kind else { return false };
        let back =
            || legs.iter().filter(|leg| leg.port == Some(query.port)).filter_map(|leg| leg.gateway).filter(|gateway| *gateway != dst);
        let mac = |router: IpAddr| self.hop(*self.neighbours.get(&(query.port, router))?).map(NextHop::dst_mac);
        if self.is_on_link(src, query.port) { back().any(|router| mac(router) == Some(sender)) } else { back().next().is_some() }
    }

    /// Whether the route to an address, of any table, says that it is a host on the link of a port.
    fn is_on_link(&self, addr: IpAddr, port: PortId) -> bool {
        let on_link = |leg: &Leg| leg.port == Some(port) && leg.gateway.is_none();
        self.all_kinds(addr).any(|kind| matches!(kind, RouteKind::Unicast(legs) if legs.iter().any(on_link)))
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
