//! Rates and their ratios.

use super::{Section, interval, nothing, style, text};
use crate::report::number::Quantity;
use crate::report::plot::{Axis, AxisKind, Level, Line, LinePlot, Marks, Plot, Point, Row, RowPlot, Style};
use crate::report::table::{Cell, Table};
use crate::results::{RateRow, Results, Subject, SubjectKind, Traffic};

pub fn traffic(traffic: Traffic) -> &'static str {
    match traffic {
        Traffic::Established => "established flows",
        Traffic::NewFlows => "with new flows",
    }
}

fn kind(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Nomagic => "nomagic",
        SubjectKind::NoWork => "no-work AF_XDP loop",
        SubjectKind::Nftables => "nftables DNAT",
        SubjectKind::Iptables => "iptables DNAT",
        SubjectKind::Routing => "routing alone",
        SubjectKind::Direct => "directly connected",
    }
}

const KINDS: [SubjectKind; 6] =
    [SubjectKind::Nomagic, SubjectKind::NoWork, SubjectKind::Nftables, SubjectKind::Iptables, SubjectKind::Routing, SubjectKind::Direct];

/// Zero-loss rate by number of Services.
pub fn rates(results: &Results) -> Section {
    let lead = "The highest rate at which every frame arrived: the median of the rounds, with whiskers and bands for its interval. Dashed levels belong \
                to subjects without a Service lookup.";
    let mut section = Section::new("rates", "Zero-loss rate", lead);
    if results.rates.is_empty() {
        return section.empty("rates");
    }
    let highest = results.rates.iter().filter_map(|r| r.zero_loss.value()).map(|e| e.high.max(e.median)).fold(0.0, f64::max);
    for of in [Traffic::Established, Traffic::NewFlows] {
        let rows: Vec<(&RateRow, &Subject)> =
            results.rates.iter().filter(|r| r.traffic == of).filter_map(|r| Some((r, results.subject(&r.subject)?))).collect();
        let mut plot = LinePlot {
            title: format!("Zero-loss rate, {}", traffic(of)),
            description: format!(
                "Highest rate without loss, {}, over the number of Services; a line for each kind of subject.",
                traffic(of)
            ),
            x: Axis::new(AxisKind::Log, Quantity::Count, "Services"),
            y: Axis::new(AxisKind::Linear, Quantity::Pps, "zero-loss rate"),
            lines: Vec::new(),
            levels: Vec::new(),
            events: Vec::new(),
            event: String::new(),
            include: vec![highest],
            height: 230,
        };
        for &of_kind in &KINDS {
            let looks_up = matches!(of_kind, SubjectKind::Nomagic | SubjectKind::Nftables | SubjectKind::Iptables);
            let measured = rows.iter().filter(|(_, s)| s.kind == of_kind).filter_map(|(r, s)| Some((*s, r.zero_loss.value()?)));
            let mut points = Vec::new();
            for (subject, e) in measured {
                if looks_up && subject.services > 0 {
                    points.push(Point { x: f64::from(subject.services), y: e.median, interval: interval(e) });
                } else if plot.levels.len() < 4 {
                    plot.levels.push(Level { label: subject.label.clone(), style: Style::of(of_kind), y: e.median, interval: interval(e) });
                }
            }
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            if !points.is_empty() {
                plot.lines.push(Line { label: kind(of_kind).into(), style: Style::of(of_kind), points, marks: true });
            }
        }
        if plot.lines.is_empty() && plot.levels.is_empty() {
            section.say(&format!(
                "Nothing was measured of {}.",
                if of == Traffic::Established { "established flows" } else { "traffic with new flows" }
            ));
        } else {
            section.plots.push(Plot::Lines(plot));
        }
        if results.rates.iter().any(|r| r.traffic == of) {
            section.tables.push(table(results, of));
        }
    }
    section
}

fn table(results: &Results, of: Traffic) -> Table {
    let row = |r: &RateRow| {
        let mut cells = vec![text(results.label(&r.subject))];
        cells.extend(Cell::estimate(Quantity::Pps, &r.zero_loss));
        cells.extend(Cell::estimate(Quantity::Pps, &r.half_percent));
        cells.push(
            r.generator_pps.map_or(Cell::Missing("the generator alone was not measured".into(), 1), |v| Cell::number(Quantity::Pps, v)),
        );
        cells
    };
    Table {
        caption: format!("Rates, {}", traffic(of)),
        head: vec!["subject", "zero loss", "95 % interval", "0.5 % loss", "95 % interval", "generator can"],
        rows: results.rates.iter().filter(|r| r.traffic == of).map(row).collect(),
    }
}

pub fn ratios(results: &Results) -> Section {
    let lead = "Zero-loss rate of one subject over another's in the same round: small dots are rounds, the mark is their median, whiskers are its interval.";
    let mut section = Section::new("ratios", "Ratios", lead);
    if results.ratios.is_empty() {
        return section.empty("ratios");
    }
    let of: Vec<&str> = results.ratios.iter().map(|r| r.subject.as_str()).collect();
    let mut rows = Vec::new();
    let mut table = Table {
        caption: "Ratios of zero-loss rates, by round".into(),
        head: vec!["ratio", "median", "95 % interval", "rounds"],
        rows: Vec::new(),
    };
    for r in &results.ratios {
        let label = format!("{} / {}", results.label(&r.subject), results.label(&r.over));
        let style = Style { dash: 0, ..style(results, &r.subject, &of) };
        let label = if r.traffic == Traffic::NewFlows { format!("{label}, new flows") } else { label };
        rows.push(match r.ratio.value() {
            Some(e) => Row {
                label: label.clone(),
                style,
                marks: Marks::Dots { values: r.rounds.clone(), median: e.median, interval: interval(e) },
                value: Quantity::Ratio.show(e.median),
            },
            None => nothing(&label, style),
        });
        let mut cells = vec![text(&label)];
        cells.extend(Cell::estimate(Quantity::Ratio, &r.ratio));
        cells.push(if r.rounds.is_empty() { text("none") } else { Cell::Number(rounds(&r.rounds)) });
        table.rows.push(cells);
    }
    let medians: Vec<f64> = results.ratios.iter().filter_map(|r| r.ratio.value()).map(|e| e.median).filter(|m| *m > 0.0).collect();
    let spread = medians.iter().copied().fold(1.0, f64::max) / medians.iter().copied().fold(1.0, f64::min);
    let plot = RowPlot {
        title: "Zero-loss rate of one over another".into(),
        description: "Ratio of zero-loss rates for each pair of subjects: rounds, median and interval; at 1 both are equally fast.".into(),
        x: Axis::new(if spread < 3.0 { AxisKind::Close } else { AxisKind::Log }, Quantity::Ratio, "ratio"),
        rows,
        parts: Vec::new(),
        reference: Some((1.0, "1: equally fast".into())),
    };
    if medians.is_empty() {
        section.say("No ratio was measured.");
    } else {
        section.add_rows(plot);
    }
    section.tables.push(table);
    section
}

/// Rounds as a range: "0.97 to 0.99 in 10".
fn rounds(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    format!("{} in {} to {}", values.len(), Quantity::Ratio.show(low), Quantity::Ratio.show(high))
}
