//! Sentences about unused ports of load balancer and external IPs.

use nomagic_api::explain::Verdict;
use nomagic_core::services::{Services, UnusedPorts};
use nomagic_core::tuple::Tuple;

use super::listed;
use crate::objects::{NamespacedName, Service};

pub(in crate::explain) fn other_port(service: Option<&Service>, key: &NamespacedName, t: &Tuple) -> String {
    let ports = listed(service.into_iter().flat_map(|s| &s.ports).map(|p| format!("{}/{}", p.port, p.proto)));
    format!(
        "{} is a load balancer or external IP of Service {key}, but {}/{} is not one of its ports ({ports}).",
        t.dst_addr(),
        t.dport,
        t.proto
    )
}

/// Describes what the route to the address means.
pub(in crate::explain) fn way(services: &Services, verdict: Verdict, running: bool) -> String {
    let text = match (verdict, running, services.unused_ports) {
        (Verdict::Drop | Verdict::Reject, ..) => {
            "The kernel's route to it leads to a router, by the interface that the packet comes in by: it would go round until its TTL ends."
        }
        (_, _, UnusedPorts::Kernel) => "The kernel gets such packets, also if it sends them back (unusedPorts: kernel).",
        (_, true, _) => "The kernel's route to it does not lead back to the router that the packet comes from.",
        (_, false, _) => {
            "If the gateway's route to it leads back to the router that the packet comes from, the packet is refused (unusedPorts); `explain --live` \
             knows the routes."
        }
    };
    text.into()
}
