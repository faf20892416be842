//! The content of a report, section by section: text, plots and tables.

mod change;
mod costs;
mod latency;
mod rates;

pub use costs::parts as time_parts;
pub use latency::percentiles as latency_percentiles;
pub use rates::traffic as traffic_name;

use super::number::Quantity;
use super::plot::{LINES_MAX, Line, Marks, Plot, ROWS_MAX, Row, RowPlot, Style};
use super::table::{Cell, Table};
use crate::results::{Estimate, Outcome, Results};

#[derive(Clone, PartialEq, Debug)]
pub struct Section {
    /// For links and the command line.
    pub id: &'static str,
    pub title: &'static str,
    /// How to read the plots, and what is missing in them.
    pub lead: String,
    pub plots: Vec<Plot>,
    pub tables: Vec<Table>,
}

/// Their names, in the order of the report.
pub const IDS: [&str; 9] = ["rates", "ratios", "latency", "cpu", "connections", "cost", "churn", "flood", "programming"];

/// The text of a section without measured rows.
const NONE: &str = "None was measured.";

/// All sections, including those without results.
pub fn sections(results: &Results) -> Vec<Section> {
    vec![
        rates::rates(results),
        rates::ratios(results),
        latency::latency(results),
        costs::cpu(results),
        costs::connections(results),
        costs::table_cost(results),
        change::churn(results),
        change::flood(results),
        change::programming(results),
    ]
}

impl Section {
    fn new(id: &'static str, title: &'static str, lead: &str) -> Section {
        Section { id, title, lead: lead.into(), plots: Vec::new(), tables: Vec::new() }
    }

    /// Adds a sentence to the lead.
    fn say(&mut self, sentence: &str) {
        self.lead.push(' ');
        self.lead.push_str(sentence);
    }

    /// A section that has nothing to show.
    fn empty(mut self, what: &str) -> Section {
        self.lead = format!("Not in these results: {what}.");
        self
    }

    /// Adds a plot of at most [`ROWS_MAX`] rows.
    fn add_rows(&mut self, mut plot: RowPlot) {
        if plot.rows.len() > ROWS_MAX {
            self.say(&format!("The first {ROWS_MAX} of {} are drawn; all are in the table.", plot.rows.len()));
            plot.rows.truncate(ROWS_MAX);
        }
        self.plots.push(Plot::Rows(plot));
    }

    /// Adds the table, and the plot if one of its rows was measured; otherwise the sentence `otherwise`.
    fn with_rows(mut self, plot: RowPlot, otherwise: &str, table: Table) -> Section {
        if plot.rows.iter().any(|row| row.marks != Marks::Nothing) {
            self.add_rows(plot);
        } else {
            self.say(otherwise);
        }
        self.tables.push(table);
        self
    }

    /// Drops the lines above [`LINES_MAX`].
    fn limit(&mut self, lines: &mut Vec<Line>) {
        if lines.len() > LINES_MAX {
            self.say(&format!("The first {LINES_MAX} of {} lines are drawn; all are in the table.", lines.len()));
            lines.truncate(LINES_MAX);
        }
    }
}

/// The style of a subject in a plot with `together`: subjects of one kind differ in dashes.
fn style(results: &Results, id: &str, together: &[&str]) -> Style {
    let Some(subject) = results.subject(id) else { return Style { colour: 6, dash: 0 } };
    let same =
        together.iter().take_while(|other| **other != id).filter(|other| results.subject(other).is_some_and(|s| s.kind == subject.kind));
    Style { dash: same.count() % 4, ..Style::of(subject.kind) }
}

fn interval(e: &Estimate) -> Option<(f64, f64)> {
    (e.n > 1).then_some((e.low, e.high))
}

/// A row without a value; the table has the reason.
fn nothing(label: &str, style: Style) -> Row {
    Row { label: label.into(), style, marks: Marks::Nothing, value: "not measured".into() }
}

/// A row of a plot for each subject's estimate.
fn rows_of<'r>(
    results: &Results,
    quantity: Quantity,
    values: impl Iterator<Item = (&'r str, &'r Outcome<Estimate>)>,
    marks: fn(&Estimate) -> Marks,
) -> Vec<Row> {
    let row = |(id, value): (&str, &Outcome<Estimate>)| {
        let (label, style) = (results.label(id), style(results, id, &[]));
        match value.value() {
            Some(e) => Row { label: label.into(), style, marks: marks(e), value: quantity.show(e.median) },
            None => nothing(label, style),
        }
    };
    values.map(row).collect()
}

/// A bar from zero to the median, with the interval.
fn bar(e: &Estimate) -> Marks {
    Marks::Bar { parts: vec![e.median], interval: interval(e) }
}

fn text(words: &str) -> Cell {
    Cell::Text(words.into())
}
