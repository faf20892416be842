//! Latency by percentile and load.

use super::{Section, style, text};
use crate::report::number::Quantity;
use crate::report::plot::{Axis, AxisKind, Line, LinePlot, Plot, Point};
use crate::report::table::{Cell, Table};
use crate::results::{Latency, Results};

/// The most loads to draw.
const LOADS_MAX: usize = 6;

/// The stored percentiles with their names.
pub fn percentiles(l: &Latency) -> [(&'static str, f64, f64); 5] {
    [("p50", 50.0, l.p50), ("p90", 90.0, l.p90), ("p99", 99.0, l.p99), ("p99.9", 99.9, l.p99_9), ("p99.99", 99.99, l.p99_99)]
}

/// Latency at shares of a subject's own zero-loss rate.
pub fn latency(results: &Results) -> Section {
    let lead = "Time from making a frame to receiving it, at a share of each subject's own zero-loss rate. Both axes are logarithmic, the horizontal one \
                in the share of slower frames.";
    let mut section = Section::new("latency", "Latency", lead);
    if results.latencies.is_empty() {
        return section.empty("latencies");
    }
    let mut loads: Vec<u32> = results.latencies.iter().map(|r| r.load_percent).collect();
    loads.sort_unstable();
    loads.dedup();
    let extremes: Vec<f64> =
        results.latencies.iter().filter_map(|r| r.latency_us.value()).flat_map(|l| percentiles(l).map(|p| p.2)).collect();
    for (i, load) in loads.into_iter().enumerate() {
        let rows: Vec<_> = results.latencies.iter().filter(|r| r.load_percent == load).collect();
        let together: Vec<&str> = rows.iter().map(|r| r.subject.as_str()).collect();
        let mut lines: Vec<Line> = rows
            .iter()
            .filter_map(|r| {
                let points = percentiles(r.latency_us.value()?).map(|(_, x, y)| Point { x, y, interval: None }).to_vec();
                Some(Line { label: results.label(&r.subject).into(), style: style(results, &r.subject, &together), points, marks: true })
            })
            .collect();
        if i >= LOADS_MAX {
            section.say(&format!("The load of {load} % is only in the table."));
        } else if lines.is_empty() {
            section.say(&format!("Nothing was measured at a load of {load} %."));
        } else {
            section.limit(&mut lines);
            section.plots.push(Plot::Lines(LinePlot {
                title: format!("Latency at {load} % of the zero-loss rate"),
                description: format!(
                    "Latency in microseconds over percentiles from p50 to p99.99, at a load of {load} percent, by subject."
                ),
                x: Axis::new(AxisKind::Percentile, Quantity::Count, "percentile of frames"),
                y: Axis::new(AxisKind::Log, Quantity::Us, "latency"),
                lines,
                levels: Vec::new(),
                events: Vec::new(),
                event: String::new(),
                include: extremes.clone(),
                height: 190,
            }));
        }
    }
    let mut table = Table {
        caption: "Latency, by load and percentile".into(),
        head: vec!["subject", "load", "offered", "p50", "p90", "p99", "p99.9", "p99.99", "max"],
        rows: Vec::new(),
    };
    for r in &results.latencies {
        let mut cells = vec![
            text(results.label(&r.subject)),
            Cell::Number(format!("{} %", r.load_percent)),
            Cell::number(Quantity::Pps, r.offered_pps),
        ];
        match &r.latency_us {
            crate::results::Outcome::Measured(l) => {
                cells.extend(percentiles(l).map(|p| Cell::number(Quantity::Us, p.2)));
                cells.push(Cell::number(Quantity::Us, l.max));
            }
            crate::results::Outcome::NotMeasured(why) => cells.push(Cell::Missing(why.clone(), 6)),
        }
        table.rows.push(cells);
    }
    section.tables.push(table);
    section
}
