//! A run as text for a terminal.

use std::fmt::Write;

use super::against::{Change, Comparison};
use super::sections::sections;
use super::table::{Cell, Mark, Table};
use crate::results::{Results, RigKind, Verdict};

/// Targets and results, with aligned columns.
pub fn figures(results: &Results) -> String {
    if results.figures.is_empty() { "No figures were wanted.\n".into() } else { figures_table(results).text() }
}

pub fn figures_table(results: &Results) -> Table {
    let rows = results
        .figures
        .iter()
        .map(|f| {
            let found = if f.found.is_empty() { "no reason given".into() } else { f.found.clone() };
            let (mark, words, found) = match f.verdict {
                Verdict::Reached => (Mark::Good, "reached", Cell::Text(found)),
                Verdict::NotReached => (Mark::Bad, "not reached", Cell::Text(found)),
                Verdict::NotMeasured => (Mark::Open, "not measured", Cell::Missing(found, 1)),
            };
            vec![Cell::Text(f.name.clone()), Cell::Text(f.wanted.clone()), Cell::Mark(mark, words.into()), found]
        })
        .collect();
    Table { caption: "Figures: targets and results".into(), head: vec!["figure", "wanted", "outcome", "found"], rows }
}

/// The limit of the rig, if it has one.
pub fn caveat(results: &Results) -> Option<&'static str> {
    (results.rig.kind == RigKind::Veth)
        .then_some("All traffic went over veth pairs on one machine: nothing here is a network card's figure.")
}

pub fn summary(results: &Results) -> String {
    let mut out = String::new();
    if let Some(caveat) = caveat(results) {
        let _ = writeln!(out, "{caveat}\n");
    }
    for section in sections(results) {
        if section.tables.is_empty() {
            let _ = writeln!(out, "{}: {}\n", section.title, section.lead);
        }
        for table in &section.tables {
            let _ = writeln!(out, "{}\n{}", table.caption, table.text());
        }
    }
    out
}

pub fn comparison(c: &Comparison) -> String {
    let mut out = String::new();
    if !c.differences.is_empty() {
        out.push_str("THE RUNS DIFFER IN MORE THAN THEIR RESULTS:\n");
        for difference in &c.differences {
            let _ = writeln!(out, "  {}", one_line(difference));
        }
        out.push('\n');
    }
    for (_, table) in c.tables() {
        let _ = writeln!(out, "{}\n{}", table.caption, table.text());
    }
    for (which, names) in [("new", &c.only_new), ("old", &c.only_old)] {
        if !names.is_empty() {
            let _ = writeln!(out, "Only in the {which} run:");
            for name in names {
                let _ = writeln!(out, "  {}", one_line(name));
            }
            out.push('\n');
        }
    }
    if c.count(Change::Worse) > 0 {
        out.push_str("WORSE: ");
    }
    out.push_str(&c.verdict());
    out.push('\n');
    out
}

/// Without control characters, which could move a terminal's cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
