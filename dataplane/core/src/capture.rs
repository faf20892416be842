//! Capture rules: which frames the XDP filter takes from the wire, by destination. (Replies have no rules. Each flow's
//! reply is announced: see [`filter`](crate::filter). A rule for the SNAT ports would capture the node's own connections.)

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use crate::services::{AddressKind, Frontend, Services};
use crate::tuple::{Prefix, Proto, Tuple};

/// How many rules for an address and port ([`FilterRules::services`]) a table may need.
pub const SERVICE_RULES_MAX: usize = 262_144;

/// Captured destinations; everything else stays with the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FilterRules {
    /// Exactly this address, port and protocol: node ports, external and load balancer addresses, and cluster IPs that the node has too.
    pub services: HashSet<(IpAddr, u16, Proto)>,
    /// Every port of these addresses: cluster IPs, whose unused ports are rejected. Not those in [`Services::kernel_ips`].
    pub addresses: HashSet<IpAddr>,
    /// Every port in these ranges: Service ranges, whose unallocated addresses are dropped. Not [`Services::kernel_ips`] in them: the filter has
    /// these, too, and takes them by [`FilterRules::services`] only.
    pub service_cidrs: HashSet<Prefix>,
}

/// Whether a table's frontend at an address needs a rule of its own in [`FilterRules::services`]. Cluster IPs are taken whole, but for those that
/// are the kernel's.
pub fn has_own_rule(services: &Services, addr: IpAddr, frontend: &Frontend) -> bool {
    frontend.kind != AddressKind::ClusterIp || services.kernel_ips.contains(&addr)
}

/// Whether the rules that a service table needs take a packet, by its destination.
pub fn takes(services: &Services, packet: &Tuple) -> bool {
    let dst = packet.dst_addr();
    if services.frontend(dst, packet.dport, packet.proto).is_some_and(|f| has_own_rule(services, dst, f)) {
        return true;
    }
    takes_whole(services, dst)
}

/// Whether the rules that a service table needs take every port of an address.
pub fn takes_whole(services: &Services, dst: IpAddr) -> bool {
    let whole = services.cluster_ips.contains(&dst) || services.service_cidrs.iter().any(|range| range.contains(dst));
    whole && !services.kernel_ips.contains(&dst)
}

impl FilterRules {
    /// The rules that a service table needs.
    pub fn of(services: &Services) -> FilterRules {
        let own = services.frontends().filter(|(addr, .., frontend)| has_own_rule(services, *addr, frontend));
        FilterRules {
            services: own.map(|(addr, port, proto, _)| (addr, port, proto)).collect(),
            addresses: services.cluster_ips.iter().map(|(addr, _)| *addr).filter(|addr| !services.kernel_ips.contains(addr)).collect(),
            service_cidrs: services.service_cidrs.iter().copied().collect(),
        }
    }

    /// The rules in here that a service table does not need: [`FilterRules::without`] those [`FilterRules::of`] it, but visits only these
    /// rules, not the whole table.
    pub fn not_needed_by(&self, services: &Services) -> FilterRules {
        let needed = |(addr, port, proto): &(IpAddr, u16, Proto)| {
            services.frontend(*addr, *port, *proto).is_some_and(|frontend| has_own_rule(services, *addr, frontend))
        };
        let whole = |addr: &IpAddr| services.cluster_ips.contains(addr) && !services.kernel_ips.contains(addr);
        FilterRules {
            services: self.services.iter().filter(|rule| !needed(rule)).copied().collect(),
            addresses: self.addresses.iter().filter(|addr| !whole(addr)).copied().collect(),
            service_cidrs: self.service_cidrs.iter().filter(|cidr| !services.service_cidrs.contains(cidr)).copied().collect(),
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
        }
    }

    /// Adds the rules of another.
    pub fn extend(&mut self, other: FilterRules) {
        self.services.extend(other.services);
        self.addresses.extend(other.addresses);
        self.service_cidrs.extend(other.service_cidrs);
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.services.len() + self.addresses.len() + self.service_cidrs.len()
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
    use crate::services::{Action, Limits, ServicePort};
    use crate::tuple::HashSeed;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A Service of one cluster IP and one external address.
    fn services(port: u16) -> Services {
        let mut services = Services::empty(HashSeed::new(1));
        let name = ServicePort {
            namespace: "n".into(),
            name: "s".into(),
            port_name: String::new(),
            port,
            proto: Proto::Tcp,
            affinity: None,
            limits: Limits::default(),
            refused: Arc::default(),
        };
        let owner = Arc::new(name);
        for (addr, kind) in [("10.96.0.1", AddressKind::ClusterIp), ("203.0.113.7", AddressKind::ExternalIp)] {
            let action = || Action::Reject(Reason::NoEndpoints);
            let (pod, node, external) = (action(), action(), action());
            let frontend = Frontend { port: owner.clone(), kind, pod, node, external, source_ranges: None };
            services.add_frontend(ip(addr), port, Proto::Tcp, frontend).unwrap();
        }
        services.cluster_ips.insert(ip("10.96.0.1"), 1);
        services.service_cidrs.push("10.96.0.0/16".parse().unwrap());
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
        };
        assert_eq!((rules.len(), &rules), (3, &expected));
        assert!(rules.not_needed_by(&old).is_empty());
        let empty = Services::empty(HashSeed::new(1));
        for table in [&old, &new, &empty] {
            assert_eq!(rules.not_needed_by(table), rules.without(&FilterRules::of(table)));
        }
        assert_eq!((rules.not_needed_by(&new).len(), rules.not_needed_by(&empty)), (1, expected));
    }

    #[test]
    fn a_table_takes_what_its_rules_name() {
        let table = services(80);
        let rules = FilterRules::of(&table);
        let mut taken = Vec::new();
        for dst in ["203.0.113.7", "203.0.113.8", "10.96.0.1", "10.96.7.7", "10.97.0.1"] {
            for (port, proto) in [(80, Proto::Tcp), (81, Proto::Tcp), (80, Proto::Udp)] {
                let packet = Tuple::new(proto, ip("192.0.2.1"), 1_000, ip(dst), port).unwrap();
                let named = rules.services.contains(&(ip(dst), port, proto))
                    || rules.addresses.contains(&ip(dst))
                    || rules.service_cidrs.iter().any(|range| range.contains(ip(dst)));
                assert_eq!(takes(&table, &packet), named, "{packet}");
                taken.extend(named.then(|| packet.to_string()));
            }
        }
        assert_eq!((taken.len(), taken[0].as_str()), (7, "tcp 192.0.2.1:1000 -> 203.0.113.7:80"));
    }

    #[test]
    fn differences_and_sums() {
        let addr = ip("10.0.0.1");
        let one = FilterRules { addresses: [addr].into(), services: [(addr, 1, Proto::Tcp)].into(), ..FilterRules::default() };
        let two = FilterRules { services: [(addr, 1, Proto::Udp)].into(), ..FilterRules::default() };
        assert_eq!(one.without(&two), one);
        assert!(one.without(&one).is_empty());
        let mut both = one.clone();
        both.extend(two.clone());
        assert_eq!((both.len(), both.without(&one), both.without(&two)), (3, two, one));
    }
}
