//! Routing: longest prefix match, neighbours, next hops.
//!
//! The control plane mirrors the kernel's routes and neighbours into a [`Routes`] and publishes it whole; nothing is
//! configured twice. Flows cache a next hop together with the generation it was resolved under.

mod next_hop;

use std::net::IpAddr;
use std::sync::Arc;

use crate::frame::{NextHopId, PortId, Wanted};
use crate::hash::{WordMap, WordSet};
use crate::reason::Reason;
use crate::rss::Rss;
use crate::tuple::{Prefix, fast_range, mask_addr};

pub use next_hop::{NextHop, Resolution};

/// A MAC address.
pub type Mac = [u8; 6];

/// What the core must know of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its own MAC address.
    pub mac: Mac,
    /// Its MTU: bytes of an IP packet.
    pub mtu: u32,
    /// Carrier and administratively up. Frames to a port that is down are dropped by name.
    pub up: bool,
}

/// The internal port: frames sent out of `port` arrive at the kernel's end of the veth pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InternalPort {
    /// nm1, the dataplane's end.
    pub port: PortId,
    /// MAC address of nm0, the kernel's end.
    pub kernel_mac: Mac,
}

/// What a route does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteKind {
    /// Through one of these legs; several legs (multipath) are chosen by the flow's hash.
    Unicast(Vec<Leg>),
    /// An address of this node.
    Local,
    /// Blackhole, unreachable, prohibit.
    Unreachable,
}

/// One leg of a unicast route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leg {
    /// The port; `None`: an interface that is not the dataplane's, so the kernel must send.
    pub port: Option<PortId>,
    /// For an interface behind the kernel: it has the filter, so answers that arrive there or leave by it are captured.
    pub captured: bool,
    /// The gateway; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Relative weight, at least 1.
    pub weight: u16,
}

/// A route of the kernel's main table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// Among routes of one prefix the smallest metric wins.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
}

/// A resolved neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The port that leads to it.
    pub port: PortId,
    /// Its address.
    pub addr: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

/// Routes, neighbours and next hops of one moment. Immutable once published.
#[derive(Debug, Default)]
pub struct Routes {
    /// Raised with each publication; flows compare its low 12 bits.
    pub generation: u64,
    /// The way back to the kernel.
    pub internal: Option<InternalPort>,
    ports: Vec<Port>,
    /// By port; `None` where it is unknown or all packets reach one worker.
    rss: Vec<Option<Arc<Rss>>>,
    /// By port: whether packets that the kernel sends out of it are captured if they are answers. The internal port stands for all interfaces
    /// behind it that have the filter. Empty where nothing is known.
    sees_answers: Vec<bool>,
    /// By prefix length, longest first, a family each: `(length, network -> route)`.
    v4: Vec<(u8, WordMap<IpAddr, RouteKind>)>,
    v6: Vec<(u8, WordMap<IpAddr, RouteKind>)>,
    /// What is this node's own, by family and prefix length.
    local: [Vec<(u8, WordSet<IpAddr>)>; 2],
    /// Place 0 is never used.
    hops: Vec<NextHop>,
    neighbours: WordMap<(PortId, IpAddr), NextHopId>,
    /// The kernel's end of the internal port.
    kernel: NextHopId,
}

/// Most ports: flows have 7 bits for the port that their packets come in by, and 0 means none.
pub const PORTS_MAX: usize = (1 << 7) - 1;

/// Most neighbours: flows have 14 bits for a next hop; 0 means none, and one is the kernel.
pub const NEXT_HOPS_MAX: usize = (1 << 14) - 2;

impl Routes {
    /// Builds the table. Returns how many neighbours were left out: those beyond [`NEXT_HOPS_MAX`], and those of unknown ports.
    pub fn build(
        generation: u64,
        ports: Vec<Port>,
        internal: Option<InternalPort>,
        mut routes: Vec<Route>,
        neighbours: &[Neighbour],
    ) -> (Routes, usize) {
        // Among routes of one prefix the smallest metric wins, as in the kernel.
        routes.sort_by_key(|r| (std::cmp::Reverse(r.prefix.prefix_len()), r.prefix, r.metric));
        routes.dedup_by_key(|r| r.prefix);
        let none = NextHop { port: PortId(u16::MAX), link: [0; 12], mtu: 0 };
        let mut table = Routes { generation, internal, ports, hops: vec![none], ..Routes::default() };
        for route in routes {
            if route.kind == RouteKind::Local {
                table.add_local(&route.prefix);
            }
            let family = if route.prefix.addr().is_ipv6() { &mut table.v6 } else { &mut table.v4 };
            let len = route.prefix.prefix_len();
            if family.last().is_none_or(|(l, _)| *l != len) {
                family.push((len, WordMap::default()));
            }
            if let Some((_, nets)) = family.last_mut() {
                nets.insert(route.prefix.addr(), route.kind);
            }
        }
        if let Some((internal, port)) = internal.and_then(|i| Some((i, table.ports.get(usize::from(i.port.0))?))) {
            table.kernel = NextHopId(table.hops.len() as u16);
            table.hops.push(NextHop::new(internal.port, port, internal.kernel_mac));
        }
        let (before, mut left_out) = (table.hops.len(), 0);
        for n in neighbours {
            let Some(port) = table.ports.get(usize::from(n.port.0)) else {
                left_out += 1;
                continue;
            };
            if table.hops.len() - before >= NEXT_HOPS_MAX {
                left_out += 1;
                continue;
            }
            let id = NextHopId(table.hops.len() as u16);
            table.hops.push(NextHop::new(n.port, port, n.mac));
            table.neighbours.insert((n.port, n.addr), id);
        }
        (table, left_out)
    }

    fn add_local(&mut self, prefix: &Prefix) {
        let (addr, len) = (prefix.addr(), prefix.prefix_len());
        let family = &mut self.local[usize::from(addr.is_ipv6())];
        if let Some((_, nets)) = family.iter_mut().find(|(l, _)| *l == len) {
            nets.insert(addr);
        } else {
            family.push((len, WordSet::from_iter([addr])));
        }
    }

    /// Whether an address is one of this node's own: the kernel's `local` table has it.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        self.local[usize::from(addr.is_ipv6())].iter().any(|(len, nets)| nets.contains(&mask_addr(addr, *len)))
    }

    /// Adds how the ports spread received packets over the workers, in the order of the ports. Ports whose packets all reach one worker are
    /// dropped: they leave no choice.
    pub fn with_rss(mut self, rss: impl IntoIterator<Item = Option<Arc<Rss>>>) -> Routes {
        self.rss = rss.into_iter().map(|rss| rss.filter(|r| r.divides())).collect();
        self
    }

    /// Adds, in the order of the ports, out of which of them answers are captured that the kernel sends.
    pub fn with_answers_seen(mut self, seen: impl IntoIterator<Item = bool>) -> Routes {
        self.sees_answers = seen.into_iter().collect();
        self
    }

    /// How a port spreads received packets over the workers.
    #[inline]
    pub fn rss(&self, port: PortId) -> Option<&Rss> {
        self.rss.get(usize::from(port.0))?.as_deref()
    }

    /// A port.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))
    }

    /// The next hop with an id of this generation.
    #[inline(always)]
    pub fn hop(&self, id: NextHopId) -> Option<&NextHop> {
        if id.0 == 0 { None } else { self.hop_or_none(id) }
    }

    /// Like [`Routes::hop`], but id 0 returns a hop with MTU 0, which fits no packet.
    #[inline(always)]
    pub fn hop_or_none(&self, id: NextHopId) -> Option<&NextHop> {
        self.hops.get(usize::from(id.0))
    }

    /// The next hop into the kernel's forwarding, for rewritten packets whose route is through no port of the dataplane.
    pub fn kernel_hop(&self) -> Option<(NextHop, NextHopId)> {
        self.hop(self.kernel).map(|hop| (*hop, self.kernel))
    }

    /// Resolves a destination. `hash` spreads flows over multipath routes.
    pub fn resolve(&self, dst: IpAddr, hash: u64) -> Resolution {
        self.resolve_with(dst, || hash).0
    }

    /// Like [`Routes::resolve`]; also whether the result holds for all flows to the destination. `hash` is called only for multipath
    /// routes.
    pub fn resolve_with(&self, dst: IpAddr, hash: impl FnOnce() -> u64) -> (Resolution, bool) {
        let Some(kind) = self.lookup(dst) else { return (Resolution::Nowhere(Reason::NoRoute), true) };
        let legs = match kind {
            RouteKind::Unicast(legs) => legs,
            // Answers of this node itself arrive at no interface.
            RouteKind::Local => return (Resolution::Kernel { captured: false }, true),
            RouteKind::Unreachable => return (Resolution::Nowhere(Reason::Unreachable), true),
        };
        match &legs[..] {
            [] => (Resolution::Nowhere(Reason::NoRoute), true),
            [leg] => (self.by_leg(leg, dst), true),
            legs => (pick_leg(legs, hash()).map_or(Resolution::Nowhere(Reason::NoRoute), |leg| self.by_leg(leg, dst)), false),
        }
    }

    /// Whether a port leads to this destination: the port of one of its route's legs, or the internal port for what lies behind the kernel.
    /// Answers come in by such a port.
    pub fn leads_by(&self, dst: IpAddr, port: PortId) -> bool {
        let internal = self.internal.is_some_and(|internal| internal.port == port);
        match self.lookup(dst) {
            Some(RouteKind::Unicast(legs)) => legs.iter().any(|leg| leg.port.map_or(internal, |leg| leg == port)),
            Some(RouteKind::Local) => internal,
            Some(RouteKind::Unreachable) | None => false,
        }
    }

    /// A port that leads to this destination, and so receives its answers: see [`Routes::leads_by`].
    pub fn port_towards(&self, dst: IpAddr) -> Option<PortId> {
        let internal = self.internal.map(|internal| internal.port);
        match self.lookup(dst)? {
            RouteKind::Unicast(legs) => legs.first()?.port.or(internal),
            RouteKind::Local => internal,
            RouteKind::Unreachable => None,
        }
    }

    /// Whether answers to this client are captured on their way out, whatever endpoint behind the kernel sends them: each leg of its route is
    /// looked at. Never for an address of this node, which answers reach by no interface.
    pub fn sees_answers_to(&self, client: IpAddr) -> bool {
        let Some(RouteKind::Unicast(legs)) = self.lookup(client) else { return false };
        let seen_at = |port: PortId| self.sees_answers.get(usize::from(port.0)).is_some_and(|seen| *seen);
        let behind = self.internal.is_some_and(|internal| seen_at(internal.port));
        let seen = |leg: &Leg| leg.port.map_or_else(|| leg.captured && behind, seen_at);
        !legs.is_empty() && legs.iter().all(seen)
    }

    fn by_leg(&self, leg: &Leg, dst: IpAddr) -> Resolution {
        let Some(port) = leg.port else { return Resolution::Kernel { captured: leg.captured } };
        if !self.port(port).is_some_and(|p| p.up) {
            return Resolution::Nowhere(Reason::PortDown);
        }
        let addr = leg.gateway.unwrap_or(dst);
        match self.neighbours.get(&(port, addr)) {
            Some(id) => Resolution::Hop(*id),
            None => Resolution::Ask(Wanted { port, addr }),
        }
    }

    fn lookup(&self, dst: IpAddr) -> Option<&RouteKind> {
        let family = if dst.is_ipv6() { &self.v6 } else { &self.v4 };
        family.iter().find_map(|(len, nets)| nets.get(&mask_addr(dst, *len)))
    }
}

/// Chooses among the legs of a multipath route in proportion to their weights.
fn pick_leg(legs: &[Leg], hash: u64) -> Option<&Leg> {
    let total: u32 = legs.iter().map(|l| u32::from(l.weight.max(1))).sum();
    let mut ticket = fast_range(hash as u32, total);
    legs.iter().find(|l| {
        let weight = u32::from(l.weight.max(1));
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn leg(port: u16, gateway: Option<&str>) -> Leg {
        Leg { port: Some(PortId(port)), captured: false, gateway: gateway.map(ip), weight: 1 }
    }

    fn route(prefix: &str, metric: u32, kind: RouteKind) -> Route {
        Route { prefix: prefix.parse().unwrap(), metric, kind }
    }

    fn ports() -> Vec<Port> {
        (0..2).map(|i| Port { mac: [2, 0, 0, 0, 0, i], mtu: 1500, up: true }).collect()
    }

    #[test]
    fn longest_prefix_then_metric_then_neighbour() {
        let routes = vec![
            route("0.0.0.0/0", 0, RouteKind::Unicast(vec![leg(0, Some("10.0.0.1"))])),
            route("192.168.0.0/16", 5, RouteKind::Unicast(vec![leg(0, None)])),
            route("192.168.0.0/16", 1, RouteKind::Unicast(vec![leg(1, None)])),
            route("192.168.7.0/24", 0, RouteKind::Unreachable),
            route("192.168.0.9/32", 0, RouteKind::Local),
            route("fd00::/64", 0, RouteKind::Unicast(vec![leg(1, Some("fe80::1"))])),
            route("172.31.0.0/16", 0, RouteKind::Unicast(vec![Leg { port: None, captured: true, gateway: None, weight: 1 }])),
            route("172.16.0.0/12", 0, RouteKind::Unicast(vec![Leg { port: None, captured: false, gateway: None, weight: 1 }])),
        ];
        let neighbours = [
            Neighbour { port: PortId(1), addr: ip("192.168.0.2"), mac: [2; 6] },
            Neighbour { port: PortId(0), addr: ip("10.0.0.1"), mac: [3; 6] },
            Neighbour { port: PortId(1), addr: ip("fe80::1"), mac: [4; 6] },
            Neighbour { port: PortId(9), addr: ip("10.0.0.9"), mac: [5; 6] },
        ];
        let (r, left_out) = Routes::build(1, ports(), None, routes, &neighbours);
        assert_eq!(left_out, 1, "a neighbour of a port that does not exist");
        let mac = |way| match way {
            Resolution::Hop(id) => r.hop(id).map(|h| (h.port.0, h.dst_mac()[0])),
            _ => None,
        };
        assert_eq!(mac(r.resolve(ip("192.168.0.2"), 0)), Some((1, 2)));
        assert_eq!(mac(r.resolve(ip("8.8.8.8"), 0)), Some((0, 3)));
        assert_eq!(mac(r.resolve(ip("fd00::77"), 0)), Some((1, 4)));
        assert_eq!(r.resolve(ip("192.168.0.3"), 0), Resolution::Ask(Wanted { port: PortId(1), addr: ip("192.168.0.3") }));
        assert_eq!(r.resolve(ip("192.168.7.1"), 0), Resolution::Nowhere(Reason::Unreachable));
        assert_eq!(r.resolve(ip("192.168.0.9"), 0), Resolution::Kernel { captured: false });
        assert_eq!(r.resolve(ip("172.16.3.3"), 0), Resolution::Kernel { captured: false });
        assert_eq!(r.resolve(ip("172.31.3.3"), 0), Resolution::Kernel { captured: true });
        assert_eq!(["192.168.0.9", "192.168.0.8", "::192.168.0.9"].map(|addr| r.is_local(ip(addr))), [true, false, false]);
        let r = r.with_answers_seen([false, true]);
        let seen = ["10.9.9.9", "192.168.0.2", "172.31.3.3", "172.16.3.3", "192.168.0.9", "192.168.7.1", "fd00::77", "fd01::1"];
        assert_eq!(seen.map(|client| r.sees_answers_to(ip(client))), [false, true, false, false, false, false, true, false]);
        assert_eq!(r.kernel_hop(), None, "without an internal port");
        assert_eq!(r.resolve(ip("fd01::1"), 0), Resolution::Nowhere(Reason::NoRoute));
        assert_eq!(r.hop(NextHopId(0)), None);
        assert_eq!(r.hop(NextHopId(999)), None);
    }

    #[test]
    fn a_port_that_is_down_leads_nowhere() {
        let mut down = ports();
        down[0].up = false;
        let routes = vec![route("10.0.0.0/8", 0, RouteKind::Unicast(vec![leg(0, None)]))];
        let (r, _) = Routes::build(1, down, None, routes, &[]);
        assert_eq!(r.resolve(ip("10.0.0.1"), 0), Resolution::Nowhere(Reason::PortDown));
    }

    #[test]
    fn multipath_follows_weights() {
        let legs = vec![
            Leg { port: Some(PortId(0)), captured: false, gateway: Some(ip("10.0.0.1")), weight: 3 },
            Leg { port: Some(PortId(1)), captured: false, gateway: Some(ip("10.0.0.2")), weight: 1 },
        ];
        let mut counts = [0u32; 2];
        let mut state = 1;
        for _ in 0..4_000 {
            let hash = crate::tuple::splitmix64(&mut state);
            counts[usize::from(pick_leg(&legs, hash).unwrap().port.unwrap().0)] += 1;
        }
        assert!((2_850..3_150).contains(&counts[0]), "{counts:?}");
    }
}
