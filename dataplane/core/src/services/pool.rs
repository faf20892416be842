//! The backends that may get a connection, and the table that chooses one.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::backend::Backend;
use crate::maglev::Maglev;
use crate::tuple::HashSeed;

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
