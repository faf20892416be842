//! x
use std::net::IpAddr;

use nomagic_core::services::SnatRange;
use nomagic_core::tuple::{HashSeed, Prefix};

use crate::config::NodePortAddresses;

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
    /// Seed of the hash.
    pub seed: HashSeed,
}
