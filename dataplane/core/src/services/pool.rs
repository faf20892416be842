//! Who may get a connection: backends, and the table that chooses one.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use crate::conntrack::affinity::IDENTITY_BITS;
use crate::maglev::Maglev;
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

/// The candidates for one Service port and traffic class, with their Maglev table.
#[derive(Debug)]
pub struct Pool {
    /// Sorted by address and port, without duplicates.
    pub backends: Arc<[Backend]>,
    /// Slot to backend.
    pub maglev: Maglev,
    /// By [`Backend::identity`], sorted.
    identities: Box<[(u64, u32)]>,
}

impl Pool {
    /// Builds a pool: sorts, removes duplicates (of equals the heaviest stays), fills the table. The order of `backends` does not matter.
    /// `None` when there are no backends: such a Service has an [`Action`] that says so instead.
    pub fn new(mut backends: Vec<Backend>, seed: &HashSeed) -> Option<Pool> {
        backends.sort_by_key(|b| (b.addr, b.port, Reverse(b.weight)));
        backends.dedup_by_key(|b| (b.addr, b.port));
        let maglev = Maglev::build(&backends, seed)?;
        let mut identities: Box<[(u64, u32)]> = backends.iter().enumerate().map(|(i, b)| (b.identity(), i as u32)).collect();
        identities.sort_unstable();
        Some(Pool { backends: backends.into(), maglev, identities })
    }

    /// The backend with this identity, if it is a candidate.
    pub fn by_identity(&self, identity: u64) -> Option<&Backend> {
        let place = self.identities.binary_search_by_key(&identity, |(id, _)| *id).ok()?;
        self.backends.get(self.identities[place].1 as usize)
    }
}
