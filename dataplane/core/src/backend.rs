//! Backends: what a Service's connections are forwarded to.

use std::net::IpAddr;

use crate::conntrack::affinity::IDENTITY_BITS;
use crate::tuple::{HashSeed, addr_words};

/// A backend (endpoint) as the packet path needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The endpoint's port.
    pub port: u16,
    /// Relative weight, at least 1. Kubernetes has none today: 1.
    pub weight: u16,
    /// Place of this (Service port, backend) pair in [`crate::counters::Counters`]; stable while the pair exists.
    pub stats: u32,
}

impl Backend {
    /// A name for address and port, the same in every table and every process.
    pub fn identity(&self) -> u64 {
        let (words, v6) = addr_words(self.addr);
        HashSeed::new(0).hash_words(&[words[0], words[1], (u64::from(self.port) << 1) | u64::from(v6)]) >> (64 - IDENTITY_BITS)
    }
}
