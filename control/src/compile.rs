//! From objects to the table that the packet path asks. Pure: index and settings in, [`Services`] and names out.
//!
//! All of kube-proxy's rules about readiness, traffic policies, topology and masquerading are decided here, once, for each class of
//! client; the packet path only looks up. Where kube-proxy's modes differ, nomagic does as the nftables mode does.

pub mod endpoints;
mod filter;
mod memory;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nomagic_core::hash::WordSet;
use nomagic_core::reason::Reason;
use nomagic_core::services::{Action, AddressKind, Affinity, Frontend, Pool, ServicePort, Services, SnatRange};
use nomagic_core::tuple::{HashSeed, Prefix, Proto};

use crate::config::NodePortAddresses;
use crate::index::Index;
use crate::objects::{Key, Policy, Port, Service, addr};
use crate::problem::Problem;
use endpoints::{Class, Selection};
pub use filter::{FilterRules, filter_rules};
use memory::Memory;
pub use memory::{PortKey, TARGETS_MAX};

/// Addresses with ports in a table at the most.
const FRONTENDS_MAX: usize = 4_000_000;
/// Endpoints of one Service port and family at the most.
const BACKENDS_MAX: usize = 500_000;

/// Who this node is.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The Node object's name: endpoints with this `nodeName` are local.
    pub name: String,
    /// All of its addresses.
    pub ips: Vec<IpAddr>,
    /// Its InternalIPs, at most one a family.
    pub primary: Vec<IpAddr>,
    /// Its zone, for topology hints.
    pub zone: Option<String>,
}

/// What decisions depend on besides the objects.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Who this node is.
    pub node: Node,
    /// Pod ranges.
    pub cluster_cidrs: Vec<Prefix>,
    /// Ranges of cluster IPs.
    pub service_cidrs: Vec<Prefix>,
    /// Replace the client's address on every connection to a cluster IP.
    pub masquerade_all: bool,
    /// kube-proxy's `localhostNodePorts`; only `explain` mentions it.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Source NAT.
    pub snat: SnatRange,
    /// Seed of the hash.
    pub seed: HashSeed,
}

impl Settings {
    /// Whether pods of a family can be told from other clients: only then cluster IP traffic of others is masqueraded.
    pub fn knows_pods(&self, v6: bool) -> bool {
        self.cluster_cidrs.iter().any(|c| c.addr().is_ipv6() == v6)
    }

    /// The node's addresses of a family on which node ports answer.
    pub fn node_port_ips(&self, v6: bool) -> Vec<IpAddr> {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6 && addr::fault(**ip).is_none();
        let NodePortAddresses::Cidrs(cidrs) = &self.node_port_addresses else {
            return self.node.primary.iter().filter(of_family).copied().collect();
        };
        let cidrs: Vec<&Prefix> = cidrs.iter().filter(|c| c.addr().is_ipv6() == v6).collect();
        let allowed = |ip: &&IpAddr| cidrs.is_empty() || cidrs.iter().any(|c| c.contains(**ip));
        self.node.ips.iter().filter(of_family).filter(allowed).copied().collect()
    }
}

/// What the table's numbers stand for, and what is known about addresses that are not in it.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By [`Frontend::service_port`]: the Service and the port's place in [`Service::ports`].
    pub ports: Vec<(Key, usize)>,
    /// Whose cluster IP it is.
    pub cluster_ips: HashMap<IpAddr, Key>,
    /// Whose node port it is: by (port, protocol, IPv6) to a place in `ports`.
    pub node_ports: HashMap<(u16, Proto, bool), u32>,
    /// Load balancer addresses with `ipMode: Proxy`.
    pub proxied: HashMap<IpAddr, Key>,
    /// `healthCheckNodePort`s.
    pub health_checks: BTreeMap<u16, HealthCheck>,
    /// Service ports whose policy asks for endpoints of this node and finds them elsewhere only, by family: `(internal, external)`.
    pub no_local_endpoints: [(u64, u64); 2],
}

/// What a load balancer asks a node: has it endpoints of this Service?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The Service.
    pub service: Key,
    /// Its distinct local ready addresses.
    pub local_endpoints: usize,
}

/// A finished table.
#[derive(Debug)]
pub struct Compiled {
    /// For the packet path.
    pub services: Services,
    /// For people.
    pub names: Names,
    /// Everything that is wrong with the objects at this moment.
    pub problems: Vec<Problem>,
}

/// Compiles, and remembers what lasts from one table to the next: places of counters and unchanged pools.
#[derive(Debug)]
pub struct Compiler {
    memory: Memory,
    generation: u64,
}

impl Compiler {
    /// `targets_max`: how many (Service port, backend) pairs have counters of their own; the others share place 0. See [`TARGETS_MAX`].
    pub fn new(targets_max: u32) -> Compiler {
        Compiler { memory: Memory::new(targets_max), generation: 0 }
    }

    /// The table for these objects.
    pub fn compile(&mut self, index: &Index, settings: &Settings) -> Compiled {
        self.generation += 1;
        self.memory.begin(&settings.seed);
        let mut builder = Builder::new(index, settings, &mut self.memory);
        builder.services.generation = self.generation;
        let mut served: Vec<&Service> = index.services().map(|s| &**s).filter(|s| s.ignored.is_none()).collect();
        served.sort_by(|a, b| (a.created_s, &a.key).cmp(&(b.created_s, &b.key)));
        let plans: Vec<Plan<'_>> = served.iter().flat_map(|s| builder.plan(s)).collect();
        // As in kube-proxy, a packet is first looked up among the Services' own addresses, then among node ports.
        plans.iter().for_each(|p| builder.add_service_addresses(p));
        plans.iter().for_each(|p| builder.add_node_ports(p));
        let (services, names, mut problems) = (builder.services, builder.names, builder.problems);
        self.memory.finish();
        problems.extend(index.problems().cloned());
        Compiled { services, names, problems }
    }

    /// The pairs that have counters now: `(place, Service port, backend's address, its port)`.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.memory.targets()
    }
}

/// One port of a Service in one family, with its decisions made.
struct Plan<'i> {
    service: &'i Service,
    port: &'i Port,
    v6: bool,
    /// Place in [`Services::ports`].
    id: u32,
    internal: Actions,
    external: Actions,
}

/// Decisions by the client's class.
#[derive(Clone, Copy)]
struct Actions {
    pod: Action,
    node: Action,
    external: Action,
}

struct Builder<'c> {
    index: &'c Index,
    settings: &'c Settings,
    memory: &'c mut Memory,
    services: Services,
    names: Names,
    problems: Vec<Problem>,
    frontends: usize,
    pool_ids: HashMap<*const Pool, u32>,
    /// By family: IPv4, IPv6.
    node_port_ips: [Vec<IpAddr>; 2],
}

impl<'c> Builder<'c> {
    fn new(index: &'c Index, settings: &'c Settings, memory: &'c mut Memory) -> Builder<'c> {
        let mut services = Services::empty(settings.seed);
        services.service_cidrs = settings.service_cidrs.clone();
        services.pod_cidrs = settings.cluster_cidrs.clone();
        services.snat = settings.snat.clone();
        services.node_ips = node_clients(settings);
        Builder {
            index,
            settings,
            memory,
            services,
            names: Names::default(),
            problems: Vec::new(),
            frontends: 0,
            pool_ids: HashMap::new(),
            node_port_ips: [settings.node_port_ips(false), settings.node_port_ips(true)],
        }
    }

    fn plan(&mut self, service: &'c Service) -> Vec<Plan<'c>> {
        let mut plans = Vec::new();
        let mut healthy: HashSet<IpAddr> = HashSet::new();
        for (place, port) in service.ports.iter().enumerate() {
            let id = self.services.ports.len() as u32;
            let Key { namespace, name } = service.key.clone();
            let sticks = |timeout_s| Affinity::new(&namespace, &name, &port.name, port.proto, timeout_s);
            let affinity = service.affinity_timeout_s.map(sticks);
            let (port_name, port_number, proto) = (port.name.clone(), port.port, port.proto);
            self.services.ports.push(ServicePort { namespace, name, port_name, port: port_number, proto, affinity });
            self.names.ports.push((service.key.clone(), place));
            for cluster_ip in &service.cluster_ips {
                let v6 = cluster_ip.is_ipv6();
                let node = &self.settings.node;
                let mut candidates = endpoints::candidates(self.index, &service.key, port, v6, node);
                if candidates.len() > BACKENDS_MAX {
                    let message = format!("{} endpoints: the first {BACKENDS_MAX} by address are used", candidates.len());
                    self.problem(service, &format!("spec.ports[{}]", port.index), message);
                    candidates.truncate(BACKENDS_MAX);
                }
                let selection = endpoints::select(candidates, node);
                healthy.extend(selection.candidates.iter().filter(|c| c.local && c.endpoint.ready).map(|c| c.endpoint.addr));
                let (internal, external) = self.actions(service, port, v6, &selection);
                plans.push(Plan { service, port, v6, id, internal, external });
            }
        }
        if !service.ports.is_empty() {
            self.services.cluster_ips.extend(&service.cluster_ips);
            self.names.cluster_ips.extend(service.cluster_ips.iter().map(|ip| (*ip, service.key.clone())));
            self.names.proxied.extend(service.proxied_ips.iter().map(|ip| (*ip, service.key.clone())));
        }
        if let Some(port) = service.health_check_port {
            let check = HealthCheck { service: service.key.clone(), local_endpoints: healthy.len() };
            if let Some(earlier) = self.names.health_checks.get(&port) {
                let message = format!("{port} is already Service {}'s; it stays there", earlier.service);
                self.problem(service, "spec.healthCheckNodePort", message);
            } else {
                self.names.health_checks.insert(port, check);
            }
        }
        plans
    }

    /// The rules of traffic policies and masquerading: `(cluster IP, all other addresses)`.
    fn actions(&mut self, service: &Service, port: &Port, v6: bool, selection: &Selection<'_>) -> (Actions, Actions) {
        if selection.members(Class::Cluster).is_empty() {
            let reject = Action::Reject(Reason::NoEndpoints);
            let all = Actions { pod: reject, node: reject, external: reject };
            return (all, all);
        }
        if selection.members(Class::Local).is_empty() {
            let (internal, external) = &mut self.names.no_local_endpoints[usize::from(v6)];
            *internal += u64::from(service.internal_policy == Policy::Local);
            *external += u64::from(service.external_policy == Policy::Local);
        }
        let key = PortKey { service: service.key.clone(), port_name: port.name.clone(), proto: port.proto };
        let pod_snat = self.settings.masquerade_all;
        let other_snat = pod_snat || self.settings.knows_pods(v6);
        let mut forward = |class: Class, snat: bool| match self.pool(&key, v6, class, selection) {
            Some(pool) => Action::Forward { pool, snat },
            None => Action::Drop(Reason::NoLocalEndpoints),
        };
        let internal_class = if service.internal_policy == Policy::Local { Class::Local } else { Class::Cluster };
        let other = forward(internal_class, other_snat);
        let internal = Actions { pod: forward(internal_class, pod_snat), node: other, external: other };
        if !has_outer_address(service, port) {
            return (internal, internal);
        }
        let external = match service.external_policy {
            Policy::Cluster => {
                let all = forward(Class::Cluster, true);
                Actions { pod: all, node: all, external: all }
            }
            Policy::Local => {
                Actions { pod: forward(Class::Cluster, false), node: forward(Class::Cluster, true), external: forward(Class::Local, false) }
            }
        };
        (internal, external)
    }

    fn pool(&mut self, key: &PortKey, v6: bool, class: Class, selection: &Selection<'_>) -> Option<u32> {
        // Where both classes have the same members, one pool serves both.
        let same = selection.members(Class::Local) == selection.members(Class::Cluster);
        let class = if same { Class::Cluster } else { class };
        let pool = self.memory.pool(key, v6, class, selection)?;
        let next = self.services.pools.len() as u32;
        let id = *self.pool_ids.entry(Arc::as_ptr(&pool)).or_insert(next);
        if id == next {
            self.services.pools.push(pool);
        }
        Some(id)
    }

    fn add_service_addresses(&mut self, plan: &Plan<'_>) {
        let service = plan.service;
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == plan.v6;
        for ip in service.cluster_ips.iter().filter(of_family) {
            self.add(plan, *ip, plan.port.port, AddressKind::ClusterIp, plan.internal, None);
        }
        let ranges = self.source_ranges(service, plan.v6);
        for ip in service.load_balancer_ips.iter().filter(of_family) {
            self.add(plan, *ip, plan.port.port, AddressKind::LoadBalancer, plan.external, ranges.clone());
        }
        for ip in service.external_ips.iter().filter(of_family) {
            self.add(plan, *ip, plan.port.port, AddressKind::ExternalIp, plan.external, None);
        }
    }

    fn add_node_ports(&mut self, plan: &Plan<'_>) {
        let Some(node_port) = plan.port.node_port else { return };
        self.names.node_ports.entry((node_port, plan.port.proto, plan.v6)).or_insert(plan.id);
        for ip in self.node_port_ips[usize::from(plan.v6)].clone() {
            self.add(plan, ip, node_port, AddressKind::NodePort, plan.external, None);
        }
    }

    fn add(&mut self, plan: &Plan<'_>, ip: IpAddr, port: u16, kind: AddressKind, actions: Actions, source_ranges: Option<Arc<[Prefix]>>) {
        if self.frontends == FRONTENDS_MAX {
            let message = format!("more than {FRONTENDS_MAX} addresses with ports: {} is left out", addr::socket(ip, port));
            return self.problem(plan.service, "", message);
        }
        let Actions { pod, node, external } = actions;
        let frontend = Frontend { service_port: plan.id, kind, pod, node, external, source_ranges };
        let proto = plan.port.proto;
        let holder = match self.services.add_frontend(ip, port, proto, frontend) {
            Ok(()) => return self.frontends += 1,
            // An address that a Service names twice, say as external and as load balancer IP.
            Err(earlier) if earlier.service_port == plan.id => return,
            Err(earlier) => (self.names.ports[earlier.service_port as usize].0.clone(), earlier.kind.label()),
        };
        let message = format!(
            "{proto} {} is taken by Service {} ({}), which comes first by creation time and name; this Service does not answer there",
            addr::socket(ip, port),
            holder.0,
            holder.1
        );
        self.problem(plan.service, &format!("spec.ports[{}]", plan.port.index), message);
    }

    /// Who may connect to a load balancer's addresses; `None`: everybody.
    fn source_ranges(&self, service: &Service, v6: bool) -> Option<Arc<[Prefix]>> {
        if service.source_ranges_unreadable {
            return Some(Arc::new([]));
        }
        let mut ranges: Vec<Prefix> = service.source_ranges.iter().filter(|r| r.addr().is_ipv6() == v6).copied().collect();
        if ranges.is_empty() || ranges.iter().any(|r| r.prefix_len() == 0) {
            return None;
        }
        // The node may come by with the load balancer's address as its source: where it is let in, so is that address.
        if self.settings.node.primary.iter().any(|ip| ranges.iter().any(|r| r.contains(*ip))) {
            ranges.extend(service.load_balancer_ips.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| Prefix::host(*ip)));
        }
        Some(ranges.into())
    }

    fn problem(&mut self, service: &Service, field: &str, message: String) {
        let (origin, object) = (service.origin.clone(), format!("Service {}", service.key));
        self.problems.push(Problem { origin, object, field: field.into(), message });
    }
}

fn has_outer_address(service: &Service, port: &Port) -> bool {
    port.node_port.is_some() || !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty()
}

/// The addresses that make a client "the node itself". kube-proxy asks first whether a client is in the pod ranges: the
/// node's own address there (its bridge to the pods) counts as a pod.
fn node_clients(settings: &Settings) -> WordSet<IpAddr> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let pod = |ip: &IpAddr| settings.cluster_cidrs.iter().any(|c| c.contains(*ip));
    settings.node.ips.iter().chain(&settings.node.primary).copied().filter(|ip| !pod(ip)).chain(loopback).collect()
}

#[cfg(test)]
mod tests;
