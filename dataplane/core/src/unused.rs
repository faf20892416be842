//! Rules of the XDP filter that no flow needs any more.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::capture::FilterRules;
use crate::conntrack::Conntrack;
use crate::tuple::{Proto, words_addr};

/// Rules that had no flow when the connection table was looked through. Only these may be taken out of the filter: a flow that lost its rule would
/// go on past this dataplane.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Unused(FilterRules);

impl Unused {
    /// Of these rules, those without a flow. No Service may have them any more, so that none begins meanwhile.
    pub fn of(mut rules: FilterRules, table: Conntrack<'_>) -> Unused {
        let mut used: HashSet<(IpAddr, u16, Proto)> = HashSet::new();
        table.for_each(|_, flow| {
            used.insert((words_addr(flow.service, flow.v6), flow.service_port, flow.proto));
        });
        let addresses: HashSet<IpAddr> = used.iter().map(|(addr, ..)| *addr).collect();
        rules.services.retain(|service| !used.contains(service));
        rules.addresses.retain(|addr| !addresses.contains(addr));
        rules.service_cidrs.retain(|prefix| !addresses.iter().any(|a| prefix.contains(*a)));
        Unused(rules)
    }

    /// The others stay: they are needed again.
    pub fn without(&self, reopened: &FilterRules) -> Unused {
        Unused(self.0.without(reopened))
    }

    /// What they are.
    pub fn rules(&self) -> &FilterRules {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::{Flow, Phase};
    use crate::tuple::addr_words;
    use std::sync::atomic::AtomicU64;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flow_keeps_every_rule_that_its_packets_need() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(&words, 8, 1, [0, 0]).unwrap();
        let needed = FilterRules {
            services: [(ip("10.96.0.1"), 80, Proto::Tcp)].into(),
            addresses: [ip("10.96.0.1")].into(),
            service_cidrs: ["10.96.0.0/16".parse().unwrap()].into(),
        };
        let others = FilterRules {
            services: [(ip("10.96.0.1"), 80, Proto::Udp), (ip("10.96.0.1"), 81, Proto::Tcp), (ip("10.96.0.2"), 80, Proto::Tcp)].into(),
            addresses: [ip("10.96.0.2"), ip("10.0.0.9")].into(),
            service_cidrs: ["10.97.0.0/16".parse().unwrap()].into(),
        };
        let mut all = needed;
        all.extend(others.clone());
        assert_eq!(Unused::of(all.clone(), table).rules(), &all, "there is no flow");

        let words = |text| addr_words(ip(text)).0;
        let mut flow = Flow {
            proto: Proto::Tcp,
            v6: false,
            announced: false,
            client: words("10.0.0.9"),
            client_port: 1000,
            service: words("10.96.0.1"),
            service_port: 80,
            backend: words("192.168.0.1"),
            backend_port: 8080,
            source: words("10.0.0.1"),
            source_port: 61_000,
            stats: 0,
            counted: None,
        };
        let hash = table.hash(&flow.original());
        let pending = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, 2), 0, std::iter::once(61_000)).unwrap();
        let hit = table.commit(pending).unwrap();
        let unused = Unused::of(all.clone(), table);
        assert_eq!(unused.rules(), &others);
        assert_eq!(unused.without(&others).rules(), &FilterRules::default(), "what is needed again stays");
        assert!(table.end(&hit).is_some());
        assert_eq!(Unused::of(all.clone(), table).rules(), &all, "the flow is gone");
    }
}
