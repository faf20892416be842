//! What the XDP program must take from the wire, as plain data.

use std::net::IpAddr;

use nomagic_core::services::{AddressKind, Services};
use nomagic_core::tuple::{Prefix, Proto};

/// What the XDP program must take. Replies of DNAT-only flows are announced by the workers themselves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FilterRules {
    /// Node ports, external and load balancer addresses: only this port and protocol. Sorted.
    pub exact: Vec<(IpAddr, u16, Proto)>,
    /// Cluster IPs: every port, since unused ones are rejected. Sorted.
    pub addresses: Vec<IpAddr>,
    /// ServiceCIDRs: what nobody has is dropped. Sorted.
    pub prefixes: Vec<Prefix>,
    /// Replies to replaced sources: address, first and last port.
    pub snat: Vec<(IpAddr, u16, u16)>,
}

/// The rules for a table.
pub fn filter_rules(services: &Services) -> FilterRules {
    let outer = services.frontends().filter(|(_, _, _, f)| f.kind != AddressKind::ClusterIp);
    let mut exact: Vec<_> = outer.map(|(ip, port, proto, _)| (ip, port, proto)).collect();
    let mut addresses: Vec<_> = services.cluster_ips.iter().map(|(ip, _)| *ip).collect();
    let mut prefixes = services.service_cidrs.clone();
    exact.sort_unstable();
    addresses.sort_unstable();
    prefixes.sort_unstable();
    prefixes.dedup();
    let range = &services.snat;
    let snat = [range.v4, range.v6].into_iter().flatten().map(|ip| (ip, range.port_first, range.port_last)).collect();
    FilterRules { exact, addresses, prefixes, snat }
}
