//! A run as one HTML file: without scripts, and without anything from elsewhere.

use anyhow::{Context, Result};
use std::fmt::Write;

use super::against::{Change, Comparison, commit};
use super::number::{Quantity, duration, grouped};
use super::plot::{NARROW, WIDE};
use super::sections::{Section, sections};
use super::style::{CHART_CSS, PAGE_CSS};
use super::svg::escape;
use super::table::{Cell, Table};
use super::text::{caveat, figures_table};
use crate::results::Results;

/// What the page may load and run: nothing, whatever the names in the results are.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page of a run, and what is different from another one.
pub fn html(results: &Results, comparison: Option<&Comparison>) -> Result<String> {
    let json = serde_json::to_string(results).context("cannot write the results as JSON")?;
    let sections = sections(results);
    let title = escape(&format!("nomagic, measured {}", results.manifest.started));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{PAGE_CSS}{CHART_CSS}</style>\n</head>\n<body>\n"
    );
    head(&mut out, results, comparison, &sections);
    out.push_str("<main>\n");
    let figures = if results.figures.is_empty() { "<p>No figures were wanted.</p>\n".into() } else { figures_table(results).html() };
    let _ = write!(out, "<section id=\"figures\"><h2>Figures</h2>\n{figures}</section>\n");
    if let Some(c) = comparison {
        against(&mut out, c);
    }
    for s in &sections {
        section(&mut out, s);
    }
    manifest(&mut out, results);
    rig(&mut out, results);
    out.push_str(HOW);
    raw(&mut out, &json);
    out.push_str("</body>\n</html>\n");
    Ok(out)
}

fn head(out: &mut String, results: &Results, comparison: Option<&Comparison>, sections: &[Section]) {
    let m = &results.manifest;
    let facts = [
        m.started.clone(),
        format!("commit {}", commit(m)),
        format!("{}, {} CPUs, {}", m.cpu, m.cpus, m.hypervisor.as_ref().map_or("bare metal".into(), |h| format!("virtual ({h})"))),
        format!("Linux {}", m.kernel),
        format!("{}, {}", m.driver, m.mode),
    ];
    let facts = facts.map(|f| escape(&f)).join(" · ");
    let _ = write!(out, "<header>\n<h1>nomagic beside the kernel's DNAT</h1>\n<p class=\"facts\">{facts}</p>\n");
    if let Some(caveat) = caveat(results) {
        let _ = writeln!(out, "<div class=\"warn\" role=\"note\"><strong>{caveat}</strong></div>");
    }
    if let Some(c) = comparison.filter(|c| !c.differences.is_empty()) {
        let items: String = c.differences.iter().map(|d| format!("<li>{}</li>", escape(d))).collect();
        let _ = writeln!(
            out,
            "<div class=\"warn\" role=\"note\"><strong>The two runs differ not only in what was measured:</strong><ul>{items}</ul></div>"
        );
    }
    out.push_str("<nav aria-label=\"Sections\"><ul><li><a href=\"#figures\">Figures</a></li>");
    if comparison.is_some() {
        out.push_str("<li><a href=\"#against\">New against old</a></li>");
    }
    for s in sections {
        let _ = write!(out, "<li><a href=\"#{}\">{}</a></li>", s.id, s.title);
    }
    out.push_str("<li><a href=\"#manifest\">Machine</a></li><li><a href=\"#rig\">Rig</a></li><li><a href=\"#how\">How</a></li></ul></nav>\n</header>\n");
}

fn section(out: &mut String, s: &Section) {
    let _ = write!(out, "<section id=\"{}\"><h2>{}</h2>\n<p class=\"lead\">{}</p>\n<div class=\"pair\">\n", s.id, s.title, escape(&s.lead));
    let plots = s.plots.iter().enumerate().map(|(i, plot)| {
        // Text in a drawing that is made smaller cannot be read: there is one for telephones.
        let (wide, narrow) = (plot.element(&format!("{}-{i}w", s.id), WIDE), plot.element(&format!("{}-{i}n", s.id), NARROW));
        format!("<figure><div class=\"wide\">{wide}</div><div class=\"narrow\">{narrow}</div></figure>\n")
    });
    let tables = s.tables.iter().map(|t| format!("<div class=\"tables\">\n{}</div>\n", t.html()));
    if s.plots.len() == s.tables.len() {
        // Each plot with its own table.
        plots.zip(tables).for_each(|(plot, table)| out.extend([plot, table]));
    } else {
        out.extend(plots.chain(tables));
    }
    out.push_str("</div></section>\n");
}

fn against(out: &mut String, c: &Comparison) {
    let class = if c.count(Change::Worse) > 0 { "warn" } else { "lead" };
    let _ = write!(out, "<section id=\"against\"><h2>New against old</h2>\n<p class=\"{class}\">{}</p>\n", escape(&c.verdict()));
    for (id, table) in c.tables() {
        let _ = write!(out, "<h3>{id}</h3>\n{}", table.html());
    }
    for (which, names) in [("new", &c.only_new), ("old", &c.only_old)] {
        if !names.is_empty() {
            let items: String = names.iter().map(|n| format!("<li>{}</li>", escape(n))).collect();
            let _ = write!(out, "<h3>Only in the {which} run</h3>\n<ul>{items}</ul>\n");
        }
    }
    out.push_str("</section>\n");
}

fn list(out: &mut String, facts: &[(&str, String)]) {
    out.push_str("<dl>\n");
    for (name, value) in facts {
        let value = if value.is_empty() { "unknown" } else { value };
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    out.push_str("</dl>\n");
}

fn manifest(out: &mut String, results: &Results) {
    let m = &results.manifest;
    out.push_str("<section id=\"manifest\"><h2>Machine and programs</h2>\n");
    let facts = [
        ("Started", m.started.clone()),
        ("Took", duration(m.duration_s)),
        ("Command", m.command.clone()),
        ("Version", m.version.clone()),
        ("Commit", commit(m)),
        ("CPU", format!("{}, {} online", m.cpu, m.cpus)),
        ("Memory", format!("{:.1} GiB", m.memory_bytes as f64 / f64::from(1u32 << 30))),
        ("Hypervisor", m.hypervisor.clone().unwrap_or("none: bare metal".into())),
        ("Kernel", m.kernel.clone()),
        ("Kernel command line", m.kernel_command_line.clone()),
        ("Interfaces", format!("{}, {} queues, {}", m.driver, m.queues, m.mode)),
        ("Other tools", if m.tools.is_empty() { "none".into() } else { m.tools.join(", ") }),
    ];
    list(out, &facts);
    out.push_str("</section>\n");
}

fn rig(out: &mut String, results: &Results) {
    let r = &results.rig;
    out.push_str("<section id=\"rig\"><h2>Rig</h2>\n");
    let facts = [
        ("Way of a frame", r.description.clone()),
        ("Subject", format!("CPU {}", r.lb_cpu)),
        ("Generator", format!("CPU {}", r.generator_cpu)),
        ("Traffic", format!("{} bytes a frame with FCS, {} flows", r.frame_bytes, grouped(f64::from(r.flows)))),
        ("Trials", format!("{} rounds, {} s a trial of the rates, {} trials in all", r.rounds, r.trial_s, grouped(f64::from(r.trials)))),
        ("Repeated", format!("{} trials, because steal or foreign CPU time was over the limit", grouped(f64::from(r.trials_repeated)))),
        ("Steal at the most", format!("{} of CPU time, in trials that count", Quantity::Share.show(r.steal_share_max))),
        (
            "Foreign at the most",
            format!("{} of CPU time was other processes', in trials that count", Quantity::Share.show(r.foreign_share_max)),
        ),
    ];
    list(out, &facts);
    if r.napi.is_empty() {
        out.push_str("<p>Where NAPI ran was not written down.</p>\n");
    } else {
        let cell = |text: &str| Cell::Text(text.into());
        let rows = r.napi.iter().map(|n| vec![cell(&n.interface), Cell::Number(n.cpu.to_string()), cell(&n.why)]).collect();
        out.push_str(&Table { caption: "Where NAPI ran".into(), head: vec!["interface", "CPU", "why"], rows }.html());
    }
    out.push_str("</section>\n");
}

const HOW: &str = "<section id=\"how\"><h2>How it was measured</h2>\n\
<p>In a round subjects take turns trial by trial, so that what changes on the machine meanwhile meets all of them. A ratio is made within a round, and the \
median of the rounds in which both took part is reported. Zero loss means that every frame that reached the subject arrived at the far end.</p>\n\
<p>Intervals are those of the sign test: they hold the true median with a confidence of at least 95 %. With fewer than six values they are \
the range of the values, which holds it less surely. \u{201c}One value\u{201d} has no interval, and nothing follows from a small difference of two such values.</p>\n\
<p>Trials in which the hypervisor or foreign processes took too much CPU time were thrown away and repeated. \
Where something was not measured the reason stands in its place.</p>\n</section>\n</main>\n";

/// The results themselves, to read by programs and to save.
fn raw(out: &mut String, json: &str) {
    let kib = json.len().div_ceil(1024);
    let _ = write!(
        out,
        "<footer><p><a download=\"results.json\" href=\"data:application/json,{}\">Save the results as JSON</a> ({kib} KiB, part of this file; \
         also in its element <code>#results</code>).</p></footer>\n<script type=\"application/json\" id=\"results\">{}</script>\n",
        percent_encoded(json),
        json.replace('<', "\\u003c")
    );
}

/// As it may stand in a `data:` address in an attribute.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~:,".contains(&b) => out.push(char::from(b)),
            b => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
