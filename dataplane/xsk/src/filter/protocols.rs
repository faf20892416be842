//! The addresses and protocols of the rules for Services: what a fragment without ports may be for.

use std::collections::HashMap as Counts;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::Proto;

use super::{failed, gone, service_key};
use crate::error::EdgeError;
use crate::program::take_map;

const MAP: &str = "service_protocols";

/// The map in the kernel, and how many rules each of its entries stands for.
pub(super) struct Protocols {
    map: HashMap<MapData, [u8; 20], u32>,
    rules: Counts<(IpAddr, Proto), u32>,
}

fn key(addr: IpAddr, proto: Proto) -> [u8; 20] {
    service_key(&(addr, 0, proto))
}

impl Protocols {
    /// Takes the map of a loaded program.
    pub fn open(ebpf: &mut Ebpf) -> Result<Protocols, EdgeError> {
        Ok(Protocols { map: take_map(ebpf, MAP)?.try_into().map_err(failed(MAP))?, rules: Counts::new() })
    }

    /// Makes the map what these rules need, whatever an earlier process left in it.
    pub fn become_those_of(&mut self, rules: &FilterRules) -> Result<(), EdgeError> {
        rules.services.iter().for_each(|(addr, _, proto)| *self.rules.entry((*addr, *proto)).or_default() += 1);
        let mut missing: std::collections::HashSet<[u8; 20]> = self.rules.keys().map(|(addr, proto)| key(*addr, *proto)).collect();
        let left: Vec<[u8; 20]> = self.map.keys().collect::<Result<_, _>>().map_err(failed(MAP))?;
        for key in left.iter().filter(|key| !missing.remove(*key)) {
            gone(self.map.remove(key), MAP)?;
        }
        missing.iter().try_for_each(|key| self.map.insert(key, 1, 0).map_err(failed(MAP)))
    }

    /// A rule was added.
    pub fn add(&mut self, (addr, _, proto): &(IpAddr, u16, Proto)) -> Result<(), EdgeError> {
        let rules = self.rules.entry((*addr, *proto)).or_default();
        *rules += 1;
        if *rules == 1 { self.map.insert(key(*addr, *proto), 1, 0).map_err(failed(MAP)) } else { Ok(()) }
    }

    /// A rule was removed.
    pub fn remove(&mut self, (addr, _, proto): &(IpAddr, u16, Proto)) -> Result<(), EdgeError> {
        match self.rules.get_mut(&(*addr, *proto)) {
            Some(rules) if *rules > 1 => {
                *rules -= 1;
                Ok(())
            }
            Some(_) => {
                self.rules.remove(&(*addr, *proto));
                gone(self.map.remove(&key(*addr, *proto)), MAP)
            }
            None => Ok(()),
        }
    }
}
