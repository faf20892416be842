//! Plans one Service: its addresses, and the action for each class of clients. Applies kube-proxy's rules about readiness, traffic policies,
//! topology, masquerading and source ranges.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use nomagic_core::reason::Reason;
use nomagic_core::services::{Action, AddressKind, Affinity, Frontend, Pool, ServicePort};
use nomagic_core::tuple::{Prefix, Proto};

use super::Settings;
use super::claims::{Rank, Turn};
use super::endpoints::{self, Class, Selection};
use super::memory::{PortKey, ServiceMemory};
use crate::index::Index;
use crate::objects::{Policy, Port, Service};
use crate::problem::Problem;

/// Maximum number of endpoints of one Service port and family.
const BACKENDS_MAX: usize = 500_000;

/// An address, port and protocol.
pub(super) type Address = (IpAddr, u16, Proto);

/// The inputs that all plans share.
pub(super) struct Ground<'g> {
    pub(super) index: &'g Index,
    pub(super) settings: &'g Settings,
    /// By family: IPv4, IPv6.
    pub(super) node_port_ips: [Vec<IpAddr>; 2],
}

/// The entries of one Service in the table.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) turn: Arc<Turn>,
    /// The Service's ports, shared by all of their addresses.
    pub(super) ports: Vec<Arc<ServicePort>>,
    /// The claimed addresses, in order.
    pub(super) claims: Vec<(Address, Rank)>,
    /// The frontends at these addresses, in the same order; the compiler takes them out.
    pub(super) frontends: Vec<Frontend>,
    pub(super) cluster_ips: Vec<IpAddr>,
    /// `healthCheckNodePort`, and the number of distinct addresses of local ready endpoints.
    pub(super) health_check: Option<(u16, usize)>,
    /// Ports with traffic policy Local and endpoints on other nodes only, by family: `(internal, external)`.
    pub(super) no_local_endpoints: [(u64, u64); 2],
    pub(super) problems: Vec<Problem>,
}

/// Actions by class of client.
#[derive(Clone)]
struct Actions {
    pod: Action,
    node: Action,
    external: Action,
}

impl Actions {
    fn all(action: Action) -> Actions {
        Actions { pod: action.clone(), node: action.clone(), external: action }
    }
}

/// Decides a Service. `ports`: those of the plan before, which stay the same objects where nothing about them has changed.
pub(super) fn plan(ground: &Ground<'_>, service: &Service, ports: &[Arc<ServicePort>], memory: &mut ServiceMemory<'_>) -> Plan {
    let turn = Arc::new(Turn { created_s: service.created_s, key: service.key.clone() });
    let mut plan = Plan {
        turn,
        ports: Vec::with_capacity(service.ports.len()),
        claims: Vec::new(),
        frontends: Vec::new(),
        cluster_ips: Vec::new(),
        health_check: None,
        no_local_endpoints: [(0, 0); 2],
        problems: Vec::new(),
    };
    let mut healthy: HashSet<IpAddr> = HashSet::new();
    for port in &service.ports {
        let owner = service_port(service, port);
        let owner = ports.iter().find(|p| ***p == owner).cloned().unwrap_or_else(|| Arc::new(owner));
        plan.ports.push(owner.clone());
        for v6 in service.cluster_ips.iter().map(IpAddr::is_ipv6) {
            let node = &ground.settings.node;
            let mut candidates = endpoints::candidates(ground.index, &service.key, port, v6, node);
            if candidates.len() > BACKENDS_MAX {
                let message = format!("{} endpoints: the first {BACKENDS_MAX} by address are used", candidates.len());
                plan.problems.push(problem(service, &format!("spec.ports[{}]", port.index), message));
                candidates.truncate(BACKENDS_MAX);
            }
            let selection = endpoints::select(candidates, node);
            healthy.extend(selection.candidates.iter().filter(|c| c.local && c.endpoint.ready).map(|c| c.endpoint.addr));
            let (internal, external) = plan.actions(ground, service, port, v6, &selection, memory);
            plan.answer_at(ground, service, port, v6, &owner, &internal, &external);
        }
    }
    if !service.ports.is_empty() {
        plan.cluster_ips.clone_from(&service.cluster_ips);
    }
    plan.health_check = service.health_check_port.map(|port| (port, healthy.len()));
    plan
}

fn service_port(service: &Service, port: &Port) -> ServicePort {
    let (namespace, name) = (service.key.namespace.clone(), service.key.name.clone());
    let sticks = |timeout_s| Affinity::new(&namespace, &name, &port.name, port.proto, timeout_s);
    let affinity = service.affinity_timeout_s.map(sticks);
    ServicePort { namespace, name, port_name: port.name.clone(), port: port.port, proto: port.proto, affinity }
}

impl Plan {
    /// Applies traffic policies and masquerading. Returns the actions of `(cluster IPs, all other addresses)`.
    fn actions(
        &mut self,
        ground: &Ground<'_>,
        service: &Service,
        port: &Port,
        v6: bool,
        selection: &Selection<'_>,
        memory: &mut ServiceMemory<'_>,
    ) -> (Actions, Actions) {
        if selection.members(Class::Cluster).is_empty() {
            let reject = Actions::all(Action::Reject(Reason::NoEndpoints));
            return (reject.clone(), reject);
        }
        if selection.members(Class::Local).is_empty() {
            let (internal, external) = &mut self.no_local_endpoints[usize::from(v6)];
            *internal += u64::from(service.internal_policy == Policy::Local);
            *external += u64::from(service.external_policy == Policy::Local);
        }
        let key = PortKey { service: service.key.clone(), port_name: port.name.clone(), proto: port.proto };
        let pod_snat = ground.settings.masquerade_all;
        let other_snat = pod_snat || ground.settings.knows_pods(v6);
        let mut forward = |class: Class, snat: bool| match pool(memory, &key, v6, class, selection) {
            Some(pool) => Action::Forward { pool, snat },
            None => Action::Drop(Reason::NoLocalEndpoints),
        };
        let internal_class = if service.internal_policy == Policy::Local { Class::Local } else { Class::Cluster };
        let internal = Actions { pod: forward(internal_class, pod_snat), ..Actions::all(forward(internal_class, other_snat)) };
        if !has_outer_address(service, port) {
            return (internal.clone(), internal);
        }
        let external = match service.external_policy {
            Policy::Cluster => Actions::all(forward(Class::Cluster, true)),
            Policy::Local => {
                Actions { pod: forward(Class::Cluster, false), node: forward(Class::Cluster, true), external: forward(Class::Local, false) }
            }
        };
        (internal, external)
    }

    #[expect(clippy::too_many_arguments, reason = "one port in one family, with all that was decided about it")]
    fn answer_at(
        &mut self,
        ground: &Ground<'_>,
        service: &Service,
        port: &Port,
        v6: bool,
        owner: &Arc<ServicePort>,
        internal: &Actions,
        external: &Actions,
    ) {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        let ranges = source_ranges(ground, service, v6);
        let mut add = |ip: &IpAddr, number: u16, kind: AddressKind, actions: &Actions, source_ranges: Option<Arc<[Prefix]>>| {
            let Actions { pod, node, external } = actions.clone();
            let frontend = Frontend { port: owner.clone(), kind, pod, node, external, source_ranges };
            let rank = Rank { node_port: kind == AddressKind::NodePort, turn: self.turn.clone(), place: self.claims.len() as u32 };
            self.claims.push(((*ip, number, port.proto), rank));
            self.frontends.push(frontend);
        };
        service.cluster_ips.iter().filter(of_family).for_each(|ip| add(ip, port.port, AddressKind::ClusterIp, internal, None));
        let balancers = service.load_balancer_ips.iter().filter(of_family);
        balancers.for_each(|ip| add(ip, port.port, AddressKind::LoadBalancer, external, ranges.clone()));
        service.external_ips.iter().filter(of_family).for_each(|ip| add(ip, port.port, AddressKind::ExternalIp, external, None));
        if let Some(node_port) = port.node_port {
            ground.node_port_ips[usize::from(v6)].iter().for_each(|ip| add(ip, node_port, AddressKind::NodePort, external, None));
        }
    }
}

fn pool(memory: &mut ServiceMemory<'_>, key: &PortKey, v6: bool, class: Class, selection: &Selection<'_>) -> Option<Arc<Pool>> {
    // Where both classes have the same members, one pool serves both.
    let same = selection.members(Class::Local) == selection.members(Class::Cluster);
    memory.pool(key, v6, if same { Class::Cluster } else { class }, selection)
}

/// The clients that may connect to load balancer addresses; `None`: all.
fn source_ranges(ground: &Ground<'_>, service: &Service, v6: bool) -> Option<Arc<[Prefix]>> {
    if service.source_ranges_unreadable {
        return Some(Arc::new([]));
    }
    let mut ranges: Vec<Prefix> = service.source_ranges.iter().filter(|r| r.addr().is_ipv6() == v6).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|r| r.prefix_len() == 0) {
        return None;
    }
    // The node's own packets may have the load balancer's address as their source, so it is allowed where the node is.
    if ground.settings.node.primary.iter().any(|ip| ranges.iter().any(|r| r.contains(*ip))) {
        ranges.extend(service.load_balancer_ips.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| Prefix::host(*ip)));
    }
    Some(ranges.into())
}

fn has_outer_address(service: &Service, port: &Port) -> bool {
    port.node_port.is_some() || !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty()
}

/// A problem of a Service.
pub(super) fn problem(service: &Service, field: &str, message: String) -> Problem {
    let (origin, object) = (service.origin.clone(), format!("Service {}", service.key));
    Problem { origin, object, field: field.into(), message }
}
