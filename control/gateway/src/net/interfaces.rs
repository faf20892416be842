//! Chooses the interfaces to attach to when none are configured, and reads ranges from routes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nomagic_core::tuple::Prefix;

use super::decode::{KernelLeg, KernelLink, KernelTable, OwnScope, RouteAction, RouteKey};
use super::state::NetState;
use super::view::is_link_scoped;

impl NetState {
    /// The interfaces with one of these node addresses, and the outgoing interfaces of routes to the pods, by index. Excludes interfaces
    /// that are down or not Ethernet (`lo`, layer 3 tunnels), the veths of single pods (host routes without a gateway), and `without`.
    pub fn serving_interfaces(&self, own: &[IpAddr], pods: &[Prefix], without: &[&str]) -> Vec<String> {
        let holders = self.addresses.iter().filter(|a| a.scope != OwnScope::Restricted && own.contains(&a.addr)).map(|a| a.link);
        let indices: BTreeSet<u32> = holders.chain(self.links_to(pods)).collect();
        let serves =
            |link: &&KernelLink| link.admin_up && link.mac != [0; 6] && link.name != "lo" && !without.contains(&link.name.as_str());
        indices.iter().filter_map(|index| self.links.get(index)).filter(serves).map(|link| link.name.clone()).collect()
    }

    /// The destinations of routes whose next hops are all on interfaces that `fits` accepts, each once. Excludes default routes and
    /// link-local addresses.
    pub fn ranges_behind(&self, fits: impl Fn(&str) -> bool) -> Vec<Prefix> {
        let links: BTreeSet<u32> = self.links.values().filter(|link| fits(&link.name)).map(|link| link.index).collect();
        let leads = |action: &RouteAction| matches!(action, RouteAction::Unicast(legs) if legs.iter().all(|leg| links.contains(&leg.link)));
        let routes = self.routes.iter().filter(|(key, _)| key.table == KernelTable::Main && key.prefix.prefix_len() > 0);
        let found = routes.filter(|(_, actions)| actions.first().is_some_and(leads)).map(|(key, _)| key.prefix);
        let mut ranges: Vec<Prefix> = found.filter(|prefix| !is_link_scoped(prefix.addr())).collect();
        ranges.dedup();
        ranges
    }

    /// The prefixes within a range that the main table routes to interfaces other than `internal`.
    pub fn unicast_parts<'s>(&'s self, range: &Prefix, internal: u32) -> impl Iterator<Item = Prefix> + use<'s> {
        let from = RouteKey { table: KernelTable::Main, prefix: *range, metric: 0 };
        let inside = {
            let range = *range;
            move |key: &RouteKey| key.table == KernelTable::Main && range.contains(key.prefix.addr())
        };
        let elsewhere = move |actions: &[RouteAction]| {
            actions.iter().any(|a| matches!(a, RouteAction::Unicast(legs) if legs.iter().any(|leg| leg.link != internal)))
        };
        self.routes.range(from..).take_while(move |(key, _)| inside(key)).filter(move |(_, a)| elsewhere(a)).map(|(key, _)| key.prefix)
    }

    /// The interfaces of all routes within these ranges, whatever their metric, and of the route that covers each range.
    fn links_to(&self, pods: &[Prefix]) -> BTreeSet<u32> {
        let main = || self.routes.iter().filter(|(key, _)| key.table == KernelTable::Main);
        let around = |range: &Prefix| main().map(|(key, _)| key.prefix).filter(|p| covers(p, range)).max_by_key(Prefix::prefix_len);
        let around: Vec<Prefix> = pods.iter().filter_map(around).collect();
        let mut links = BTreeSet::new();
        for (key, actions) in main() {
            if !around.contains(&key.prefix) && !pods.iter().any(|range| covers(range, &key.prefix)) {
                continue;
            }
            let host = key.prefix == Prefix::host(key.prefix.addr());
            let leads = |leg: &&KernelLeg| !leg.tunnel && (leg.gateway.is_some() || !host);
            let legs = actions.iter().filter_map(|action| match action {
                RouteAction::Unicast(legs) => Some(legs),
                _ => None,
            });
            links.extend(legs.flatten().filter(leads).map(|leg| leg.link));
        }
        links
    }
}

/// Whether `outer` contains all of `inner`.
fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.prefix_len() <= inner.prefix_len() && outer.contains(inner.addr())
}
