//! The status as text.

mod services;

use std::fmt::Write as _;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use nomagic_api::{ApiWatch, Rss, Status, StatusPort, WatchState};
use nomagic_core::conntrack::EvictionRank;
use nomagic_core::counters::{CountBy, Labels};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;

/// What a page shows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Sections<'a> {
    #[default]
    All,
    /// Whether it is ready, and the problems.
    Problems,
    /// One Service's problems, ports and backends: its namespace and name.
    Service(&'a str, &'a str),
}

/// The order of the backends' rows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum SortBy {
    /// By Service, port and backend.
    #[default]
    Name,
    /// Most connections first.
    Flows,
    /// Most packets first, in both directions.
    Packets,
}

/// The page. Problems come first: what follows may not fit the screen.
pub fn page(status: &Status, sections: Sections<'_>, sort: SortBy) -> String {
    let mut out = String::new();
    let ready = if status.not_ready.is_empty() { "ready".to_owned() } else { format!("NOT READY: {}", status.not_ready.join("; ")) };
    let _ = writeln!(out, "{ready}");
    write_problems(&mut out, status, sections);
    if sections == Sections::All {
        if let Some(api) = &status.api {
            write_api(&mut out, api);
        }
        if !status.workers.is_empty() {
            write_summary(&mut out, status);
            write_ports(&mut out, status);
            write_frames(&mut out, status);
        }
    }
    if sections != Sections::Problems && !status.workers.is_empty() {
        services::write_service_ports(&mut out, status, sections);
        services::write_targets(&mut out, status, sections, sort);
    }
    for group in &status.services.set_aside {
        let _ = writeln!(out, "set aside: {group}");
    }
    out
}

/// The problems, sorted.
fn write_problems(out: &mut String, status: &Status, sections: Sections<'_>) {
    let concerns = |problem: &&String| match sections {
        Sections::Service(namespace, name) => problem.contains(&format!("{namespace}/{name}")),
        _ => true,
    };
    if !matches!(sections, Sections::Service(..)) {
        for port in &status.answers.unseen_ports {
            let _ = writeln!(
                out,
                "problem: port {port}: answers that the kernel sends out of it are not captured (Linux 6.6 or later has what it takes), so \
                 endpoints behind the kernel see snat.internalAddresses in place of their clients there"
            );
        }
    }
    let mut problems: Vec<&String> = status.services.problems.iter().filter(concerns).collect();
    problems.sort();
    for problem in problems {
        let _ = writeln!(out, "problem: {problem}");
    }
}

/// A table with `left` text columns, then `right` right-aligned columns, then one text column.
fn table(left: usize, right: usize) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(vec![""; left + right + 1]);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if (left..left + right).contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The state of the watch, one line per kind.
fn write_api(out: &mut String, api: &ApiWatch) {
    let _ = writeln!(out, "objects from {}", api.server);
    for k in &api.kinds {
        let heard = k.heard_s_ago.map_or("no response yet".into(), |s| format!("heard {s} s ago"));
        let error = k.error.as_ref().filter(|_| k.state != WatchState::Connected).map_or(String::new(), |e| format!(": {e}"));
        let _ = writeln!(out, "  {:<14} {:>7}  {} for {} s, {heard}{error}", k.kind, k.objects, k.state, k.for_s);
    }
}

fn write_summary(out: &mut String, s: &Status) {
    let (services, conntrack, snat, counts) = (&s.services, &s.conntrack, &s.snat, &s.totals.counts);
    let (c, evicted, drop) = (&counts.conntrack, &counts.conntrack.evicted, &counts.reasons.drop);
    let _ = writeln!(
        out,
        "up {} s, {} of {} workers alive, {} Service ports on {} addresses",
        s.uptime_s,
        s.workers_alive,
        s.workers.len(),
        services.ports,
        services.addresses
    );
    if let Some(source) = s.hash_seed_source {
        let _ = writeln!(out, "hash seed: {source}");
    }
    let taken_over = conntrack.taken_over.map_or(String::new(), |t| format!(" ({} taken over)", t.connections));
    let _ = writeln!(
        out,
        "connections: {} of {}{taken_over}; reply filter entries: {} of {}",
        conntrack.live, conntrack.capacity, s.replies.announced, s.replies.capacity
    );
    let _ = writeln!(
        out,
        "  created {} ({} mid-stream); ended: idle {}, replaced by a new SYN {}, endpoint gone {}; survived a forged RST {}",
        c.created, c.mid_stream, c.expired, c.replaced, conntrack.endpoint_gone, c.revived
    );
    let _ = writeln!(
        out,
        "  evicted when full: closed {}, unconfirmed {}, doubtful {}, idle UDP {}",
        evicted[EvictionRank::Closed],
        evicted[EvictionRank::Unconfirmed],
        evicted[EvictionRank::Doubtful],
        evicted[EvictionRank::IdleUdp]
    );
    let _ = writeln!(
        out,
        "SNAT ports: {} in use; towards the fullest endpoint {} of {} ({} %), for one client {} of at most {}, for one Service {} of at most \
         {}; reclaimed {}; refused: {} (no free port), {} (share used up)",
        snat.connections,
        snat.fullest_endpoint,
        snat.ports,
        (100 * snat.fullest_endpoint).checked_div(snat.ports).unwrap_or(0),
        snat.largest_client_share,
        snat.client_share_max,
        snat.largest_service_share,
        snat.service_share_max,
        c.snat_reclaimed.total(),
        drop[Reason::SnatPortsExhausted],
        drop[Reason::SnatShare]
    );
    write_latency(out, s);
}

/// The slowest worker's times.
fn write_latency(out: &mut String, s: &Status) {
    let times = s.workers.iter().map(|worker| &worker.latency).filter(|latency| latency.samples > 0);
    if let Some(slowest) = times.max_by_key(|latency| latency.p99_ns) {
        let us = |ns: u64| ns as f64 / 1e3;
        let _ = writeln!(
            out,
            "time from receive to send, one frame in 1,024: median {:.1} us, 99 % within {:.1} us, longest {:.1} us",
            us(slowest.p50_ns),
            us(slowest.p99_ns),
            us(slowest.max_ns)
        );
    }
}

fn write_ports(out: &mut String, status: &Status) {
    let mut table = table(2, 5);
    table.set_header(["port", "link", "received", "taken", "passed", "denied", "dropped", "mode"]);
    for p in &status.ports {
        let x = &p.xdp;
        let numbers = [x.received, x.counts.taken, x.passed, x.counts.denied, x.dropped].map(|n| n.to_string());
        table.add_row([p.name.clone(), port_link(p)].into_iter().chain(numbers).chain([port_mode(p)]));
    }
    let _ = writeln!(out, "\n{}", table.trim_fmt());
    if !status.redirect_ports.is_empty() {
        let names: Vec<String> = status.redirect_ports.iter().map(|r| format!("{} ({})", r.name, r.condition)).collect();
        let counts = &status.redirect_xdp.counts;
        let _ = writeln!(out, "redirect ports: {}; {} frames taken, {} denied", names.join(", "), counts.taken, counts.denied);
    }
    let a = &status.answers;
    if a.taken + a.dropped > 0 {
        let _ = writeln!(out, "answers of endpoints behind the kernel: {} captured, {} dropped", a.taken, a.dropped);
    }
    let d = &status.deny;
    let _ = writeln!(
        out,
        "deny list: {} of {} prefixes ({} of the configuration, {} of the file, {} of commands)",
        d.prefixes, d.prefixes_max, d.of_configuration, d.of_file, d.of_command
    );
}

/// The state of the link; of a port that is not bound, that it is not.
fn port_link(p: &StatusPort) -> String {
    if p.bound { p.link.to_string() } else { "not bound".into() }
}

fn port_mode(p: &StatusPort) -> String {
    let copy = if p.zero_copy { "zero-copy" } else { "copy" };
    let rss = match &p.rss {
        Rss::Predicted { entries } => format!("RSS of {entries} entries"),
        Rss::Unknown { .. } => "RSS unknown".into(),
    };
    format!("{} XDP, {copy}, {} queue(s), {rss}", p.xdp_mode, p.queues)
}

fn write_frames(out: &mut String, status: &Status) {
    let (totals, frames, reasons) = (&status.totals, &status.totals.counts.frames, &status.totals.counts.reasons);
    let mut table = table(1, 1);
    let mut row = |words: &str, n: u64, why: &str| {
        table.add_row([words.to_owned(), n.to_string(), why.to_owned()]);
    };
    row("received by workers", frames.received.packets, "");
    row("  forwarded", frames.forwarded.packets, "");
    row("  returned to the kernel", frames.kernel.packets, "");
    write_reasons(&mut row, &reasons.kernel);
    row("  dropped", frames.dropped.packets, "");
    write_reasons(&mut row, &reasons.drop);
    row("  held", totals.held_now, "");
    row("dropped after a hand-over", totals.counts.io.handed_failed.packets, "");
    write_reasons(&mut row, &reasons.handed);
    row("sent by nomagic (RST, ICMP)", frames.made.packets, "");
    for (class, n) in totals.counts.path.rejects_suppressed.iter().filter(|(_, n)| *n > 0) {
        row(&format!("  not sent: {}", Class::label(class)), n, "over a limit of rejects, or never answered");
    }
    table.set_header(["frames", "", ""]);
    let _ = writeln!(out, "\n{}", table.trim_fmt());
}

fn write_reasons<L: Labels<LabelValue = Reason>>(row: &mut impl FnMut(&str, u64, &str), counts: &CountBy<L>) {
    for (reason, n) in counts.iter().filter(|(_, n)| *n > 0) {
        row(&format!("    {}", reason.label()), n, reason.text());
    }
}

#[cfg(test)]
mod tests;
