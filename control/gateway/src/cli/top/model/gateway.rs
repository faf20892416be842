//! The gateway itself: why frames were not forwarded, its workers, its tables.

use nomagic_api::{Pool, Status, Worker};
use nomagic_core::counters::{CountBy, Labels, SocketCounts, XdpCounts};
use nomagic_core::reason::Reason;

use super::super::keys::Place;
use super::super::text;
use super::history::{History, Limited};
use super::samples::Samples;
use super::table::{Cell, Column, Row, Table};

/// Reasons with their rates.
pub fn reasons(samples: &Samples, place: &Place) -> Table {
    let columns = vec![
        Column::text("frames", "what", 0),
        Column::text("reason", "reason", 0),
        Column::number("frames/s", "frames_per_s", 0),
        Column::number("since start", "frames", 0),
        Column::text("which means", "text", 1),
    ];
    let Some(status) = samples.status() else { return Table::new(columns, Vec::new(), place, 2) };
    let mut rows = Vec::new();
    let mut push = |what: &str, label: &str, total: u64, rate: Option<f64>, text: &str| {
        if total > 0 {
            let cells = [what, label].map(|words| Cell::Text(words.into()));
            let cells = cells.into_iter().chain([Cell::Rate(rate), Cell::Count(total), Cell::Text(text.into())]).collect();
            rows.push(Row {
                is_alarm: rate.is_some_and(|rate| rate > 0.0) && what == "dropped",
                ..Row::new(format!("{what} {label}"), cells)
            });
        }
    };
    each_reason(samples, status, |s| &s.totals.counts.reasons.drop, |label, n, rate, text| push("dropped", label, n, rate, text));
    each_reason(samples, status, |s| &s.totals.counts.reasons.kernel, |label, n, rate, text| push("to the kernel", label, n, rate, text));
    each_reason(
        samples,
        status,
        |s| &s.totals.counts.reasons.handed,
        |label, n, rate, text| push("lost at hand-over", label, n, rate, text),
    );
    let suppressed = "over a limit of rejects, or never answered";
    each_label(samples, status, |s| &s.totals.counts.path.rejects_made, |label, n, rate| push("rejects sent", label, n, rate, ""));
    each_label(
        samples,
        status,
        |s| &s.totals.counts.path.rejects_suppressed,
        |label, n, rate| {
            push("rejects not sent", label, n, rate, suppressed);
        },
    );
    for (place, (outcome, total)) in xdp(status).iter().enumerate() {
        let rate = samples.rate(|s| xdp(s)[place].1);
        push("dropped by XDP", outcome, *total, rate, "no worker takes the frame, or its source is denied");
    }
    let table = Table::new(columns, rows, place, 2);
    // A narrow screen has no room for the sentences: that of the selected row has a place of its own.
    let sentence = table.rows.get(place.row(&table)).and_then(|row| match &row.cells[..] {
        [_, Cell::Text(label), .., Cell::Text(text)] if !text.is_empty() => Some(format!("{label}: {text}")),
        _ => None,
    });
    table.with_notes(sentence.into_iter().collect())
}

fn each_label<L: Labels>(
    samples: &Samples,
    status: &Status,
    of: impl Fn(&Status) -> &CountBy<L>,
    mut f: impl FnMut(&'static str, u64, Option<f64>),
) {
    of(status).iter().for_each(|(key, total)| f(L::label(key), total, samples.rate(|s| of(s)[key])));
}

fn each_reason<L: Labels<LabelValue = Reason>>(
    samples: &Samples,
    status: &Status,
    of: impl Fn(&Status) -> &CountBy<L>,
    mut f: impl FnMut(&'static str, u64, Option<f64>, &'static str),
) {
    of(status).iter().for_each(|(reason, total)| f(reason.label(), total, samples.rate(|s| of(s)[reason]), reason.text()));
}

/// What XDP drops, over all interfaces. These counters outlive the process.
fn xdp(status: &Status) -> [(&'static str, u64); 4] {
    let interfaces = || status.ports.iter().map(|port| &port.xdp).chain([&status.redirect_xdp]);
    let sum = |of: fn(&XdpCounts) -> u64| interfaces().map(|xdp| of(&xdp.counts)).sum();
    [
        ("dropped_no_socket", sum(|c| c.dropped_no_socket)),
        ("dropped_stale", sum(|c| c.dropped_stale)),
        ("failed_closed", sum(|c| c.failed_closed)),
        ("denied", sum(|c| c.denied)),
    ]
}

/// The workers.
pub fn workers(samples: &Samples, place: &Place) -> Table {
    let columns = vec![
        Column::text("worker", "worker", 0),
        Column::text("state", "state", 0),
        Column::number("packets/s", "packets_per_s", 0),
        Column::number("bytes/s", "bytes_per_s", 0),
        Column::number("busy", "busy", 0),
        Column::number("held", "held", 0),
        Column::number("drops/s", "drops_per_s", 0),
        Column::number("ring full/s", "rx_ring_full_per_s", 0),
        Column::number("fill empty/s", "rx_fill_ring_empty_per_s", 1),
        Column::number("handed over/s", "handed_over_per_s", 2),
        Column::number("rounds/s", "rounds_per_s", 3),
        Column::number("sleeps/s", "sleeps_per_s", 3),
        Column::number("copied/s", "copied_per_s", 4),
        Column::number("sends/s", "send_calls_per_s", 4),
    ];
    let Some(status) = samples.status() else { return Table::new(columns, Vec::new(), place, 0) };
    let rows = status.workers.iter().map(|worker| {
        let rate = |of: fn(&Worker) -> u64| Cell::Rate(samples.worker_rate(worker.id, of));
        let ring = |of: fn(&SocketCounts) -> u64| Cell::Rate(samples.rate(|status| sockets(status, worker.id).map(of).sum()));
        // A gateway of an earlier version does not count it.
        let busy = samples.worker_rate(worker.id, |w| w.counts.io.busy_ns).filter(|_| worker.counts.io.busy_ns > 0);
        let cells = vec![
            Cell::Text(worker.id.to_string()),
            Cell::Text(if worker.alive { "runs" } else { "DEAD" }.into()),
            rate(|w| w.counts.frames.received.packets),
            rate(|w| w.counts.frames.received.bytes),
            Cell::Share(busy.map(|busy_ns| (busy_ns / 1e9).min(1.0))),
            Cell::Count(worker.held_now),
            rate(|w| w.counts.frames.dropped.packets),
            ring(|c| c.rx_ring_full + c.rx_dropped),
            ring(|c| c.rx_fill_ring_empty),
            rate(|w| w.counts.io.handed_over.packets),
            rate(|w| w.counts.io.rounds),
            rate(|w| w.counts.io.sleeps),
            rate(|w| w.counts.io.copied.packets),
            rate(|w| w.counts.sends.calls),
        ];
        Row { is_alarm: !worker.alive, ..Row::new(format!("{:05}", worker.id), cells) }
    });
    let table = Table::new(columns, rows.collect(), place, 0);
    if status.pools.is_empty() { table } else { table.with_notes(vec![buffers(status)]) }
}

/// The sockets of a worker's queues.
fn sockets(status: &Status, worker: u32) -> impl Iterator<Item = &SocketCounts> {
    let queues = status.ports.iter().flat_map(|port| port.owners.iter().zip(&port.sockets));
    queues.filter(move |(owner, _)| u32::from(**owner) == worker).map(|(_, counts)| counts)
}

/// All packet buffers, in one line.
fn buffers(status: &Status) -> String {
    let sum = |of: fn(&Pool) -> u32| text::count(status.pools.iter().map(|pool| u64::from(of(pool))).sum());
    format!(
        "packet buffers: {} free, {} to receive into, {} being sent, {} held, {} in hand, of {}",
        sum(|p| p.free),
        sum(|p| p.fill),
        sum(|p| p.tx),
        sum(|p| p.held),
        sum(|p| p.in_hand),
        sum(|p| p.total)
    )
}

/// How full the tables are.
pub fn tables(samples: &Samples, history: &History, place: &Place) -> Table {
    let columns = vec![
        Column::text("table", "table", 0),
        Column::number("used", "used", 0),
        Column::number("of", "capacity", 0),
        Column::number("full", "share", 0),
        Column::number("change/s", "change_per_s", 0),
        Column::text("forecast", "forecast", 0),
    ];
    let Some(status) = samples.status() else { return Table::new(columns, Vec::new(), place, 3) };
    let row = |name: String, (used, capacity): (u64, u64), change: Option<f64>, forecast: String| {
        let share = used as f64 / capacity.max(1) as f64;
        let is_alarm = !forecast.is_empty() || share > 0.8;
        let cells = vec![
            Cell::Text(name.clone()),
            Cell::Count(used),
            Cell::Count(capacity),
            Cell::Share(Some(share)),
            Cell::Change(change),
            Cell::Text(forecast),
        ];
        (capacity > 0).then(|| Row { is_alarm, ..Row::new(name, cells) })
    };
    let limited = Limited::ALL.into_iter().filter_map(|table| {
        let forecast = match history.full_in_s(table, status) {
            Some(0.0) => "full".to_owned(),
            Some(seconds) => format!("full in {} at this rate", text::duration(seconds)),
            None => String::new(),
        };
        row(table.name().into(), table.fill(status), history.slope(table), forecast)
    });
    // No forecast: buffers come and go within microseconds.
    let pools = status.pools.iter().enumerate().filter_map(|(number, pool)| {
        let used = (pool.total.saturating_sub(pool.free).into(), pool.total.into());
        row(format!("packet buffers, memory {number}"), used, None, String::new()).map(|row| Row { is_alarm: false, ..row })
    });
    Table::new(columns, limited.chain(pools).collect(), place, 3)
}
