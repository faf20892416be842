//! Traffic of each pair of a Service port and a backend, for a bounded number of pairs.

use std::net::IpAddr;

use nomagic_api::{Beyond, Carried, Target};
use nomagic_core::counters::{CounterKind, Counters};
use nomagic_table::compile::PortKey;
use nomagic_table::objects::addr;

/// Maximum number of pairs that are shown individually. Traffic of all others is added up.
pub const TARGETS_SHOWN_MAX: u32 = 10_000;

/// Reads the pairs' counters.
#[derive(Default, Debug)]
pub struct TargetReader {
    /// The highest slot seen so far, so that the sum over the other slots never decreases.
    slot_max: u32,
}

impl TargetReader {
    /// Reads the counters of these pairs, `(slot, Service port, address, port)`. Pairs in the first slots are shown: slots are assigned in
    /// order, so these are the oldest pairs, and a pair is shown until it is removed. `number` returns the Service port's number.
    pub fn read<'p>(
        &mut self,
        pairs: impl Iterator<Item = (u32, &'p PortKey, IpAddr, u16)>,
        number: impl Fn(&PortKey) -> Option<u16>,
        counters: &[&Counters],
    ) -> (Vec<Target>, Beyond) {
        let (mut shown, mut beyond) = (Vec::new(), Beyond::default());
        for (slot, key, ip, backend_port) in pairs {
            self.slot_max = self.slot_max.max(slot);
            if !(1..=TARGETS_SHOWN_MAX).contains(&slot) {
                beyond.targets += 1;
                continue;
            }
            let mut carried = Carried::default();
            add(&mut carried, counters, slot);
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
        // Slot 0 counts all traffic without a slot of its own.
        let slots = std::iter::once(0).chain(TARGETS_SHOWN_MAX + 1..=self.slot_max);
        slots.for_each(|slot| add(&mut beyond.carried, counters, slot));
        (shown, beyond)
    }
}

/// Adds one slot of all workers' counters.
fn add(carried: &mut Carried, counters: &[&Counters], slot: u32) {
    for target in counters.iter().map(|c| c.target(slot)) {
        carried.flows += target.flows.get();
        carried.snat_refused += target.snat_refused.get();
        carried.rate_limited += target.rate_limited.get();
        carried.client_limited += target.client_limited.get();
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
    use nomagic_table::objects::NamespacedName;

    #[test]
    fn the_number_of_shown_pairs_is_bounded_and_all_traffic_is_counted() {
        let counters = [Counters::new(20_000), Counters::new(20_000)];
        let counters: Vec<&Counters> = counters.iter().collect();
        for slot in [0, 1, TARGETS_SHOWN_MAX, TARGETS_SHOWN_MAX + 1, 12_000] {
            counters[0].target(slot).flows.add(1);
            counters[1].target(slot).forward.add(2, 100);
        }
        let port =
            PortKey { service: NamespacedName { namespace: "n".into(), name: "s".into() }, port_name: "http".into(), proto: Proto::Tcp };
        let ip = |slot: u32| IpAddr::from((0x0a00_0000 + slot).to_be_bytes());
        let mut reader = TargetReader::default();
        let mut read =
            |slots: std::ops::RangeInclusive<u32>| reader.read(slots.map(|slot| (slot, &port, ip(slot), 80)), |_| Some(8_080), &counters);
        let (shown, beyond) = read(0..=12_000);
        assert_eq!((shown.len(), beyond.targets), (10_000, 2_001));
        assert_eq!((beyond.carried.flows, beyond.carried.to_backend), (3, Volume { packets: 6, bytes: 300 }));
        let first = shown.iter().find(|t| t.backend == "10.0.0.1:80").unwrap();
        assert_eq!((first.service_port().as_str(), first.carried.flows), ("n/s:8080/TCP", 1));
        // The traffic of removed pairs is still included.
        let (shown, few) = read(1..=2);
        assert_eq!((shown.len(), few.targets, few.carried), (2, 0, beyond.carried));
    }
}
