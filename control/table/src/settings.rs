//! The inputs of a table besides the objects.

use std::net::IpAddr;

use nomagic_core::services::{SnatRange, TcpReject};
use nomagic_core::tuple::{HashSeed, Prefix};

use crate::objects::addr;

/// This node.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The Node object's name: endpoints with this `nodeName` are local.
    pub name: String,
    pub ips: Vec<IpAddr>,
    /// InternalIPs, at most one per family.
    pub primary: Vec<IpAddr>,
    /// For topology hints.
    pub zone: Option<String>,
}

/// Settings of the compiler.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub node: Node,
    /// Pod ranges.
    pub cluster_cidrs: Vec<Prefix>,
    /// Pods are detected by the interfaces of their routes; then pods are known even if no route exists yet.
    pub pods_by_interface: bool,
    /// Ranges of cluster IPs.
    pub service_cidrs: Vec<Prefix>,
    /// Masquerade every connection to a cluster IP.
    pub masquerade_all: bool,
    /// kube-proxy's `localhostNodePorts`; only `explain` mentions it.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    pub snat: SnatRange,
    /// How TCP connections are rejected.
    pub tcp_reject: TcpReject,
    pub seed: HashSeed,
}

impl Settings {
    /// Whether pods of a family are distinguishable from other clients; only then is cluster IP traffic of others masqueraded.
    pub fn knows_pods(&self, v6: bool) -> bool {
        self.pods_by_interface || self.cluster_cidrs.iter().any(|c| c.addr().is_ipv6() == v6)
    }

    /// The node's addresses of a family on which node ports answer.
    pub fn node_port_ips(&self, v6: bool) -> Vec<IpAddr> {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6 && addr::fault(**ip).is_none();
        let NodePortAddresses::Cidrs(cidrs) = &self.node_port_addresses else {
            return self.node.primary.iter().filter(of_family).copied().collect();
        };
        let cidrs: Vec<&Prefix> = cidrs.iter().filter(|c| c.addr().is_ipv6() == v6).collect();
        let allowed = |ip: &&IpAddr| cidrs.is_empty() || cidrs.iter().any(|c| c.contains(**ip));
        self.node.ips.iter().filter(of_family).filter(allowed).copied().collect()
    }
}

/// On which of the node's addresses node ports answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NodePortAddresses {
    /// The node's primary address of each family.
    #[default]
    Primary,
    /// The node's addresses in these CIDRs; a family without a CIDR is not restricted.
    Cidrs(Vec<Prefix>),
}
