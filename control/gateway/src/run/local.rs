//! The node's own connections to Services, kept on their way into the internal port while the tables and the kernel change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::Prefix;

use crate::config::LocalTrafficConfig;
use crate::net::Mirror;
use crate::net::local::{Inputs, LeftOut, Limits, LocalRoutes, Plan};
use nomagic_table::settings::Settings;

/// Routes of the kernel's own inside of Service ranges that are looked at, at the most.
const FOREIGN_MAX: usize = 4_096;

/// Follows what the XDP filter takes and what addresses the node has.
pub struct LocalTraffic {
    config: LocalTrafficConfig,
    /// The kernel's end of the internal port.
    kernel_side: String,
    kernel: LocalRoutes,
    node: NodeState,
    plan: Plan,
    /// What went wrong last.
    fault: Option<String>,
}

/// What the plan follows from besides the filter.
#[derive(Clone, PartialEq, Eq, Default)]
struct NodeState {
    internal: u32,
    own: BTreeSet<IpAddr>,
    sources: [Option<IpAddr>; 2],
    foreign: BTreeSet<Prefix>,
    /// Routes of the kernel's own beyond [`FOREIGN_MAX`].
    foreign_left_out: usize,
}

impl LocalTraffic {
    /// Nothing is changed yet: what an earlier process has left goes on until the first table is in force.
    pub fn open(config: LocalTrafficConfig, kernel_side: &str) -> Result<LocalTraffic> {
        let (kernel, kernel_side) = (LocalRoutes::open()?, kernel_side.to_owned());
        Ok(LocalTraffic { config, kernel_side, kernel, node: NodeState::default(), plan: Plan::default(), fault: None })
    }

    /// The filter takes something else than before.
    pub fn follow_filter(&mut self, rules: &FilterRules, mirror: &Mirror, settings: &Settings) {
        self.node = self.node_state(rules, mirror, settings);
        self.renew(rules);
    }

    /// The kernel's addresses or routes may be others than before.
    pub fn follow_kernel(&mut self, rules: &FilterRules, mirror: &Mirror, settings: &Settings) {
        let node = self.node_state(rules, mirror, settings);
        if node != self.node {
            self.node = node;
            self.renew(rules);
        }
    }

    /// Repairs what others have changed.
    pub fn check(&mut self) {
        if self.node.internal == 0 {
            return;
        }
        match self.kernel.apply(&self.plan, self.node.internal) {
            Ok(changes) => {
                self.fault = None;
                if changes != Default::default() {
                    tracing::info!(
                        "the node's own connections to Services: {} routes and rules added, {} removed",
                        changes.added,
                        changes.removed
                    );
                }
            }
            Err(e) => self.say(format!(
                "localTraffic: the routes and rules that lead the node's own connections to Services into {} are not all there: {e}. Until they \
                 are, the kubelet and pods on the host's network may not reach Services; it is tried again every few seconds",
                self.kernel_side
            )),
        }
    }

    /// What is wrong at the moment.
    pub fn problems(&self) -> Vec<String> {
        let foreign = if self.config.services { self.node.foreign_left_out } else { 0 };
        self.fault.iter().cloned().chain(shortages(&self.plan.left_out, foreign, &Limits::default())).collect()
    }

    fn node_state(&self, rules: &FilterRules, mirror: &Mirror, settings: &Settings) -> NodeState {
        let internal = mirror.ifindex(&self.kernel_side).unwrap_or_default();
        let own: BTreeSet<IpAddr> = mirror.own_addresses().collect();
        let usable = mirror.local_addresses();
        // A source must be there, and no longer tentative; another one of the node's is better than that of the internal port.
        let source = |v6: bool| {
            let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
            let primary = settings.node.primary.iter().filter(of_family).find(|ip| usable.contains(ip));
            primary.or_else(|| usable.iter().find(of_family)).copied()
        };
        let mut foreign: BTreeSet<Prefix> = rules.service_cidrs.iter().flat_map(|range| mirror.unicast_parts(range, internal)).collect();
        let foreign_left_out = foreign.len().saturating_sub(FOREIGN_MAX);
        if foreign_left_out > 0 {
            foreign = foreign.into_iter().take(FOREIGN_MAX).collect();
        }
        NodeState { internal, sources: [source(false), source(true)], own, foreign, foreign_left_out }
    }

    fn renew(&mut self, rules: &FilterRules) {
        let node = &self.node;
        let inputs =
            Inputs { rules, own: &node.own, sources: node.sources, foreign: &node.foreign, own_addresses: self.config.own_addresses };
        self.plan = if self.config.services { Plan::new(&inputs, &Limits::default()) } else { Plan::default() };
        self.check();
    }

    /// The same is said once.
    fn say(&mut self, fault: String) {
        if self.fault.as_ref() != Some(&fault) {
            tracing::error!("{fault}");
            self.fault = Some(fault);
        }
    }
}

/// What had no room, what follows, and what helps. `foreign`: routes of the kernel's own beyond [`FOREIGN_MAX`].
fn shortages(left_out: &LeftOut, foreign: usize, limits: &Limits) -> Vec<String> {
    let (routes, own) = (left_out.routes, left_out.own);
    let mut problems = Vec::new();
    if routes > 0 {
        problems.push(format!(
            "localTraffic: {routes} addresses of Services are not routed to nomagic, because the {} routes that it may have are used up: the \
             node's own connections to them (the kubelet's, those of pods on the host's network) are not carried; everybody else's are. One \
             route serves a whole range: name the ranges of cluster IPs in serviceCIDRs, or in ServiceCIDR objects",
            limits.routes_max
        ));
    }
    if own > 0 {
        problems.push(format!(
            "localTraffic: {own} of the node's addresses (each protocol counts for itself) have no rule for ports of Services, because the {} \
             rules that there may be are used up: the node's own connections to node ports there are not carried; everybody else's are. Serve \
             node ports on fewer addresses: nodePortAddresses",
            limits.own_rules_max
        ));
    }
    if foreign > 0 {
        problems.push(format!(
            "localTraffic: {foreign} of the kernel's own routes into ranges of cluster IPs are not kept, {FOREIGN_MAX} are: what the node itself \
             sends there comes to nomagic, which drops it as sent to addresses of no Service. Narrow serviceCIDRs (or the ServiceCIDR objects) \
             to where cluster IPs are, or set localTraffic.services to false"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_no_room_is_named() {
        let limits = Limits { routes_max: 11, own_rules_max: 12 };
        for (routes, own, foreign, words) in [
            (0, 0, 0, &[][..]),
            (7, 0, 0, &[["7 addresses of Services", "the 11 routes"]]),
            (0, 8, 0, &[["8 of the node's addresses", "the 12 rules"]]),
            (0, 0, 9, &[["9 of the kernel's own routes", "4096 are"]]),
            (1, 2, 3, &[["1 addresses", "11"], ["2 of the node's", "12"], ["3 of the kernel's", "4096"]]),
        ] {
            let said = shortages(&LeftOut { routes, own }, foreign, &limits);
            assert_eq!(said.len(), words.len(), "{said:?}");
            for (text, words) in said.iter().zip(words) {
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            }
        }
    }
}
