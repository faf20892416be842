//! The Services and their backends.

use std::collections::{BTreeMap, HashSet};

use nomagic_api::Target;
use nomagic_api::flows::FlowFilter;

use super::super::keys::{Place, View};
use super::super::text;
use super::samples::{Carrying, Samples};
use super::table::{Cell, Column, Row, Table};

/// Maximum number of Service ports that a note names.
const PORTS_NAMED_MAX: usize = 3;

/// What a Service carries and refuses.
#[derive(Default)]
struct Sum<'s> {
    backends: HashSet<&'s str>,
    carrying: Option<Carrying>,
    flows: u64,
    rejected: Option<f64>,
    dropped: Option<f64>,
}

/// The Services.
pub fn services(samples: &Samples, place: &Place) -> Table {
    let columns = vec![
        Column::text("Service", "service", 0),
        Column::number("packets/s", "packets_per_s", 0),
        Column::number("bytes/s", "bytes_per_s", 0),
        Column::number("new flows/s", "new_flows_per_s", 0),
        Column::number("drops/s", "drops_per_s", 0),
        Column::number("backends", "backends", 1),
        Column::number("to backends/s", "packets_to_backends_per_s", 2),
        Column::number("to clients/s", "packets_to_clients_per_s", 2),
        Column::number("bytes to backends/s", "bytes_to_backends_per_s", 3),
        Column::number("bytes to clients/s", "bytes_to_clients_per_s", 3),
        Column::number("rejects/s", "rejects_per_s", 4),
        Column::number("flows since start", "flows", 5),
    ];
    let rows = sums(samples).into_iter().map(|(service, sum)| {
        let carrying = sum.carrying;
        let rate = |of: fn(&Carrying) -> f64| Cell::Rate(carrying.as_ref().map(of));
        let refused = sum.rejected.zip(sum.dropped).map(|(rejected, dropped)| rejected + dropped);
        let is_alarm = sum.backends.is_empty() || refused.is_some_and(|rate| rate > 0.0);
        let cells = vec![
            Cell::Text(service.clone()),
            rate(|c| c.packets[0] + c.packets[1]),
            rate(|c| c.bytes[0] + c.bytes[1]),
            rate(|c| c.flows),
            Cell::Rate(refused),
            Cell::Count(sum.backends.len() as u64),
            rate(|c| c.packets[0]),
            rate(|c| c.packets[1]),
            rate(|c| c.bytes[0]),
            rate(|c| c.bytes[1]),
            Cell::Rate(sum.rejected),
            Cell::Count(sum.flows),
        ];
        Row { is_alarm, ..Row::new(service.clone(), cells) }.opening(View::Backends(Some(service)))
    });
    let is_partial = samples.status().is_some_and(|status| status.targets_beyond.targets > 0);
    Table { is_partial, ..Table::new(columns, rows.collect(), place, 1).with_notes(beyond(samples)) }
}

fn sums(samples: &Samples) -> BTreeMap<String, Sum<'_>> {
    let mut sums: BTreeMap<String, Sum<'_>> = BTreeMap::new();
    // Where rates can be known, what is not listed is zero.
    let zero = samples.has_rates().then_some(0.0);
    let none = || Sum { carrying: zero.map(|_| Carrying::default()), rejected: zero, dropped: zero, ..Sum::default() };
    for (target, carrying) in samples.targets() {
        let sum = sums.entry(format!("{}/{}", target.namespace, target.service)).or_insert_with(none);
        sum.backends.insert(&target.backend);
        sum.flows += target.carried.flows;
        if let (Some(sum), Some(carrying)) = (&mut sum.carrying, &carrying) {
            sum.add(carrying);
        }
    }
    for (port, refused) in samples.refusing() {
        let sum = sums.entry(format!("{}/{}", port.namespace, port.service)).or_insert_with(none);
        if let (Some((rejected, dropped)), Some(rejected_sum), Some(dropped_sum)) = (refused, &mut sum.rejected, &mut sum.dropped) {
            *rejected_sum += rejected;
            *dropped_sum += dropped;
        }
    }
    sums
}

/// What has no rows.
fn beyond(samples: &Samples) -> Vec<String> {
    let Some(status) = samples.status().filter(|status| status.targets_beyond.targets > 0) else { return Vec::new() };
    let carried = samples.beyond().map_or_else(|| "-".to_owned(), |c| text::short(c.packets[0] + c.packets[1]));
    vec![format!("{} more backends have no counters of their own: {carried} packets/s together", status.targets_beyond.targets)]
}

/// The backends of one Service, or of all.
pub fn backends(samples: &Samples, place: &Place, service: Option<&str>) -> Table {
    let columns = vec![
        if service.is_some() { Column::text("port", "port", 0) } else { Column::text("Service port", "service_port", 0) },
        Column::text("backend", "backend", 0),
        Column::number("packets/s", "packets_per_s", 0),
        Column::number("bytes/s", "bytes_per_s", 0),
        Column::number("new flows/s", "new_flows_per_s", 0),
        Column::number("refused/s", "refused_per_s", 1),
        Column::number("to backend/s", "packets_to_backend_per_s", 2),
        Column::number("to client/s", "packets_to_client_per_s", 2),
        Column::number("bytes to backend/s", "bytes_to_backend_per_s", 3),
        Column::number("bytes to client/s", "bytes_to_client_per_s", 3),
        Column::number("flows since start", "flows", 4),
    ];
    let name = |target: &Target| format!("{}/{}", target.namespace, target.service);
    let shown = samples.targets().filter(|(target, _)| service.is_none_or(|service| name(target) == service));
    let rows = shown.map(|(target, carrying)| {
        let rate = |of: fn(&Carrying) -> f64| Cell::Rate(carrying.as_ref().map(of));
        let port = match (service, target.port) {
            (None, _) => target.service_port(),
            (_, Some(port)) => format!("{port}/{}", target.protocol),
            (_, None) => format!("{}/{}", target.port_name, target.protocol),
        };
        let cells = vec![
            Cell::Text(port),
            Cell::Text(target.backend.clone()),
            rate(|c| c.packets[0] + c.packets[1]),
            rate(|c| c.bytes[0] + c.bytes[1]),
            rate(|c| c.flows),
            rate(|c| c.refused),
            rate(|c| c.packets[0]),
            rate(|c| c.packets[1]),
            rate(|c| c.bytes[0]),
            rate(|c| c.bytes[1]),
            Cell::Count(target.carried.flows),
        ];
        let filter = FlowFilter {
            service: Some(name(target)),
            backend: Some(target.backend.clone()),
            proto: Some(target.protocol.clone()),
            ..FlowFilter::default()
        };
        let is_alarm = carrying.is_some_and(|c| c.refused > 0.0);
        Row { is_alarm, ..Row::new(format!("{} {}", target.service_port(), target.backend), cells) }.opening(View::Flows(filter))
    });
    let notes = match service {
        Some(service) => refusals(samples, service),
        None => beyond(samples),
    };
    let is_partial = samples.status().is_some_and(|status| status.targets_beyond.targets > 0);
    Table { is_partial, ..Table::new(columns, rows.collect(), place, 2).with_notes(notes) }
}

/// The ports of a Service that have no backends or refuse packets.
fn refusals(samples: &Samples, service: &str) -> Vec<String> {
    let ports = samples.refusing().filter(|(port, _)| format!("{}/{}", port.namespace, port.service) == service);
    let note = |(port, refused): (&nomagic_api::ServicePort, Option<(f64, f64)>)| {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), text::short);
        let backends = if port.backends == 0 { "no backends, " } else { "" };
        let (rejected, dropped) = (rate(refused.map(|r| r.0)), rate(refused.map(|r| r.1)));
        format!("{}/{}: {backends}rejects {rejected} packets/s, drops {dropped} packets/s", port.port, port.protocol)
    };
    ports.take(PORTS_NAMED_MAX).map(note).collect()
}
