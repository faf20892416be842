//! By what pods are told from other clients.

use super::patterns::Pattern;

/// By what pods are told from other clients. Only a kube-proxy's file asks for another way than the first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectLocal {
    /// By `clusterCIDRs`, and where there are none by the Node object's `podCIDRs`.
    #[default]
    Auto,
    /// By `clusterCIDRs` alone.
    ClusterCidrs,
    /// By the Node object's `podCIDRs` alone, whatever they are at the moment.
    NodeCidrs,
    /// By the kernel's routes to interfaces of these names: an address is a pod's if the way to it leads there.
    Interfaces(Vec<Pattern>),
}
