//! Decides which connections a change of objects ends: kube-proxy's rule for UDP (pkg/proxy/conntrack/cleanup.go).
//!
//! UDP has no close, so a client would keep sending to a removed endpoint. A connection to an address of a UDP Service port therefore ends
//! when its backend is not among the serving endpoints of that port. Traffic policies, topology and termination do not matter: a serving
//! endpoint keeps its clients. Without a serving endpoint, and when the Service or its port is gone, all of them end (kubernetes #139629, #141371):
//! their endpoint's address may be another pod's by then. TCP and SCTP keep their connections.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nomagic_core::conntrack::Flow;
use nomagic_core::cow_map::CowMap;
use nomagic_core::hash::WordMap;
use nomagic_core::services::AddressKind;
use nomagic_core::tuple::{Proto, words_addr};

use super::endpoints::{Members, candidates};
use crate::index::Index;
use crate::objects::{NamespacedName, Service, Slice};
use crate::settings::ThisNode;

/// A UDP Service port in one family.
#[derive(PartialEq, Eq, Debug)]
struct UdpPort {
    v6: bool,
    /// Cluster, load balancer and external addresses.
    addresses: Vec<(AddressKind, IpAddr)>,
    port: u16,
    node_port: Option<u16>,
    /// Addresses and ports of serving endpoints, sorted.
    endpoints: Vec<(IpAddr, u16)>,
}

/// A Service with UDP ports, and the objects it was built from.
#[derive(Debug)]
struct UdpService {
    service: Arc<Service>,
    slices: Vec<Arc<Slice>>,
    ports: Vec<UdpPort>,
}

/// The serving endpoints of all UDP Service ports. Cheap to clone; unchanged parts are shared with earlier states.
#[derive(Clone, Default, Debug)]
pub struct Serving {
    services: CowMap<NamespacedName, Arc<UdpService>>,
}

impl Serving {
    /// Applies the changes of these Services.
    pub fn follow(&mut self, index: &Index, services: &BTreeSet<NamespacedName>) {
        let udp = |s: &&Arc<Service>| s.ignored.is_none() && s.ports.iter().any(|p| p.proto == Proto::Udp);
        for key in services {
            match index.service(key).filter(udp) {
                Some(service) if self.services.get(key).is_some_and(|known| known.is_of(service, index)) => {}
                Some(service) => drop(self.services.insert(key.clone(), Arc::new(UdpService::new(service, index)))),
                None => drop(self.services.remove(key)),
            }
        }
    }

    /// Whether connections from the time of `before` may have to end. None have to when endpoints were only added.
    pub fn ends_some_of(&self, before: &Serving) -> bool {
        self.services.differences(&before.services).any(|(_, now, earlier)| match (now, earlier) {
            (Some(now), Some(earlier)) => !Arc::ptr_eq(earlier, now) && !now.keeps_all_of(earlier),
            (Some(now), None) => !now.ports.is_empty(),
            (None, _) => true,
        })
    }

    /// The rule for individual connections.
    pub fn rule(&self) -> Rule {
        let mut services: Vec<&Arc<UdpService>> = self.services.iter().map(|(_, service)| service).collect();
        // The same precedence as in the table: the kind of the address, creation time, name.
        services.sort_by(|a, b| (a.service.created_s, &a.service.key).cmp(&(b.service.created_s, &b.service.key)));
        let (mut addresses, mut node_ports) = (WordMap::default(), WordMap::default());
        let ports = || services.iter().flat_map(|s| s.ports.iter().enumerate().map(move |(place, port)| (*s, place, port)));
        for kind in [AddressKind::ClusterIp, AddressKind::LoadBalancer, AddressKind::ExternalIp] {
            for (service, place, port) in ports() {
                for (_, address) in port.addresses.iter().filter(|(of, _)| *of == kind) {
                    addresses.entry((*address, port.port)).or_insert_with(|| (service.clone(), place));
                }
            }
        }
        for (service, place, port) in ports() {
            if let Some(node_port) = port.node_port {
                node_ports.entry((node_port, port.v6)).or_insert_with(|| (service.clone(), place));
            }
        }
        Rule { addresses, node_ports }
    }
}

impl UdpService {
    fn new(service: &Arc<Service>, index: &Index) -> UdpService {
        let mut ports = Vec::new();
        let members = Members::of(index, &service.key);
        for port in service.ports.iter().filter(|p| p.proto == Proto::Udp) {
            for cluster_ip in &service.cluster_ips {
                let v6 = cluster_ip.is_ipv6();
                let of_kind = |kind: AddressKind, ips: &[IpAddr]| {
                    ips.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| (kind, *ip)).collect::<Vec<_>>()
                };
                // Locality does not matter here.
                let node = ThisNode { name: String::new(), ips: Vec::new(), primary: Vec::new(), zone: None };
                let endpoints = candidates(&members, port, v6, &node);
                ports.push(UdpPort {
                    v6,
                    addresses: [
                        of_kind(AddressKind::ClusterIp, &service.cluster_ips),
                        of_kind(AddressKind::LoadBalancer, &service.load_balancer_ips),
                        of_kind(AddressKind::ExternalIp, &service.external_ips),
                    ]
                    .concat(),
                    port: port.port,
                    node_port: port.node_port,
                    endpoints: endpoints.iter().filter(|c| c.endpoint.serving).map(|c| (c.endpoint.addr, c.port)).collect(),
                });
            }
        }
        UdpService { service: service.clone(), slices: index.slices_of(&service.key).cloned().collect(), ports }
    }

    /// Whether it was built from the current objects.
    fn is_of(&self, service: &Arc<Service>, index: &Index) -> bool {
        let mut slices = index.slices_of(&service.key);
        let same = Arc::ptr_eq(&self.service, service) && self.slices.iter().all(|s| slices.next().is_some_and(|now| Arc::ptr_eq(s, now)));
        same && slices.next().is_none()
    }

    /// Whether all earlier connections stay.
    fn keeps_all_of(&self, before: &UdpService) -> bool {
        let same_place = |a: &UdpPort, b: &UdpPort| (a.v6, &a.addresses, a.port, a.node_port) == (b.v6, &b.addresses, b.port, b.node_port);
        let keeps = |now: &UdpPort, before: &UdpPort| {
            let all_stay = || before.endpoints.iter().all(|e| now.serves(e));
            same_place(now, before) && all_stay()
        };
        self.service.created_s == before.service.created_s
            && self.ports.len() == before.ports.len()
            && self.ports.iter().zip(&before.ports).all(|(now, before)| keeps(now, before))
    }
}

impl UdpPort {
    fn serves(&self, endpoint: &(IpAddr, u16)) -> bool {
        self.endpoints.binary_search(endpoint).is_ok()
    }
}

/// A Service and the index of one of its ports.
type PortRef = (Arc<UdpService>, usize);

/// Decides for each connection whether it stays.
#[derive(Debug)]
pub struct Rule {
    addresses: WordMap<(IpAddr, u16), PortRef>,
    /// By node port and family (IPv6): on any address, since the node's addresses may have changed since the connection was opened.
    node_ports: WordMap<(u16, bool), PortRef>,
}

impl Rule {
    /// Whether a connection stays.
    pub fn keeps(&self, flow: &Flow) -> bool {
        if flow.proto != Proto::Udp {
            return true;
        }
        let service = words_addr(flow.service, flow.v6);
        let at_address = self.addresses.get(&(service, flow.service_port));
        let Some((service, port)) = at_address.or_else(|| self.node_ports.get(&(flow.service_port, flow.v6))) else { return false };
        let port = &service.ports[*port];
        port.serves(&(words_addr(flow.backend, flow.v6), flow.backend_port))
    }
}

#[cfg(test)]
mod tests;
