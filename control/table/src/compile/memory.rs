//! State kept from one table to the next: counter indices, pools with unchanged backends, and the token buckets of rate limits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use nomagic_core::services::{Backend, ConnectionsPerSecond, Pool, RateLimit, Refused};
use nomagic_core::tuple::{HashSeed, Proto};

use super::endpoints::{Class, Selection};
use crate::objects::NamespacedName;

/// Default number of (Service port, backend) pairs with their own counters: about 10 MB per worker.
pub const TARGETS_MAX: u32 = 1 << 17;

/// A Service port's identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortKey {
    pub service: NamespacedName,
    /// "" for an unnamed port.
    pub port_name: String,
    pub proto: Proto,
}

#[derive(Debug)]
pub(super) struct Memory {
    /// By Service, so that one is updated without the others.
    services: HashMap<NamespacedName, BTreeMap<PortKey, PortMemory>>,
    seed: HashSeed,
    places: CounterIndices,
    /// Number of the current update; entries it does not use are dropped.
    round: u64,
}

/// Allocator of counter indices.
#[derive(Debug)]
struct CounterIndices {
    /// The lowest index never allocated.
    next: u32,
    max: u32,
    /// Freed indices, oldest first: connections of a removed backend may still count there for a while.
    free: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct PortMemory {
    targets: HashMap<(IpAddr, u16), CountedTarget>,
    pools: BTreeMap<(bool, Class), (Arc<Pool>, u64)>,
    /// The limit of new connections, and the update that used it last.
    rate: Option<(RateLimit, u64)>,
    /// The counters of refused packets, and the update that used them last.
    refused: Option<(Arc<Refused>, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct CountedTarget {
    place: u32,
    round: u64,
}

impl CounterIndices {
    /// Allocates an index; the shared index 0 when none is left.
    fn take(&mut self) -> u32 {
        if self.next < self.max {
            self.next += 1;
            return self.next - 1;
        }
        self.free.pop_front().unwrap_or(0)
    }

    fn give(&mut self, place: u32) {
        if place != 0 {
            self.free.push_back(place);
        }
    }
}

impl Memory {
    pub(super) fn new(places: u32) -> Memory {
        let places = CounterIndices { next: 1, max: places, free: VecDeque::new() };
        Memory { services: HashMap::new(), seed: HashSeed::new(0), places, round: 0 }
    }

    /// Sets the seed of new pools; drops pools with another one.
    pub(super) fn set_seed(&mut self, seed: &HashSeed) {
        if self.seed != *seed {
            self.seed = *seed;
            self.services.values_mut().flat_map(BTreeMap::values_mut).for_each(|p| p.pools.clear());
        }
    }

    /// Runs `plan`, which requests the Service's pools; drops entries that it does not request.
    pub(super) fn update<T>(&mut self, service: &NamespacedName, plan: impl FnOnce(&mut ServiceMemory<'_>) -> T) -> T {
        self.round += 1;
        let mut ports = self.services.remove(service).unwrap_or_default();
        let mut memory = ServiceMemory { ports: &mut ports, seed: self.seed, places: &mut self.places, round: self.round };
        let planned = plan(&mut memory);
        let (round, places) = (self.round, &mut self.places);
        ports.retain(|_, port| {
            port.pools.retain(|_, (_, used)| *used == round);
            port.targets.retain(|_, target| {
                let stays = target.round == round;
                if !stays {
                    places.give(target.place);
                }
                stays
            });
            port.rate.take_if(|(_, used)| *used != round);
            port.refused.take_if(|(_, used)| *used != round);
            !port.targets.is_empty() || port.rate.is_some() || port.refused.is_some()
        });
        if !ports.is_empty() {
            self.services.insert(service.clone(), ports);
        }
        planned
    }

    /// Drops Services that `stays` rejects.
    pub(super) fn retain(&mut self, stays: impl Fn(&NamespacedName) -> bool) {
        let gone: Vec<NamespacedName> = self.services.keys().filter(|key| !stays(key)).cloned().collect();
        gone.iter().for_each(|key| self.update(key, |_| ()));
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        let ports = self.services.values().flatten();
        ports.flat_map(|(key, port)| port.targets.iter().map(move |((addr, number), t)| (t.place, key, *addr, *number)))
    }
}

/// A Service port of the current table.
#[derive(Debug)]
pub struct CountedPort<'m> {
    pub key: &'m PortKey,
    /// Its backends.
    pub backends: usize,
    /// The packets it refused.
    pub refused: &'m Refused,
}

/// What a table counts, copied: for as long as the compiler works on the next one.
#[derive(Debug, Default)]
pub struct Counted {
    /// With the number of backends.
    ports: Vec<(PortKey, usize, Arc<Refused>)>,
    /// `(index, place of the port above, address, port)`
    targets: Vec<(u32, usize, IpAddr, u16)>,
}

impl Counted {
    /// See [`Compiler::targets`](super::Compiler::targets).
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.targets.iter().filter_map(|(place, port, addr, number)| Some((*place, &self.ports.get(*port)?.0, *addr, *number)))
    }

    /// See [`Compiler::ports`](super::Compiler::ports).
    pub fn ports(&self) -> impl Iterator<Item = CountedPort<'_>> {
        self.ports.iter().map(|(key, backends, refused)| CountedPort { key, backends: *backends, refused })
    }
}

impl Memory {
    pub(super) fn counted(&self) -> Counted {
        let mut counted = Counted::default();
        for (key, port) in self.services.values().flatten() {
            let Some((refused, _)) = &port.refused else { continue };
            let place = counted.ports.len();
            counted.targets.extend(port.targets.iter().map(|((addr, number), target)| (target.place, place, *addr, *number)));
            counted.ports.push((key.clone(), port.targets.len(), refused.clone()));
        }
        counted
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = CountedPort<'_>> {
        let ports = self.services.values().flatten();
        ports.filter_map(|(key, port)| Some(CountedPort { key, backends: port.targets.len(), refused: &port.refused.as_ref()?.0 }))
    }
}

/// The kept state of one Service.
pub(super) struct ServiceMemory<'m> {
    ports: &'m mut BTreeMap<PortKey, PortMemory>,
    seed: HashSeed,
    places: &'m mut CounterIndices,
    round: u64,
}

fn port_memory<'p>(ports: &'p mut BTreeMap<PortKey, PortMemory>, key: &PortKey) -> Option<&'p mut PortMemory> {
    if !ports.contains_key(key) {
        ports.insert(key.clone(), PortMemory::default());
    }
    ports.get_mut(key)
}

impl ServiceMemory<'_> {
    /// The limit of a port's new connections. Its bucket is that of the port's earlier limit, also if that was another number.
    pub(super) fn rate_limit(&mut self, key: &PortKey, most: ConnectionsPerSecond) -> RateLimit {
        let Some(port) = port_memory(self.ports, key) else { return RateLimit::new(most) };
        let limit = match &port.rate {
            Some((earlier, _)) => RateLimit { most, bucket: earlier.bucket.clone() },
            None => RateLimit::new(most),
        };
        port.rate = Some((limit.clone(), self.round));
        limit
    }

    /// The counters of a port's refused packets: those of the port in the earlier table.
    pub(super) fn refused(&mut self, key: &PortKey) -> Arc<Refused> {
        let Some(port) = port_memory(self.ports, key) else { return Arc::default() };
        let refused = port.refused.take().map(|(refused, _)| refused).unwrap_or_default();
        port.refused = Some((refused.clone(), self.round));
        refused
    }

    /// The pool of a class; the earlier one if its backends are the same. `None` without backends.
    pub(super) fn pool(&mut self, key: &PortKey, v6: bool, class: Class, selection: &Selection<'_>) -> Option<Arc<Pool>> {
        let port = port_memory(self.ports, key)?;
        let mut backends = Vec::with_capacity(selection.members(class).len());
        for candidate in selection.usable(class) {
            let (addr, number) = (candidate.endpoint.addr, candidate.port);
            let fresh = || CountedTarget { place: self.places.take(), round: 0 };
            let target = port.targets.entry((addr, number)).or_insert_with(fresh);
            target.round = self.round;
            backends.push(Backend { addr, port: number, weight: 1, stats: target.place });
        }
        if let Some((pool, round)) = port.pools.get_mut(&(v6, class))
            && *pool.backends == *backends
        {
            *round = self.round;
            return Some(pool.clone());
        }
        let pool = Arc::new(Pool::new(backends, &self.seed)?);
        port.pools.insert((v6, class), (pool.clone(), self.round));
        Some(pool)
    }
}
