//! Valid objects that do less than their author expects, with the reason: slices without their Service, ports whose names differ, hints that
//! are not used, addresses and slices of a family that the Service does not have, source ranges that leave a family open.
//!
//! They are not faults of one object, and while objects come one by one they are normal: whoever follows an API server looks again later.

mod near;
mod set_aside;

use std::net::IpAddr;

use crate::compile::endpoints::{Candidate, Members, candidates};
use crate::index::Index;
use crate::objects::addr::socket;
use crate::objects::{NamespacedName, Service, ServicePortSpec, Slice};
use crate::problem::{Notes, Problem};
use crate::settings::ThisNode;
pub use set_aside::set_aside;

/// Maximum number of addresses or slices named for one finding.
const NAMED_MAX: usize = 8;
/// Maximum number of ports compared with each other: a Service may have thousands.
const PORTS_COMPARED_MAX: usize = 128;

/// What there is to say about a Service, or about slices that name one that does not exist. `all_services`: every Service is known. An API
/// server is not asked for headless Services, so there slices without a known Service are normal.
pub fn findings(index: &Index, node: &ThisNode, key: &NamespacedName, all_services: bool) -> Vec<Problem> {
    match index.service(key) {
        Some(service) if service.ignored.is_none() => of_service(index, node, service),
        None if all_services => index.slices_of(key).take(NAMED_MAX).map(|slice| without_service(index, slice, key)).collect(),
        _ => Vec::new(),
    }
}

/// The names of the Services that slices name and that are not known.
pub fn missing_services(index: &Index) -> impl Iterator<Item = &NamespacedName> {
    index.slice_owners().filter(|key| index.service(key).is_none())
}

/// Names the Services that a name was perhaps meant for: ` (there is default/web)`; "" if none is near.
pub fn near_service(index: &Index, key: &NamespacedName) -> String {
    near::service(index, key)
}

fn without_service(index: &Index, slice: &Slice, key: &NamespacedName) -> Problem {
    let field = if slice.mirrored { "metadata.name" } else { "metadata.labels[kubernetes.io/service-name]" };
    let message = format!("there is no Service {key}{}", near::service(index, key));
    Problem { origin: slice.origin.clone(), object: slice.to_string(), field: field.into(), message }
}

fn of_service(index: &Index, node: &ThisNode, service: &Service) -> Vec<Problem> {
    let mut notes = Notes::new(&service.origin, format!("Service {}", service.key));
    of_families(service, &mut notes);
    for port in service.ports.iter().take(PORTS_COMPARED_MAX) {
        for v6 in families(service) {
            if let Some(words) = nearest_ports(index, service, port, v6) {
                notes.add(format!("spec.ports[{}]", port.index), format!("it has no endpoints; {words}"));
            }
        }
    }
    if let Some(words) = hints(index, node, service) {
        notes.add("", words);
    }
    let mut problems = notes.finish();
    problems
        .extend(index.slices_of(&service.key).filter(|s| !s.endpoints.is_empty()).filter_map(|s| other_family(service, s)).take(NAMED_MAX));
    problems
}

/// The families that a Service is served in, of its cluster IPs.
fn families(service: &Service) -> impl Iterator<Item = bool> {
    service.cluster_ips.iter().map(IpAddr::is_ipv6)
}

pub(crate) fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn of_families(service: &Service, notes: &mut Notes) {
    let served = |v6: bool| families(service).any(|f| f == v6);
    for (field, addresses) in [("spec.externalIPs", &service.external_ips), ("status.loadBalancer.ingress", &service.load_balancer_ips)] {
        for ip in addresses.iter().filter(|ip| !served(ip.is_ipv6())).take(NAMED_MAX) {
            let words = family(ip.is_ipv6());
            notes.add(field, format!("{ip} is not served: the Service has no {words} cluster IP"));
        }
    }
    for v6 in families(service) {
        if let Some(ip) = service.load_balancer_ips.iter().find(|ip| ip.is_ipv6() == v6)
            && open_family(service, v6)
        {
            notes.add("spec.loadBalancerSourceRanges", format!("no {} range: everybody is let in at {ip}", family(v6)));
        }
    }
}

/// Whether source ranges restrict the clients of the other family only.
pub(crate) fn open_family(service: &Service, v6: bool) -> bool {
    !service.source_ranges.is_empty() && !service.source_ranges.iter().any(|range| range.addr().is_ipv6() == v6)
}

fn other_family(service: &Service, slice: &Slice) -> Option<Problem> {
    if families(service).any(|v6| v6 == slice.v6) {
        return None;
    }
    let field = if slice.mirrored { "subsets" } else { "addressType" };
    let words = family(slice.v6);
    let message = format!("its {words} endpoints are not used: Service {} has no {words} cluster IP", service.key);
    Some(Problem { origin: slice.origin.clone(), object: slice.to_string(), field: field.into(), message })
}

/// Why a Service port has no endpoints although slices of its Service have some; `None`: it has endpoints, or there is nothing to say.
pub(crate) fn nearest_ports(index: &Index, service: &Service, port: &ServicePortSpec, v6: bool) -> Option<String> {
    let slices = || index.slices_of(&service.key).filter(|s| s.v6 == v6 && !s.endpoints.is_empty());
    let is = |name: &str, proto, of: &ServicePortSpec| of.name == name && of.proto == proto;
    if slices().any(|s| s.ports.iter().any(|p| is(&p.name, p.proto, port))) {
        return None;
    }
    // Ports that no Service port takes: the endpoints of this one may be meant.
    let spare = slices().find_map(|s| {
        let compared = s.ports.iter().take(PORTS_COMPARED_MAX);
        let unused = compared.filter(|p| !service.ports.iter().any(|of| is(&p.name, p.proto, of)));
        unused.max_by_key(|p| (p.name == port.name, p.proto == port.proto)).map(|p| (s, p))
    });
    if let Some((slice, found)) = spare {
        let must = if found.name == port.name { "name and protocol" } else { "name" };
        let words = format!("{slice} has endpoints for port {:?} ({}/{})", found.name, found.port, found.proto);
        return Some(format!("{words}: a slice's port must have the Service port's {must}, here {:?} ({})", port.name, port.proto));
    }
    slices().find(|s| s.ports.is_empty()).map(|slice| format!("{slice} has endpoints but no ports"))
}

/// Why topology hints are not used although endpoints have some; `None`: they are used, there are none, or they are for other places.
fn hints(index: &Index, node: &ThisNode, service: &Service) -> Option<String> {
    let members = Members::of(index, &service.key);
    let mut ports = service.ports.iter().take(PORTS_COMPARED_MAX).flat_map(|port| families(service).map(move |v6| (port, v6)));
    ports.find_map(|(port, v6)| missing_hints(&candidates(&members, port, v6, node)))
}

/// The ready endpoint without a hint while others have one: one is enough that none is used, as in kube-proxy.
pub(crate) fn missing_hints(candidates: &[Candidate<'_>]) -> Option<String> {
    let ready = || candidates.iter().filter(|c| c.endpoint.ready);
    let missing = |has: fn(&Candidate<'_>) -> bool, what: &str| {
        let without = ready().find(|c| !has(c)).filter(|_| ready().any(has))?;
        Some(format!("hints for {what} are not used: {} has none", socket(without.endpoint.addr, without.port)))
    };
    missing(|c| !c.endpoint.node_hints.is_empty(), "nodes").or_else(|| missing(|c| !c.endpoint.zone_hints.is_empty(), "zones"))
}

#[cfg(test)]
mod tests;
