//! Detection of local pods.

use super::patterns::Pattern;

/// How pods are recognised. Only kube-proxy's file selects another variant than the default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectLocal {
    /// By `clusterCIDRs`; if there are none, by the Node object's `podCIDRs`.
    #[default]
    Auto,
    /// By `clusterCIDRs` only.
    ClusterCidrs,
    /// By the Node object's current `podCIDRs` only.
    NodeCidrs,
    /// By the kernel's routes: an address is a pod's if its route uses an interface with one of these names.
    Interfaces(Vec<Pattern>),
}
