//! The meaning of addresses outside the service table: cluster IPs, node ports and proxied load balancer addresses, with their Services.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use nomagic_core::tuple::Proto;

use crate::index::Index;
use crate::objects::{NamespacedName, Service};

#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The Service of each cluster IP.
    pub cluster_ips: HashMap<IpAddr, NamespacedName>,
    /// The Service of each node port, by (port, protocol, IPv6), and the index of the port in [`Service::ports`].
    pub node_ports: HashMap<(u16, Proto, bool), (NamespacedName, usize)>,
    /// Load balancer addresses with `ipMode: Proxy`.
    pub proxied: HashMap<IpAddr, NamespacedName>,
    /// Load balancer and external IPs. Of several Services at one, the first.
    pub outer: HashMap<IpAddr, NamespacedName>,
}

impl Names {
    /// Collects the addresses of these objects.
    pub fn of(index: &Index) -> Names {
        let mut served: Vec<&Service> = index.services().map(|s| &**s).filter(|s| s.ignored.is_none()).collect();
        served.sort_by(|a, b| (a.created_s, &a.key).cmp(&(b.created_s, &b.key)));
        let mut names = Names::default();
        for service in served.into_iter().filter(|s| !s.ports.is_empty()) {
            names.cluster_ips.extend(service.cluster_ips.iter().map(|ip| (*ip, service.key.clone())));
            names.proxied.extend(service.proxied_ips.iter().map(|ip| (*ip, service.key.clone())));
            for ip in service.load_balancer_ips.iter().chain(&service.external_ips) {
                names.outer.entry(*ip).or_insert_with(|| service.key.clone());
            }
            let families: BTreeSet<bool> = service.cluster_ips.iter().map(IpAddr::is_ipv6).collect();
            for (place, port) in service.ports.iter().enumerate() {
                for v6 in &families {
                    let of = port.node_port.map(|number| (number, port.proto, *v6));
                    of.map(|of| names.node_ports.entry(of).or_insert_with(|| (service.key.clone(), place)));
                }
            }
        }
        names
    }
}
