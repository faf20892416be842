//! Computes the routes and rules for the node's own connections. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::{Prefix, Proto};

/// Limits of the plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanLimits {
    /// Routes, both families together.
    pub routes_max: usize,
    /// Rules for ports on the node's own addresses, both families together. The kernel evaluates them linearly for each connection.
    pub own_rules_max: usize,
}

impl Default for PlanLimits {
    fn default() -> PlanLimits {
        PlanLimits { routes_max: 16_384, own_rules_max: 64 }
    }
}

/// The inputs of a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'i> {
    /// The XDP filter's rules.
    pub rules: &'i FilterRules,
    /// All addresses of this node.
    pub own: &'i BTreeSet<IpAddr>,
    /// Preferred source address by family; without one, the family is skipped.
    pub sources: [Option<IpAddr>; 2],
    /// The kernel's routes within the Service ranges.
    pub foreign: &'i BTreeSet<Prefix>,
    /// The cluster IPs among the node's addresses (NodeLocal DNSCache, an interface `kube-ipvs0` that was left behind). Their Service ports are
    /// routed, unless a local process keeps them.
    pub own_cluster_ips: &'i BTreeSet<IpAddr>,
    /// Also route Service ports on the node's other addresses.
    pub own_addresses: bool,
}

/// The action of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalAction {
    /// Into the internal port.
    Internal,
    /// Continue with the next table (`throw`): the kernel has a route of its own here.
    Throw,
}

/// A range of Service ports on an address of this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OwnPorts {
    /// The node's address.
    pub addr: IpAddr,
    /// The transport protocol.
    pub proto: Proto,
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
}

/// Numbers of entries beyond the limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PlanOverflow {
    /// Addresses beyond [`PlanLimits::routes_max`].
    pub routes: usize,
    /// Addresses of this node, by protocol, beyond [`PlanLimits::own_rules_max`].
    pub own: usize,
}

/// The routes and rules that the kernel should have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalPlan {
    /// Routes for addresses that are not the node's.
    pub routes: BTreeMap<Prefix, LocalAction>,
    /// Ports on the node's addresses. A range may include ports of no Service; nomagic returns those packets to the kernel.
    pub own: BTreeSet<OwnPorts>,
    /// Preferred source address by family.
    pub sources: [Option<IpAddr>; 2],
    /// nomagic's own connections, which have a mark, pass the rules.
    pub bypass: bool,
    /// Entries beyond the limits.
    pub left_out: PlanOverflow,
}

impl LocalPlan {
    /// Computes the plan.
    pub fn new(inputs: &PlanInputs<'_>, limits: &PlanLimits) -> LocalPlan {
        let has_source = |v6: bool| inputs.sources[usize::from(v6)].is_some();
        let mut plan = LocalPlan { sources: inputs.sources, ..LocalPlan::default() };
        let ranges = inputs.rules.service_cidrs.iter().filter(|p| has_source(p.addr().is_ipv6()));
        plan.routes.extend(ranges.map(|p| (*p, LocalAction::Internal)));
        // A part of a range with a route of the kernel stays with the kernel, except for the addresses of Services in it.
        let inside = |p: &&Prefix| inputs.rules.service_cidrs.iter().any(|range| is_part(p, range));
        plan.routes
            .extend(inputs.foreign.iter().filter(inside).filter(|p| has_source(p.addr().is_ipv6())).map(|p| (*p, LocalAction::Throw)));
        let covered = |addr: &IpAddr| {
            let longest = plan.routes.keys().filter(|p| p.contains(*addr)).max_by_key(|p| p.prefix_len());
            longest.is_some_and(|p| plan.routes.get(p) == Some(&LocalAction::Internal))
        };

        let mut hosts: BTreeSet<IpAddr> = BTreeSet::new();
        let mut own: BTreeMap<(IpAddr, Proto), BTreeSet<u16>> = BTreeMap::new();
        let rules = inputs.rules;
        hosts.extend(rules.addresses.iter().filter(|addr| !inputs.own.contains(addr)));
        for (addr, port, proto) in &rules.services {
            if !inputs.own.contains(addr) {
                hosts.insert(*addr);
            } else if (inputs.own_addresses || inputs.own_cluster_ips.contains(addr)) && has_source(addr.is_ipv6()) {
                own.entry((*addr, *proto)).or_default().insert(*port);
            }
        }
        hosts.retain(|addr| has_source(addr.is_ipv6()) && !covered(addr));
        let room = limits.routes_max.saturating_sub(plan.routes.len());
        plan.left_out.routes = hosts.len().saturating_sub(room);
        plan.routes.extend(hosts.iter().take(room).map(|addr| (Prefix::host(*addr), LocalAction::Internal)));

        plan.left_out.own = own.len().saturating_sub(limits.own_rules_max);
        let own: Vec<_> = own.into_iter().take(limits.own_rules_max).collect();
        plan.own = in_ranges(&own, limits.own_rules_max);
        plan
    }
}

/// Whether `inner` is a proper part of `outer`.
fn is_part(inner: &Prefix, outer: &Prefix) -> bool {
    inner.prefix_len() > outer.prefix_len() && outer.contains(inner.addr())
}

/// Covers all ports with at most `max` ranges (but at least one for each address and protocol), by closing the smallest gaps first.
fn in_ranges(own: &[((IpAddr, Proto), BTreeSet<u16>)], max: usize) -> BTreeSet<OwnPorts> {
    // Gaps by size.
    let mut gaps: Vec<(u16, usize, u16)> = Vec::new();
    for (group, (_, ports)) in own.iter().enumerate() {
        let pairs = ports.iter().zip(ports.iter().skip(1));
        gaps.extend(pairs.map(|(a, b)| (b - a - 1, group, *a)).filter(|(size, ..)| *size > 0));
    }
    gaps.sort_unstable();
    let ranges = own.len() + gaps.len();
    let open: BTreeSet<(usize, u16)> = gaps.iter().skip(ranges.saturating_sub(max)).map(|(_, group, after)| (*group, *after)).collect();
    let mut all = BTreeSet::new();
    for (group, ((addr, proto), ports)) in own.iter().enumerate() {
        let mut first = None;
        for port in ports {
            let begin = *first.get_or_insert(*port);
            if open.contains(&(group, *port)) || ports.last() == Some(port) {
                all.insert(OwnPorts { addr: *addr, proto: *proto, first: begin, last: *port });
                first = None;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules(cidrs: &[&str], addresses: &[&str], services: &[(&str, u16)]) -> FilterRules {
        FilterRules {
            service_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            services: services.iter().map(|(a, port)| (ip(a), *port, Proto::Tcp)).collect(),
        }
    }

    fn plan(rules: &FilterRules, own: &[&str], foreign: &[&str], limits: &PlanLimits) -> LocalPlan {
        let own = own.iter().map(|a| ip(a)).collect();
        let foreign = foreign.iter().map(|p| p.parse().unwrap()).collect();
        let sources = [Some(ip("10.0.0.1")), None];
        let own_cluster_ips = &BTreeSet::new();
        LocalPlan::new(&PlanInputs { rules, own: &own, sources, foreign: &foreign, own_cluster_ips, own_addresses: true }, limits)
    }

    fn routes(plan: &LocalPlan) -> Vec<String> {
        plan.routes.iter().map(|(p, action)| format!("{p}{}", if *action == LocalAction::Throw { " next" } else { "" })).collect()
    }

    #[test]
    fn ranges_and_addresses_outside_them_are_routed() {
        let rules = rules(
            &["10.96.0.0/12", "fd00:96::/64"],
            &["10.96.0.1", "10.200.0.1", "fd00:96::1"],
            &[("203.0.113.7", 80), ("203.0.113.7", 443), ("10.0.0.1", 30_080), ("10.96.0.10", 53)],
        );
        let plan = plan(&rules, &["10.0.0.1", "10.96.0.10"], &[], &PlanLimits::default());
        assert_eq!(routes(&plan), ["10.96.0.0/12", "10.200.0.1/32", "203.0.113.7/32"], "no source for IPv6");
        assert_eq!(plan.own.iter().map(|o| (o.addr, o.first)).collect::<Vec<_>>(), [(ip("10.0.0.1"), 30_080), (ip("10.96.0.10"), 53)]);
        assert_eq!(plan.left_out, PlanOverflow::default());
    }

    #[test]
    fn kernel_routes_inside_a_range_are_kept_except_for_services() {
        let rules = rules(&["10.0.0.0/8"], &["10.1.0.9", "10.9.0.1"], &[]);
        let plan = plan(&rules, &["10.1.0.1"], &["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/24"], &PlanLimits::default());
        assert_eq!(routes(&plan), ["10.0.0.0/8", "10.1.0.0/16 next", "10.1.0.9/32"]);
    }

    #[test]
    fn of_cluster_ips_on_the_node_the_ports_of_services_are_routed() {
        let rules = rules(&["10.96.0.0/12"], &[], &[("10.96.0.10", 53), ("10.0.0.1", 30_080)]);
        let own: BTreeSet<IpAddr> = [ip("10.96.0.10"), ip("10.0.0.1")].into();
        let (sources, foreign, own_cluster_ips) = ([Some(ip("10.0.0.1")), None], &BTreeSet::new(), &[ip("10.96.0.10")].into());
        let inputs = PlanInputs { rules: &rules, own: &own, sources, foreign, own_cluster_ips, own_addresses: false };
        let plan = LocalPlan::new(&inputs, &PlanLimits::default());
        let port = OwnPorts { addr: ip("10.96.0.10"), proto: Proto::Tcp, first: 53, last: 53 };
        assert_eq!((routes(&plan), plan.own), (vec!["10.96.0.0/12".to_string()], [port].into()));
    }

    #[test]
    fn entries_beyond_the_limits_are_counted() {
        let services: Vec<(String, u16)> = (0..10).map(|i| (format!("203.0.113.{i}"), 80)).collect();
        let services: Vec<(&str, u16)> = services.iter().map(|(a, p)| (a.as_str(), *p)).collect();
        let rules = rules(&["10.96.0.0/12"], &[], &services);
        let limits = PlanLimits { routes_max: 4, own_rules_max: 2 };
        let out = plan(&rules, &[], &[], &limits);
        assert_eq!((out.routes.len(), out.left_out), (4, PlanOverflow { routes: 7, own: 0 }));
        let own: Vec<&str> = services.iter().map(|(a, _)| *a).collect();
        let out = plan(&rules, &own, &[], &limits);
        assert_eq!((out.routes.len(), out.own.len(), out.left_out), (1, 2, PlanOverflow { routes: 0, own: 8 }));
    }

    #[test]
    fn ports_are_merged_into_ranges_smallest_gaps_first() {
        let ports = [30_000, 30_001, 30_002, 30_010, 30_012, 32_000];
        let services: Vec<(&str, u16)> = ports.iter().map(|p| ("10.0.0.1", *p)).collect();
        let rules = rules(&[], &[], &services);
        let ranges = |max| {
            let out = plan(&rules, &["10.0.0.1"], &[], &PlanLimits { routes_max: 9, own_rules_max: max });
            out.own.iter().map(|o| (o.first, o.last)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(9), [(30_000, 30_002), (30_010, 30_010), (30_012, 30_012), (32_000, 32_000)]);
        assert_eq!(ranges(3), [(30_000, 30_002), (30_010, 30_012), (32_000, 32_000)]);
        assert_eq!(ranges(2), [(30_000, 30_012), (32_000, 32_000)]);
        assert_eq!(ranges(1), [(30_000, 32_000)]);
    }
}
