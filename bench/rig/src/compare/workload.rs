//! The Services of a comparison, and the traffic to them: the same for every subject.
//!
//! Service n has the cluster IP 10.100.0.0 + n + 1, port 5300/UDP, and three endpoints of its own; the first Service
//! also has 80/TCP. Clients and endpoints are pods, so there is no source NAT (kube-proxy's `clusterCIDR`, nomagic's
//! `clusterCIDRs`).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde_json::json;

use crate::pktgen::profile::{Choice, Prefix, Profile, Protocol, Size};

pub const CLUSTER_CIDR: &str = "172.16.0.0/12";
pub const CLIENTS: &str = "172.20.0.0/16";
pub const ENDPOINTS: &str = "172.24.0.0/13";
pub const SERVICE_CIDR: &str = "10.96.0.0/12";
/// The Services' UDP port, and that of their endpoints.
pub const UDP_PORT: u16 = 5300;
/// The first Service's TCP port, and that of its endpoints.
pub const TCP_PORT: u16 = 80;
pub const ENDPOINTS_EACH: u32 = 3;
/// The most Services of a subject.
pub const SERVICES_MAX: u32 = 10_000;
/// The queue of a subject: entries of an AF_XDP subject's rings, and of the backlog of the kernel's CPU. A host often
/// takes a virtual machine's CPU away for some milliseconds; shorter queues would measure that.
pub const QUEUE_FRAMES: u32 = 8_192;

/// The cluster IP of a Service.
pub fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 1).to_bits() + service)
}

/// An endpoint of a Service. A change replaces endpoints of generation 0 by those of generation 1.
pub fn endpoint(service: u32, n: u32, generation: u32) -> Ipv4Addr {
    let of_generation = generation * SERVICES_MAX * ENDPOINTS_EACH;
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 24, 0, 1).to_bits() + of_generation + service * ENDPOINTS_EACH + n)
}

/// The ports of a Service: name, number, protocol.
pub fn ports(service: u32) -> impl Iterator<Item = (&'static str, u16, &'static str)> {
    let tcp = (service == 0).then_some(("http", TCP_PORT, "TCP"));
    std::iter::once(("udp", UDP_PORT, "UDP")).chain(tcp)
}

pub fn name(service: u32) -> String {
    format!("svc-{service}")
}

/// A Service as an object of Kubernetes, in YAML.
pub fn service_object(service: u32) -> String {
    let ip = cluster_ip(service);
    let ports: Vec<String> =
        ports(service).map(|(name, port, protocol)| format!("{{name: {name}, port: {port}, protocol: {protocol}}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: bench}}\nspec: {{type: ClusterIP, clusterIP: {ip}, clusterIPs: [{ip}], \
         ipFamilies: [IPv4], ports: [{}]}}\n",
        name(service),
        ports.join(", ")
    )
}

pub fn slice_object(service: u32, generation: u32) -> String {
    let name = name(service);
    let ports: Vec<String> =
        ports(service).map(|(name, port, protocol)| format!("{{name: {name}, port: {port}, protocol: {protocol}}}")).collect();
    let mut yaml = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-a, namespace: bench, labels: \
         {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{}]\nendpoints:\n",
        ports.join(", ")
    );
    for n in 0..ENDPOINTS_EACH {
        let _ = writeln!(yaml, "- {{addresses: [{}], conditions: {{ready: true}}}}", endpoint(service, n, generation));
    }
    yaml
}

/// The endpoints of all Services in a generation.
pub fn endpoints(generation: u32) -> RangeInclusive<Ipv4Addr> {
    endpoint(0, 0, generation)..=endpoint(SERVICES_MAX - 1, ENDPOINTS_EACH - 1, generation)
}

/// [`slice_object`] as JSON, for an API server.
pub fn slice_json(service: u32, generation: u32) -> serde_json::Value {
    let name = name(service);
    let ports: Vec<_> = ports(service).map(|(name, port, protocol)| json!({ "name": name, "port": port, "protocol": protocol })).collect();
    let endpoint = |n| json!({ "addresses": [endpoint(service, n, generation)], "conditions": { "ready": true } });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("{name}-a"), "namespace": "bench", "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": (0..ENDPOINTS_EACH).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Flows from client pods to the first `services` Services, spread evenly.
pub fn profile(services: u32, flows: u32, protocol: Protocol, size: Size) -> Profile {
    let port = if protocol == Protocol::Udp { UDP_PORT } else { TCP_PORT };
    Profile {
        targets: (0..services.min(flows)).map(|n| SocketAddr::new(IpAddr::V4(cluster_ip(n)), port)).collect(),
        // 10,000 flows to one Service and one to each of 10,000 have the same sources.
        sources: Prefix { address: IpAddr::V4(Ipv4Addr::new(172, 20, 0, 0)), len: 16 },
        flows,
        choice: Choice::RoundRobin,
        size,
        protocol,
        new_flows: None,
        seed: 1,
    }
}

pub fn profile_of(service: u32) -> Profile {
    let target = SocketAddr::new(IpAddr::V4(cluster_ip(service)), UDP_PORT);
    Profile { targets: vec![target], ..profile(1, 1, Protocol::Udp, Size::Min) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_their_ranges_and_differ() {
        let last = SERVICES_MAX - 1;
        assert_eq!((cluster_ip(0).to_string(), cluster_ip(255).to_string()), ("10.100.0.1".into(), "10.100.1.0".into()));
        let all: std::collections::HashSet<Ipv4Addr> =
            (0..2).flat_map(|g| (0..SERVICES_MAX).flat_map(move |s| (0..ENDPOINTS_EACH).map(move |n| endpoint(s, n, g)))).collect();
        assert_eq!(all.len() as u32, 2 * SERVICES_MAX * ENDPOINTS_EACH);
        let inside = |ip: Ipv4Addr, base: Ipv4Addr, len: u32| (ip.to_bits() ^ base.to_bits()) >> (32 - len) == 0;
        assert!(
            inside(endpoint(last, 2, 1), Ipv4Addr::new(172, 24, 0, 0), 13) && inside(cluster_ip(last), Ipv4Addr::new(10, 96, 0, 0), 12)
        );
    }

    #[test]
    fn traffic_to_many_services_is_sound() {
        for services in [1, 100, SERVICES_MAX] {
            let profile = profile(services, 10_000, Protocol::Udp, Size::Min);
            profile.check().unwrap();
            assert_eq!(profile.targets.len() as u32, services);
        }
        assert_eq!(*endpoints(1).start(), endpoint(0, 0, 1));
        assert!(service_object(0).contains("80, protocol: TCP") && !service_object(1).contains("TCP"));
    }
}
