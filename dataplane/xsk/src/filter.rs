//! The maps by which the XDP filter knows what to take ([`FilterRules`]).

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::{Prefix, Proto, addr_words, words_addr};
use rustix::io::Errno;

use crate::error::{EdgeError, os_error};
use crate::program::take_map;

/// Services at the most; the maps of bpf/filter.c have these sizes.
pub const SERVICES_MAX: usize = 262_144;
/// Whole addresses at the most.
pub const ADDRESSES_MAX: usize = 131_072;
/// Service ranges at the most.
pub const SERVICE_CIDRS_MAX: usize = 1024;
/// SNAT addresses at the most.
pub const SNAT_MAX: usize = 64;

/// The filter's maps in the kernel, and what is in them.
pub(crate) struct FilterMaps {
    services: HashMap<MapData, [u8; 20], u32>,
    addresses: HashMap<MapData, [u8; 20], u32>,
    service_cidrs: LpmTrie<MapData, [u8; 20], u32>,
    snat: HashMap<MapData, [u8; 20], u32>,
    known: FilterRules,
}

impl FilterMaps {
    /// Takes the maps of a loaded program; what an earlier process left in them is known afterwards.
    pub fn open(ebpf: &mut Ebpf) -> Result<FilterMaps, EdgeError> {
        let mut maps = FilterMaps {
            services: take_map(ebpf, "services")?.try_into().map_err(failed("services"))?,
            addresses: take_map(ebpf, "addresses")?.try_into().map_err(failed("addresses"))?,
            service_cidrs: take_map(ebpf, "service_cidrs")?.try_into().map_err(failed("service_cidrs"))?,
            snat: take_map(ebpf, "snat")?.try_into().map_err(failed("snat"))?,
            known: FilterRules::default(),
        };
        maps.known = maps.read()?;
        Ok(maps)
    }

    /// What the filter takes now.
    pub fn rules(&self) -> &FilterRules {
        &self.known
    }

    /// Adds rules; those that exist stay. Refused as a whole when a limit would be exceeded.
    /// An SNAT address has one range: adding another replaces it.
    pub fn add(&mut self, rules: &FilterRules) -> Result<(), EdgeError> {
        let new = rules.without(&self.known);
        self.check_limits(&new)?;
        for service in &new.services {
            self.services.insert(service_key(service), 1, 0).map_err(failed("services"))?;
            self.known.services.insert(*service);
        }
        for addr in &new.addresses {
            self.addresses.insert(address_key(*addr), 1, 0).map_err(failed("addresses"))?;
            self.known.addresses.insert(*addr);
        }
        for prefix in &new.service_cidrs {
            self.service_cidrs.insert(&prefix_key(prefix), 1, 0).map_err(failed("service_cidrs"))?;
            self.known.service_cidrs.insert(*prefix);
        }
        for (addr, first, last) in &new.snat {
            self.snat.insert(address_key(*addr), range_value(*first, *last), 0).map_err(failed("snat"))?;
            self.known.snat.retain(|(a, _, _)| a != addr);
            self.known.snat.insert((*addr, *first, *last));
        }
        Ok(())
    }

    /// Removes rules; those that do not exist are passed over.
    pub fn remove(&mut self, rules: &FilterRules) -> Result<(), EdgeError> {
        for service in &rules.services {
            if self.known.services.remove(service) {
                gone(self.services.remove(&service_key(service)), "services")?;
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
        for range in &rules.snat {
            if self.known.snat.remove(range) {
                gone(self.snat.remove(&address_key(range.0)), "snat")?;
            }
        }
        Ok(())
    }

    fn check_limits(&self, new: &FilterRules) -> Result<(), EdgeError> {
        let sizes = [
            ("services", SERVICES_MAX, self.known.services.len() + new.services.len()),
            ("addresses", ADDRESSES_MAX, self.known.addresses.len() + new.addresses.len()),
            ("service ranges", SERVICE_CIDRS_MAX, self.known.service_cidrs.len() + new.service_cidrs.len()),
            ("SNAT addresses", SNAT_MAX, self.known.snat.len() + new.snat.len()),
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
            rules.addresses.extend(address_of(key.map_err(failed("addresses"))?));
        }
        for key in self.service_cidrs.keys() {
            rules.service_cidrs.extend(prefix_of(key.map_err(failed("service_cidrs"))?));
        }
        for entry in self.snat.iter() {
            let (key, value) = entry.map_err(failed("snat"))?;
            let bytes = value.to_ne_bytes();
            let (first, last) = (u16::from_ne_bytes([bytes[0], bytes[1]]), u16::from_ne_bytes([bytes[2], bytes[3]]));
            rules.snat.extend(address_of(key).map(|addr| (addr, first, last)));
        }
        Ok(rules)
    }
}

fn failed(map: &'static str) -> impl Fn(MapError) -> EdgeError {
    move |e| EdgeError::map(map, &e)
}

/// A rule that is gone already is what was wanted.
fn gone(result: Result<(), MapError>, map: &'static str) -> Result<(), EdgeError> {
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
fn prefix_key(prefix: &Prefix) -> Key<[u8; 20]> {
    let mut data = [0; 20];
    data[3] = family(prefix.addr());
    match prefix.addr() {
        IpAddr::V4(a) => data[4..8].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => data[4..].copy_from_slice(&a.octets()),
    }
    Key::new(32 + u32::from(prefix.prefix_len()), data)
}

fn prefix_of(key: Key<[u8; 20]>) -> Option<Prefix> {
    let (data, len) = (key.data(), u8::try_from(key.prefix_len().checked_sub(32)?).ok()?);
    let addr = match data[3] {
        4 => IpAddr::from(*data[4..].first_chunk::<4>()?),
        _ => IpAddr::from(*data[4..].first_chunk::<16>()?),
    };
    Prefix::new(addr, len)
}

/// `struct port_range`.
fn range_value(first: u16, last: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), last.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_there_and_back() {
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
