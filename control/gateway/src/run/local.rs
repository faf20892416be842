//! Keeps the kernel routes and rules that lead the node's own connections to Services into the internal port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::Prefix;

use super::tables::CompiledTables;
use crate::config::{Config, LocalTrafficConfig};
use crate::net::Mirror;
use crate::net::local::{LocalPlan, LocalRoutes, PlanInputs, PlanLimits, PlanOverflow, RouteChanges};

/// Maximum number of the kernel's own routes inside Service ranges that are considered.
const FOREIGN_MAX: usize = 4_096;

/// Derives a [`LocalPlan`] from the XDP filter's rules and the node's addresses, and applies it.
pub struct LocalTraffic {
    config: LocalTrafficConfig,
    /// Objects come from an API server, whose connections must not be led into the internal port.
    bypass: bool,
    /// The kernel's end of the internal port.
    kernel_side: String,
    kernel: LocalRoutes,
    node: NodeState,
    plan: LocalPlan,
    /// The last error; logged once.
    fault: Option<String>,
}

/// The plan's inputs in addition to the filter rules.
#[derive(Clone, PartialEq, Eq, Default)]
struct NodeState {
    internal: u32,
    own: BTreeSet<IpAddr>,
    /// The cluster IPs among them.
    own_cluster_ips: BTreeSet<IpAddr>,
    sources: [Option<IpAddr>; 2],
    foreign: BTreeSet<Prefix>,
    /// The number of kernel routes beyond [`FOREIGN_MAX`].
    foreign_left_out: usize,
}

impl LocalTraffic {
    /// Changes nothing yet: routes of an earlier process stay until the first table is in force.
    pub fn open(config: &Config, kernel_side: &str) -> Result<LocalTraffic> {
        let (kernel, kernel_side) = (LocalRoutes::open()?, kernel_side.to_owned());
        let (config, bypass) = (config.local_traffic, config.kubernetes.is_some());
        Ok(LocalTraffic { config, bypass, kernel_side, kernel, node: NodeState::default(), plan: LocalPlan::default(), fault: None })
    }

    /// Renews the plan after a change of the filter rules.
    pub fn follow_filter(&mut self, rules: &FilterRules, mirror: &Mirror, tables: &CompiledTables) {
        self.node = self.node_state(rules, mirror, tables);
        self.renew(rules);
    }

    /// Renews the plan if the kernel's addresses or routes have changed.
    pub fn follow_kernel(&mut self, rules: &FilterRules, mirror: &Mirror, tables: &CompiledTables) {
        let node = self.node_state(rules, mirror, tables);
        if node != self.node {
            self.node = node;
            self.renew(rules);
        }
    }

    /// Applies the plan, which also repairs external changes.
    pub fn check(&mut self) {
        if self.node.internal == 0 {
            return;
        }
        match self.kernel.apply(&self.plan, self.node.internal) {
            Ok(changes) => {
                self.fault = None;
                if changes != RouteChanges::default() {
                    tracing::info!(
                        "the node's own connections to Services: {} routes and rules added, {} removed",
                        changes.added,
                        changes.removed
                    );
                }
            }
            Err(e) => self.log_once(format!(
                "localTraffic: cannot set all routes and rules that lead the node's own connections to Services into {}: {e}. Until it \
                 succeeds, the kubelet and pods on the host network may not reach Services; retrying every few seconds",
                self.kernel_side
            )),
        }
    }

    /// The current problems, as messages.
    pub fn problems(&self) -> Vec<String> {
        let foreign = if self.config.services { self.node.foreign_left_out } else { 0 };
        self.fault.iter().cloned().chain(shortages(&self.plan.left_out, foreign, &PlanLimits::default())).collect()
    }

    fn node_state(&self, rules: &FilterRules, mirror: &Mirror, tables: &CompiledTables) -> NodeState {
        let settings = tables.settings_in_force();
        let internal = mirror.ifindex(&self.kernel_side).unwrap_or_default();
        let own: BTreeSet<IpAddr> = mirror.own_addresses().collect();
        let usable = mirror.local_addresses();
        // A source must be assigned and not tentative. Any address of the node is better than the internal port's.
        let source = |v6: bool| {
            let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
            let primary = settings.node.primary.iter().filter(of_family).find(|ip| usable.contains(ip));
            primary.or_else(|| usable.iter().find(of_family)).copied()
        };
        let mut foreign: BTreeSet<Prefix> = rules.service_cidrs.iter().flat_map(|range| mirror.unicast_parts(range, internal)).collect();
        // Cluster IPs of Services that are not served here: another proxy may serve them.
        foreign.extend(tables.services().kernel_ips.iter().filter(|ip| !own.contains(*ip)).map(|ip| Prefix::host(*ip)));
        let foreign_left_out = foreign.len().saturating_sub(FOREIGN_MAX);
        if foreign_left_out > 0 {
            foreign = foreign.into_iter().take(FOREIGN_MAX).collect();
        }
        let own_cluster_ips = own.iter().filter(|ip| tables.services().cluster_ips.contains(ip)).copied().collect();
        NodeState { internal, sources: [source(false), source(true)], own, own_cluster_ips, foreign, foreign_left_out }
    }

    fn renew(&mut self, rules: &FilterRules) {
        let node = &self.node;
        let inputs = PlanInputs {
            rules,
            own: &node.own,
            sources: node.sources,
            foreign: &node.foreign,
            own_cluster_ips: &node.own_cluster_ips,
            own_addresses: self.config.own_addresses,
        };
        self.plan = if self.config.services { LocalPlan::new(&inputs, &PlanLimits::default()) } else { LocalPlan::default() };
        self.plan.bypass = self.config.services && self.bypass;
        self.check();
    }

    /// Logs an error unless it equals the last one.
    fn log_once(&mut self, fault: String) {
        if self.fault.as_ref() != Some(&fault) {
            tracing::error!("{fault}");
            self.fault = Some(fault);
        }
    }
}

/// Describes exceeded limits: the consequence and the remedy. `foreign` is the number of kernel routes beyond [`FOREIGN_MAX`].
fn shortages(left_out: &PlanOverflow, foreign: usize, limits: &PlanLimits) -> Vec<String> {
    let (routes, own) = (left_out.routes, left_out.own);
    let mut problems = Vec::new();
    if routes > 0 {
        problems.push(format!(
            "localTraffic: {routes} addresses of Services are not routed to nomagic, because the limit of {} routes is reached: the node's \
             own connections to them (from the kubelet and pods on the host network) are not carried; other clients are not affected. One \
             route covers a whole range: set the cluster IP ranges in serviceCIDRs or in ServiceCIDR objects",
            limits.routes_max
        ));
    }
    if own > 0 {
        problems.push(format!(
            "localTraffic: {own} of the node's addresses (counted per protocol) have no rule for Service ports, because the limit of {} rules \
             is reached: the node's own connections to Services there are not carried; other clients are not affected. Serve node ports on fewer \
             addresses (nodePortAddresses), and remove cluster IPs that an earlier kube-proxy left on the node (ip link delete kube-ipvs0)",
            limits.own_rules_max
        ));
    }
    if foreign > 0 {
        problems.push(format!(
            "localTraffic: {foreign} of the kernel's own routes into cluster IP ranges exceed the limit of {FOREIGN_MAX} and are not kept: packets \
             from the node to these destinations reach nomagic, which drops them because no Service has the address. Narrow serviceCIDRs (or \
             the ServiceCIDR objects) to the real cluster IP ranges, or set localTraffic.services to false"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeded_limits_are_reported() {
        let limits = PlanLimits { routes_max: 11, own_rules_max: 12 };
        for (routes, own, foreign, words) in [
            (0, 0, 0, &[][..]),
            (7, 0, 0, &[["7 addresses of Services", "the limit of 11 routes"]]),
            (0, 8, 0, &[["8 of the node's addresses", "the limit of 12 rules"]]),
            (0, 0, 9, &[["9 of the kernel's own routes", "the limit of 4096"]]),
            (1, 2, 3, &[["1 addresses", "11"], ["2 of the node's", "12"], ["3 of the kernel's", "4096"]]),
        ] {
            let problems = shortages(&PlanOverflow { routes, own }, foreign, &limits);
            assert_eq!(problems.len(), words.len(), "{problems:?}");
            for (text, words) in problems.iter().zip(words) {
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            }
        }
    }
}
