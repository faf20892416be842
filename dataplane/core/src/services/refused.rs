//! How many packets a Service port has refused. Counted where a connection is not opened, never for packets of known flows.
//!
//! Plain counters, not of [`crate::sync`]: nothing depends on their order, and models of the packet path make their Services outside of loom.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Packets that a Service port refused, on all workers and in all tables that have the port.
#[derive(Default, Debug)]
pub struct Refused {
    rejected: AtomicU64,
    dropped: AtomicU64,
}

impl Refused {
    /// Counts a packet whose sender is told, within limits.
    pub fn count_rejected(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// Counts a packet that is dropped in silence.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Packets rejected so far.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Packets dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Counts are state: Service ports that differ in them are equal.
impl PartialEq for Refused {
    fn eq(&self, _: &Refused) -> bool {
        true
    }
}

impl Eq for Refused {}
