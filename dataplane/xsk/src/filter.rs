//! The BPF maps with the XDP filter's rules ([`FilterRules`]).

mod protocols;

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use nomagic_core::capture::{FilterRules, SERVICE_RULES_MAX};
use nomagic_core::hash::{WordMap, WordSet};
use nomagic_core::tuple::{Prefix, Proto, addr_words, words_addr};
use rustix::io::Errno;

use protocols::Protocols;

use crate::error::{EdgeError, os_error};
use crate::program::take_map;

/// Maximum number of Services; the maps of bpf/maps.h have these sizes. Twice [`nomagic_core::capture::SERVICE_RULES_MAX`]: rules that a new table
/// no longer needs stay until their last flow ends.
pub const SERVICES_MAX: usize = 2 * SERVICE_RULES_MAX;
/// Maximum number of whole addresses.
pub const ADDRESSES_MAX: usize = 131_072;
/// Maximum number of Service ranges.
pub const SERVICE_CIDRS_MAX: usize = 1024;
/// Maximum number of addresses that are the kernel's.
pub const KERNEL_ADDRESSES_MAX: usize = 131_072;

/// Values in the map `addresses`. With [`OUTER_ADDRESS`], an interface.
const WHOLE_ADDRESS: u32 = 1;
const OUTER_ADDRESS: u32 = 1 << 31;
const ANY_INTERFACE: u32 = OUTER_ADDRESS - 1;

/// Values in the map `services`.
const PLAIN_RULE: u32 = 1;
const ON_KERNEL_ADDRESS: u32 = 2;

/// The filter's maps in the kernel, and a copy of their contents.
pub(crate) struct FilterMaps {
    services: HashMap<MapData, [u8; 20], u32>,
    protocols: Protocols,
    addresses: HashMap<MapData, [u8; 20], u32>,
    service_cidrs: LpmTrie<MapData, [u8; 20], u32>,
    kernel_addresses: HashMap<MapData, [u8; 20], u32>,
    known: FilterRules,
    /// In `addresses`, with their values.
    outer: WordMap<IpAddr, u32>,
    kernel: WordSet<IpAddr>,
}

/// By which interface the kernel may send packets for a load balancer or external IP to a router.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WayOut {
    /// By none.
    Never,
    /// By the one with this index.
    By(u32),
    /// By several.
    Several,
}

impl WayOut {
    fn value(self) -> u32 {
        OUTER_ADDRESS
            | match self {
                WayOut::Never => 0,
                WayOut::By(ifindex) => ifindex & ANY_INTERFACE,
                WayOut::Several => ANY_INTERFACE,
            }
    }
}

impl FilterMaps {
    /// Takes the maps of a loaded program, and reads the rules an earlier process left in them.
    pub fn open(ebpf: &mut Ebpf) -> Result<FilterMaps, EdgeError> {
        let mut maps = FilterMaps {
            services: take_map(ebpf, "services")?.try_into().map_err(failed("services"))?,
            protocols: Protocols::open(ebpf)?,
            addresses: take_map(ebpf, "addresses")?.try_into().map_err(failed("addresses"))?,
            service_cidrs: take_map(ebpf, "service_cidrs")?.try_into().map_err(failed("service_cidrs"))?,
            kernel_addresses: take_map(ebpf, "kernel_addresses")?.try_into().map_err(failed("kernel_addresses"))?,
            known: FilterRules::default(),
            outer: WordMap::default(),
            kernel: WordSet::default(),
        };
        for entry in &maps.addresses {
            let (key, value) = entry.map_err(failed("addresses"))?;
            maps.outer.extend(address_of(key).filter(|_| value & OUTER_ADDRESS != 0).map(|addr| (addr, value)));
        }
        maps.known = maps.read()?;
        maps.protocols.become_those_of(&maps.known)?;
        for key in maps.kernel_addresses.keys() {
            maps.kernel.extend(address_of(key.map_err(failed("kernel_addresses"))?));
        }
        Ok(maps)
    }

    /// The rules in the maps.
    pub fn rules(&self) -> &FilterRules {
        &self.known
    }

    /// Adds rules; existing rules stay. Of rules beyond a limit, as many are added as fit.
    ///
    /// # Errors
    /// [`EdgeError::FilterFull`] if some did not fit.
    pub fn add(&mut self, rules: &FilterRules) -> Result<(), EdgeError> {
        let new = rules.without(&self.known);
        let full = self.check_limits(&new);
        for service in new.services.iter().take(SERVICES_MAX - self.known.services.len()) {
            self.services.insert(service_key(service), self.rule_at(&service.0), 0).map_err(failed("services"))?;
            self.known.services.insert(*service);
            self.protocols.add(service)?;
        }
        for addr in new.addresses.iter().take(ADDRESSES_MAX - self.known.addresses.len()) {
            self.make_room()?;
            self.addresses.insert(address_key(*addr), WHOLE_ADDRESS, 0).map_err(failed("addresses"))?;
            self.known.addresses.insert(*addr);
            self.outer.remove(addr);
        }
        for prefix in new.service_cidrs.iter().take(SERVICE_CIDRS_MAX - self.known.service_cidrs.len()) {
            self.service_cidrs.insert(&prefix_key(prefix), 1, 0).map_err(failed("service_cidrs"))?;
            self.known.service_cidrs.insert(*prefix);
        }
        full
    }

    /// Gives the place of a load balancer or external IP to another address, if all are taken.
    fn make_room(&mut self) -> Result<(), EdgeError> {
        let full = self.known.addresses.len() + self.outer.len() >= ADDRESSES_MAX;
        match self.outer.keys().next().copied().filter(|_| full) {
            Some(addr) => self.forget_outer(addr),
            None => Ok(()),
        }
    }

    /// The load balancer and external IPs that the filter knows.
    pub fn outer(&self) -> impl Iterator<Item = IpAddr> {
        self.outer.keys().copied()
    }

    /// Sets the way out of packets for a load balancer or external IP. False when there is no room: then the kernel gets all but its Service ports'.
    pub fn set_outer(&mut self, addr: IpAddr, way: WayOut) -> Result<bool, EdgeError> {
        let value = way.value();
        if self.outer.get(&addr) == Some(&value) || self.known.addresses.contains(&addr) {
            return Ok(true);
        }
        if !self.outer.contains_key(&addr) && self.known.addresses.len() + self.outer.len() >= ADDRESSES_MAX {
            return Ok(false);
        }
        self.addresses.insert(address_key(addr), value, 0).map_err(failed("addresses"))?;
        self.outer.insert(addr, value);
        Ok(true)
    }

    /// Forgets a load balancer or external IP.
    pub fn forget_outer(&mut self, addr: IpAddr) -> Result<(), EdgeError> {
        match self.outer.remove(&addr) {
            Some(_) => gone(self.addresses.remove(&address_key(addr)), "addresses"),
            None => Ok(()),
        }
    }

    /// Sets the addresses that are the kernel's. Those beyond the limit are left to the workers, which hand their packets to the kernel.
    pub fn set_kernel_addresses(&mut self, wanted: &WordSet<IpAddr>) -> Result<(), EdgeError> {
        let gone: Vec<IpAddr> = self.kernel.iter().filter(|addr| !wanted.contains(*addr)).copied().collect();
        let new: Vec<IpAddr> = wanted.iter().filter(|addr| !self.kernel.contains(*addr)).copied().collect();
        for addr in &gone {
            crate::filter::gone(self.kernel_addresses.remove(&address_key(*addr)), "kernel_addresses")?;
            self.kernel.remove(addr);
        }
        for addr in new.iter().take(KERNEL_ADDRESSES_MAX - self.kernel.len()) {
            self.kernel_addresses.insert(address_key(*addr), 1, 0).map_err(failed("kernel_addresses"))?;
            self.kernel.insert(*addr);
        }
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let changed: WordSet<IpAddr> = gone.into_iter().chain(new).collect();
        for service in self.known.services.iter().filter(|(addr, ..)| changed.contains(addr)) {
            self.services.insert(service_key(service), self.rule_at(&service.0), 0).map_err(failed("services"))?;
        }
        Ok(())
    }

    fn rule_at(&self, addr: &IpAddr) -> u32 {
        if self.kernel.contains(addr) { ON_KERNEL_ADDRESS } else { PLAIN_RULE }
    }

    /// Removes rules; missing rules are ignored.
    pub fn remove(&mut self, rules: &FilterRules) -> Result<(), EdgeError> {
        for service in &rules.services {
            if self.known.services.remove(service) {
                gone(self.services.remove(&service_key(service)), "services")?;
                self.protocols.remove(service)?;
            }
        }
        for addr in &rules.addresses {
            if self.known.addresses.remove(addr) {
                gone(self.addresses.remove(&address_key(*addr)), "addresses")?;
            }
        }
        for prefix in &rules.service_cidrs {
            if self.known.service_cidrs.remove(prefix) {
                gone(self.service_cidrs.remove(&prefix_key(prefix)), "service_cidrs")?;
            }
        }
        Ok(())
    }

    fn check_limits(&self, new: &FilterRules) -> Result<(), EdgeError> {
        let sizes = [
            ("services", SERVICES_MAX, self.known.services.len() + new.services.len()),
            ("addresses", ADDRESSES_MAX, self.known.addresses.len() + new.addresses.len()),
            ("service ranges", SERVICE_CIDRS_MAX, self.known.service_cidrs.len() + new.service_cidrs.len()),
        ];
        match sizes.into_iter().find(|(_, limit, wanted)| wanted > limit) {
            Some((map, limit, wanted)) => Err(EdgeError::FilterFull { map, limit, wanted }),
            None => Ok(()),
        }
    }

    fn read(&self) -> Result<FilterRules, EdgeError> {
        let mut rules = FilterRules::default();
        for key in self.services.keys() {
            rules.services.extend(service_of(key.map_err(failed("services"))?));
        }
        for key in self.addresses.keys() {
            rules.addresses.extend(address_of(key.map_err(failed("addresses"))?).filter(|addr| !self.outer.contains_key(addr)));
        }
        for key in self.service_cidrs.keys() {
            rules.service_cidrs.extend(prefix_of(key.map_err(failed("service_cidrs"))?));
        }
        Ok(rules)
    }
}

pub(crate) fn failed(map: &'static str) -> impl Fn(MapError) -> EdgeError {
    move |e| EdgeError::map(map, &e)
}

/// A rule that is already missing counts as removed.
pub(crate) fn gone(result: Result<(), MapError>, map: &'static str) -> Result<(), EdgeError> {
    match result {
        Err(e) if os_error(&e) != Some(Errno::NOENT) => Err(EdgeError::map(map, &e)),
        _ => Ok(()),
    }
}

/// `words` of bpf/filter.c: four 32-bit words in host order.
fn word_bytes(addr: IpAddr) -> [u8; 16] {
    let ([high, low], _) = addr_words(addr);
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip([(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn words_of(bytes: &[u8; 20], v6: bool) -> IpAddr {
    let word = |i: usize| u64::from(u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]));
    words_addr([(word(0) << 32) | word(4), (word(8) << 32) | word(12)], v6)
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv6() { 6 } else { 4 }
}

/// `struct service`.
fn service_key((addr, port, proto): &(IpAddr, u16, Proto)) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&word_bytes(*addr));
    key[16..18].copy_from_slice(&port.to_ne_bytes());
    key[18] = *proto as u8;
    key[19] = family(*addr);
    key
}

fn service_of(key: [u8; 20]) -> Option<(IpAddr, u16, Proto)> {
    Some((words_of(&key, key[19] == 6), u16::from_ne_bytes([key[16], key[17]]), Proto::from_ip_number(key[18])?))
}

/// `struct address`.
fn address_key(addr: IpAddr) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&word_bytes(addr));
    key[16..].copy_from_slice(&u32::from(family(addr)).to_ne_bytes());
    key
}

fn address_of(key: [u8; 20]) -> Option<IpAddr> {
    match u32::from_ne_bytes([key[16], key[17], key[18], key[19]]) {
        4 => Some(words_of(&key, false)),
        6 => Some(words_of(&key, true)),
        _ => None,
    }
}

/// `struct prefix`: family and address in network order.
pub(crate) fn prefix_key(prefix: &Prefix) -> Key<[u8; 20]> {
    let mut data = [0; 20];
    data[3] = family(prefix.addr());
    match prefix.addr() {
        IpAddr::V4(a) => data[4..8].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => data[4..].copy_from_slice(&a.octets()),
    }
    Key::new(32 + u32::from(prefix.prefix_len()), data)
}

pub(crate) fn prefix_of(key: Key<[u8; 20]>) -> Option<Prefix> {
    let (data, len) = (key.data(), u8::try_from(key.prefix_len().checked_sub(32)?).ok()?);
    let addr = match data[3] {
        4 => IpAddr::from(*data[4..].first_chunk::<4>()?),
        _ => IpAddr::from(*data[4..].first_chunk::<16>()?),
    };
    Prefix::new(addr, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in ["10.1.2.3", "fd00:1:2:3:4:5:6:7", "::ffff:10.1.2.3", "0.0.0.0"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(address_of(address_key(addr)), Some(addr));
            let service = (addr, 8080, Proto::Udp);
            assert_eq!(service_of(service_key(&service)), Some(service));
        }
        for text in ["10.96.0.0/12", "fd00:10:96::/112", "::/0", "0.0.0.0/0", "10.1.2.3/32"] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix_of(prefix_key(&prefix)), Some(prefix));
        }
        assert_eq!(address_of([9; 20]), None);
    }
}
