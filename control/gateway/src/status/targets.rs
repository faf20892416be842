//! What each pair of a Service port and a backend carried, with a bound on the number of pairs that are shown.

use std::net::IpAddr;

use nomagic_api::{Beyond, Carried, Target};
use nomagic_core::counters::{Counters, Kind};
use nomagic_table::compile::PortKey;
use nomagic_table::objects::addr;

/// Pairs that are shown one by one at the most, those that came first. All others count together.
pub const TARGETS_SHOWN_MAX: u32 = 10_000;

/// Reads the pairs' counters.
#[derive(Default, Debug)]
pub struct TargetReader {
    /// The highest place ever seen, so that the others' counters never go back.
    place_max: u32,
}

impl TargetReader {
    /// Reads the counters of these pairs, `(place, Service port, address, port)`. Pairs in the first places are shown: places are given
    /// away in order, so those are the ones that came first, and a pair is shown for as long as it lives. `number` is the Service port's.
    pub fn read<'p>(
        &mut self,
        pairs: impl Iterator<Item = (u32, &'p PortKey, IpAddr, u16)>,
        number: impl Fn(&PortKey) -> Option<u16>,
        counters: &[&Counters],
    ) -> (Vec<Target>, Beyond) {
        let (mut shown, mut beyond) = (Vec::new(), Beyond::default());
        for (place, key, ip, backend_port) in pairs {
            self.place_max = self.place_max.max(place);
            if !(1..=TARGETS_SHOWN_MAX).contains(&place) {
                beyond.targets += 1;
                continue;
            }
            let mut carried = Carried::default();
            add(&mut carried, counters, place);
            shown.push(Target {
                namespace: key.service.namespace.clone(),
                service: key.service.name.clone(),
                port_name: key.port_name.clone(),
                port: number(key),
                protocol: key.proto.name().to_owned(),
                backend: addr::socket(ip, backend_port),
                carried,
            });
        }
        shown.sort_by(|a, b| {
            let key = |t: &Target| (t.namespace.clone(), t.service.clone(), t.port_name.clone(), t.protocol.clone(), t.backend.clone());
            key(a).cmp(&key(b))
        });
        // Place 0 gathers what had no place at all.
        let places = std::iter::once(0).chain(TARGETS_SHOWN_MAX + 1..=self.place_max);
        places.for_each(|place| add(&mut beyond.carried, counters, place));
        (shown, beyond)
    }
}

/// Adds what one place of the workers' counters holds.
fn add(carried: &mut Carried, counters: &[&Counters], place: u32) {
    for target in counters.iter().map(|c| c.target(place)) {
        carried.flows += target.flows.get();
        for (sum, traffic) in [(&mut carried.to_backend, &target.forward), (&mut carried.to_client, &target.reply)] {
            let volume = traffic.read();
            sum.packets += volume.packets;
            sum.bytes += volume.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::counters::Volume;
    use nomagic_core::tuple::Proto;
    use nomagic_table::objects::Key;

    #[test]
    fn the_number_of_pairs_is_bounded_and_nothing_is_lost() {
        let counters = [Counters::new(20_000), Counters::new(20_000)];
        let counters: Vec<&Counters> = counters.iter().collect();
        for place in [0, 1, TARGETS_SHOWN_MAX, TARGETS_SHOWN_MAX + 1, 12_000] {
            counters[0].target(place).flows.add(1);
            counters[1].target(place).forward.add(2, 100);
        }
        let port = PortKey { service: Key { namespace: "n".into(), name: "s".into() }, port_name: "http".into(), proto: Proto::Tcp };
        let ip = |place: u32| IpAddr::from((0x0a00_0000 + place).to_be_bytes());
        let mut reader = TargetReader::default();
        let mut read = |places: std::ops::RangeInclusive<u32>| {
            reader.read(places.map(|place| (place, &port, ip(place), 80)), |_| Some(8_080), &counters)
        };
        let (shown, beyond) = read(0..=12_000);
        assert_eq!((shown.len(), beyond.targets), (10_000, 2_001));
        assert_eq!((beyond.carried.flows, beyond.carried.to_backend), (3, Volume { packets: 6, bytes: 300 }));
        let first = shown.iter().find(|t| t.backend == "10.0.0.1:80").unwrap();
        assert_eq!((first.service_port().as_str(), first.carried.flows), ("n/s:8080/TCP", 1));
        // Fewer pairs: what was counted for those that went stays.
        let (shown, few) = read(1..=2);
        assert_eq!((shown.len(), few.targets, few.carried), (2, 0, beyond.carried));
    }
}
