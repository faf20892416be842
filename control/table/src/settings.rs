//! What the table depends on besides the objects.

use std::net::IpAddr;

use nomagic_core::services::{SnatRange, TcpReject};
use nomagic_core::tuple::{HashSeed, Prefix};

use crate::objects::addr;

/// Who this node is.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The Node object's name: endpoints with this `nodeName` are local.
    pub name: String,
    /// All of its addresses.
    pub ips: Vec<IpAddr>,
    /// Its InternalIPs, at most one a family.
    pub primary: Vec<IpAddr>,
    /// Its zone, for topology hints.
    pub zone: Option<String>,
}

/// What decisions depend on besides the objects.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Who this node is.
    pub node: Node,
    /// Pod ranges.
    pub cluster_cidrs: Vec<Prefix>,
    /// Pods are told by the interfaces that their addresses are routed to: also where there is none at the moment.
    pub pods_by_interface: bool,
    /// Ranges of cluster IPs.
    pub service_cidrs: Vec<Prefix>,
    /// Replace the client's address on every connection to a cluster IP.
    pub masquerade_all: bool,
    /// kube-proxy's `localhostNodePorts`; only `explain` mentions it.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Source NAT.
    pub snat: SnatRange,
    /// How TCP connections are rejected.
    pub tcp_reject: TcpReject,
    /// Seed of the hash.
    pub seed: HashSeed,
}

impl Settings {
    /// Whether pods of a family can be told from other clients: only then cluster IP traffic of others is masqueraded.
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
    /// Addresses of the node in these; a family without a CIDR here is not restricted.
    Cidrs(Vec<Prefix>),
}
