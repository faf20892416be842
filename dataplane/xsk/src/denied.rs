//! The deny list in the kernel: the denied prefixes, and how many packets each has dropped.
//!
//! The maps are pinned. The list stays in force while no process runs, and the next process finds the prefixes with their counters. A prefix
//! denied by command is in no file, so its value says until when; a reboot, which ends the map, also ends the clock of that time.

use std::collections::HashMap;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, MapData, MapError};
use nomagic_core::deny::DENY_PREFIXES_MAX;
use nomagic_core::tuple::Prefix;

use crate::error::EdgeError;
use crate::filter::{failed, gone, prefix_key, prefix_of};
use crate::program::take_map;

/// The end of a command that lasts until it is taken back, CLOCK_MONOTONIC in ns.
pub const NO_END_NS: u64 = u64::MAX;

/// The denied prefixes. Those denied by command with the end of that command, CLOCK_MONOTONIC in ns, or [`NO_END_NS`].
pub type Denied = HashMap<Prefix, Option<u64>>;

/// The maps of bpf/maps.h, and a copy of what they say.
pub(crate) struct DeniedMaps {
    /// `struct denied`: packets, end of the command or 0.
    prefixes: LpmTrie<MapData, [u8; 20], [u64; 2]>,
    count: Array<MapData, u32>,
    known: Denied,
}

impl DeniedMaps {
    /// Takes the maps of a loaded program, and reads what an earlier process left in them.
    pub fn open(ebpf: &mut Ebpf) -> Result<DeniedMaps, EdgeError> {
        let mut maps = DeniedMaps {
            prefixes: take_map(ebpf, "denied")?.try_into().map_err(failed("denied"))?,
            count: take_map(ebpf, "denied_count")?.try_into().map_err(failed("denied_count"))?,
            known: Denied::new(),
        };
        for key in maps.prefixes.keys() {
            if let Some(prefix) = prefix_of(key.map_err(failed("denied"))?) {
                let [_, until_ns] = maps.value(&prefix)?;
                maps.known.insert(prefix, (until_ns > 0).then_some(until_ns));
            }
        }
        Ok(maps)
    }

    /// What is denied now.
    pub fn known(&self) -> &Denied {
        &self.known
    }

    /// Makes the list exactly this one. Prefixes that stay keep their counters, and are denied throughout.
    pub fn follow(&mut self, wanted: &Denied) -> Result<(), EdgeError> {
        if wanted.len() > DENY_PREFIXES_MAX {
            return Err(EdgeError::FilterFull { map: "denied prefixes", limit: DENY_PREFIXES_MAX, wanted: wanted.len() });
        }
        let followed = self.follow_prefixes(wanted);
        self.count.set(0, self.known.len() as u32, 0).map_err(failed("denied_count"))?;
        followed
    }

    /// Adds first, so that a source which the new list denies by another prefix is denied throughout. Only if both lists together are larger than the
    /// map, the surplus is removed first.
    fn follow_prefixes(&mut self, wanted: &Denied) -> Result<(), EdgeError> {
        let surplus: Vec<Prefix> = self.known.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        if wanted.len() + surplus.len() <= DENY_PREFIXES_MAX {
            self.add(wanted)?;
            self.remove(&surplus)
        } else {
            self.remove(&surplus)?;
            self.add(wanted)
        }
    }

    fn remove(&mut self, surplus: &[Prefix]) -> Result<(), EdgeError> {
        for prefix in surplus {
            gone(self.prefixes.remove(&prefix_key(prefix)), "denied")?;
            self.known.remove(prefix);
        }
        Ok(())
    }

    fn add(&mut self, wanted: &Denied) -> Result<(), EdgeError> {
        for (prefix, until_ns) in wanted {
            let packets = match self.known.get(prefix) {
                Some(known) if known == until_ns => continue,
                // Packets that are dropped between this and the insertion are not counted.
                Some(_) => self.packets(prefix)?,
                None => 0,
            };
            let value = [packets, until_ns.unwrap_or(0)];
            self.prefixes.insert(&prefix_key(prefix), value, 0).map_err(failed("denied"))?;
            self.known.insert(*prefix, *until_ns);
        }
        Ok(())
    }

    /// How many packets a denied prefix has dropped.
    pub fn packets(&self, prefix: &Prefix) -> Result<u64, EdgeError> {
        self.value(prefix).map(|[packets, _]| packets)
    }

    /// A look-up finds the longest prefix: for one that is in the map, itself.
    fn value(&self, prefix: &Prefix) -> Result<[u64; 2], EdgeError> {
        match self.prefixes.get(&prefix_key(prefix), 0) {
            Err(MapError::KeyNotFound) => Ok([0; 2]),
            value => value.map_err(failed("denied")),
        }
    }
}
