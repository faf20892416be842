//! The compiler's settings, from the configuration and the cluster's objects about this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nomagic_core::services::{SnatRange, TcpReject};
use nomagic_core::tuple::{HashSeed, Proto};
use nomagic_table::index::Index;
use nomagic_table::objects::{NamespacedName, ZONE_LABEL, addr};
use nomagic_table::settings::{ExternalIps, Settings, ThisNode};

use super::{Config, DetectLocal, Kubernetes, Reject};

/// How many API servers are protected against Services.
const API_SERVERS_MAX: usize = 256;

impl Config {
    /// The settings without objects. `discovered` are this node's addresses in the kernel, used if `node.ips` is empty.
    pub fn settings(&self, discovered: &[IpAddr]) -> Settings {
        self.settings_for(discovered, &Index::default())
    }

    /// The settings with the cluster's objects. The Node object takes precedence over the configured zone and primary addresses, but not over
    /// kube-proxy's `bindAddress`. ServiceCIDR objects take precedence over the configured ranges. The Node object's `podCIDRs` replace
    /// missing `clusterCIDRs`. The seed is `hash.seed`, or 0: a gateway replaces it by the one that [`crate::seed`] chooses.
    pub fn settings_for(&self, discovered: &[IpAddr], index: &Index) -> Settings {
        let name = self.node_name();
        let object = index.node(&name);
        let mut ips = if self.node.ips.is_empty() { discovered.to_vec() } else { self.node.ips.clone() };
        let primary: Vec<IpAddr> = [false, true]
            .into_iter()
            .filter_map(|v6| {
                let of_family = |list: &[IpAddr]| list.iter().copied().find(|ip| ip.is_ipv6() == v6);
                let usable = || ips.iter().copied().find(|ip| ip.is_ipv6() == v6 && addr::fault(*ip).is_none());
                // If no primary addresses are configured, each family uses its first address; otherwise only the configured families have one.
                let configured = || if self.node.primary_ips.is_empty() { usable() } else { of_family(&self.node.primary_ips) };
                let bound = self.node.bind_address.filter(|ip| ip.is_ipv6() == v6);
                bound.or_else(|| object.and_then(|node| of_family(&node.ips))).or_else(configured)
            })
            .collect();
        let kernel_ips = discovered.iter().chain(&ips).chain(&primary).copied().collect();
        ips.extend(primary.iter().filter(|p| !ips.contains(p)).copied().collect::<Vec<_>>());
        let zone =
            object.and_then(|node| node.zone.clone()).or_else(|| self.node.labels.get(ZONE_LABEL).filter(|z| !z.is_empty()).cloned());
        let of_node = || object.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        let cluster_cidrs = match self.detect_local {
            DetectLocal::NodeCidrs => of_node(),
            DetectLocal::Auto if self.cluster_cidrs.is_empty() => of_node(),
            _ => self.cluster_cidrs.clone(),
        };
        let mut service_cidrs = Vec::new();
        for cidr in index.service_cidrs().flat_map(|c| &c.cidrs) {
            if !service_cidrs.contains(cidr) {
                service_cidrs.push(*cidr);
            }
        }
        if service_cidrs.is_empty() {
            service_cidrs.clone_from(&self.service_cidrs);
        }
        Settings {
            snat: self.snat_range(&primary),
            node: ThisNode { name, ips, primary, zone },
            cluster_cidrs,
            pods_by_interface: matches!(self.detect_local, DetectLocal::Interfaces(_)),
            incomplete: false,
            service_cidrs,
            masquerade_all: self.masquerade_all,
            localhost_node_ports: self.localhost_node_ports,
            node_port_addresses: self.node_port_addresses.clone(),
            kernel_ips,
            keep_local: self.keep_local.clone(),
            external_ips: self.allowed_external_ips.clone().map_or(ExternalIps::Foreign, ExternalIps::Allowed),
            api_servers: self.api_servers(index),
            tcp_reject: match self.reject {
                Reject::Icmp => TcpReject::PortUnreachable,
                Reject::TcpReset => TcpReject::Reset,
            },
            unused_ports: self.unused_ports,
            answer_ping: self.answer_ping,
            mss: self.mss.0,
            fragment: self.fragment,
            reset_idle: self.conntrack.tcp_reset_on_idle,
            limits: self.limits.into(),
            seed: HashSeed::new(self.hash.seed.unwrap_or(0)),
        }
    }

    /// The API servers: the configured one, if it is named by an address, and the endpoints of Service `default/kubernetes`.
    fn api_servers(&self, index: &Index) -> BTreeSet<SocketAddr> {
        let configured = match &self.kubernetes {
            Some(Kubernetes::Url { url, .. }) => url.host().and_then(|host| {
                let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
                Some(SocketAddr::new(ip, url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 })))
            }),
            _ => None,
        };
        let service = NamespacedName { namespace: "default".into(), name: "kubernetes".into() };
        let endpoints = index.slices_of(&service).flat_map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.proto == Proto::Tcp);
            ports.flat_map(|port| slice.endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.addr, port.port)))
        });
        configured.into_iter().chain(endpoints).take(API_SERVERS_MAX).collect()
    }

    fn snat_range(&self, primary: &[IpAddr]) -> SnatRange {
        let sources = if self.snat.addresses.is_empty() { primary } else { &self.snat.addresses };
        SnatRange {
            v4: sources.iter().copied().filter(IpAddr::is_ipv4).collect(),
            v6: sources.iter().copied().filter(IpAddr::is_ipv6).collect(),
            port_first: self.snat.ports.first,
            port_last: self.snat.ports.last,
            // What the node itself uses is known to `run` only.
            excluded: None,
            share_percent: self.snat.share,
            client_share_percent: self.snat.client_share,
            internal_v4: self.snat.internal_addresses.iter().copied().find(IpAddr::is_ipv4),
            internal_v6: self.snat.internal_addresses.iter().copied().find(IpAddr::is_ipv6),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nomagic_table::objects::{Kind, read};
    use nomagic_table::problem::Origin;
    use serde_json::json;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("nomagic.yaml")).unwrap()
    }

    fn objects() -> Index {
        let node = json!({
            "metadata": {"name": "gw", "labels": {"topology.kubernetes.io/zone": "east"}}, "spec": {"podCIDRs": ["10.1.2.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.7"}]},
        });
        let other = json!({"metadata": {"name": "other", "labels": {"topology.kubernetes.io/zone": "west"}}});
        let cidr = |name: &str, cidrs: &[&str]| (Kind::ServiceCidr, json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}}));
        let all = [
            (Kind::Node, node),
            (Kind::Node, other),
            cidr("a", &["10.96.0.0/16", "fd00::/112"]),
            cidr("b", &["10.97.0.0/16", "10.96.0.0/16"]),
        ];
        Index::of(all.map(|(kind, value)| read(kind, value, &Origin::default()).unwrap()))
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn objects_take_precedence_over_the_configuration() {
        let text = "
node: {name: gw, ips: [192.168.0.2, 'fd00::2'], primaryIPs: [192.168.0.2, 'fd00::2'], labels: {topology.kubernetes.io/zone: configured}}
serviceCIDRs: [10.0.0.0/8]
";
        let s = config(text).settings_for(&[], &objects());
        assert_eq!((s.node.zone.as_deref(), s.node.primary), (Some("east"), ips(&["192.168.0.7", "fd00::2"])));
        assert_eq!(s.node.ips, ips(&["192.168.0.2", "fd00::2", "192.168.0.7"]));
        assert_eq!((s.snat.v4, s.snat.v6), (vec!["192.168.0.7".parse().unwrap()], vec!["fd00::2".parse().unwrap()]));
        assert_eq!(s.cluster_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.2.0/24"]);
        assert_eq!(s.service_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/16", "fd00::/112", "10.97.0.0/16"]);
        let s = config(text).settings(&[]);
        assert_eq!((s.node.zone.as_deref(), s.node.primary), (Some("configured"), ips(&["192.168.0.2", "fd00::2"])));
        assert_eq!((s.cluster_cidrs.len(), s.service_cidrs[0].to_string().as_str()), (0, "10.0.0.0/8"));
    }

    #[test]
    fn configured_pod_ranges_and_snat_addresses_are_kept() {
        let s = config("node: {name: gw}\nclusterCIDRs: [10.1.0.0/16]\nsnat: {addresses: [192.168.0.9]}").settings_for(&[], &objects());
        assert_eq!((s.cluster_cidrs[0].to_string().as_str(), s.snat.v4), ("10.1.0.0/16", vec!["192.168.0.9".parse().unwrap()]));
        let elsewhere = config("node: {name: unknown}").settings_for(&ips(&["10.0.0.1"]), &objects());
        assert_eq!((elsewhere.node.zone, elsewhere.node.primary), (None, ips(&["10.0.0.1"])));
    }
}
