//! Results under change: churn, SYN floods, programming latency.

use super::{NONE, Section, bar, interval, rows_of, style, text};
use crate::report::number::Quantity;
use crate::report::plot::{Axis, AxisKind, Line, LinePlot, Marks, Plot, Point, RowPlot, Style};
use crate::report::table::{Cell, Table};
use crate::results::{ChurnRow, Estimate, Results};

/// The most timelines to draw.
const TIMELINES_MAX: usize = 12;
/// The most places of a drawn timeline; neighbours of longer ones are summed.
const PLACES_MAX: usize = 300;

/// Loss while tables change.
pub fn churn(results: &Results) -> Section {
    let lead = "Frames that arrived around one event, in percent of the offered ones; the dotted line is the start of the event. Blocked time is lost \
                frames over the offered rate.";
    let mut section = Section::new("churn", "Churn", lead);
    if results.churn.is_empty() {
        return section.empty("churn");
    }
    let drawable: Vec<&ChurnRow> =
        results.churn.iter().filter(|r| !r.timeline.is_empty() && r.interval_ms > 0.0 && r.offered_pps > 0.0).collect();
    if drawable.is_empty() {
        section.say("There is no timeline.");
    } else if drawable.len() > TIMELINES_MAX {
        section.say(&format!("{TIMELINES_MAX} of {} timelines are drawn.", drawable.len()));
    }
    for r in drawable.into_iter().take(TIMELINES_MAX) {
        section.plots.push(Plot::Lines(timeline(results, r)));
    }
    let mut table = Table {
        caption: "Traffic blocked by an event".into(),
        head: vec!["subject", "event", "offered", "events", "lost frames", "blocked", "95 % interval"],
        rows: Vec::new(),
    };
    for r in &results.churn {
        let mut cells = vec![
            text(results.label(&r.subject)),
            text(&r.event),
            Cell::number(Quantity::Pps, r.offered_pps),
            Cell::number(Quantity::Count, f64::from(r.events)),
            Cell::number(Quantity::Count, r.lost as f64),
        ];
        cells.extend(Cell::estimate(Quantity::Ms, &r.blocked_ms));
        table.rows.push(cells);
    }
    section.tables.push(table);
    section
}

fn timeline(results: &Results, r: &ChurnRow) -> LinePlot {
    let label = results.label(&r.subject);
    let together = r.timeline.len().div_ceil(PLACES_MAX).max(1);
    let start = r.event_at.first().copied().unwrap_or(0);
    let ms = |place: f64| (place - f64::from(start)) * r.interval_ms;
    let expected = r.offered_pps * r.interval_ms / 1e3;
    // Each place is a step with a start and an end.
    let points = r.timeline.chunks(together).enumerate().flat_map(|(i, places)| {
        let share = places.iter().map(|&n| n as f64).sum::<f64>() / (expected * places.len() as f64);
        let from = (i * together) as f64;
        [from, from + places.len() as f64].map(|place| Point { x: ms(place), y: share, interval: None })
    });
    LinePlot {
        title: format!("{label}: {}", r.event),
        description: format!("Frames that arrived in percent of those offered, over time around the event, {label}."),
        x: Axis::new(AxisKind::Close, Quantity::Count, if r.event_at.is_empty() { "time (ms)" } else { "time since the event (ms)" }),
        y: Axis::new(AxisKind::Linear, Quantity::Share, "arrived of offered"),
        lines: vec![Line {
            label: label.into(),
            style: Style { dash: 0, ..style(results, &r.subject, &[]) },
            points: points.collect(),
            marks: false,
        }],
        levels: Vec::new(),
        events: r
            .event_at
            .iter()
            .filter(|&&place| place as usize <= r.timeline.len())
            .take(64)
            .map(|&place| ms(f64::from(place)))
            .collect(),
        event: r.event.clone(),
        include: vec![1.0],
        height: 110,
    }
}

/// Established flows under a SYN flood.
pub fn flood(results: &Results) -> Section {
    let lead = "Share of the established flows' frames that arrived during a flood of SYNs from random sources.";
    let section = Section::new("flood", "SYN flood", lead);
    if results.flood.is_empty() {
        return section.empty("a SYN flood");
    }
    let mut table = Table {
        caption: "Goodput of established flows under a SYN flood".into(),
        head: vec!["subject", "offered", "SYNs", "goodput", "95 % interval"],
        rows: Vec::new(),
    };
    for r in &results.flood {
        let mut cells =
            vec![text(results.label(&r.subject)), Cell::number(Quantity::Pps, r.offered_pps), Cell::number(Quantity::Pps, r.flood_pps)];
        cells.extend(Cell::estimate(Quantity::Share, &r.goodput));
        table.rows.push(cells);
    }
    let goodputs = results.flood.iter().map(|r| (r.subject.as_str(), &r.goodput));
    let plot = RowPlot {
        title: "Goodput under a SYN flood".into(),
        description: "Share of the established flows' frames that arrived under a SYN flood, by subject.".into(),
        x: Axis::new(AxisKind::Linear, Quantity::Share, "arrived of offered"),
        rows: rows_of(results, Quantity::Share, goodputs, bar),
        parts: Vec::new(),
        reference: None,
    };
    section.with_rows(plot, NONE, table)
}

/// Time from a change until packets follow it.
pub fn programming(results: &Results) -> Section {
    let lead = "Time from the change of an object to the first packet that follows it.";
    let section = Section::new("programming", "Programming latency", lead);
    if results.programming.is_empty() {
        return section.empty("programming latency");
    }
    let mut table = Table {
        caption: "From a change to the first packet that follows it".into(),
        head: vec!["subject", "how it is changed", "median", "95 % interval", "changes"],
        rows: Vec::new(),
    };
    for r in &results.programming {
        let mut cells = vec![text(results.label(&r.subject)), text(&r.how)];
        cells.extend(Cell::estimate(Quantity::Ms, &r.ms));
        cells.push(match r.ms.value() {
            Some(e) => Cell::number(Quantity::Count, f64::from(e.n)),
            None => text("none"),
        });
        table.rows.push(cells);
    }
    // A logarithmic axis has no zero, so no bars.
    let dots = |e: &Estimate| Marks::Dots { values: Vec::new(), median: e.median, interval: interval(e) };
    let times = results.programming.iter().map(|r| (r.subject.as_str(), &r.ms));
    let plot = RowPlot {
        title: "From a change to the first packet that follows it".into(),
        description: "Milliseconds from a change to the first packet that follows it, by subject, on a logarithmic axis.".into(),
        x: Axis::new(AxisKind::Log, Quantity::Ms, "time"),
        rows: rows_of(results, Quantity::Ms, times, dots),
        parts: Vec::new(),
        reference: None,
    };
    section.with_rows(plot, NONE, table)
}
