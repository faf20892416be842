//! Clients and flows, from walks over the connection table.

use std::collections::BTreeMap;

use nomagic_api::flows::{Flow, FlowFilter};

use super::super::keys::{Place, View};
use super::super::text;
use super::super::walk::{FLOWS_SHOWN_MAX, Progress, Walk};
use super::table::{Cell, Column, Row, Table};

/// A complete walk.
#[derive(Debug)]
pub struct Whole {
    pub walk: Walk,
    at_ns: u64,
    /// The numbers of the walk before, and how long ago it was.
    before: Option<(BTreeMap<String, u64>, u64)>,
}

impl Whole {
    pub fn new(walk: Walk, at_ns: u64, before: Option<Whole>) -> Whole {
        let before = before.filter(|before| before.at_ns < at_ns).map(|before| (before.walk.groups, at_ns - before.at_ns));
        Whole { walk, at_ns, before }
    }

    /// By how much a group grew a second.
    fn change(&self, group: &str, flows: u64) -> Option<f64> {
        let (groups, elapsed_ns) = self.before.as_ref()?;
        let before = groups.get(group).copied().unwrap_or_default();
        Some((flows as f64 - before as f64) / (*elapsed_ns as f64 / 1e9))
    }
}

/// What is known of the flows that a view is about.
#[derive(Clone, Copy)]
pub struct Shown<'m> {
    /// The walk that goes on, or the last one.
    pub part: Option<&'m Walk>,
    pub whole: Option<&'m Whole>,
    pub refused: Option<&'m str>,
    /// Slots of the table.
    pub capacity: u32,
}

impl<'m> Shown<'m> {
    /// A complete walk, else a part.
    fn walk(&self) -> Option<&'m Walk> {
        self.whole.map(|whole| &whole.walk).or(self.part)
    }

    /// Whether there is more than is shown.
    fn is_partial(&self) -> bool {
        self.walk().is_none_or(|walk| walk.progress != Progress::Whole || walk.other > 0)
    }

    fn notes(&self) -> Vec<String> {
        let slots = |n: u32| text::count(n.into());
        let progress = self.part.map(|walk| walk.progress);
        let mut notes = Vec::new();
        match (self.refused, self.walk().map(|walk| walk.progress), progress) {
            (Some(refused), ..) => notes.push(refused.to_owned()),
            (None, None, _) => notes.push("reading the connection table".into()),
            (None, Some(Progress::UpTo(slot)), _) => {
                notes.push(format!("only a part of the table was seen so far: {} of {} slots", slots(slot), slots(self.capacity)));
            }
            (None, Some(Progress::Full), _) => {
                notes.push(format!("only the first {FLOWS_SHOWN_MAX} flows are shown, there are more: `nomagic flows` lists all"));
            }
            (None, Some(Progress::Whole), Some(Progress::UpTo(slot))) => {
                notes.push(format!("the table is being read again: {} of {} slots", slots(slot), slots(self.capacity)));
            }
            (None, Some(Progress::Whole), _) => {}
        }
        if let Some(other) = self.walk().map(|walk| walk.other).filter(|other| *other > 0) {
            notes.push(format!("{} flows of further clients, which are too many to be shown", text::count(other)));
        }
        notes
    }
}

/// The clients by the number of their flows.
pub fn clients(shown: Shown<'_>, service: Option<&str>, place: &Place) -> Table {
    let columns = vec![
        Column::text("client", "client", 0),
        Column::number("flows", "flows", 0),
        Column::number("share", "share", 0),
        Column::number("change/s", "change_per_s", 0),
    ];
    let groups = shown.walk().map(|walk| (&walk.groups, walk.matched));
    let rows = groups.into_iter().flat_map(|(groups, all)| {
        groups.iter().map(move |(client, flows)| {
            let change = shown.whole.and_then(|whole| whole.change(client, *flows));
            let share = (all > 0).then(|| *flows as f64 / all as f64);
            let filter = FlowFilter { service: service.map(str::to_owned), client: Some(client.clone()), ..FlowFilter::default() };
            let cells = vec![Cell::Text(client.clone()), Cell::Count(*flows), Cell::Share(share), Cell::Change(change)];
            Row::new(client.clone(), cells).opening(View::Flows(filter))
        })
    });
    Table { is_partial: shown.is_partial(), ..Table::new(columns, rows.collect(), place, 1).with_notes(shown.notes()) }
}

/// Flows.
pub fn flows(shown: Shown<'_>, filter: &FlowFilter, place: &Place) -> Table {
    // What all rows have in common is in the title.
    let rank = |is_common: bool| if is_common { 9 } else { 1 };
    let columns = vec![
        Column::text("proto", "proto", 0),
        Column::text("client", "client", 0),
        Column::text("destination", "destination", 0),
        Column::text("state", "state", 0),
        Column::number("idle", "idle_ms", 0),
        Column::text("backend", "backend", rank(filter.backend.is_some())),
        Column::text("Service port", "service", rank(filter.service.is_some())),
        Column::number("ends in", "expires_in_ms", 2),
        Column::text("SNAT", "snat", 3),
    ];
    let flows = shown.walk().map_or(&[][..], |walk| &walk.flows);
    let rows = flows.iter().map(|flow| {
        let text = |words: Option<&str>| Cell::Text(words.unwrap_or("-").to_owned());
        let cells = vec![
            text(Some(&flow.proto)),
            text(Some(&flow.client)),
            text(Some(&flow.destination)),
            text(Some(flow.state.name())),
            Cell::Milliseconds(flow.idle_ms),
            text(Some(&flow.backend)),
            text(flow.service.as_deref()),
            Cell::Milliseconds(flow.expires_in_ms),
            text(flow.snat.as_deref()),
        ];
        let tuple = tuple(flow);
        Row::new(tuple.clone(), cells).opening(View::Explain(tuple))
    });
    Table { is_partial: shown.is_partial(), ..Table::new(columns, rows.collect(), place, 1).with_notes(shown.notes()) }
}

/// In the notation of `nomagic explain`.
fn tuple(flow: &Flow) -> String {
    format!("{} {} -> {}", flow.proto.to_ascii_lowercase(), flow.client, flow.destination)
}
