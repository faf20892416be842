//! Derives the dataplane's tables from the kernel's: the mirrored routes and neighbours that concern the given ports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::tuple::{Prefix, mask_addr};

use super::decode::{KernelLeg, KernelLink, KernelTable, RouteAction};
use super::state::NetState;

/// The inputs of `Routes`, sorted, so that two of them can be compared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RouteInputs {
    /// By `PortId`.
    pub ports: Vec<Port>,
    /// By prefix.
    pub routes: Vec<Route>,
    /// By port and address.
    pub neighbours: Vec<Neighbour>,
}

impl RouteInputs {
    /// Builds the dataplane's table. Also returns the number of neighbours beyond its capacity.
    pub fn build(&self, generation: u64, internal: Option<InternalPort>) -> (Routes, usize) {
        Routes::build(generation, self.ports.clone(), internal, self.routes.clone(), &self.neighbours)
    }
}

impl NetState {
    /// The inputs for these ports (interface names by `PortId`). A port without an interface is down. `captured`: indices of interfaces
    /// that frames reach through the kernel and whose traffic the XDP filter sees.
    pub fn inputs(&self, ports: &[String], captured: &BTreeSet<u32>) -> RouteInputs {
        let by_index = self.port_ids(ports);
        let mut neighbours: Vec<Neighbour> = self
            .neighbours
            .iter()
            .filter_map(|((link, addr), n)| Some(Neighbour { port: *by_index.get(link)?, addr: *addr, mac: n.mac }))
            .filter(|n| !n.addr.is_multicast())
            .collect();
        neighbours.sort_by_key(|n| (n.port, n.addr));
        RouteInputs { ports: ports.iter().map(|name| self.port(name)).collect(), routes: self.view_routes(&by_index, captured), neighbours }
    }

    /// At most `max` stale neighbours of these ports.
    pub fn stale(&self, ports: &[String], max: usize) -> Vec<Wanted> {
        let by_index = self.port_ids(ports);
        let stale = self.neighbours.iter().filter(|(_, n)| n.stale);
        stale.filter_map(|((link, addr), _)| Some(Wanted { port: *by_index.get(link)?, addr: *addr })).take(max).collect()
    }

    /// The interface of this name.
    pub(super) fn link_named(&self, name: &str) -> Option<&KernelLink> {
        self.links.values().find(|l| l.name == name)
    }

    fn port(&self, name: &str) -> Port {
        match self.link_named(name) {
            Some(link) => Port { mac: link.mac, mtu: link.mtu, up: link.admin_up && link.carrier },
            None => Port { mac: [0; 6], mtu: 0, up: false },
        }
    }

    fn port_ids(&self, ports: &[String]) -> HashMap<u32, PortId> {
        let index_of = |name: &String| self.link_named(name).map(|l| l.index);
        ports.iter().enumerate().filter_map(|(id, name)| Some((index_of(name)?, PortId(u16::try_from(id).ok()?)))).collect()
    }

    fn view_routes(&self, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Vec<Route> {
        let local: LocalPrefixes = self.routes.keys().filter(|k| k.table == KernelTable::Local).map(|k| k.prefix).collect();
        // The kernel uses the usable route with the smallest metric; keys are ordered by table, prefix and metric.
        let mut chosen: BTreeMap<Prefix, Route> = BTreeMap::new();
        for (key, actions) in &self.routes {
            if is_link_scoped(key.prefix.addr()) || chosen.contains_key(&key.prefix) {
                continue;
            }
            if key.table == KernelTable::Main && local.covers(key.prefix) {
                continue;
            }
            if let Some(kind) = actions.iter().find_map(|action| kind(action, by_index, captured)) {
                chosen.insert(key.prefix, Route { prefix: key.prefix, metric: key.metric, kind });
            }
        }
        for prefix in link_scopes() {
            chosen.insert(prefix, Route { prefix, metric: 0, kind: RouteKind::Local });
        }
        chosen.into_values().collect()
    }
}

/// The dataplane's form of an action. `None`: all next hops are dead, and the next action applies.
fn kind(action: &RouteAction, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Option<RouteKind> {
    let legs = match action {
        RouteAction::Local => return Some(RouteKind::Local),
        RouteAction::Unreachable => return Some(RouteKind::Unreachable),
        RouteAction::Unicast(legs) => legs,
    };
    let legs: Vec<Leg> = legs.iter().filter(|l| !l.dead).map(|l| leg(l, by_index, captured)).collect();
    (!legs.is_empty()).then_some(RouteKind::Unicast(legs))
}

fn leg(leg: &KernelLeg, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Leg {
    // Only the kernel can add a tunnel header, whatever the interface.
    let port = by_index.get(&leg.link).copied().filter(|_| !leg.tunnel);
    Leg { port, captured: port.is_none() && captured.contains(&leg.link), gateway: leg.gateway, weight: leg.weight }
}

/// Whether an address is valid on one link only. Every interface has routes for these, and no Service traffic uses them.
pub(super) fn is_link_scoped(addr: IpAddr) -> bool {
    link_scopes().iter().any(|p| p.contains(addr))
}

fn link_scopes() -> [Prefix; 3] {
    let v6 = |first: u16| IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0));
    let prefix = |addr, len| Prefix::new(addr, len).unwrap_or(Prefix::host(addr));
    [prefix(Ipv4Addr::new(224, 0, 0, 0).into(), 4), prefix(v6(0xfe80), 10), prefix(v6(0xff00), 8)]
}

/// Prefixes of the local table. The kernel looks them up first, so they take precedence over longer ones in the main table.
#[derive(Default)]
struct LocalPrefixes {
    prefixes: HashSet<Prefix>,
    lengths: HashSet<(bool, u8)>,
}

impl FromIterator<Prefix> for LocalPrefixes {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> LocalPrefixes {
        let prefixes: HashSet<Prefix> = prefixes.into_iter().collect();
        let lengths = prefixes.iter().map(|p| (p.addr().is_ipv6(), p.prefix_len())).collect();
        LocalPrefixes { prefixes, lengths }
    }
}

impl LocalPrefixes {
    fn covers(&self, prefix: Prefix) -> bool {
        let (addr, v6) = (prefix.addr(), prefix.addr().is_ipv6());
        let mut lengths = self.lengths.iter().filter(|(family, len)| *family == v6 && *len <= prefix.prefix_len());
        lengths.any(|(_, len)| Prefix::new(mask_addr(addr, *len), *len).is_some_and(|p| self.prefixes.contains(&p)))
    }
}
