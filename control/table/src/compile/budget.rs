//! Decides which Services the table has room for, before anything is built for them.
//!
//! Each Service's [`Demand`] is computed from its lists alone. While all demands fit, nothing is refused. Otherwise Services are refused whole, by
//! name, the largest first and among equals the newest: first in each namespace that asks for more than [`NAMESPACE_SHARE`] of a resource, then
//! among all. What is left fits, whatever a tenant writes; and the choice depends on the present objects alone, not on their order of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nomagic_core::capture::SERVICE_RULES_MAX;
use nomagic_core::maglev::Maglev;

use super::endpoints::Members;
use super::plan::Ground;
use crate::objects::{NamespacedName, Service};

/// A namespace may have one half of each resource.
const NAMESPACE_SHARE: u64 = 2;
/// Bytes of an endpoint of a Service port, beside its slots.
const BACKEND_BYTES: u64 = 96;

/// Places that a Service asks for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Demand {
    /// Addresses with ports outside of cluster IPs: each has a rule in the XDP filter.
    pub rules: u64,
    /// Cluster IPs with ports.
    pub frontends: u64,
    /// Cluster IPs: each has a rule in the XDP filter.
    pub cluster_ips: u64,
    /// Bytes of endpoints and of the tables that choose among them.
    pub pool_bytes: u64,
}

/// What all Services together may have.
pub const CAPACITY: Demand = Demand { rules: SERVICE_RULES_MAX as u64, frontends: 262_144, cluster_ips: 65_536, pool_bytes: 2 << 30 };

/// A resource of a [`Demand`], with the words for it.
struct Resource {
    of: fn(&Demand) -> u64,
    refusal: Refusal,
    /// Follows the number.
    words: &'static str,
}

const RESOURCES: [Resource; 4] = [
    Resource { of: |d| d.cluster_ips, refusal: Refusal::Whole, words: "cluster IPs" },
    Resource { of: |d| d.frontends, refusal: Refusal::Whole, words: "cluster IPs with ports" },
    Resource { of: |d| d.pool_bytes, refusal: Refusal::Whole, words: "bytes for endpoints, counted for each port" },
    Resource { of: |d| d.rules, refusal: Refusal::Outer, words: "node ports and external addresses with ports" },
];

/// How much of a Service is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Refusal {
    /// Node ports, load balancer and external addresses; the cluster IPs are served.
    Outer,
    /// Everything. Packets to its cluster IPs are left to the kernel.
    Whole,
}

/// A refusal with its cause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) what: Refusal,
    pub(super) message: String,
}

impl Demand {
    /// What a Service asks for.
    pub(super) fn of(service: &Service, ground: &Ground<'_>) -> Demand {
        let mut demand = Demand { cluster_ips: service.cluster_ips.len() as u64, ..Demand::default() };
        let (ports, node_ports) = (service.ports.len() as u64, service.ports.iter().filter(|p| p.node_port.is_some()).count() as u64);
        let members = Members::of(ground.index, &service.key);
        for v6 in service.cluster_ips.iter().map(IpAddr::is_ipv6) {
            let of_family = |ips: &[IpAddr]| ips.iter().filter(|ip| ip.is_ipv6() == v6).count() as u64;
            let outer = of_family(&service.load_balancer_ips) + of_family(&service.external_ips);
            // A cluster IP that is not taken whole has a rule for each port.
            let outer = outer + u64::from(service.ports_unread);
            let rules = outer * ports + node_ports * ground.node_port_ips[usize::from(v6)].len() as u64;
            demand.rules += rules;
            demand.frontends += ports;
            for port in &service.ports {
                demand.pool_bytes += pool_bytes(members.count(port, v6));
            }
        }
        demand
    }

    fn add(&mut self, other: &Demand, sign: i64) {
        let fields = [
            (&mut self.rules, other.rules),
            (&mut self.frontends, other.frontends),
            (&mut self.cluster_ips, other.cluster_ips),
            (&mut self.pool_bytes, other.pool_bytes),
        ];
        for (sum, part) in fields {
            *sum = sum.wrapping_add_signed(sign * part.cast_signed());
        }
    }
}

/// Endpoints and their tables, for both traffic policies.
fn pool_bytes(endpoints: usize) -> u64 {
    let slot = if endpoints <= usize::from(u16::MAX) { 2 } else { 4 };
    2 * (endpoints as u64 * BACKEND_BYTES + u64::from(Maglev::size_for(endpoints)) * slot)
}

/// A Service's demand and when it was made.
type Entry = (Demand, i64);

/// The demands of all Services.
#[derive(Debug)]
pub(super) struct Budget {
    capacity: Demand,
    demands: BTreeMap<NamespacedName, Entry>,
    total: Demand,
    namespaces: BTreeMap<String, Demand>,
    refused: BTreeMap<NamespacedName, Refused>,
}

impl Budget {
    pub(super) fn new(capacity: Demand) -> Budget {
        Budget { capacity, demands: BTreeMap::new(), total: Demand::default(), namespaces: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// An empty budget of the same capacity.
    pub(super) fn emptied(&self) -> Budget {
        Budget::new(self.capacity)
    }

    /// Sets the demand of a Service; `None`: it has none.
    pub(super) fn set(&mut self, key: &NamespacedName, demand: Option<Entry>) {
        let before = match demand {
            Some(entry) => self.demands.insert(key.clone(), entry),
            None => self.demands.remove(key),
        };
        for (entry, sign) in demand.iter().map(|e| (e, 1)).chain(before.iter().map(|e| (e, -1))) {
            self.total.add(&entry.0, sign);
            self.namespaces.entry(key.namespace.clone()).or_default().add(&entry.0, sign);
        }
        if self.namespaces.get(&key.namespace) == Some(&Demand::default()) {
            self.namespaces.remove(&key.namespace);
        }
    }

    /// Why a Service is refused; `None`: it is not.
    pub(super) fn refused(&self, key: &NamespacedName) -> Option<&Refused> {
        self.refused.get(key)
    }

    /// Decides again. Returns the Services whose refusal has changed.
    pub(super) fn settle(&mut self) -> BTreeSet<NamespacedName> {
        let mut refused = BTreeMap::new();
        for resource in &RESOURCES {
            self.refuse(resource, &mut refused);
        }
        let before = std::mem::replace(&mut self.refused, refused);
        let differs = |key: &&NamespacedName| self.refused.get(*key) != before.get(*key);
        before.keys().chain(self.refused.keys()).filter(differs).cloned().collect()
    }

    fn refuse(&self, resource: &Resource, refused: &mut BTreeMap<NamespacedName, Refused>) {
        let (most, total) = ((resource.of)(&self.capacity), (resource.of)(&self.total));
        let share = most / NAMESPACE_SHARE;
        // The usual case, for each change: no namespace can exceed its share.
        if total <= share {
            return;
        }
        let excess = |sum: &Demand| (resource.of)(sum) > share;
        let greedy: Vec<&String> = self.namespaces.iter().filter(|(_, sum)| excess(sum)).map(|(name, _)| name).collect();
        if greedy.is_empty() && total <= most {
            return;
        }
        // Those that are refused whole ask for nothing more.
        let mut asking: Vec<(&NamespacedName, u64, i64)> = self.demands.iter().map(|(k, (d, made))| (k, (resource.of)(d), *made)).collect();
        asking.retain(|(key, wanted, _)| *wanted > 0 && refused.get(*key).is_none_or(|r| r.what != Refusal::Whole));
        asking.sort_by(|a, b| (b.1, b.2, b.0).cmp(&(a.1, a.2, a.0)));
        for namespace in greedy {
            let of_namespace: Vec<_> = asking.iter().filter(|(key, ..)| key.namespace == *namespace).copied().collect();
            let whose = format!("those of namespace {namespace}");
            self.refuse_largest(resource, &of_namespace, share, &whose, refused);
        }
        asking.retain(|(key, ..)| refused.get(*key).is_none_or(|r| r.what < resource.refusal));
        self.refuse_largest(resource, &asking, most, "all Services", refused);
    }

    /// Refuses the first ones until the others fit.
    fn refuse_largest(
        &self,
        resource: &Resource,
        asking: &[(&NamespacedName, u64, i64)],
        most: u64,
        whose: &str,
        refused: &mut BTreeMap<NamespacedName, Refused>,
    ) {
        let mut sum: u64 = asking.iter().map(|(_, wanted, _)| wanted).sum();
        for (key, wanted, _) in asking {
            if sum <= most {
                return;
            }
            sum -= wanted;
            let consequence = match resource.refusal {
                Refusal::Outer => "it is served at its cluster IPs only",
                Refusal::Whole => "it is not served, and packets to its cluster IPs are left to the kernel",
            };
            let message = format!(
                "asks for {wanted} {}; {whose} may have {most} together, and of these Services it is the largest (of the largest, the newest): \
                 {consequence}. Split it, or remove ports, addresses or endpoints",
                resource.words
            );
            refused.insert((*key).clone(), Refused { what: resource.refusal, message });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Demand = Demand { rules: 100, frontends: 1_000, cluster_ips: 1_000, pool_bytes: 1_000 };

    fn key(namespace: &str, name: &str) -> NamespacedName {
        NamespacedName { namespace: namespace.into(), name: name.into() }
    }

    fn rules(n: u64) -> Demand {
        Demand { rules: n, frontends: n, cluster_ips: 1, pool_bytes: 1 }
    }

    fn names(budget: &Budget) -> Vec<String> {
        budget.refused.iter().map(|(key, r)| format!("{key} {:?}", r.what)).collect()
    }

    #[test]
    fn a_namespace_keeps_to_its_share_and_others_do_not_notice() {
        let mut budget = Budget::new(SMALL);
        for (namespace, name, wanted, made) in [("a", "old", 20, 1), ("a", "large", 31, 2), ("b", "b", 50, 3)] {
            budget.set(&key(namespace, name), Some((rules(wanted), made)));
        }
        assert_eq!(budget.settle(), [key("a", "large")].into());
        assert_eq!(names(&budget), ["a/large Outer"]);
        let refused = budget.refused(&key("a", "large")).unwrap();
        assert!(
            refused.message.starts_with("asks for 31 node ports") && refused.message.contains("namespace a may have 50"),
            "{refused:?}"
        );
        // A smaller neighbour more does not change whose turn it is.
        budget.set(&key("a", "small"), Some((rules(30), 4)));
        assert!(budget.settle().is_empty());
        budget.set(&key("a", "large"), None);
        assert_eq!(budget.settle(), [key("a", "large")].into());
        assert!(names(&budget).is_empty());
    }

    #[test]
    fn among_equals_the_newest_is_refused() {
        let mut budget = Budget::new(SMALL);
        for (namespace, made) in [("a", 5), ("b", 9), ("c", 7)] {
            budget.set(&key(namespace, "s"), Some((rules(40), made)));
        }
        budget.settle();
        assert_eq!(names(&budget), ["b/s Outer"]);
        budget.set(&key("d", "s"), Some((rules(1), 99)));
        budget.settle();
        assert_eq!(names(&budget), ["b/s Outer"], "81 of 100 are taken");
    }

    #[test]
    fn what_is_refused_whole_asks_for_no_rules() {
        let mut budget = Budget::new(SMALL);
        budget.set(&key("a", "deep"), Some((Demand { pool_bytes: 501, ..rules(50) }, 1)));
        budget.set(&key("a", "s"), Some((rules(50), 2)));
        budget.settle();
        assert_eq!(names(&budget), ["a/deep Whole"]);
    }

    /// Any order of changes leads to the same refusals as a budget from nothing, and what is not refused fits.
    #[test]
    fn the_order_of_changes_does_not_matter() {
        let mut budget = Budget::new(SMALL);
        let (mut seed, mut refused) = (3u64, 0);
        for _ in 0..3_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = key(["a", "b", "c"][(seed >> 33) as usize % 3], &((seed >> 40) % 8).to_string());
            let wanted = Demand { rules: (seed >> 48) % 40, frontends: (seed >> 44) % 300, cluster_ips: 1, pool_bytes: (seed >> 52) % 200 };
            budget.set(&key, ((seed >> 60) > 3).then_some((wanted, (seed >> 58).cast_signed() % 4)));
            budget.settle();
            let mut fresh = Budget::new(SMALL);
            budget.demands.iter().for_each(|(key, entry)| fresh.set(key, Some(*entry)));
            fresh.settle();
            assert_eq!((&budget.refused, budget.total, &budget.namespaces), (&fresh.refused, fresh.total, &fresh.namespaces));
            refused += budget.refused.len();
            for resource in &RESOURCES {
                let served = budget.demands.iter().filter(|(key, _)| budget.refused(key).is_none_or(|r| r.what < resource.refusal));
                assert!(served.map(|(_, (d, _))| (resource.of)(d)).sum::<u64>() <= (resource.of)(&SMALL));
            }
        }
        assert!(refused > 1_000, "hardly anything was refused: {refused}");
    }
}
