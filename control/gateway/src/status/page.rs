//! The status for people.

use std::fmt::Write as _;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use nomagic_api::{ApiWatch, Port, Rss, Status, WatchState};
use nomagic_core::conntrack::EvictionRank;
use nomagic_core::counters::{CountBy, Labels};
use nomagic_core::reason::Reason;

/// The whole page.
pub fn page(status: &Status) -> String {
    let mut out = String::new();
    let ready = if status.not_ready.is_empty() { "ready".to_owned() } else { format!("NOT READY: {}", status.not_ready.join("; ")) };
    let _ = writeln!(out, "{ready}");
    if let Some(api) = &status.api {
        write_api(&mut out, api);
    }
    if !status.workers.is_empty() {
        write_summary(&mut out, status);
        write_ports(&mut out, status);
        write_frames(&mut out, status);
        write_targets(&mut out, status);
    }
    for problem in &status.services.problems {
        let _ = writeln!(out, "problem: {problem}");
    }
    out
}

/// Rows of aligned columns: `right` of them, after the first `left`, hold numbers.
fn table(left: usize, right: usize) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(vec![""; left + right + 1]);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if (left..left + right).contains(&place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// How the watch fares, a line a kind.
fn write_api(out: &mut String, api: &ApiWatch) {
    let _ = writeln!(out, "objects from {}", api.server);
    for k in &api.kinds {
        let heard = k.heard_s_ago.map_or("never heard of".into(), |s| format!("heard {s} s ago"));
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
    let taken_over = conntrack.taken_over.map_or(String::new(), |t| format!(" ({} were taken over)", t.connections));
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
        "  evicted when full: closed {}, half-open {}, idle UDP {}",
        evicted[EvictionRank::Closed],
        evicted[EvictionRank::HalfOpen],
        evicted[EvictionRank::IdleUdp]
    );
    let _ = writeln!(
        out,
        "SNAT ports: {} in use; towards the fullest endpoint {} of {} ({} %), {} of at most {} for one client or Service; refused: {} as all were \
         taken, {} as a share was used up",
        snat.connections,
        snat.fullest_endpoint,
        snat.ports,
        (100 * snat.fullest_endpoint).checked_div(snat.ports).unwrap_or(0),
        snat.largest_share,
        snat.share_max,
        drop[Reason::SnatPortsExhausted],
        drop[Reason::SnatShare]
    );
}

fn write_ports(out: &mut String, status: &Status) {
    let mut table = table(1, 4);
    table.set_header(["port", "received", "taken", "passed", "dropped", "mode"]);
    for p in &status.ports {
        let x = &p.xdp;
        let numbers = [x.received, x.counts.taken, x.passed, x.dropped].map(|n| n.to_string());
        table.add_row([p.name.clone()].into_iter().chain(numbers).chain([port_mode(p)]));
    }
    let _ = writeln!(out, "\n{}", table.trim_fmt());
    if !status.redirect_ports.is_empty() {
        let names: Vec<String> = status.redirect_ports.iter().map(|r| format!("{} ({})", r.name, r.condition)).collect();
        let _ = writeln!(out, "redirect ports: {}; {} frames taken", names.join(", "), status.redirect_xdp.counts.taken);
    }
}

fn port_mode(p: &Port) -> String {
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
    row("  waiting for ARP/ND", totals.held_now, "");
    row("dropped after a hand-over", totals.counts.io.handed_failed.packets, "");
    write_reasons(&mut row, &reasons.handed);
    row("sent by nomagic (RST, ICMP)", frames.made.packets, "");
    table.set_header(["frames", "", ""]);
    let _ = writeln!(out, "\n{}", table.trim_fmt());
}

fn write_reasons<L: Labels<Key = Reason>>(row: &mut impl FnMut(&str, u64, &str), counts: &CountBy<L>) {
    for (reason, n) in counts.iter().filter(|(_, n)| *n > 0) {
        row(&format!("    {}", reason.label()), n, reason.text());
    }
}

fn write_targets(out: &mut String, status: &Status) {
    if status.targets.is_empty() {
        return;
    }
    let mut table = table(2, 3);
    table.set_header(["Service port", "backend", "flows", "to backend", "to client", ""]);
    for t in &status.targets {
        let numbers = [t.carried.flows, t.carried.to_backend.packets, t.carried.to_client.packets].map(|n| n.to_string());
        table.add_row([t.service_port(), t.backend.clone()].into_iter().chain(numbers));
    }
    let beyond = &status.targets_beyond;
    if beyond.targets > 0 {
        let numbers = [beyond.carried.flows, beyond.carried.to_backend.packets, beyond.carried.to_client.packets].map(|n| n.to_string());
        table.add_row([format!("{} more", beyond.targets), String::new()].into_iter().chain(numbers));
    }
    let _ = writeln!(out, "\n{}", table.trim_fmt());
}

#[cfg(test)]
mod tests;
