//! The connection table (API; body follows).
use std::sync::atomic::AtomicU64;

/// The table: a view of one region of words, shared by all workers.
#[derive(Clone, Copy)]
pub struct Conntrack<'r> {
    words: &'r [AtomicU64],
}

/// Why a region cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// Fewer words than the capacity needs.
    TooSmall,
    /// The capacity is 0 or beyond the limit.
    Capacity,
}

impl<'r> Conntrack<'r> {
    /// Words that a table for this many connections needs.
    pub fn words_needed(capacity: u32) -> usize {
        capacity as usize * 20 + 64
    }

    /// Formats a zeroed or used region as an empty table.
    pub fn format(words: &'r [AtomicU64], capacity: u32, _seed: u64, _boot_id: [u64; 2]) -> Result<Conntrack<'r>, RegionError> {
        if words.len() < Self::words_needed(capacity) {
            return Err(RegionError::TooSmall);
        }
        Ok(Conntrack { words })
    }

    /// Live connections.
    pub fn live(&self) -> u64 {
        self.words.len() as u64
    }
}
