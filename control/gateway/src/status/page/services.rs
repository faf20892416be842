//! The Services' part of the page.

use std::cmp::Reverse;
use std::fmt::Write as _;

use nomagic_api::{Carried, ServicePort, Status, Target};

use super::{Sections, SortBy, table};

/// Whether a section shows a Service.
fn shows(sections: Sections<'_>, namespace: &str, name: &str) -> bool {
    match sections {
        Sections::Service(only_namespace, only_name) => (namespace, name) == (only_namespace, only_name),
        _ => true,
    }
}

/// Service ports without backends, and those that have refused packets.
pub(super) fn write_service_ports(out: &mut String, status: &Status, sections: Sections<'_>) {
    let ports: Vec<&ServicePort> = status.service_ports.iter().filter(|p| shows(sections, &p.namespace, &p.service)).collect();
    if ports.is_empty() {
        return;
    }
    let mut table = table(1, 3);
    table.set_header(["Service port", "backends", "rejected", "dropped", ""]);
    for p in ports {
        let note = if p.backends == 0 { "no backends" } else { "" };
        let numbers = [p.backends as u64, p.rejected, p.dropped].map(|n| n.to_string());
        table.add_row([p.service_port()].into_iter().chain(numbers).chain([note.to_owned()]));
    }
    if status.service_ports_beyond > 0 && sections == Sections::All {
        table.add_row([format!("{} more", status.service_ports_beyond)]);
    }
    let _ = writeln!(out, "\n{}", table.trim_fmt());
}

/// The backends and their traffic.
pub(super) fn write_targets(out: &mut String, status: &Status, sections: Sections<'_>, sort: SortBy) {
    let mut targets: Vec<&Target> = status.targets.iter().filter(|t| shows(sections, &t.namespace, &t.service)).collect();
    if targets.is_empty() {
        return;
    }
    // Stable: equal ones stay sorted by name.
    match sort {
        SortBy::Name => {}
        SortBy::Flows => targets.sort_by_key(|t| Reverse(t.carried.flows)),
        SortBy::Packets => targets.sort_by_key(|t| Reverse(t.carried.to_backend.packets + t.carried.to_client.packets)),
    }
    let mut table = table(2, 3);
    table.set_header(["Service port", "backend", "flows", "to backend", "to client", ""]);
    let numbers = |c: &Carried| [c.flows, c.to_backend.packets, c.to_client.packets].map(|n| n.to_string());
    for t in targets {
        table.add_row([t.service_port(), t.backend.clone()].into_iter().chain(numbers(&t.carried)));
    }
    let beyond = &status.targets_beyond;
    if beyond.targets > 0 && sections == Sections::All {
        table.add_row([format!("{} more", beyond.targets), String::new()].into_iter().chain(numbers(&beyond.carried)));
    }
    let _ = writeln!(out, "\n{}", table.trim_fmt());
}
