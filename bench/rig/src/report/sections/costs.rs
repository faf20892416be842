//! Cost of a packet in CPU time and in memory, and connections a second.

use super::{NONE, Section, bar, interval, nothing, rows_of, style, text};
use crate::report::number::Quantity;
use crate::report::plot::{Axis, AxisKind, Line, LinePlot, Marks, Plot, Point, Row, RowPlot, Style};
use crate::report::table::{Cell, Table};
use crate::results::{CpuTime, Outcome, Results};

/// CPU time of a packet by kind.
pub fn parts(t: &CpuTime) -> [(&'static str, f64); 4] {
    [
        ("user", t.lb_user_ns),
        ("system calls", t.lb_system_ns),
        ("softirq", t.lb_softirq_ns),
        ("softirq on the generator's core", t.generator_softirq_ns),
    ]
}

pub fn cpu(results: &Results) -> Section {
    let lead = "CPU time of one packet by kind. A polling worker is always busy: its time is the packet's share of the core at this rate. The lightest \
                part is the receiving interface's NAPI, which works for the subject on the generator's core.";
    let section = Section::new("cpu", "CPU time a packet", lead);
    if results.cpu.is_empty() {
        return section.empty("CPU time");
    }
    let mut rows = Vec::new();
    let mut table = Table {
        caption: "CPU time a packet".into(),
        head: vec!["subject", "offered", "all", "user", "system calls", "softirq", "generator", "core busy"],
        rows: Vec::new(),
    };
    for r in &results.cpu {
        let label = results.label(&r.subject);
        let style = Style { dash: 0, ..style(results, &r.subject, &[]) };
        let mut cells = vec![text(label), Cell::number(Quantity::Pps, r.offered_pps)];
        match &r.per_packet {
            Outcome::Measured(t) => {
                let all: f64 = parts(t).iter().map(|p| p.1).sum();
                let marks = Marks::Bar { parts: parts(t).map(|p| p.1).to_vec(), interval: None };
                rows.push(Row { label: label.into(), style, marks, value: Quantity::Ns.show(all) });
                cells.push(Cell::number(Quantity::Ns, all));
                cells.extend(parts(t).map(|p| Cell::number(Quantity::Ns, p.1)));
                cells.push(Cell::number(Quantity::Share, t.lb_busy_share));
            }
            Outcome::NotMeasured(why) => {
                rows.push(nothing(label, style));
                cells.push(Cell::Missing(why.clone(), 6));
            }
        }
        table.rows.push(cells);
    }
    let plot = RowPlot {
        title: "CPU time a packet, by kind".into(),
        description: "CPU time of one packet for each subject, stacked: user space, system calls and softirqs of its core, softirqs of the generator's."
            .into(),
        x: Axis::new(AxisKind::Linear, Quantity::Ns, "CPU time a packet"),
        rows,
        parts: parts(&CpuTime::default()).map(|p| p.0.to_owned()).to_vec(),
        reference: None,
    };
    section.with_rows(plot, NONE, table)
}

/// Connections a second.
pub fn connections(results: &Results) -> Section {
    let lead = "Real sockets: connect, request, answer, close. The table has the rate of clients and servers even where they, not the subject, were the \
                limit.";
    let section = Section::new("connections", "Connections a second", lead);
    if results.connections.is_empty() {
        return section.empty("connections");
    }
    let mut table = Table {
        caption: "Connections a second".into(),
        head: vec!["subject", "median", "95 % interval", "measured", "failed"],
        rows: Vec::new(),
    };
    for r in &results.connections {
        let mut cells = vec![text(results.label(&r.subject))];
        cells.extend(Cell::estimate(Quantity::PerSecond, &r.per_second));
        cells.push(Cell::Number(Quantity::PerSecond.estimate(&r.seen_per_second)));
        cells.push(Cell::number(Quantity::Count, r.failed as f64));
        table.rows.push(cells);
    }
    let counted = results.connections.iter().map(|r| (r.subject.as_str(), &r.per_second));
    let plot = RowPlot {
        title: "Connections a second".into(),
        description: "Connections a second through each subject, with the interval of the median.".into(),
        x: Axis::new(AxisKind::Linear, Quantity::PerSecond, "connections"),
        rows: rows_of(results, Quantity::PerSecond, counted, bar),
        parts: Vec::new(),
        reference: None,
    };
    section.with_rows(plot, "No value counts for a subject; the table has the reasons and the measured rates.", table)
}

/// Cost of a packet in memory, by the size of the connection table.
pub fn table_cost(results: &Results) -> Section {
    let lead = "The packet path alone, without sockets, by number of connections in the table: tables larger than the caches cost time.";
    let mut section = Section::new("cost", "Cost in memory", lead);
    if results.table_cost.is_empty() {
        return section.empty("the cost in memory");
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut table = Table {
        caption: "Time a packet, by connections in the table".into(),
        head: vec!["what", "connections", "a packet", "95 % interval"],
        rows: Vec::new(),
    };
    for r in &results.table_cost {
        table.rows.push([vec![text(&r.name), Cell::number(Quantity::Count, r.flows as f64)], Cell::estimate(Quantity::Ns, &r.ns)].concat());
        let Some(e) = r.ns.value() else { continue };
        let point = Point { x: r.flows as f64, y: e.median, interval: interval(e) };
        match lines.iter_mut().find(|l| l.label == r.name) {
            Some(line) => line.points.push(point),
            None => {
                // These are no subjects: take colours and shapes in turn.
                let style = Style { colour: lines.len() % 6, dash: lines.len() / 6 % 4 };
                lines.push(Line { label: r.name.clone(), style, points: vec![point], marks: true });
            }
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    section.limit(&mut lines);
    if lines.is_empty() {
        section.say("Nothing was measured.");
    } else {
        section.plots.push(Plot::Lines(LinePlot {
            title: "Time a packet, by connections in the table".into(),
            description: "Nanoseconds a packet over the number of connections in the table; a line for each thing measured.".into(),
            x: Axis::new(AxisKind::Log, Quantity::Count, "connections in the table"),
            y: Axis::new(AxisKind::Linear, Quantity::Ns, "time a packet"),
            lines,
            levels: Vec::new(),
            events: Vec::new(),
            event: String::new(),
            include: Vec::new(),
            height: 220,
        }));
    }
    section.tables.push(table);
    section
}
