//! A worker's cache of resolved destinations, so that a new flow to a recently used backend needs no route look-up.
//!
//! Direct-mapped: a newer destination replaces an older one. Only answers that hold for every packet to a destination are kept, so none of a
//! multipath route, and none while rules select tables.

use crate::frame::NextHopId;
use crate::routes::{Resolution, RouteQuery, Routes};
use crate::tuple::AddrWords;

/// Entries.
const DESTINATIONS: usize = 256;
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the [module](self).
#[derive(Debug)]
pub struct RouteCache(Box<[Entry; DESTINATIONS]>);

#[derive(Clone, Copy, Default, Debug)]
struct Entry {
    dst: AddrWords,
    /// Route generation << 1 | family.
    when: u64,
    /// 0: the entry is empty.
    hop: NextHopId,
}

impl Default for RouteCache {
    fn default() -> RouteCache {
        RouteCache(Box::new([Entry::default(); DESTINATIONS]))
    }
}

impl RouteCache {
    /// Like [`Routes::resolve_with`]; `hash` is called only when the answer depends on it.
    #[inline]
    pub fn resolve(&mut self, routes: &Routes, query: &RouteQuery, hash: impl FnOnce() -> u64) -> Resolution {
        let RouteQuery { dst, v6, .. } = *query;
        let mixed = (dst[0] ^ dst[1]).wrapping_mul(SPREAD);
        let entry = &mut self.0[(mixed >> 56) as usize % DESTINATIONS];
        let when = (routes.generation << 1) | u64::from(v6);
        if entry.hop.0 != 0 && entry.when == when && entry.dst == dst {
            return Resolution::Hop(entry.hop);
        }
        let (way, for_all) = routes.resolve_with(query, hash);
        if let (Resolution::Hop(hop), true) = (way, for_all) {
            *entry = Entry { dst, when, hop };
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PortId;
    use crate::routes::{Leg, Neighbour, Port, Route, RouteKind};
    use crate::tuple::{Proto, addr_words};

    /// The generation decides by which port a destination is reached; `10.9.0.0/16` has two ways.
    fn routes(generation: u64) -> Routes {
        let leg = |port| Leg { port: Some(PortId(port)), captured: false, gateway: None, weight: 1, mtu: None };
        let single = RouteKind::Unicast(vec![leg((generation % 2) as u16)]);
        let both = RouteKind::Unicast(vec![leg(0), leg(1)]);
        let routes = [("10.0.0.0/8", single.clone()), ("10.9.0.0/16", both), ("::/0", single)];
        let routes = routes.map(|(prefix, kind)| Route { prefix: prefix.parse().unwrap(), metric: 0, kind });
        let addrs = ["10.0.0.1", "10.9.0.1", "::a00:1"];
        let neighbours: Vec<Neighbour> = (0..2)
            .flat_map(|port| addrs.map(|addr| Neighbour { port: PortId(port), addr: addr.parse().unwrap(), mac: [port as u8; 6] }))
            .collect();
        let ports = vec![Port { mac: [2; 6], mtu: 1500, up: true }; 2];
        Routes::build(generation, ports, None, routes.into(), &neighbours).0
    }

    fn to(addr: &str) -> RouteQuery {
        let (dst, v6) = addr_words(addr.parse().unwrap());
        RouteQuery { src: [1; 2], dst, v6, port: PortId(0), proto: Proto::Udp, sport: 1, dport: 2 }
    }

    #[test]
    fn answers_as_the_routes_do_now() {
        let mut cache = RouteCache::default();
        for generation in 1..4 {
            let routes = routes(generation);
            // The last address has the same words as the first, in the other family.
            for addr in ["10.0.0.1", "10.9.0.1", "10.0.0.1", "10.3.3.3", "::a00:1"] {
                for hash in [0, u64::from(u32::MAX)] {
                    let expected = routes.resolve(addr.parse().unwrap(), hash);
                    assert_eq!(cache.resolve(&routes, &to(addr), || hash), expected, "{addr}, generation {generation}, hash {hash}");
                }
            }
        }
    }

    #[test]
    fn asks_once_for_a_destination_with_one_way() {
        let (routes, mut cache) = (routes(1), RouteCache::default());
        cache.resolve(&routes, &to("10.0.0.1"), || 0);
        assert_eq!(cache.0.iter().filter(|e| e.hop.0 != 0).count(), 1);
        cache.resolve(&routes, &to("10.9.0.1"), || 0);
        assert_eq!(cache.0.iter().filter(|e| e.hop.0 != 0).count(), 1, "two ways are not kept");
    }
}
