//! A run as one self-contained HTML file without scripts.

use std::fmt::Write;

use anyhow::{Context, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::against::{Change, Comparison, commit};
use super::draw;
use super::number::{Quantity, duration, grouped};
use super::plot::Plot;
use super::sections::{Section, sections};
use super::table::{Cell, Table};
use super::text::{caveat, figures_table};
use crate::results::Results;

/// The page may load and run nothing, whatever names are in the results.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const CSS: &str = include_str!("page.css");

/// The page of a run, and its differences from another one.
pub fn html(results: &Results, comparison: Option<&Comparison>) -> Result<String> {
    let json = serde_json::to_string(results).context("cannot write the results as JSON")?;
    let sections = sections(results);
    let drawn = sections.iter().map(section).collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "nomagic, measured " (results.manifest.started) }
                style { (PreEscaped(CSS)) }
            }
            body {
                (header(results, comparison, &sections))
                main {
                    section id="figures" {
                        h2 { "Figures" }
                        @if results.figures.is_empty() { p { "No figures were wanted." } } @else { (figures_table(results).html()) }
                    }
                    @if let Some(c) = comparison { (against(c)) }
                    @for section in &drawn { (section) }
                    (manifest(results))
                    (rig(results))
                    (how())
                }
                (raw(&json))
            }
        }
    };
    // HTML has no representation of control characters.
    Ok(page.into_string().chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect())
}

fn header(results: &Results, comparison: Option<&Comparison>, sections: &[Section]) -> Markup {
    let m = &results.manifest;
    let facts = [
        m.started.clone(),
        format!("commit {}", commit(m)),
        format!("{}, {} CPUs, {}", m.cpu, m.cpus, m.hypervisor.as_ref().map_or("bare metal".into(), |h| format!("virtual ({h})"))),
        format!("Linux {}", m.kernel),
        format!("{}, {}", m.driver, m.mode),
    ];
    html! {
        header {
            h1 { "nomagic and the kernel's DNAT" }
            p class="facts" { (facts.join(" · ")) }
            @if let Some(caveat) = caveat(results) { div class="warn" role="note" { strong { (caveat) } } }
            @if let Some(c) = comparison.filter(|c| !c.differences.is_empty()) {
                div class="warn" role="note" {
                    strong { "The two runs differ in more than their results:" }
                    ul { @for d in &c.differences { li { (d) } } }
                }
            }
            nav aria-label="Sections" {
                ul {
                    li { a href="#figures" { "Figures" } }
                    @if comparison.is_some() { li { a href="#against" { "New against old" } } }
                    @for s in sections { li { a href={ "#" (s.id) } { (s.title) } } }
                    @for (id, title) in [("manifest", "Machine"), ("rig", "Rig"), ("how", "How")] { li { a href={ "#" (id) } { (title) } } }
                }
            }
        }
    }
}

fn section(s: &Section) -> Result<Markup> {
    let plots = s.plots.iter().map(figure).collect::<Result<Vec<_>>>()?;
    let tables: Vec<Markup> = s.tables.iter().map(|t| html! { div class="tables" { (t.html()) } }).collect();
    Ok(html! {
        section id=(s.id) {
            h2 { (s.title) }
            p class="lead" { (s.lead) }
            div class="pair" {
                @if plots.len() == tables.len() {
                    // Each plot next to its table.
                    @for (plot, table) in plots.iter().zip(&tables) { (plot) (table) }
                } @else {
                    @for part in plots.iter().chain(&tables) { (part) }
                }
            }
        }
    })
}

fn figure(plot: &Plot) -> Result<Markup> {
    // Inside of HTML the namespace is implied.
    let svg = draw::element(plot, draw::BESIDE_TABLE)?.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1);
    Ok(html! { figure role="img" aria-label={ (plot.title()) ": " (plot.description()) } { (PreEscaped(svg)) } })
}

fn against(c: &Comparison) -> Markup {
    let class = if c.count(Change::Worse) > 0 { "warn" } else { "lead" };
    html! {
        section id="against" {
            h2 { "New against old" }
            p class=(class) { (c.verdict()) }
            @for (id, table) in c.tables() { h3 { (id) } (table.html()) }
            @for (which, names) in [("new", &c.only_new), ("old", &c.only_old)] {
                @if !names.is_empty() {
                    h3 { "Only in the " (which) " run" }
                    ul { @for name in names { li { (name) } } }
                }
            }
        }
    }
}

fn list(facts: &[(&str, String)]) -> Markup {
    html! { dl { @for (name, value) in facts { dt { (name) } dd { @if value.is_empty() { "unknown" } @else { (value) } } } } }
}

fn manifest(results: &Results) -> Markup {
    let m = &results.manifest;
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
    html! { section id="manifest" { h2 { "Machine and programs" } (list(&facts)) } }
}

fn rig(results: &Results) -> Markup {
    let r = &results.rig;
    let share = |share: f64| Quantity::Share.show(share);
    let facts = [
        ("Path of a frame", r.description.clone()),
        ("Subject", format!("CPU {}", r.lb_cpu)),
        ("Generator", format!("CPU {}", r.generator_cpu)),
        ("Traffic", format!("{} bytes a frame with FCS, {} flows", r.frame_bytes, grouped(f64::from(r.flows)))),
        ("Trials", format!("{} rounds, {} s a trial of the rates, {} trials in all", r.rounds, r.trial_s, grouped(f64::from(r.trials)))),
        ("Repeated", format!("{} trials, because steal or foreign CPU time was over the limit", grouped(f64::from(r.trials_repeated)))),
        ("Most steal", format!("{} of CPU time, in trials that count", share(r.steal_share_max))),
        ("Most foreign CPU time", format!("{} of CPU time was other processes', in trials that count", share(r.foreign_share_max))),
    ];
    let cell = |text: &str| Cell::Text(text.into());
    let rows: Vec<_> = r.napi.iter().map(|n| vec![cell(&n.interface), Cell::Number(n.cpu.to_string()), cell(&n.why)]).collect();
    html! {
        section id="rig" {
            h2 { "Rig" }
            (list(&facts))
            @if rows.is_empty() {
                p { "Where NAPI ran was not recorded." }
            } @else {
                (Table { caption: "Where NAPI ran".into(), head: vec!["interface", "CPU", "why"], rows }.html())
            }
        }
    }
}

fn how() -> Markup {
    html! {
        section id="how" {
            h2 { "How it was measured" }
            p {
                "In a round the subjects take turns trial by trial, so that a change of the machine affects all of them. A ratio is computed within a \
                 round; the report shows the median over the rounds in which both took part. Zero loss means that every frame that reached the subject \
                 arrived at the far end."
            }
            p {
                "Intervals are those of the sign test: they contain the true median with a confidence of at least 95 %. With fewer than six values \
                 they are the range of the values, which contains it less surely. \u{201c}One value\u{201d} has no interval, and a small difference \
                 between two such values means nothing."
            }
            p {
                "Trials in which the hypervisor or foreign processes took too much CPU time were discarded and repeated. A value that was not measured \
                 is replaced by the reason."
            }
        }
    }
}

/// The results themselves, for programs to read and for readers to save.
fn raw(json: &str) -> Markup {
    html! {
        footer {
            p {
                a download="results.json" href={ "data:application/json," (percent_encoded(json)) } { "Save the results as JSON" }
                " (" (json.len().div_ceil(1024)) " KiB, part of this file; also in its element " code { "#results" } ")."
            }
        }
        script type="application/json" id="results" { (PreEscaped(json.replace('<', "\\u003c"))) }
    }
}

/// Text for a `data:` address in an attribute.
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
