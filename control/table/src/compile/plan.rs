//! Plans one Service: its addresses, and the action for each class of clients. Applies kube-proxy's rules about readiness, traffic policies,
//! topology, masquerading and source ranges.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nomagic_core::reason::Reason;
use nomagic_core::services::{Action, AddressKind, Affinity, ClientLimit, Frontend, Limits, Pool, ServicePort};
use nomagic_core::tuple::{Prefix, PrefixSet, Proto};

use super::Settings;
use super::budget::{Refusal, Refused};
use super::claims::{Precedence, Rank};
use super::endpoints::{self, Class, Members, Selection};
use super::memory::{PortKey, ServiceMemory};
use crate::index::Index;
use crate::objects::{Service, ServicePortSpec, TrafficPolicy};
use crate::problem::Problem;
use crate::settings::RefusedExternalIp;

/// Maximum number of endpoints of one Service port and family.
const BACKENDS_MAX: usize = 500_000;

/// How many ports of the previous plan are searched for one that has moved.
const SAME_PORT_MAX: usize = 128;

/// An address, port and protocol.
pub(super) type Address = (IpAddr, u16, Proto);

/// Inputs shared by all plans.
pub(super) struct Ground<'g> {
    pub(super) index: &'g Index,
    pub(super) settings: &'g Settings,
    /// By family: IPv4, IPv6.
    pub(super) node_port_ips: [Vec<IpAddr>; 2],
}

/// The entries of one Service in the table.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) precedence: Arc<Precedence>,
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

/// The addresses of a Service outside of its cluster IPs that are served.
struct Outer {
    load_balancer_ips: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    node_ports: bool,
}

/// A Service while it is planned.
struct Subject<'s> {
    ground: &'s Ground<'s>,
    service: &'s Service,
    outer: Outer,
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

/// Plans a Service. `ports` are those of the previous plan; unchanged ones are reused, so that they stay the same objects. `refused` is what the
/// table has no room for.
pub(super) fn plan(
    ground: &Ground<'_>,
    service: &Service,
    ports: &[Arc<ServicePort>],
    refused: Option<&Refused>,
    memory: &mut ServiceMemory<'_>,
) -> Plan {
    let precedence = Arc::new(Precedence { created_s: service.created_s, key: service.key.clone() });
    let mut plan = Plan {
        precedence,
        ports: Vec::with_capacity(service.ports.len()),
        claims: Vec::new(),
        frontends: Vec::new(),
        cluster_ips: Vec::new(),
        health_check: None,
        no_local_endpoints: [(0, 0); 2],
        problems: Vec::new(),
    };
    if let Some(refused) = refused {
        plan.problems.push(problem(service, "spec", refused.message.clone()));
        if refused.what == Refusal::Whole {
            return plan;
        }
    }
    let subject = Subject { ground, service, outer: plan.outer(ground, service, refused.is_none()) };
    let members = Members::of(ground.index, &service.key);
    let mut healthy: HashSet<IpAddr> = HashSet::new();
    for port in &service.ports {
        let owner = service_port(ground, service, port, memory);
        // Usually at the same place; a search among thousands would take quadratic time.
        let earlier = ports.get(plan.ports.len()).into_iter().chain(ports.iter().take(SAME_PORT_MAX)).find(|p| ***p == owner);
        let owner = earlier.cloned().unwrap_or_else(|| Arc::new(owner));
        plan.ports.push(owner.clone());
        for v6 in service.cluster_ips.iter().map(IpAddr::is_ipv6) {
            let node = &ground.settings.node;
            let mut candidates = endpoints::candidates(&members, port, v6, node);
            if candidates.len() > BACKENDS_MAX {
                let message = format!("{} endpoints: the first {BACKENDS_MAX} by address are used", candidates.len());
                plan.problems.push(problem(service, &format!("spec.ports[{}]", port.index), message));
                candidates.truncate(BACKENDS_MAX);
            }
            let selection = endpoints::select(candidates, node);
            healthy.extend(selection.candidates.iter().filter(|c| c.local && c.endpoint.ready).map(|c| c.endpoint.addr));
            let (internal, external) = plan.actions(&subject, port, v6, &selection, memory);
            plan.answer_at(&subject, port, v6, &owner, &internal, &external);
        }
    }
    // Of an unread port nobody knows that it is unused.
    if !service.ports.is_empty() && !service.ports_unread {
        plan.cluster_ips.clone_from(&service.cluster_ips);
    }
    plan.health_check = service.health_check_port.map(|port| (port, healthy.len()));
    plan
}

fn service_port(ground: &Ground<'_>, service: &Service, port: &ServicePortSpec, memory: &mut ServiceMemory<'_>) -> ServicePort {
    let (namespace, name) = (service.key.namespace.clone(), service.key.name.clone());
    let sticks = |timeout_s| Affinity::new(&namespace, &name, &port.name, port.proto, timeout_s);
    let affinity = service.affinity_timeout_s.map(sticks);
    let defaults = &ground.settings.limits;
    let rate = service.limits.per_second.or(defaults.per_second).map(|most| memory.rate_limit(&port_key(service, port), most));
    let per_client = service.limits.per_client.or(defaults.per_client).map(|most| ClientLimit::new(most, &namespace, &name));
    let limits = Limits { rate, per_client };
    let refused = memory.refused(&port_key(service, port));
    ServicePort { namespace, name, port_name: port.name.clone(), port: port.port, proto: port.proto, affinity, limits, refused }
}

fn port_key(service: &Service, port: &ServicePortSpec) -> PortKey {
    PortKey { service: service.key.clone(), port_name: port.name.clone(), proto: port.proto }
}

impl Plan {
    /// The addresses outside of cluster IPs. External IPs that are not the owner's to choose are refused.
    fn outer(&mut self, ground: &Ground<'_>, service: &Service, room: bool) -> Outer {
        if !room {
            return Outer { load_balancer_ips: Vec::new(), external_ips: Vec::new(), node_ports: false };
        }
        let mut refused: BTreeMap<RefusedExternalIp, Vec<IpAddr>> = BTreeMap::new();
        let mut external_ips = Vec::new();
        for ip in &service.external_ips {
            match ground.settings.refuses_external_ip(*ip) {
                Some(why) => refused.entry(why).or_default().push(*ip),
                None => external_ips.push(*ip),
            }
        }
        for (why, ips) in refused {
            let others = if ips.len() > 1 { format!(" (and {} more)", ips.len() - 1) } else { String::new() };
            let message =
                format!("{}{others} is {why}: the Service is not served there. If it should be, name it in allowedExternalIPs", ips[0]);
            self.problems.push(problem(service, "spec.externalIPs", message));
        }
        Outer { load_balancer_ips: service.load_balancer_ips.clone(), external_ips, node_ports: true }
    }

    /// Applies traffic policies and masquerading. Returns the actions of `(cluster IPs, all other addresses)`.
    fn actions(
        &mut self,
        subject: &Subject<'_>,
        port: &ServicePortSpec,
        v6: bool,
        selection: &Selection<'_>,
        memory: &mut ServiceMemory<'_>,
    ) -> (Actions, Actions) {
        let Subject { ground, service, outer } = subject;
        if selection.members(Class::Cluster).is_empty() {
            let reject = Actions::all(Action::Reject(Reason::NoEndpoints));
            return (reject.clone(), reject);
        }
        if selection.members(Class::Local).is_empty() {
            let (internal, external) = &mut self.no_local_endpoints[usize::from(v6)];
            *internal += u64::from(service.internal_policy == TrafficPolicy::Local);
            *external += u64::from(service.external_policy == TrafficPolicy::Local);
        }
        let key = port_key(service, port);
        let pod_snat = ground.settings.masquerade_all;
        let other_snat = pod_snat || ground.settings.knows_pods(v6);
        let mut forward = |class: Class, snat: bool| match pool(memory, &key, v6, class, selection) {
            Some(pool) => Action::Forward { pool, snat },
            None => Action::Drop(Reason::NoLocalEndpoints),
        };
        let internal_class = if service.internal_policy == TrafficPolicy::Local { Class::Local } else { Class::Cluster };
        let internal = Actions { pod: forward(internal_class, pod_snat), ..Actions::all(forward(internal_class, other_snat)) };
        if !outer.of(port) {
            return (internal.clone(), internal);
        }
        let external = match service.external_policy {
            TrafficPolicy::Cluster => Actions::all(forward(Class::Cluster, true)),
            TrafficPolicy::Local => {
                Actions { pod: forward(Class::Cluster, false), node: forward(Class::Cluster, true), external: forward(Class::Local, false) }
            }
        };
        (internal, external)
    }

    fn answer_at(
        &mut self,
        subject: &Subject<'_>,
        port: &ServicePortSpec,
        v6: bool,
        owner: &Arc<ServicePort>,
        internal: &Actions,
        external: &Actions,
    ) {
        let Subject { ground, service, outer } = subject;
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        let ranges = source_ranges(ground, service, v6);
        let mut taken: Vec<SocketAddr> = Vec::new();
        let mut add = |ip: &IpAddr, number: u16, kind: AddressKind, actions: &Actions, source_ranges: Option<Arc<PrefixSet>>| {
            if ground.settings.keeps_local(*ip) {
                return;
            }
            let socket = SocketAddr::new(*ip, number);
            if kind != AddressKind::ClusterIp && port.proto == Proto::Tcp && ground.settings.api_servers.contains(&socket) {
                return taken.push(socket);
            }
            let Actions { pod, node, external } = actions.clone();
            let frontend = Frontend { port: owner.clone(), kind, pod, node, external, source_ranges };
            let rank = Rank { kind: kind.into(), precedence: self.precedence.clone(), place: self.claims.len() as u32 };
            self.claims.push(((*ip, number, port.proto), rank));
            self.frontends.push(frontend);
        };
        service.cluster_ips.iter().filter(of_family).for_each(|ip| add(ip, port.port, AddressKind::ClusterIp, internal, None));
        let balancers = outer.load_balancer_ips.iter().filter(of_family);
        balancers.for_each(|ip| add(ip, port.port, AddressKind::LoadBalancer, external, ranges.clone()));
        outer.external_ips.iter().filter(of_family).for_each(|ip| add(ip, port.port, AddressKind::ExternalIp, external, None));
        if let Some(node_port) = port.node_port.filter(|_| outer.node_ports) {
            ground.node_port_ips[usize::from(v6)].iter().for_each(|ip| add(ip, node_port, AddressKind::NodePort, external, None));
        }
        for socket in taken {
            let message = format!("{socket} is an API server: the Service is not served there");
            self.problems.push(problem(service, &format!("spec.ports[{}]", port.index), message));
        }
    }
}

fn pool(memory: &mut ServiceMemory<'_>, key: &PortKey, v6: bool, class: Class, selection: &Selection<'_>) -> Option<Arc<Pool>> {
    // Where both classes have the same members, one pool serves both.
    let same = selection.members(Class::Local) == selection.members(Class::Cluster);
    memory.pool(key, v6, if same { Class::Cluster } else { class }, selection)
}

/// The clients that may connect to load balancer addresses; `None`: all.
fn source_ranges(ground: &Ground<'_>, service: &Service, v6: bool) -> Option<Arc<PrefixSet>> {
    if service.source_ranges_unreadable {
        return Some(Arc::default());
    }
    let mut ranges: Vec<Prefix> = service.source_ranges.iter().filter(|r| r.addr().is_ipv6() == v6).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|r| r.prefix_len() == 0) {
        return None;
    }
    // The node's own packets may have the load balancer's address as their source, so it is allowed where the node is.
    if ground.settings.node.primary.iter().any(|ip| ranges.iter().any(|r| r.contains(*ip))) {
        ranges.extend(service.load_balancer_ips.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| Prefix::host(*ip)));
    }
    Some(Arc::new(PrefixSet::new(ranges)))
}

impl Outer {
    /// Whether a port is served at one of them.
    fn of(&self, port: &ServicePortSpec) -> bool {
        (self.node_ports && port.node_port.is_some()) || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}

/// A problem of a Service.
pub(super) fn problem(service: &Service, field: &str, message: String) -> Problem {
    let (origin, object) = (service.origin.clone(), format!("Service {}", service.key));
    Problem { origin, object, field: field.into(), message }
}
