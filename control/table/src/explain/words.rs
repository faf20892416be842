//! The sentences of `explain`, for readers new to Services.

pub(super) mod limits;
pub(super) mod live;
pub(super) mod nearby;
pub(super) mod outer;

use std::net::IpAddr;

use nomagic_core::reason::Reason;
use nomagic_core::reject::{Answer, Error};
use nomagic_core::services::{AddressKind, Backend, ClientClass, Pool, SnatCause};
use nomagic_core::tuple::{Prefix, Proto, Tuple};

use super::Match;
use crate::compile::HealthCheck;
use crate::compile::endpoints::{AppliedHints, Candidate, Class, Exclusion};
use crate::findings::missing_hints;
use crate::objects::addr::socket;
use crate::objects::{NamespacedName, Service, TrafficPolicy};
use crate::settings::{Settings, ThisNode};

/// Maximum number of items listed in one sentence; the rest is counted.
const LISTED_MAX: usize = 12;

pub(super) const PASSED: &str = "nomagic does not handle the packet: the kernel processes it as if nomagic were not there.";

pub(super) fn denied(t: &Tuple, prefix: &Prefix, known: bool) -> String {
    let also = if known { ", although it belongs to a connection that nomagic knows" } else { "" };
    format!(
        "The deny list has {prefix}, and {} is in it: the XDP filter drops the packet before a worker sees it{also}. `nomagic deny list` shows \
         where the prefix comes from.",
        t.src_addr()
    )
}

pub(super) fn denied_elsewhere(t: &Tuple, prefix: &Prefix) -> String {
    format!(
        "The deny list has {prefix}, and {} is in it, but the deny list applies only to packets that nomagic takes: the kernel gets this one.",
        t.src_addr()
    )
}

pub(super) fn affinity(timeout_s: u32, live: bool) -> String {
    let whom = if live { "" } else { " The following is for a client without a remembered endpoint." };
    format!(
        "The Service asks for session affinity (ClientIP): a client that has opened a connection to this port in the last {timeout_s} s goes to \
         the same endpoint again, if that is still a candidate.{whom}"
    )
}

/// `a, b, c and 4 more`
fn listed(things: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<String> = things.collect();
    let more = shown.len().saturating_sub(LISTED_MAX);
    shown.truncate(LISTED_MAX);
    match more {
        0 => shown.join(", "),
        n => format!("{} and {n} more", shown.join(", ")),
    }
}

pub(super) fn arrival(t: &Tuple) -> String {
    let (from, to) = (socket(t.src_addr(), t.sport), socket(t.dst_addr(), t.dport));
    match t.proto {
        Proto::Tcp => format!("A client at {from} opens a TCP connection to {to}."),
        Proto::Udp => format!("A client at {from} sends its first UDP packet to {to}."),
        Proto::Sctp => format!("A client at {from} opens an SCTP association with {to}."),
    }
}

/// `port "http" (80/TCP)`
fn port_name(found: &Match<'_>) -> String {
    let (number, proto) = (found.port.port, found.port.proto);
    if found.port.name.is_empty() { format!("port {number}/{proto}") } else { format!("port {:?} ({number}/{proto})", found.port.name) }
}

pub(super) fn address(found: &Match<'_>, t: &Tuple) -> String {
    let (ip, service, port) = (t.dst_addr(), &found.service.key, port_name(found));
    match found.frontend.kind {
        AddressKind::ClusterIp => format!(
            "{ip} is the cluster IP of Service {service}, and the packet is for its {port}. A cluster IP is a virtual address: \
             no machine has it; the packet gets a new destination, one of the Service's endpoints (pods, as a rule)."
        ),
        AddressKind::NodePort => format!(
            "{ip} is this node's own address, and {}/{} is a node port of Service {service}: it stands for {port}. \
             Through node ports clients outside of the cluster reach a Service on any node.",
            t.dport, t.proto
        ),
        AddressKind::ExternalIp => format!(
            "{ip} is one of the externalIPs of Service {service}, and the packet is for its {port}. Clients whose route to that address leads to this node reach the Service."
        ),
        AddressKind::LoadBalancer => format!(
            "{ip} is the address that a load balancer announces for Service {service} (status.loadBalancer), and the packet is for its {port}."
        ),
    }
}

pub(super) fn client(settings: &Settings, class: ClientClass, t: &Tuple) -> String {
    let ip = t.src_addr();
    let ranges = listed(settings.cluster_cidrs.iter().filter(|c| c.addr().is_ipv6() == t.v6).map(Prefix::to_string));
    match class {
        ClientClass::Pod => format!("The client is a pod: {ip} is in the pod ranges (clusterCIDRs: {ranges})."),
        ClientClass::Node => format!("The client is this node itself: {ip} is one of its own addresses."),
        ClientClass::External if ranges.is_empty() => format!(
            "The client counts as external: {ip} is not an address of this node, and without pod ranges of its family (clusterCIDRs) pods cannot be told apart from other clients."
        ),
        ClientClass::External => {
            format!(
                "The client is outside of the cluster: {ip} is neither in the pod ranges (clusterCIDRs: {ranges}) nor an address of this node."
            )
        }
    }
}

pub(super) fn source_ranges(ranges: &[Prefix], client: IpAddr) -> String {
    let list = listed(ranges.iter().map(Prefix::to_string));
    match ranges.iter().any(|r| r.contains(client)) {
        _ if ranges.is_empty() => "None of the Service's loadBalancerSourceRanges is valid, so no client may use this address.".into(),
        true => {
            format!("The Service accepts only some clients at this address (loadBalancerSourceRanges: {list}). This client is one of them.")
        }
        false => format!(
            "The Service accepts only some clients at this address (loadBalancerSourceRanges: {list}). This client is not one of them."
        ),
    }
}

pub(super) fn policy(found: &Match<'_>, node: &str) -> String {
    let field = match found.frontend.kind {
        AddressKind::ClusterIp => "internalTrafficPolicy",
        _ => "externalTrafficPolicy",
    };
    match found.class {
        Class::Local => format!("{field} is Local: only endpoints on this node ({node}) may answer."),
        Class::Cluster if found.frontend.kind != AddressKind::ClusterIp && found.service.external_policy == TrafficPolicy::Local => {
            format!(
                "{field} is Local, which binds clients from outside. For pods and for the node itself endpoints on all nodes are candidates."
            )
        }
        Class::Cluster => format!("{field} is Cluster: endpoints on all nodes are candidates."),
    }
}

pub(super) fn topology(found: &Match<'_>, node: &ThisNode) -> Option<String> {
    if found.selection.falls_back(found.class) {
        return Some("No endpoint is ready any more, so those that are terminating but still serve are used.".into());
    }
    match (found.class, found.selection.topology) {
        (Class::Local, _) => None,
        (_, AppliedHints::All) => unused_hints(&found.selection.candidates, node),
        (_, AppliedHints::Node) => {
            Some(format!("All ready endpoints carry hints for nodes, and some name this one ({}): only those are used.", node.name))
        }
        (_, AppliedHints::Zone) => {
            let zone = node.zone.as_deref().unwrap_or("");
            Some(format!("All ready endpoints carry hints for zones, and some name this node's ({zone}): only those are used."))
        }
    }
}

/// Why hints do not narrow the selection, if endpoints have some.
fn unused_hints(candidates: &[Candidate<'_>], node: &ThisNode) -> Option<String> {
    if let Some(words) = missing_hints(candidates) {
        return Some(format!("Topology: {words}."));
    }
    let zones = candidates.iter().any(|c| c.endpoint.ready && !c.endpoint.zone_hints.is_empty());
    match &node.zone {
        _ if !zones => None,
        None => Some(format!("Topology: hints for zones are not used: the zone of this node ({}) is not known.", node.name)),
        Some(zone) => Some(format!("Topology: hints for zones are not used: none names this node's zone ({zone}).")),
    }
}

pub(super) fn candidates(found: &Match<'_>) -> String {
    let usable = found.selection.usable(found.class);
    let (usable_count, all) = (usable.len(), found.selection.candidates.len());
    match usable_count {
        0 if all == 0 => format!("The Service's {} has no endpoints.", port_name(found)),
        0 => format!("None of its {all} endpoints can be used."),
        _ => format!("Candidates, {usable_count} of {all}: {}.", listed(usable.map(|c| socket(c.endpoint.addr, c.port)))),
    }
}

pub(super) fn left_out<'u>(found: &Match<'_>, unusable: impl Iterator<Item = &'u (String, &'static str)>, node: &str) -> Option<String> {
    let why = |c: &Candidate<'_>, why: Exclusion| match (why, &c.endpoint.node) {
        (Exclusion::OtherNode, Some(other)) => format!("on node {other}; this one is {node}, and the traffic policy is Local"),
        (Exclusion::OtherNode, None) => format!("on no known node; this one is {node}, and the traffic policy is Local"),
        (why, _) => why.text().to_owned(),
    };
    let others = found.selection.left_out(found.class).map(|(c, of)| format!("{} ({})", socket(c.endpoint.addr, c.port), why(c, of)));
    let list = listed(others.chain(unusable.map(|(text, fault)| format!("{text:?} ({fault})"))));
    (!list.is_empty()).then(|| format!("Left out: {list}."))
}

pub(super) fn choice(t: &Tuple, slot: u32, pool: &Pool) -> String {
    let to = pool.backends.get(pool.maglev.backend(slot) as usize).map(|b| socket(b.addr, b.port)).unwrap_or_default();
    format!(
        "Protocol, addresses and ports of this {} flow are hashed: the hash points to slot {slot} of {} in the Service's Maglev table, and that slot is {to}'s. \
         The same flow always gets the same slot, on every gateway with the same seed.",
        t.proto,
        pool.maglev.size()
    )
}

/// Like [`choice`], where only the running gateway knows the seed; `slot` is the one for the seed 0.
pub(super) fn choice_by_unknown_seed(t: &Tuple, slot: u32, pool: &Pool) -> String {
    let to = pool.backends.get(pool.maglev.backend(slot) as usize).map(|b| socket(b.addr, b.port)).unwrap_or_default();
    if pool.backends.len() == 1 {
        return format!(
            "Protocol, addresses and ports of this {} flow are hashed, and every slot of the Service's Maglev table is {to}'s.",
            t.proto
        );
    }
    format!(
        "Protocol, addresses and ports of this {} flow are hashed with a seed that only the running gateway knows, because the configuration \
         sets neither hash.seed nor a readable hash.seedFile. So it may be any of the {} candidates; `nomagic explain --live` on the gateway \
         tells which one. With the seed 0 it is {to} (slot {slot} of {} in the Service's Maglev table), and what follows is about that one.",
        t.proto,
        pool.backends.len(),
        pool.maglev.size()
    )
}

pub(super) fn destination(t: &Tuple, backend: &Backend) -> String {
    format!("The destination {} is rewritten to {}.", socket(t.dst_addr(), t.dport), socket(backend.addr, backend.port))
}

pub(super) fn source_stays(found: &Match<'_>) -> String {
    let why = match (found.frontend.kind, found.client) {
        (AddressKind::ClusterIp, ClientClass::Pod) => "a pod's traffic inside the cluster keeps its source",
        (AddressKind::ClusterIp, _) => "pods cannot be told apart from other clients here, so no source is replaced",
        (_, ClientClass::Pod) => "the client is a pod, and externalTrafficPolicy Local keeps its address",
        _ => "externalTrafficPolicy Local keeps the client's address",
    };
    format!("The source stays as it is (no SNAT), so the endpoint sees the client's own address: {why}.")
}

pub(super) const OWN_ENDPOINT: &str = "The endpoint is on this node's own network. It sees the client's own address if the gateway's interfaces or \
    redirectInterfaces lead to the client; this node itself appears as one of snat.internalAddresses.";

pub(super) fn why_source_changes(found: &Match<'_>, cause: SnatCause, masquerade_all: bool) -> String {
    match (cause, found.frontend.kind, found.client) {
        (SnatCause::Hairpin, _, _) => "the endpoint chosen is the client itself; it would otherwise answer itself directly and not recognise the answer",
        (_, AddressKind::ClusterIp, ClientClass::Pod) => "masqueradeAll is set",
        (_, AddressKind::ClusterIp, _) if masquerade_all => "masqueradeAll is set",
        (_, AddressKind::ClusterIp, _) => {
            "the client is not a pod; the endpoint's answer must come back this way, or the client would get it from an address that it has not contacted"
        }
        (_, _, ClientClass::Node) if found.service.external_policy == TrafficPolicy::Local => "the client is the node itself",
        _ => "externalTrafficPolicy is Cluster: the endpoint may be on any node, and its answer must come back this way",
    }
    .into()
}

pub(super) fn source_changes(settings: &Settings, t: &Tuple, address: IpAddr, why: &str) -> String {
    let (first, last) = (settings.snat.port_first, settings.snat.port_last);
    let without =
        settings.snat.excluded.as_ref().map_or(String::new(), |gap| format!(" (except the node's own {}-{})", gap.start(), gap.end()));
    format!(
        "The source {} is rewritten to {address} with a free port from {first} to {last}{without}, chosen when the packet arrives (SNAT): {why}.",
        socket(t.src_addr(), t.sport)
    )
}

pub(super) fn source_cannot_change(t: &Tuple, why: &str) -> String {
    let family = if t.v6 { "IPv6" } else { "IPv4" };
    format!(
        "The source would have to be rewritten too (SNAT): {why}. But there is no {family} address for it, so the packet is dropped: add one to snat.addresses or node.primaryIPs."
    )
}

pub(super) fn reply(t: &Tuple, backend: &Backend, snat: Option<IpAddr>) -> String {
    let (client, asked) = (socket(t.src_addr(), t.sport), socket(t.dst_addr(), t.dport));
    let endpoint = socket(backend.addr, backend.port);
    let receiver = snat.map_or(client.clone(), |ip| format!("{ip}, an address of this gateway"));
    format!(
        "The connection is remembered, and later packets take the same path. {endpoint} answers to {receiver}; the answer is rewritten to come from {asked} and go to {client}: \
         the client never learns who answered."
    )
}

/// Why the packet is dropped, and how its sender is notified.
pub(super) fn refusal(reason: Reason, told: Option<Answer>) -> String {
    let why = reason.text();
    match told {
        None => format!("The packet is dropped silently ({why})."),
        Some(Answer::Reset) if matches!(reason, Reason::NoEndpoints | Reason::UnusedServicePort | Reason::UnusedExternalPort) => {
            format!("The client is notified at once, by a TCP reset (reject: tcpReset): connection refused ({why}).")
        }
        Some(Answer::Reset) => format!("The sender is notified at once, by a TCP reset: the connection is closed ({why})."),
        Some(Answer::Abort) => format!("The sender is notified at once, by an SCTP ABORT: the association is closed ({why})."),
        Some(Answer::Icmp(Error::PortUnreachable)) => {
            format!("The client is notified at once, by ICMP \"port unreachable\": connection refused ({why}).")
        }
        Some(Answer::Icmp(Error::NoRoute)) => format!("The sender is notified at once, by ICMP \"no route\" ({why})."),
        Some(Answer::Icmp(Error::RouteUnreachable | Error::HostUnreachable)) => {
            format!("The sender is notified, by ICMP \"host unreachable\" ({why}).")
        }
        Some(Answer::Icmp(Error::Prohibited)) => {
            format!("The sender is notified at once, by ICMP \"administratively prohibited\" ({why}).")
        }
        Some(Answer::Icmp(Error::TimeExceeded)) => format!("The sender is notified at once, by ICMP \"time exceeded\" ({why})."),
        Some(Answer::Icmp(Error::TooBig(mtu))) => {
            format!("The sender is notified at once, by ICMP \"packet too big\", that {mtu} bytes fit ({why}).")
        }
    }
}

pub(super) fn other_port(service: Option<&Service>, key: &NamespacedName, t: &Tuple) -> String {
    let ports = listed(service.into_iter().flat_map(|s| &s.ports).map(|p| format!("{}/{}", p.port, p.proto)));
    format!("{} is the cluster IP of Service {key}, but {}/{} is not one of its ports ({ports}).", t.dst_addr(), t.dport, t.proto)
}

pub(super) fn unallocated(settings: &Settings, ip: IpAddr) -> String {
    let range = listed(settings.service_cidrs.iter().filter(|c| c.contains(ip)).map(Prefix::to_string));
    format!("{ip} is in the range of cluster IPs (serviceCIDRs: {range}), but no Service has it.")
}

pub(super) fn perhaps_unread(settings: &Settings, ip: IpAddr) -> String {
    let range = listed(settings.service_cidrs.iter().filter(|c| c.contains(ip)).map(Prefix::to_string));
    format!(
        "{ip} is in the range of cluster IPs (serviceCIDRs: {range}). No Service that could be read has it, but not all objects could be read (see the warnings)."
    )
}

pub(super) fn health_check(check: &HealthCheck, t: &Tuple) -> String {
    let (status, count) = (if check.local_endpoints > 0 { 200 } else { 503 }, check.local_endpoints);
    format!(
        "{} is the healthCheckNodePort of Service {}: here a load balancer asks this node over HTTP whether it has endpoints of the Service. The node's proxy answers itself: {status}, {count} local.",
        t.dport, check.service
    )
}

pub(super) fn node_port_elsewhere(settings: &Settings, service: &NamespacedName, t: &Tuple) -> String {
    let (ip, port) = (t.dst_addr(), t.dport);
    if ip.is_loopback() {
        let note = if settings.localhost_node_ports { " localhostNodePorts has no effect on that." } else { "" };
        return format!(
            "{port}/{} is a node port of Service {service}, but {ip} is the loopback address: such packets never leave the machine and never reach nomagic.{note}",
            t.proto
        );
    }
    let allowed = listed(settings.node_port_ips(t.v6).iter().map(IpAddr::to_string));
    let allowed = if allowed.is_empty() { "none of this family".into() } else { allowed };
    format!(
        "{port}/{} is a node port of Service {service}, but node ports are not served on {ip} (nodePortAddresses allow: {allowed}).",
        t.proto
    )
}

pub(super) fn proxied(key: &NamespacedName, ip: IpAddr) -> String {
    format!("{ip} is a load balancer's address of Service {key} with ipMode Proxy: the load balancer itself must get the packet.")
}

pub(super) fn snat_reply(t: &Tuple) -> String {
    format!(
        "{} is the destination of replies to rewritten sources, but the packet is a reply of no known connection.",
        socket(t.dst_addr(), t.dport)
    )
}

pub(super) fn not_ours(t: &Tuple, own: bool) -> String {
    let whose = if own { ": it is for the node itself" } else { "" };
    format!("No Service has the address {} with port {}/{}{whose}.", t.dst_addr(), t.dport, t.proto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_response_and_the_reason() {
        let (icmp, reset) = (|error| Some(Answer::Icmp(error)), Some(Answer::Reset));
        let table = [
            (Reason::SourceRange, None, "dropped silently (the client is outside"),
            (Reason::NoEndpoints, icmp(Error::PortUnreachable), "ICMP \"port unreachable\": connection refused (the Service has no"),
            (Reason::NoEndpoints, reset, "TCP reset (reject: tcpReset): connection refused (the Service has no"),
            (Reason::MidFlowSnat, reset, "TCP reset: the connection is closed (the middle of an unknown connection"),
            (Reason::MidFlowSnat, Some(Answer::Abort), "SCTP ABORT: the association is closed (the middle of an unknown connection"),
            (Reason::TtlExceeded, icmp(Error::TimeExceeded), "ICMP \"time exceeded\" (the TTL"),
            (Reason::NoRoute, icmp(Error::NoRoute), "ICMP \"no route\" (the kernel's routes name no way"),
            (Reason::Unreachable, icmp(Error::RouteUnreachable), "ICMP \"host unreachable\" (the kernel's routes say unreachable"),
            (Reason::NeighbourTimeout, icmp(Error::HostUnreachable), "ICMP \"host unreachable\" (the next hop never"),
            (Reason::RouteProhibited, icmp(Error::Prohibited), "\"administratively prohibited\" (the kernel's routes say prohibit"),
            (Reason::TooBig, icmp(Error::TooBig(1_400)), "\"packet too big\", that 1400 bytes fit (larger than the MTU"),
        ];
        for (reason, told, words) in table {
            let sentence = refusal(reason, told);
            assert!(sentence.contains(words), "{sentence}");
        }
    }
}
