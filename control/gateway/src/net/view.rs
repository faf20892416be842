//! Derives the dataplane's tables from the kernel's: the mirrored routes and neighbours that concern the given ports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Policy, Port, Route, RouteKind, Routes, Rule, RuleAction};
use nomagic_core::tuple::{Prefix, mask_addr};

use super::decode::{KernelLeg, KernelLink, KernelTable, RouteAction, RouteKey};
use super::rules::{FamilyRules, KernelRule, RuleLinks};
use super::state::NetState;

/// The inputs of `Routes`, sorted, so that two of them can be compared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RouteInputs {
    /// By `PortId`.
    pub ports: Vec<Port>,
    /// By family. A family that has only the kernel's own rules has one table, of both local and main.
    pub policies: [Policy; 2],
    /// By port and address.
    pub neighbours: Vec<Neighbour>,
}

impl RouteInputs {
    /// Builds the dataplane's table. Also returns the number of neighbours beyond its capacity.
    pub fn build(&self, generation: u64, internal: Option<InternalPort>) -> (Routes, usize) {
        Routes::with_policies(generation, self.ports.clone(), internal, self.policies.clone(), &self.neighbours)
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
        let links = self.rule_links(ports);
        let policies = [false, true].map(|v6| self.policy(v6, &links, &by_index, captured));
        RouteInputs { ports: ports.iter().map(|name| self.port(name)).collect(), policies, neighbours }
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

    /// The ports by interface name, and those that belong to VRFs.
    fn rule_links<'p>(&self, ports: &'p [String]) -> RuleLinks<'p> {
        let named = || ports.iter().enumerate().filter_map(|(id, name)| Some((name, PortId(u16::try_from(id).ok()?))));
        let vrf = |name: &String| self.links.get(&self.link_named(name)?.master?)?.vrf_table;
        RuleLinks {
            ports: named().map(|(name, port)| (name.as_str(), port)).collect(),
            vrfs: named().filter_map(|(name, port)| Some((port, vrf(name)?))).collect(),
        }
    }

    fn policy(&self, v6: bool, links: &RuleLinks<'_>, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Policy {
        let of_link = link_scopes().into_iter().filter(|prefix| prefix.addr().is_ipv6() == v6);
        let of_link = of_link.map(|prefix| Route { prefix, metric: 0, kind: RouteKind::Local });
        let Some(FamilyRules { rules, tables }) = FamilyRules::of(&self.rules, v6, links, |table| self.table(table, v6).next().is_some())
        else {
            let mut routes: BTreeMap<Prefix, Route> = self.routes_of(KernelTable::Main, v6, by_index, captured);
            let local = self.routes_of(KernelTable::Local, v6, by_index, captured);
            let prefixes: LocalPrefixes = local.keys().copied().collect();
            routes.retain(|prefix, _| !prefixes.covers(*prefix));
            routes.extend(local);
            routes.extend(of_link.map(|route| (route.prefix, route)));
            return Policy { tables: vec![routes.into_values().collect()], rules: Vec::new() };
        };
        // Addresses that are valid on one link come first: every interface has routes for them.
        let first = Rule::all(RuleAction::Lookup { table: tables.len(), suppressed: None });
        let tables = tables.into_iter().map(|table| self.routes_of(table, v6, by_index, captured).into_values().collect());
        Policy { tables: tables.chain([of_link.collect()]).collect(), rules: std::iter::once(first).chain(shifted(rules)).collect() }
    }

    /// The routes of a table and family, in the order of their keys: by prefix, then by metric.
    fn table(&self, table: KernelTable, v6: bool) -> impl Iterator<Item = (&RouteKey, &Vec<RouteAction>)> {
        let first = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let everything = Prefix::new(first, 0).unwrap_or(Prefix::host(first));
        let inside = move |key: &RouteKey| key.table == table && key.prefix.addr().is_ipv6() == v6;
        self.routes.range(RouteKey { table, prefix: everything, metric: 0 }..).take_while(move |(key, _)| inside(key))
    }

    /// The usable routes of a table, by prefix.
    fn routes_of(
        &self,
        table: KernelTable,
        v6: bool,
        by_index: &HashMap<u32, PortId>,
        captured: &BTreeSet<u32>,
    ) -> BTreeMap<Prefix, Route> {
        // The kernel uses the usable route with the smallest metric.
        let mut chosen: BTreeMap<Prefix, Route> = BTreeMap::new();
        for (key, actions) in self.table(table, v6) {
            if is_link_scoped(key.prefix.addr()) {
                continue;
            }
            let route = |kind| Route { prefix: key.prefix, metric: key.metric, kind };
            // Among routes of which one depends on more than the destination the kernel chooses.
            if actions.contains(&RouteAction::Kernel) {
                chosen.insert(key.prefix, route(RouteKind::Kernel));
            } else if !chosen.contains_key(&key.prefix)
                && let Some(kind) = actions.iter().find_map(|action| kind(action, by_index, captured))
            {
                chosen.insert(key.prefix, route(kind));
            }
        }
        chosen
    }

    /// The rules and routes of which the kernel makes the best, in words.
    pub fn left_to_kernel(&self) -> Vec<String> {
        let rules = self.rules.iter().filter_map(KernelRule::left_to_kernel);
        let rules = rules
            .map(|rule| format!("{rule} has a selector that nomagic cannot evaluate: packets that it may select go through the kernel"));
        let routes = self.routes.iter().filter(|(_, actions)| actions.contains(&RouteAction::Kernel)).map(|(key, _)| key.prefix);
        let routes: BTreeSet<Prefix> = routes.collect();
        let routes = routes.first().map(|first| {
            let others = if routes.len() > 1 { format!(" (and {} more)", routes.len() - 1) } else { String::new() };
            format!("routes to {first}{others} have a TOS, a source prefix or no interface: packets there go through the kernel")
        });
        rules.chain(routes).collect()
    }
}

/// The rules behind one more.
fn shifted(rules: Vec<Rule>) -> impl Iterator<Item = Rule> {
    rules.into_iter().map(|rule| match rule.action {
        RuleAction::GoTo(place) => Rule { action: RuleAction::GoTo(place + 1), ..rule },
        _ => rule,
    })
}

/// The dataplane's form of an action. `None`: all next hops are dead, and the next action applies.
fn kind(action: &RouteAction, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Option<RouteKind> {
    let legs = match action {
        RouteAction::Local => return Some(RouteKind::Local),
        RouteAction::Unreachable => return Some(RouteKind::Unreachable),
        RouteAction::Prohibit => return Some(RouteKind::Prohibit),
        RouteAction::Blackhole => return Some(RouteKind::Blackhole),
        RouteAction::Throw => return Some(RouteKind::Throw),
        RouteAction::Kernel => return Some(RouteKind::Kernel),
        RouteAction::Unicast(legs) => legs,
    };
    let legs: Vec<Leg> = legs.iter().filter(|l| !l.dead).map(|l| leg(l, by_index, captured)).collect();
    (!legs.is_empty()).then_some(RouteKind::Unicast(legs))
}

fn leg(leg: &KernelLeg, by_index: &HashMap<u32, PortId>, captured: &BTreeSet<u32>) -> Leg {
    // Only the kernel can add a tunnel header, whatever the interface.
    let port = by_index.get(&leg.link).copied().filter(|_| !leg.tunnel);
    Leg { port, captured: port.is_none() && captured.contains(&leg.link), gateway: leg.gateway, weight: leg.weight, mtu: leg.mtu }
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
