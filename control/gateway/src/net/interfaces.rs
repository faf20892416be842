//! Which interfaces a node serves Services on, when nobody has named them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nomagic_core::tuple::Prefix;

use super::decode::{Action, KernelLeg, Link, OwnScope, RouteKey, Table};
use super::state::NetState;
use super::view::is_link_scoped;

impl NetState {
    /// The interfaces that hold these addresses of the node, and those that routes to the pods lead out of, by index. Left out: what is
    /// down, what is not Ethernet (`lo`, layer 3 tunnels), the cables of single pods (host routes without a gateway: they come and go),
    /// and `without`.
    pub fn serving_interfaces(&self, own: &[IpAddr], pods: &[Prefix], without: &[&str]) -> Vec<String> {
        let holders = self.addresses.iter().filter(|a| a.scope != OwnScope::Restricted && own.contains(&a.addr)).map(|a| a.link);
        let indices: BTreeSet<u32> = holders.chain(self.links_to(pods)).collect();
        let serves = |link: &&Link| link.admin_up && link.mac != [0; 6] && link.name != "lo" && !without.contains(&link.name.as_str());
        indices.iter().filter_map(|index| self.links.get(index)).filter(serves).map(|link| link.name.clone()).collect()
    }

    /// The destinations whose routes lead out of interfaces that `fits` takes, and nowhere else, each once. Default routes and link-local
    /// addresses are nobody's in particular.
    pub fn ranges_behind(&self, fits: impl Fn(&str) -> bool) -> Vec<Prefix> {
        let links: BTreeSet<u32> = self.links.values().filter(|link| fits(&link.name)).map(|link| link.index).collect();
        let leads = |action: &Action| matches!(action, Action::Unicast(legs) if legs.iter().all(|leg| links.contains(&leg.link)));
        let routes = self.routes.iter().filter(|(key, _)| key.table == Table::Main && key.prefix.prefix_len() > 0);
        let found = routes.filter(|(_, actions)| actions.first().is_some_and(leads)).map(|(key, _)| key.prefix);
        let mut ranges: Vec<Prefix> = found.filter(|prefix| !is_link_scoped(prefix.addr())).collect();
        ranges.dedup();
        ranges
    }

    /// The parts of a range that the main table has unicast routes for, other than into this interface.
    pub fn unicast_parts<'s>(&'s self, range: &Prefix, internal: u32) -> impl Iterator<Item = Prefix> + use<'s> {
        let from = RouteKey { table: Table::Main, prefix: *range, metric: 0 };
        let inside = {
            let range = *range;
            move |key: &RouteKey| key.table == Table::Main && range.contains(key.prefix.addr())
        };
        let elsewhere = move |actions: &[Action]| {
            actions.iter().any(|a| matches!(a, Action::Unicast(legs) if legs.iter().any(|leg| leg.link != internal)))
        };
        self.routes.range(from..).take_while(move |(key, _)| inside(key)).filter(move |(_, a)| elsewhere(a)).map(|(key, _)| key.prefix)
    }

    /// The interfaces of all routes into these ranges, whatever their metric, and of the route that each range as a whole takes.
    fn links_to(&self, pods: &[Prefix]) -> BTreeSet<u32> {
        let main = || self.routes.iter().filter(|(key, _)| key.table == Table::Main);
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
                Action::Unicast(legs) => Some(legs),
                _ => None,
            });
            links.extend(legs.flatten().filter(leads).map(|leg| leg.link));
        }
        links
    }
}

/// Whether every address of `inner` is in `outer`.
fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.prefix_len() <= inner.prefix_len() && outer.contains(inner.addr())
}
