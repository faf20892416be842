//! What each pair of a Service port and a backend carried, with a bound on the number of series.

use std::net::IpAddr;

use nomagic_core::counters::{Counters, Traffic, Volume};

use super::exposition::Kind::{Counter, Gauge};
use super::{Exposition, Row};
use nomagic_table::compile::PortKey;
use nomagic_table::objects::addr;

/// Pairs with series of their own at the most, those that came first; each has five. All others count together under [`OTHERS`].
pub const TARGETS_SHOWN_MAX: u32 = 10_000;
/// The name under which the other pairs count; no Service can be called so.
pub const OTHERS: &str = "_others";

/// What one pair, or several, carried: the sum over all workers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Carried {
    /// Connections opened.
    pub connections: u64,
    /// Client to backend.
    pub forward: Volume,
    /// Backend to client.
    pub reply: Volume,
}

impl Carried {
    /// Adds what one place of the workers' counters holds.
    fn add(&mut self, counters: &[&Counters], place: u32) {
        let add = |to: &mut Volume, t: &Traffic| {
            to.packets += t.packets.get();
            to.bytes += t.bytes.get();
        };
        for target in counters.iter().map(|c| c.target(place)) {
            self.connections += target.flows.get();
            add(&mut self.forward, &target.forward);
            add(&mut self.reply, &target.reply);
        }
    }
}

/// A pair of a Service port and a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The Service port.
    pub port: PortKey,
    /// The backend's `address:port`.
    pub backend: String,
    /// What it carried.
    pub carried: Carried,
}

/// All pairs at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Targets {
    /// At most [`TARGETS_SHOWN_MAX`].
    pub shown: Vec<Target>,
    /// How many pairs there are beyond those.
    pub others: u64,
    /// What those carried, and those before them in the same places.
    pub others_carried: Carried,
}

impl Targets {
    /// Reads the counters of these pairs, `(place, Service port, address, port)`. Pairs in the first places are shown: places are given
    /// away in order, so those are the ones that came first, and a pair keeps its series for as long as it lives. `place_max`: the highest
    /// place ever seen, to be kept from one time to the next, so that the others' counters never go back.
    pub fn read<'p>(pairs: impl Iterator<Item = (u32, &'p PortKey, IpAddr, u16)>, counters: &[&Counters], place_max: &mut u32) -> Targets {
        let mut targets = Targets::default();
        for (place, port, ip, number) in pairs {
            *place_max = (*place_max).max(place);
            if !(1..=TARGETS_SHOWN_MAX).contains(&place) {
                targets.others += 1;
                continue;
            }
            let mut carried = Carried::default();
            carried.add(counters, place);
            targets.shown.push(Target { port: port.clone(), backend: addr::socket(ip, number), carried });
        }
        // Place 0 gathers what had no place at all.
        let beyond = TARGETS_SHOWN_MAX + 1..=*place_max;
        std::iter::once(0).chain(beyond).for_each(|place| targets.others_carried.add(counters, place));
        targets
    }

    /// As text.
    pub(super) fn write(&self, out: &mut Exposition) {
        let help = "Pairs of a Service port and a backend without series of their own: they count under the Service _others.";
        out.single("nomagic_backends_without_series", Gauge, help, self.others);
        let some = self.others > 0 || self.others_carried != Carried::default();
        for (name, help, values) in metrics() {
            out.begin(name, Counter, help);
            for t in &self.shown {
                let service = &t.port.service;
                let pair = [&service.namespace, &service.name, &t.port.port_name, t.port.proto.name(), &t.backend];
                write_values(out, name, pair, values(&t.carried));
            }
            if some {
                write_values(out, name, [OTHERS; 5], values(&self.others_carried));
            }
        }
    }
}

fn write_values(out: &mut Exposition, name: &str, pair: [&str; 5], values: Values) {
    let pair = ["namespace", "service", "port", "protocol", "backend"].into_iter().zip(pair);
    for (direction, value) in values {
        let labels: Vec<_> = pair.clone().chain(direction.map(|d| ("direction", d))).collect();
        out.sample(name, &labels, value);
    }
}

/// Values by direction.
type Values = Vec<(Option<&'static str>, u64)>;

fn metrics() -> [Row<Carried, Values>; 3] {
    [
        ("nomagic_backend_connections_total", "Connections opened, by Service port and backend.", |c| vec![(None, c.connections)]),
        ("nomagic_backend_frames_total", "Frames carried, by Service port and backend.", |c| {
            vec![(Some("to_backend"), c.forward.packets), (Some("to_client"), c.reply.packets)]
        }),
        ("nomagic_backend_bytes_total", "Bytes of frames carried, by Service port and backend.", |c| {
            vec![(Some("to_backend"), c.forward.bytes), (Some("to_client"), c.reply.bytes)]
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::tuple::Proto;
    use nomagic_table::objects::Key;

    #[test]
    fn the_number_of_series_is_bounded_and_nothing_is_lost() {
        let counters = [Counters::new(20_000), Counters::new(20_000)];
        let counters: Vec<&Counters> = counters.iter().collect();
        for place in [0, 1, TARGETS_SHOWN_MAX, TARGETS_SHOWN_MAX + 1, 12_000] {
            counters[0].target(place).flows.add(1);
            counters[1].target(place).forward.add(2, 100);
        }
        let port = PortKey { service: Key { namespace: "n".into(), name: "s".into() }, port_name: "http".into(), proto: Proto::Tcp };
        let ip = |place: u32| IpAddr::from((0x0a00_0000 + place).to_be_bytes());
        let mut place_max = 0;
        let read = |places: std::ops::RangeInclusive<u32>, place_max: &mut u32| {
            Targets::read(places.map(|place| (place, &port, ip(place), 80)), &counters, place_max)
        };
        let all = read(0..=12_000, &mut place_max);
        assert_eq!((all.shown.len(), all.others, place_max), (10_000, 2_001, 12_000));
        assert_eq!((all.others_carried.connections, all.others_carried.forward), (3, Volume { packets: 6, bytes: 300 }));
        // Fewer pairs: what was counted for those that went stays.
        let few = read(1..=2, &mut place_max);
        assert_eq!((few.shown.len(), few.others, few.others_carried), (2, 0, all.others_carried));

        let mut out = Exposition::default();
        all.write(&mut out);
        let text = out.finish();
        assert_eq!(text.lines().filter(|l| !l.starts_with('#')).count(), 1 + 5 * 10_001);
        let first = "{namespace=\"n\",service=\"s\",port=\"http\",protocol=\"TCP\",backend=\"10.0.0.1:80\"";
        assert!(text.contains(&format!("nomagic_backend_connections_total{first}}} 1\n")));
        assert!(text.contains(&format!("nomagic_backend_bytes_total{first},direction=\"to_backend\"}} 100\n")));
        assert!(text.contains("service=\"_others\",port=\"_others\",protocol=\"_others\",backend=\"_others\"} 3\n"));
    }
}
