//! Sentences about what an endpoint or a client was perhaps meant to find.

use super::listed;
use crate::explain::Match;
use crate::findings::{family, nearest_ports};
use crate::index::Index;
use crate::objects::{NamespacedName, Service, ServicePortSpec, Slice};
use nomagic_core::services::AddressKind;

/// Describes the slices that nearly have endpoints for a port without any.
pub(in crate::explain) fn endpoints(index: &Index, service: &Service, port: &ServicePortSpec, v6: bool) -> Vec<String> {
    let key = &service.key;
    let mut sentences: Vec<String> = nearest_ports(index, service, port, v6).map(|words| format!("{words}.")).into_iter().collect();
    let other = index.slices_of(key).filter(|s| s.v6 != v6 && !s.endpoints.is_empty()).map(|s| s.to_string());
    let other = listed(other);
    if !other.is_empty() {
        sentences.push(format!("Its {} endpoints are not for {} packets: {other}.", family(!v6), family(v6)));
    }
    let ignored = index.slices().filter(|s| meant(s, key)).filter_map(|s| Some(format!("{s} counts for no Service: {}.", s.ignored?)));
    sentences.extend(ignored.take(NAMED_MAX));
    let elsewhere = index.slices().filter(|s| s.ignored.is_none());
    let elsewhere = elsewhere.filter_map(|s| s.service.as_ref().map(|of| (s, of)));
    let elsewhere = elsewhere.filter(|(_, of)| of.name == key.name && of.namespace != key.namespace && index.service(of).is_none());
    sentences.extend(elsewhere.take(NAMED_MAX).map(|(s, of)| format!("{s}: there is no Service {of} (one is in {}).", key.namespace)));
    sentences
}

/// Maximum number of slices named.
const NAMED_MAX: usize = 4;

/// Whether an ignored slice is the Service's by its label, or looks so by its name.
fn meant(slice: &Slice, service: &NamespacedName) -> bool {
    if slice.ignored.is_none() || slice.key.namespace != service.namespace {
        return false;
    }
    match &slice.service {
        Some(of) => of == service,
        None => slice.key.name.strip_prefix(&service.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')),
    }
}

/// Says that source ranges of the other family do not restrict anybody here.
pub(in crate::explain) fn open_family(found: &Match<'_>, v6: bool) -> Option<String> {
    let open = found.frontend.kind == AddressKind::LoadBalancer && crate::findings::open_family(found.service, v6);
    open.then(|| format!("loadBalancerSourceRanges has no {} range: everybody is let in.", family(v6)))
}
