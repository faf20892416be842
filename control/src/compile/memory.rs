//! What lasts from one table to the next: the counters' places, and pools whose backends did not change.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use nomagic_core::services::{Backend, Pool};
use nomagic_core::tuple::{HashSeed, Proto};

use super::endpoints::{Class, Selection};
use crate::objects::Key;

/// A sensible number of (Service port, backend) pairs with counters of their own: about 10 MB a worker.
pub const TARGETS_MAX: u32 = 1 << 17;

/// A Service port's identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortKey {
    /// The Service.
    pub service: Key,
    /// The port's name, "" when it has none.
    pub port_name: String,
    /// Protocol.
    pub proto: Proto,
}

#[derive(Debug)]
pub(super) struct Memory {
    ports: HashMap<PortKey, PortMemory>,
    seed: Option<HashSeed>,
    /// Number of the compilation: what it did not touch is forgotten.
    round: u64,
    /// The lowest place never given away.
    next: u32,
    places: u32,
    /// Places given back, longest ago first: connections of a removed backend may count there for a while.
    free: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct PortMemory {
    targets: HashMap<(IpAddr, u16), Target>,
    pools: HashMap<(bool, Class), (Arc<Pool>, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    place: u32,
    round: u64,
}

impl Memory {
    pub(super) fn new(places: u32) -> Memory {
        Memory { ports: HashMap::new(), seed: None, round: 0, next: 1, places, free: VecDeque::new() }
    }

    pub(super) fn begin(&mut self, seed: &HashSeed) {
        self.round += 1;
        if self.seed.replace(*seed) != Some(*seed) {
            self.ports.values_mut().for_each(|p| p.pools.clear());
        }
    }

    /// The pool of a class, the earlier one if its backends are the same. `None` when there are no backends.
    pub(super) fn pool(&mut self, key: &PortKey, v6: bool, class: Class, selection: &Selection<'_>) -> Option<Arc<Pool>> {
        let seed = self.seed?;
        if !self.ports.contains_key(key) {
            self.ports.insert(key.clone(), PortMemory::default());
        }
        let port = self.ports.get_mut(key)?;
        let mut backends = Vec::with_capacity(selection.members(class).len());
        for candidate in selection.usable(class) {
            let (addr, number) = (candidate.endpoint.addr, candidate.port);
            let target = port.targets.entry((addr, number)).or_insert_with(|| {
                let fresh = (self.next < self.places).then_some(self.next);
                self.next += u32::from(fresh.is_some());
                Target { place: fresh.or_else(|| self.free.pop_front()).unwrap_or(0), round: 0 }
            });
            target.round = self.round;
            backends.push(Backend { addr, port: number, weight: 1, stats: target.place });
        }
        if let Some((pool, round)) = port.pools.get_mut(&(v6, class))
            && *pool.backends == *backends
        {
            *round = self.round;
            return Some(pool.clone());
        }
        let pool = Arc::new(Pool::new(backends, &seed)?);
        port.pools.insert((v6, class), (pool.clone(), self.round));
        Some(pool)
    }

    /// Forgets what this round did not ask for.
    pub(super) fn finish(&mut self) {
        let round = self.round;
        self.ports.retain(|_, port| {
            port.pools.retain(|_, (_, used)| *used == round);
            port.targets.retain(|_, target| {
                let stays = target.round == round;
                if !stays && target.place != 0 {
                    self.free.push_back(target.place);
                }
                stays
            });
            !port.targets.is_empty()
        });
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.ports.iter().flat_map(|(key, port)| port.targets.iter().map(move |((addr, number), t)| (t.place, key, *addr, *number)))
    }
}
