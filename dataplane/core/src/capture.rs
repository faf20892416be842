//! Capture rules: which frames the XDP filter takes from the wire, by destination. (Replies of flows without SNAT, which go to clients, are
//! announced one by one: see [`filter`](crate::filter).)

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use crate::services::{AddressKind, Frontend, Services, SnatRange};
use crate::tuple::{Prefix, Proto};

/// Captured destinations; everything else stays with the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FilterRules {
    /// Exactly this address, port and protocol: node ports, external and load balancer addresses.
    pub services: HashSet<(IpAddr, u16, Proto)>,
    /// Every port of these addresses: cluster IPs, whose unused ports are rejected.
    pub addresses: HashSet<IpAddr>,
    /// Every port in these ranges: Service ranges, whose unallocated addresses are dropped.
    pub service_cidrs: HashSet<Prefix>,
    /// Replies to replaced sources: address, first and last port.
    pub snat: HashSet<(IpAddr, u16, u16)>,
}

/// Whether a frontend needs a rule of its own in [`FilterRules::services`]. Cluster IPs are taken whole.
pub fn has_own_rule(frontend: &Frontend) -> bool {
    frontend.kind != AddressKind::ClusterIp
}

fn snat_ranges(range: &SnatRange) -> impl Iterator<Item = (IpAddr, u16, u16)> {
    [range.v4, range.v6].into_iter().flatten().map(|addr| (addr, range.port_first, range.port_last))
}

impl FilterRules {
    /// The rules that a service table needs.
    pub fn of(services: &Services) -> FilterRules {
        let outer = services.frontends().filter(|(.., frontend)| has_own_rule(frontend));
        FilterRules {
            services: outer.map(|(addr, port, proto, _)| (addr, port, proto)).collect(),
            addresses: services.cluster_ips.iter().map(|(addr, _)| *addr).collect(),
            service_cidrs: services.service_cidrs.iter().copied().collect(),
            snat: snat_ranges(&services.snat).collect(),
        }
    }

    /// The rules in here that a service table does not need: [`FilterRules::without`] those [`FilterRules::of`] it, but visits only these
    /// rules, not the whole table.
    pub fn not_needed_by(&self, services: &Services) -> FilterRules {
        let needed = |(addr, port, proto): &(IpAddr, u16, Proto)| services.frontend(*addr, *port, *proto).is_some_and(has_own_rule);
        let ranges: Vec<_> = snat_ranges(&services.snat).collect();
        FilterRules {
            services: self.services.iter().filter(|rule| !needed(rule)).copied().collect(),
            addresses: self.addresses.iter().filter(|addr| !services.cluster_ips.contains(addr)).copied().collect(),
            service_cidrs: self.service_cidrs.iter().filter(|cidr| !services.service_cidrs.contains(cidr)).copied().collect(),
            snat: self.snat.iter().filter(|range| !ranges.contains(range)).copied().collect(),
        }
    }

    /// The rules in `self` that are not in `other`.
    pub fn without(&self, other: &FilterRules) -> FilterRules {
        fn minus<T: Copy + Eq + Hash>(a: &HashSet<T>, b: &HashSet<T>) -> HashSet<T> {
            a.difference(b).copied().collect()
        }
        FilterRules {
            services: minus(&self.services, &other.services),
            addresses: minus(&self.addresses, &other.addresses),
            service_cidrs: minus(&self.service_cidrs, &other.service_cidrs),
            snat: minus(&self.snat, &other.snat),
        }
    }

    /// Adds the rules of another.
    pub fn extend(&mut self, other: FilterRules) {
        self.services.extend(other.services);
        self.addresses.extend(other.addresses);
        self.service_cidrs.extend(other.service_cidrs);
        self.snat.extend(other.snat);
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.services.len() + self.addresses.len() + self.service_cidrs.len() + self.snat.len()
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reason::Reason;
    use crate::services::{Action, ServicePort};
    use crate::tuple::HashSeed;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A Service of one cluster IP and one external address.
    fn services(port: u16) -> Services {
        let mut services = Services::empty(HashSeed::new(1));
        let name =
            ServicePort { namespace: "n".into(), name: "s".into(), port_name: String::new(), port, proto: Proto::Tcp, affinity: None };
        let owner = Arc::new(name);
        for (addr, kind) in [("10.96.0.1", AddressKind::ClusterIp), ("203.0.113.7", AddressKind::ExternalIp)] {
            let action = || Action::Reject(Reason::NoEndpoints);
            let (pod, node, external) = (action(), action(), action());
            let frontend = Frontend { port: owner.clone(), kind, pod, node, external, source_ranges: None };
            services.add_frontend(ip(addr), port, Proto::Tcp, frontend).unwrap();
        }
        services.cluster_ips.insert(ip("10.96.0.1"), 1);
        services.service_cidrs.push("10.96.0.0/16".parse().unwrap());
        services.snat = SnatRange { v4: Some(ip("10.0.0.1")), port_first: 61_000, port_last: 61_999, ..SnatRange::default() };
        services
    }

    #[test]
    fn a_table_needs_its_own_rules_and_no_others() {
        let (old, new) = (services(80), services(81));
        let rules = FilterRules::of(&old);
        let expected = FilterRules {
            services: [(ip("203.0.113.7"), 80, Proto::Tcp)].into(),
            addresses: [ip("10.96.0.1")].into(),
            service_cidrs: ["10.96.0.0/16".parse().unwrap()].into(),
            snat: [(ip("10.0.0.1"), 61_000, 61_999)].into(),
        };
        assert_eq!((rules.len(), &rules), (4, &expected));
        assert!(rules.not_needed_by(&old).is_empty());
        let empty = Services::empty(HashSeed::new(1));
        for table in [&old, &new, &empty] {
            assert_eq!(rules.not_needed_by(table), rules.without(&FilterRules::of(table)));
        }
        assert_eq!((rules.not_needed_by(&new).len(), rules.not_needed_by(&empty)), (1, expected));
    }

    #[test]
    fn differences_and_sums() {
        let addr = ip("10.0.0.1");
        let one = FilterRules { addresses: [addr].into(), snat: [(addr, 1, 2)].into(), ..FilterRules::default() };
        let two = FilterRules { snat: [(addr, 1, 3)].into(), ..FilterRules::default() };
        assert_eq!(one.without(&two), one);
        assert!(one.without(&one).is_empty());
        let mut both = one.clone();
        both.extend(two.clone());
        assert_eq!((both.len(), both.without(&one), both.without(&two)), (3, two, one));
    }
}
