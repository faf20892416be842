//! The node's own connections to Services, kept on their way into the internal port while the tables and the kernel change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use nomagic_core::tuple::Prefix;
use nomagic_xsk::FilterRules;

use crate::compile::Settings;
use crate::config::LocalTrafficConfig;
use crate::net::Mirror;
use crate::net::local::{Inputs, Limits, LocalRoutes, Plan};

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
            Err(e) => self.say(format!("the node's own connections to Services are not all carried: {e}")),
        }
    }

    /// What is wrong at the moment.
    pub fn problems(&self) -> Vec<String> {
        let left_out = &self.plan.left_out;
        let mut problems: Vec<String> = self.fault.iter().cloned().collect();
        if left_out.routes > 0 {
            problems.push(format!(
                "localTraffic: {} addresses of Services have no route, {} is the limit",
                left_out.routes,
                Limits::default().routes_max
            ));
        }
        if left_out.own > 0 {
            let limit = Limits::default().own_rules_max;
            problems
                .push(format!("localTraffic: {} of the node's addresses (by protocol) have no rule, {limit} is the limit", left_out.own));
        }
        problems
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
        let foreign = rules.service_cidrs.iter().flat_map(|range| mirror.unicast_parts(range, internal)).take(FOREIGN_MAX).collect();
        NodeState { internal, sources: [source(false), source(true)], own, foreign }
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
