//! What the compiler must know: the configuration, and what the cluster's own objects say about this node.

use std::net::IpAddr;

use nomagic_core::services::{SnatRange, TcpReject};
use nomagic_core::tuple::HashSeed;
use nomagic_table::index::Index;
use nomagic_table::objects::{ZONE_LABEL, addr};
use nomagic_table::settings::{Node, Settings};

use super::{Config, DetectLocal, Reject};

impl Config {
    /// The settings without any objects. `discovered` are the kernel's addresses of this node, used when `node.ips` is empty.
    pub fn settings(&self, discovered: &[IpAddr]) -> Settings {
        self.settings_for(discovered, &Index::default())
    }

    /// The settings with what the objects say: this node's Node object comes before the configured zone and primary addresses, and
    /// ServiceCIDR objects before the configured ranges; a kube-proxy's `bindAddress` comes before both. Its `podCIDRs` stand in for `clusterCIDRs` that are not configured.
    pub fn settings_for(&self, discovered: &[IpAddr], index: &Index) -> Settings {
        let name = self.node_name();
        let object = index.node(&name);
        let mut ips = if self.node.ips.is_empty() { discovered.to_vec() } else { self.node.ips.clone() };
        let primary: Vec<IpAddr> = [false, true]
            .into_iter()
            .filter_map(|v6| {
                let of_family = |list: &[IpAddr]| list.iter().copied().find(|ip| ip.is_ipv6() == v6);
                let usable = || ips.iter().copied().find(|ip| ip.is_ipv6() == v6 && addr::fault(*ip).is_none());
                // Without configured ones a family has the first of all addresses; with them it has none unless one is named.
                let configured = || if self.node.primary_ips.is_empty() { usable() } else { of_family(&self.node.primary_ips) };
                let bound = self.node.bind_address.filter(|ip| ip.is_ipv6() == v6);
                bound.or_else(|| object.and_then(|node| of_family(&node.ips))).or_else(configured)
            })
            .collect();
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
            node: Node { name, ips, primary, zone },
            cluster_cidrs,
            pods_by_interface: matches!(self.detect_local, DetectLocal::Interfaces(_)),
            service_cidrs,
            masquerade_all: self.masquerade_all,
            localhost_node_ports: self.localhost_node_ports,
            node_port_addresses: self.node_port_addresses.clone(),
            tcp_reject: match self.reject {
                Reject::Icmp => TcpReject::PortUnreachable,
                Reject::TcpReset => TcpReject::Reset,
            },
            seed: HashSeed::new(self.hash.seed),
        }
    }

    fn snat_range(&self, primary: &[IpAddr]) -> SnatRange {
        let sources = if self.snat.addresses.is_empty() { primary } else { &self.snat.addresses };
        SnatRange {
            v4: sources.iter().copied().find(IpAddr::is_ipv4),
            v6: sources.iter().copied().find(IpAddr::is_ipv6),
            port_first: self.snat.ports.first,
            port_last: self.snat.ports.last,
            share_percent: self.snat.share,
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
    fn the_clusters_objects_come_before_the_configuration() {
        let text = "
node: {name: gw, ips: [192.168.0.2, 'fd00::2'], primaryIPs: [192.168.0.2, 'fd00::2'], labels: {topology.kubernetes.io/zone: configured}}
serviceCIDRs: [10.0.0.0/8]
";
        let s = config(text).settings_for(&[], &objects());
        assert_eq!((s.node.zone.as_deref(), s.node.primary), (Some("east"), ips(&["192.168.0.7", "fd00::2"])));
        assert_eq!(s.node.ips, ips(&["192.168.0.2", "fd00::2", "192.168.0.7"]));
        assert_eq!((s.snat.v4, s.snat.v6), (Some("192.168.0.7".parse().unwrap()), Some("fd00::2".parse().unwrap())));
        assert_eq!(s.cluster_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.2.0/24"]);
        assert_eq!(s.service_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/16", "fd00::/112", "10.97.0.0/16"]);
        let s = config(text).settings(&[]);
        assert_eq!((s.node.zone.as_deref(), s.node.primary), (Some("configured"), ips(&["192.168.0.2", "fd00::2"])));
        assert_eq!((s.cluster_cidrs.len(), s.service_cidrs[0].to_string().as_str()), (0, "10.0.0.0/8"));
    }

    #[test]
    fn configured_pod_ranges_and_sources_stay() {
        let s = config("node: {name: gw}\nclusterCIDRs: [10.1.0.0/16]\nsnat: {addresses: [192.168.0.9]}").settings_for(&[], &objects());
        assert_eq!((s.cluster_cidrs[0].to_string().as_str(), s.snat.v4), ("10.1.0.0/16", Some("192.168.0.9".parse().unwrap())));
        let elsewhere = config("node: {name: unknown}").settings_for(&ips(&["10.0.0.1"]), &objects());
        assert_eq!((elsewhere.node.zone, elsewhere.node.primary), (None, ips(&["10.0.0.1"])));
    }
}
