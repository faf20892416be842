//! The inputs of a table besides the objects.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nomagic_core::mss::SegmentSize;
use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond, SnatRange, TcpReject, UnusedPorts};
use nomagic_core::tuple::{HashSeed, Prefix};

use crate::objects::addr;

/// This node.
#[derive(Clone, PartialEq, Debug)]
pub struct ThisNode {
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
    pub node: ThisNode,
    /// Pod ranges.
    pub cluster_cidrs: Vec<Prefix>,
    /// Pods are detected by the interfaces of their routes; then pods are known even if no route exists yet.
    pub pods_by_interface: bool,
    /// Ranges of cluster IPs.
    pub service_cidrs: Vec<Prefix>,
    /// There are objects of which not even the name could be read: nothing is said of addresses that no known Service has.
    pub incomplete: bool,
    /// Masquerade every connection to a cluster IP.
    pub masquerade_all: bool,
    /// kube-proxy's `localhostNodePorts`; only `explain` mentions it.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// All addresses of this node in the kernel. Only Service ports are taken there.
    pub kernel_ips: BTreeSet<IpAddr>,
    /// On addresses of this node in here, local processes keep even the ports of Services (a node-local DNS cache).
    pub keep_local: Vec<Prefix>,
    /// Which addresses `spec.externalIPs` may name.
    pub external_ips: ExternalIps,
    /// Addresses and ports of the API servers, which no Service may take.
    pub api_servers: BTreeSet<SocketAddr>,
    pub snat: SnatRange,
    /// How TCP connections are rejected.
    pub tcp_reject: TcpReject,
    /// What becomes of packets for unused ports of load balancer and external IPs that the kernel would send back.
    pub unused_ports: UnusedPorts,
    /// Pings to addresses that only Services have are answered.
    pub answer_ping: bool,
    /// The maximum segment size in SYNs.
    pub mss: SegmentSize,
    /// IPv4 packets without DF that are larger than the MTU of their way on are sent in fragments.
    pub fragment: bool,
    /// Both ends of a TCP connection that ends by its idle timeout get a reset.
    pub reset_idle: bool,
    /// Limits of Services without an annotation about them.
    pub limits: DefaultLimits,
    pub seed: HashSeed,
}

/// Limits of the connections to each Service; `None`: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DefaultLimits {
    pub per_second: Option<ConnectionsPerSecond>,
    pub per_client: Option<ConnectionsPerClient>,
}

impl Settings {
    /// Whether pods of a family are distinguishable from other clients; only then is cluster IP traffic of others masqueraded.
    pub fn knows_pods(&self, v6: bool) -> bool {
        self.pods_by_interface || self.cluster_cidrs.iter().any(|c| c.addr().is_ipv6() == v6)
    }

    /// Whether Services are not served at this address, because it is this node's to keep.
    pub fn keeps_local(&self, ip: IpAddr) -> bool {
        self.kernel_ips.contains(&ip) && self.keep_local.iter().any(|range| range.contains(ip))
    }

    /// The pod ranges, without those of one address: these come and go with each pod.
    pub fn pod_ranges(&self) -> impl Iterator<Item = Prefix> {
        self.cluster_cidrs.iter().filter(|range| **range != Prefix::host(range.addr())).copied()
    }

    /// Why `spec.externalIPs` may not name this address; `None`: it may.
    pub fn refuses_external_ip(&self, ip: IpAddr) -> Option<RefusedExternalIp> {
        if let ExternalIps::Allowed(prefixes) = &self.external_ips {
            return (!prefixes.iter().any(|p| p.contains(ip))).then_some(RefusedExternalIp::NotAllowed);
        }
        let range_of = |ranges: &[Prefix]| ranges.iter().find(|range| range.contains(ip)).copied();
        if self.api_servers.iter().any(|server| server.ip() == ip) {
            return Some(RefusedExternalIp::ApiServer);
        }
        // Others of this node may be there for the very Service: keepalived and kube-vip put external IPs on a node.
        if self.node.primary.contains(&ip) {
            return Some(RefusedExternalIp::Node);
        }
        range_of(&self.service_cidrs)
            .map(RefusedExternalIp::ServiceRange)
            .or_else(|| self.pod_ranges().find(|range| range.contains(ip)).map(RefusedExternalIp::PodRange))
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

/// Which addresses `spec.externalIPs` may name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    /// All but cluster IP ranges, pod ranges, this node's primary addresses and the API servers'.
    #[default]
    Foreign,
    /// Those in these prefixes, and no others.
    Allowed(Vec<Prefix>),
}

/// Why `spec.externalIPs` may not name an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RefusedExternalIp {
    ServiceRange(Prefix),
    PodRange(Prefix),
    Node,
    ApiServer,
    NotAllowed,
}

impl fmt::Display for RefusedExternalIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefusedExternalIp::ServiceRange(range) => write!(f, "in the cluster IP range {range}"),
            RefusedExternalIp::PodRange(range) => write!(f, "in the pod range {range}"),
            RefusedExternalIp::Node => f.write_str("this node's primary address"),
            RefusedExternalIp::ApiServer => f.write_str("an address of the API server"),
            RefusedExternalIp::NotAllowed => f.write_str("not in allowedExternalIPs"),
        }
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
