//! The packet that is followed, and the node that it meets.

use std::net::IpAddr;

use nomagic_core::tuple::Tuple;

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// A pod of this node: the interface tests by which kube-proxy knows pods hold for it.
    Pod,
    /// A process of this node: the packet starts at the hook `output`.
    Node,
    /// Anywhere else.
    Outside,
}

/// The first packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub tuple: Tuple,
    pub origin: Origin,
}

/// What the kernel knows of its node, and the rules do not say.
#[derive(Clone, Default, Debug)]
pub struct Node {
    /// The addresses of this node, besides the loopback ones.
    pub addresses: Vec<IpAddr>,
}

impl Node {
    /// Whether an address is of the kernel's type `local`.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }
}
