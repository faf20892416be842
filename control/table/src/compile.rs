//! Compiles objects into the service table of the packet path. Pure: index and settings in, [`Services`] out.
//!
//! All of kube-proxy's rules about readiness, traffic policies, topology and masquerading are applied here, once for each class of client;
//! the packet path only looks up the result. Where kube-proxy's modes differ, nomagic follows the nftables mode.

mod budget;
mod claims;
pub mod endpoints;
mod memory;
mod plan;
pub mod serving;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nomagic_core::capture::FilterRules;
use nomagic_core::hash::{WordHasher, WordSet};
use nomagic_core::services::{AddressKind, Frontend, Services};
use nomagic_core::tuple::HashSeed;

use crate::index::{Index, Touched};
use crate::objects::{NamespacedName, addr};
use crate::problem::Problem;
use crate::settings::Settings;
use budget::{Budget, Refusal};
pub use budget::{CAPACITY, Demand};
use claims::{Claims, KindRank, Rank};
use memory::Memory;
pub use memory::{Counted, CountedPort, PortKey, TARGETS_MAX};
use plan::{Address, Ground, Plan};

/// The state behind a `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub service: NamespacedName,
    /// Number of distinct addresses of local ready endpoints.
    pub local_endpoints: usize,
}

/// The result of a compilation.
#[derive(Debug)]
pub struct Compiled {
    pub services: Services,
    /// `healthCheckNodePort`s.
    pub health_checks: Arc<BTreeMap<u16, HealthCheck>>,
    /// Service ports with traffic policy Local and endpoints on other nodes only, by family: `(internal, external)`.
    pub no_local_endpoints: [(u64, u64); 2],
    /// Filter rules that the previous table did not need; all rules after a change of settings.
    pub opened: FilterRules,
    /// Whether some of the previous table's filter rules are no longer needed.
    pub closed: bool,
    /// All current problems of the objects.
    pub problems: Vec<Problem>,
}

/// Compiles tables incrementally. A table shares its unchanged parts with the previous one, so the cost of a change depends on its size only.
#[derive(Debug)]
pub struct Compiler {
    memory: Memory,
    /// The settings of the last table.
    settings: Option<Settings>,
    plans: HashMap<NamespacedName, Plan>,
    addresses: Claims<Address, Frontend, BuildHasherDefault<WordHasher>>,
    budget: Budget,
    /// Cluster IPs of Services that are not served, by how many name them.
    unserved_ips: BTreeMap<IpAddr, u32>,
    /// The Services that they are from.
    unserved: HashMap<NamespacedName, Vec<IpAddr>>,
    /// The Services that are served, except for ports that could not be read. Their cluster IPs are left to the kernel.
    half_read: BTreeSet<NamespacedName>,
    /// This node's addresses.
    own_ips: WordSet<IpAddr>,
    health: Claims<u16, usize, RandomState>,
    health_checks: Arc<BTreeMap<u16, HealthCheck>>,
    no_local_endpoints: [(u64, u64); 2],
    /// Services with problems in their plans.
    troubled: BTreeSet<NamespacedName>,
    services: Services,
    opened: FilterRules,
    closed: bool,
}

impl Compiler {
    /// `targets_max`: the number of (Service port, backend) pairs with their own counters; the others share index 0. See [`TARGETS_MAX`].
    pub fn new(targets_max: u32) -> Compiler {
        Compiler::with_capacity(targets_max, CAPACITY)
    }

    /// A compiler with room for less: what does not fit is refused by name.
    pub fn with_capacity(targets_max: u32, capacity: Demand) -> Compiler {
        Compiler {
            memory: Memory::new(targets_max),
            settings: None,
            plans: HashMap::new(),
            addresses: Claims::default(),
            budget: Budget::new(capacity),
            unserved_ips: BTreeMap::new(),
            unserved: HashMap::new(),
            half_read: BTreeSet::new(),
            own_ips: WordSet::default(),
            health: Claims::default(),
            health_checks: Arc::default(),
            no_local_endpoints: [(0, 0); 2],
            troubled: BTreeSet::new(),
            services: Services::empty(HashSeed::new(0)),
            opened: FilterRules::default(),
            closed: false,
        }
    }

    /// Compiles a table from scratch.
    pub fn compile(&mut self, index: &Index, settings: &Settings) -> Compiled {
        self.reset(settings);
        let ground = ground(index, settings);
        index.services().for_each(|service| self.ask(&ground, &service.key));
        self.budget.settle();
        index.services().for_each(|service| self.update(&ground, &service.key));
        self.memory.retain(|key| index.service(key).is_some());
        self.opened = FilterRules::of(&self.services);
        self.closed = true;
        self.finish(index)
    }

    /// Compiles a table from the last one; only `touched` objects have changed. The result equals that of [`Compiler::compile`].
    pub fn recompile(&mut self, index: &Index, settings: &Settings, touched: &Touched) -> Compiled {
        if !self.follow_settings(settings) {
            return self.compile(index, settings);
        }
        let ground = ground(index, settings);
        let mut concerned = touched.services_concerned(index);
        concerned.iter().for_each(|key| self.ask(&ground, key));
        concerned.extend(self.budget.settle());
        concerned.iter().for_each(|key| self.update(&ground, key));
        self.finish(index)
    }

    /// The pairs that have counters: `(index, Service port, backend address, backend port)`.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.memory.targets()
    }

    /// The Service ports, with their numbers of backends and of refused packets.
    pub fn ports(&self) -> impl Iterator<Item = CountedPort<'_>> {
        self.memory.ports()
    }

    /// Copies what [`Compiler::targets`] and [`Compiler::ports`] return.
    pub fn counted(&self) -> Counted {
        self.memory.counted()
    }

    /// Applies settings that change no plan: equal ones, or ones with other pod ranges. False: a compilation from scratch is needed.
    fn follow_settings(&mut self, new: &Settings) -> bool {
        let Some(old) = &self.settings else { return false };
        let same_pods = [false, true].iter().all(|v6| old.knows_pods(*v6) == new.knows_pods(*v6));
        let same_pods = same_pods && old.pod_ranges().eq(new.pod_ranges());
        let same = |old: &Settings| same_pods && Settings { cluster_cidrs: new.cluster_cidrs.clone(), ..old.clone() } == *new;
        if old == new {
            return true;
        }
        if !same(old) {
            return false;
        }
        self.services.set_pods(&new.cluster_cidrs);
        self.services.node_ips = node_clients(new);
        self.settings = Some(new.clone());
        true
    }

    /// Resets everything but counter indices and pools.
    fn reset(&mut self, settings: &Settings) {
        self.memory.set_seed(&settings.seed);
        self.settings = Some(settings.clone());
        let mut services = Services::empty(settings.seed);
        services.generation = self.services.generation;
        services.service_cidrs.clone_from(&settings.service_cidrs);
        services.incomplete = settings.incomplete;
        services.set_pods(&settings.cluster_cidrs);
        services.snat = settings.snat.clone();
        services.tcp_reject = settings.tcp_reject;
        services.unused_ports = settings.unused_ports;
        services.answer_ping = settings.answer_ping;
        services.mss = settings.mss;
        services.fragment = settings.fragment;
        services.reset_idle = settings.reset_idle;
        services.node_ips = node_clients(settings);
        self.services = services;
        self.plans.clear();
        self.own_ips = kernel_ips(settings);
        self.services.kernel_ips = self.own_ips.clone();
        (self.addresses, self.health, self.budget) = (Claims::default(), Claims::default(), self.budget.emptied());
        self.unserved_ips.clear();
        self.unserved.clear();
        self.half_read.clear();
        (self.health_checks, self.no_local_endpoints) = (Arc::default(), [(0, 0); 2]);
        self.troubled.clear();
    }

    /// Sets what a Service asks for.
    fn ask(&mut self, ground: &Ground<'_>, key: &NamespacedName) {
        let service = ground.index.service(key).filter(|s| s.ignored.is_none());
        self.budget.set(key, service.map(|s| (Demand::of(s, ground), s.created_s)));
    }

    /// Plans a Service again and applies the differences to the table.
    fn update(&mut self, ground: &Ground<'_>, key: &NamespacedName) {
        let old = self.plans.remove(key);
        let ports = old.as_ref().map_or(&[][..], |p| &p.ports);
        let (known, refused) = (ground.index.service(key), self.budget.refused(key));
        let refused_whole = refused.is_some_and(|r| r.what == Refusal::Whole);
        let unserved = known.filter(|s| s.ignored.is_some() || refused_whole || s.ports_unread).map(|s| s.cluster_ips.clone());
        let unserved = unserved.unwrap_or_default();
        let service = known.filter(|s| s.ignored.is_none());
        let mut new = self.memory.update(key, |memory| service.map(|s| plan::plan(ground, s, ports, refused, memory)));
        // The new plan first, so that counts of what both plans have never drop to zero.
        for (plan, sign) in new.iter().map(|p| (p, 1)).chain(old.iter().map(|p| (p, -1))) {
            self.count(plan, sign);
        }
        let frontends = new.as_mut().map(|p| std::mem::take(&mut p.frontends)).unwrap_or_default();
        fn claims(plan: Option<&Plan>) -> &[(Address, Rank)] {
            plan.map_or(&[], |p| &p.claims)
        }
        self.move_addresses(claims(old.as_ref()), claims(new.as_ref()), frontends);
        self.move_health_check(old.as_ref(), new.as_ref());
        if new.as_ref().is_some_and(|p| !p.problems.is_empty()) {
            self.troubled.insert(key.clone());
        } else {
            self.troubled.remove(key);
        }
        let ips: Vec<IpAddr> = old.iter().chain(&new).flat_map(|plan| &plan.cluster_ips).copied().collect();
        self.plans.extend(new.map(|p| (key.clone(), p)));
        let half_read = service.is_some_and(|s| s.ports_unread);
        // The rules for its ports may have become needless.
        self.closed |= self.half_read.remove(key);
        if half_read {
            self.half_read.insert(key.clone());
        }
        self.leave_to_kernel(key, unserved);
        ips.into_iter().for_each(|ip| self.settle_kernel_ip(ip));
        if half_read {
            self.open_ports(key, None);
        }
    }

    /// Opens the rules for the ports of a Service whose cluster IPs are left to the kernel; only at `at`, if that is given.
    fn open_ports(&mut self, key: &NamespacedName, at: Option<IpAddr>) {
        let claims = self.plans.get(key).map_or(&[][..], |plan| &plan.claims);
        let at_kernels = claims.iter().map(|(address, _)| *address).filter(|(ip, ..)| self.services.kernel_ips.contains(ip));
        self.opened.services.extend(at_kernels.filter(|(ip, ..)| at.is_none_or(|at| at == *ip)));
        self.closed = true;
    }

    /// Sets the cluster IPs of a Service that is not served: "nobody has it" would be wrong there.
    fn leave_to_kernel(&mut self, key: &NamespacedName, ips: Vec<IpAddr>) {
        let before = if ips.is_empty() { self.unserved.remove(key) } else { self.unserved.insert(key.clone(), ips.clone()) };
        let before = before.unwrap_or_default();
        ips.iter().for_each(|ip| *self.unserved_ips.entry(*ip).or_default() += 1);
        for ip in &before {
            match self.unserved_ips.get_mut(ip) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.unserved_ips.remove(ip)),
            }
        }
        before.iter().chain(&ips).for_each(|ip| self.settle_kernel_ip(*ip));
    }

    /// Whether an address is the kernel's: it is this node's, or a cluster IP of unserved Services only.
    fn settle_kernel_ip(&mut self, ip: IpAddr) {
        let kernels = self.own_ips.contains(&ip) || (self.unserved_ips.contains_key(&ip) && !self.services.cluster_ips.contains(&ip));
        let changed = if kernels { self.services.kernel_ips.insert(ip) } else { self.services.kernel_ips.remove(&ip) };
        if !changed {
            return;
        }
        self.closed = true;
        if kernels {
            let half_read: Vec<NamespacedName> = self.half_read.iter().cloned().collect();
            half_read.iter().for_each(|key| self.open_ports(key, Some(ip)));
        } else if self.services.cluster_ips.contains(&ip) {
            self.opened.addresses.insert(ip);
        }
    }

    /// Adds a plan's counts (sign 1) or subtracts them (sign -1).
    fn count(&mut self, plan: &Plan, sign: i64) {
        let signed = |count: u64| sign * count.cast_signed();
        self.services.ports = self.services.ports.wrapping_add_signed(sign as isize * plan.ports.len().cast_signed());
        for (all, of_plan) in self.no_local_endpoints.iter_mut().zip(&plan.no_local_endpoints) {
            all.0 = all.0.wrapping_add_signed(signed(of_plan.0));
            all.1 = all.1.wrapping_add_signed(signed(of_plan.1));
        }
        for ip in &plan.cluster_ips {
            let count = self.services.cluster_ips.get(ip).copied().unwrap_or(0).wrapping_add_signed(sign as i32);
            if count > 0 {
                let before = self.services.cluster_ips.insert(*ip, count);
                if before.is_none() && !self.own_ips.contains(ip) {
                    self.opened.addresses.insert(*ip);
                }
            } else {
                self.services.cluster_ips.remove(ip);
                self.closed = true;
            }
        }
    }

    fn move_addresses(&mut self, old: &[(Address, Rank)], new: &[(Address, Rank)], frontends: Vec<Frontend>) {
        let mut moved: Vec<Address> = Vec::new();
        if old != new {
            let kept: BTreeSet<&(Address, Rank)> = new.iter().collect();
            for (address, rank) in old.iter().filter(|claim| !kept.contains(claim)) {
                self.addresses.remove(*address, rank);
                moved.push(*address);
            }
        }
        for ((address, rank), frontend) in new.iter().zip(frontends) {
            if self.addresses.put(*address, rank, frontend, Frontend::same) {
                moved.push(*address);
            }
        }
        moved.iter().for_each(|address| self.settle(address));
    }

    /// Sets the frontend of an address to that of its holder.
    fn settle(&mut self, address: &Address) {
        let (ip, port, proto) = *address;
        let before = self.services.frontend(ip, port, proto);
        let holder = self.addresses.holder(address).map(|(_, frontend)| frontend);
        // Of the addresses that are the kernel's, only this node's matter here: those of half-read Services are for `open_ports`, and unserved
        // Services have no frontends.
        let has_rule = |frontend: &Frontend| frontend.kind != AddressKind::ClusterIp || self.own_ips.contains(&ip);
        match (before.is_some_and(has_rule), holder.is_some_and(has_rule)) {
            (false, true) => {
                self.opened.services.insert(*address);
            }
            (true, false) => self.closed = true,
            _ => {}
        }
        self.services.set_frontend(ip, port, proto, holder.cloned());
    }

    fn move_health_check(&mut self, old: Option<&Plan>, new: Option<&Plan>) {
        let rank = |plan: &Plan| Rank { kind: KindRank::NodePort, precedence: plan.precedence.clone(), place: 0 };
        let (before, after) = (old.and_then(|p| Some((rank(p), p.health_check?))), new.and_then(|p| Some((rank(p), p.health_check?))));
        if before == after {
            return;
        }
        if let Some((rank, (port, _))) = &before {
            self.health.remove(*port, rank);
        }
        if let Some((rank, (port, count))) = &after {
            self.health.put(*port, rank, *count, usize::eq);
        }
        let checks = Arc::make_mut(&mut self.health_checks);
        for port in before.iter().chain(&after).map(|(_, (port, _))| *port) {
            match self.health.holder(&port) {
                Some((rank, count)) => {
                    checks.insert(port, HealthCheck { service: rank.precedence.key.clone(), local_endpoints: *count });
                }
                None => drop(checks.remove(&port)),
            }
        }
    }

    fn finish(&mut self, index: &Index) -> Compiled {
        self.services.generation += 1;
        Compiled {
            services: self.services.clone(),
            health_checks: self.health_checks.clone(),
            no_local_endpoints: self.no_local_endpoints,
            opened: std::mem::take(&mut self.opened),
            closed: std::mem::take(&mut self.closed),
            problems: self.problems(index),
        }
    }

    fn problems(&self, index: &Index) -> Vec<Problem> {
        let of_plans = self.troubled.iter().filter_map(|key| self.plans.get(key)).flat_map(|p| &p.problems);
        let mut problems: Vec<Problem> = of_plans.cloned().collect();
        let mut note = |key: &NamespacedName, field: &str, message: String| {
            problems.extend(index.service(key).map(|service| plan::problem(service, field, message)));
        };
        for ((ip, port, proto), (holder, held), (rank, waits)) in self.addresses.waiting() {
            // A Service may name an address twice, for example as external IP and as load balancer IP.
            if Arc::ptr_eq(&held.port, &waits.port) {
                continue;
            }
            let (socket, kind) = (addr::socket(*ip, *port), held.kind.label());
            let message = format!(
                "{proto} {socket} is taken by Service {} ({kind}): cluster IPs come first, then node ports, load balancer addresses and external \
                 IPs, each by creation time and name; this Service does not answer there",
                holder.precedence.key
            );
            let service = index.service(&rank.precedence.key);
            let of_port = |p: &&crate::objects::ServicePortSpec| (&p.name, p.proto) == (&waits.port.port_name, waits.port.proto);
            let place = service.and_then(|s| s.ports.iter().find(of_port)).map_or(0, |p| p.index);
            note(&rank.precedence.key, &format!("spec.ports[{place}]"), message);
        }
        for (port, (holder, _), (rank, _)) in self.health.waiting() {
            let message = format!("{port} is already Service {}'s; it stays there", holder.precedence.key);
            note(&rank.precedence.key, "spec.healthCheckNodePort", message);
        }
        problems.extend(index.problems().cloned());
        problems
    }
}

/// The kernel's addresses of this node, on which only Service ports are taken.
fn kernel_ips(settings: &Settings) -> WordSet<IpAddr> {
    settings.kernel_ips.iter().chain(&settings.node.ips).chain(&settings.node.primary).copied().collect()
}

fn ground<'g>(index: &'g Index, settings: &'g Settings) -> Ground<'g> {
    Ground { index, settings, node_port_ips: [settings.node_port_ips(false), settings.node_port_ips(true)] }
}

/// The client addresses that count as the node itself. As in kube-proxy, an address of the node in the pod ranges (of its bridge to the pods)
/// counts as a pod.
fn node_clients(settings: &Settings) -> WordSet<IpAddr> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let pod = |ip: &IpAddr| settings.cluster_cidrs.iter().any(|c| c.contains(*ip));
    settings.node.ips.iter().chain(&settings.node.primary).copied().filter(|ip| !pod(ip)).chain(loopback).collect()
}

#[cfg(test)]
mod guest_tests;
#[cfg(test)]
mod incremental_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tests;
