//! Describes a Service as it is served: addresses, endpoints, and why one is left out.
//!
//! The addresses' states are those of the compiled table, so the list says what the packet path does. Whatever an object may hold in any number is
//! limited here: what is beyond is counted.

mod clients;
mod state;

use std::net::IpAddr;

use nomagic_api::services::{
    self as api, Address, AddressState, Backend, LISTED_MAX, PROBLEMS_MAX, Port, SERVICE_SCHEMA, ServiceState, WORK_MAX,
};
use nomagic_core::services::{Action, AddressKind, Services};

use crate::compile::endpoints::{Class, Exclusion, Members, candidates, select};
use crate::explain::nearby_endpoints;
use crate::findings::family;
use crate::index::Index;
use crate::objects::addr::socket;
use crate::objects::{IgnoredAs, NamespacedName, Service, ServicePortSpec, ServiceType, TrafficPolicy};
use crate::problem::{Problem, shown};
use crate::settings::Settings;
pub use clients::example_clients;
use state::Tally;

/// A Service port with more endpoints than this in a family has them counted only.
const PORT_ENDPOINTS_MAX: usize = 4 * WORK_MAX;

/// A compiled table, with the objects and settings that it was compiled from.
#[derive(Clone, Copy)]
pub struct Listing<'l> {
    pub index: &'l Index,
    pub settings: &'l Settings,
    pub table: &'l Services,
}

/// What was said about a Service's objects.
#[derive(Clone, Copy, Default)]
pub struct Said<'s> {
    /// Its problems and those of its slices.
    pub problems: &'s [&'s Problem],
    /// See [`crate::findings`].
    pub findings: &'s [Problem],
}

/// A Service while it is described.
struct Subject<'s> {
    listing: Listing<'s>,
    service: &'s Service,
    /// How many addresses and endpoints were looked at.
    work: usize,
    /// How many of each are listed.
    addresses: usize,
    backends: usize,
    tally: Tally,
}

impl Listing<'_> {
    /// Describes a Service. Also returns how much there was to look at. `in_full`: also what takes a look at all objects.
    pub fn describe(&self, service: &Service, said: Said<'_>, in_full: bool) -> (api::Service, usize) {
        let mut listed = nameless(&service.key);
        let externally = service.externally_accessible();
        listed.kind = Some(type_name(service.kind).into());
        listed.internal_traffic_policy = Some(policy_name(service.internal_policy).into());
        listed.external_traffic_policy = externally.then(|| policy_name(service.external_policy).into());
        (listed.session_affinity_s, listed.health_check_node_port) = (service.affinity_timeout_s, service.health_check_port);
        listed.source_ranges = service.source_ranges.iter().take(PROBLEMS_MAX).map(ToString::to_string).collect();
        let mut subject = Subject { listing: *self, service, work: 1, addresses: 0, backends: 0, tally: Tally::default() };
        subject.fill_ports(&mut listed);
        (listed.state, listed.why) = state::of(service, &subject.tally);
        add(&mut listed, said);
        if in_full {
            subject.add_nearby(&mut listed);
        }
        (listed, subject.work)
    }

    /// Describes a Service of which no object is known: it could not be read, or only slices name it.
    pub fn describe_unknown(key: &NamespacedName, state: ServiceState, said: Said<'_>) -> api::Service {
        let mut listed = nameless(key);
        listed.state = state;
        add(&mut listed, said);
        listed
    }
}

fn nameless(key: &NamespacedName) -> api::Service {
    api::Service {
        schema: SERVICE_SCHEMA,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        state: ServiceState::NotServed,
        why: None,
        kind: None,
        internal_traffic_policy: None,
        external_traffic_policy: None,
        session_affinity_s: None,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        ports: Vec::new(),
        more_ports: 0,
        near_misses: Vec::new(),
        problems: Vec::new(),
        more_problems: 0,
    }
}

fn add(listed: &mut api::Service, said: Said<'_>) {
    listed.problems = said.problems.iter().take(PROBLEMS_MAX).map(ToString::to_string).collect();
    listed.near_misses = said.findings.iter().take(PROBLEMS_MAX).map(ToString::to_string).collect();
    let beyond = |all: usize, here: usize| all.saturating_sub(here) as u64;
    listed.more_problems = beyond(said.problems.len(), PROBLEMS_MAX) + beyond(said.findings.len(), PROBLEMS_MAX);
}

fn type_name(kind: ServiceType) -> &'static str {
    match kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

impl Subject<'_> {
    fn families(&self) -> Vec<bool> {
        self.service.cluster_ips.iter().map(IpAddr::is_ipv6).collect()
    }

    fn fill_ports(&mut self, listed: &mut api::Service) {
        let members = Members::of(self.listing.index, &self.service.key);
        for spec in &self.service.ports {
            if self.work > WORK_MAX || listed.ports.len() >= LISTED_MAX {
                listed.more_ports += 1;
                continue;
            }
            self.work += 1;
            let mut port = Port {
                name: spec.name.clone(),
                port: spec.port,
                protocol: spec.proto.name().into(),
                node_port: spec.node_port,
                addresses: Vec::new(),
                more_addresses: 0,
                backends: Vec::new(),
                more_backends: 0,
            };
            self.fill_addresses(&mut port, spec);
            self.fill_backends(&mut port, spec, &members);
            listed.ports.push(port);
        }
    }

    fn fill_addresses(&mut self, port: &mut Port, spec: &ServicePortSpec) {
        let (service, settings) = (self.service, self.listing.settings);
        let node_ports = spec.node_port.map(|number| {
            let ips = self.families().into_iter().flat_map(|v6| settings.node_port_ips(v6));
            ips.map(move |ip| (AddressKind::NodePort, ip, number)).collect::<Vec<_>>()
        });
        let of = |kind: AddressKind, ips: &[IpAddr]| ips.iter().map(|ip| (kind, *ip, spec.port)).collect::<Vec<_>>();
        let all = [
            of(AddressKind::ClusterIp, &service.cluster_ips),
            of(AddressKind::LoadBalancer, &service.load_balancer_ips),
            of(AddressKind::LoadBalancer, &service.proxied_ips),
            of(AddressKind::ExternalIp, &service.external_ips),
            node_ports.unwrap_or_default(),
        ];
        for (kind, ip, number) in all.into_iter().flatten() {
            if self.work > WORK_MAX {
                port.more_addresses += 1;
                continue;
            }
            self.work += 1;
            let (state, why) = self.address(kind, ip, number, spec);
            self.tally.add(state);
            if self.addresses < LISTED_MAX {
                self.addresses += 1;
                port.addresses.push(Address { kind: kind.label().into(), ip, port: number, state, why });
            } else {
                port.more_addresses += 1;
            }
        }
    }

    /// What becomes of packets for an address.
    fn address(&self, kind: AddressKind, ip: IpAddr, number: u16, port: &ServicePortSpec) -> (AddressState, Option<String>) {
        let Subject { listing: Listing { settings, table, .. }, service, .. } = self;
        if service.ignored.is_some() {
            return (AddressState::Kernel, None);
        }
        if kind == AddressKind::LoadBalancer && service.proxied_ips.contains(&ip) && !service.load_balancer_ips.contains(&ip) {
            return (AddressState::LoadBalancer, Some("ipMode is Proxy".into()));
        }
        if !service.cluster_ips.iter().any(|own| own.is_ipv6() == ip.is_ipv6()) {
            return (AddressState::OtherFamily, Some(format!("the Service has no {} cluster IP", family(ip.is_ipv6()))));
        }
        if let Some(frontend) = table.frontend(ip, number, port.proto) {
            let owner = &*frontend.port;
            if (&owner.namespace, &owner.name) != (&service.key.namespace, &service.key.name) {
                let words = format!("by Service {}/{} ({})", owner.namespace, owner.name, frontend.kind.label());
                return (AddressState::Taken, Some(words));
            }
            if owner.port_name != port.name {
                return (AddressState::Taken, Some(format!("by its port {:?} ({})", owner.port_name, frontend.kind.label())));
            }
            let state = match &frontend.external {
                Action::Forward { .. } => AddressState::Served,
                Action::Reject(_) => AddressState::NoEndpoints,
                Action::Drop(_) => AddressState::NoLocalEndpoints,
            };
            return (state, None);
        }
        if settings.keeps_local(ip) {
            return (AddressState::Kernel, Some("keepLocal names it".into()));
        }
        if let Some(why) = settings.refuses_external_ip(ip).filter(|_| kind == AddressKind::ExternalIp) {
            return (AddressState::Refused, Some(why.to_string()));
        }
        if kind != AddressKind::ClusterIp && settings.api_servers.contains(&(ip, number).into()) {
            return (AddressState::Refused, Some("it is an API server's".into()));
        }
        (AddressState::NotServed, None)
    }

    fn fill_backends(&mut self, port: &mut Port, spec: &ServicePortSpec, members: &Members<'_>) {
        let outside = port.addresses.iter().any(|a| a.kind != AddressKind::ClusterIp.label());
        for v6 in self.families() {
            let count = members.count(spec, v6);
            if self.work > WORK_MAX || count > PORT_ENDPOINTS_MAX {
                port.more_backends += count as u64;
                continue;
            }
            self.work += count;
            self.add_backends(port, spec, members, (v6, outside));
            let unusable = self.listing.index.slices_of(&self.service.key).filter(|s| s.v6 == v6);
            let unusable = unusable.filter(|s| s.ports.iter().any(|p| (&p.name, p.proto) == (&spec.name, spec.proto)));
            for (text, fault) in unusable.flat_map(|s| &s.unusable).take(PROBLEMS_MAX) {
                self.push(port, Backend { endpoint: shown(text), node: None, left_out: Some((*fault).into()), left_out_outside: None });
            }
        }
    }

    fn add_backends(&mut self, port: &mut Port, spec: &ServicePortSpec, members: &Members<'_>, (v6, outside): (bool, bool)) {
        let node = &self.listing.settings.node;
        let selection = select(candidates(members, spec, v6, node), node);
        let class = |policy| if policy == TrafficPolicy::Local { Class::Local } else { Class::Cluster };
        let inside_out = selection.exclusions(class(self.service.internal_policy));
        let outside_out = selection.exclusions(class(self.service.external_policy));
        let words = |why: Option<Exclusion>| why.map(|why| why.text().to_owned());
        let (mut used, mut others) = (Vec::new(), Vec::new());
        for ((candidate, inside), external) in selection.candidates.iter().zip(inside_out).zip(outside_out) {
            let external = external.filter(|_| outside);
            let list = if inside.is_none() || (outside && external.is_none()) { &mut used } else { &mut others };
            list.push((candidate, inside, external));
        }
        for (candidate, inside, external) in used.into_iter().chain(others) {
            let backend = Backend {
                endpoint: socket(candidate.endpoint.addr, candidate.port),
                node: candidate.endpoint.node.as_deref().map(str::to_owned),
                left_out: words(inside),
                left_out_outside: words(external),
            };
            self.push(port, backend);
        }
    }

    fn push(&mut self, port: &mut Port, backend: Backend) {
        if self.backends < LISTED_MAX {
            self.backends += 1;
            port.backends.push(backend);
        } else {
            port.more_backends += 1;
        }
    }

    /// Adds what was perhaps meant for a port without endpoints.
    fn add_nearby(&self, listed: &mut api::Service) {
        let empty = listed.ports.iter().zip(&self.service.ports).filter(|(port, _)| port.backends.is_empty() && port.more_backends == 0);
        let empty: Vec<&ServicePortSpec> = empty.map(|(_, spec)| spec).take(PROBLEMS_MAX).collect();
        if self.service.ignored_as() == Some(IgnoredAs::SetAside) {
            return;
        }
        for (spec, v6) in empty.into_iter().flat_map(|spec| self.families().into_iter().map(move |v6| (spec, v6))) {
            for sentence in nearby_endpoints(self.listing.index, self.service, spec, v6) {
                // The findings have some of them, with the field before.
                let known = sentence.trim_end_matches('.');
                if listed.near_misses.len() < PROBLEMS_MAX && !listed.near_misses.iter().any(|near| near.contains(known)) {
                    listed.near_misses.push(sentence);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
