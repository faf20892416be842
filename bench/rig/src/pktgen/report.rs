//! The result of a run, as text and as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::{Counter, Histogram};
use nomagic_testbed::columns::columns;
use serde::{Deserialize, Serialize};

use super::backend::Sent;
use super::check::SinkCounts;
use super::options::Options;
use super::sink::SinkResult;

/// Bytes of a frame on the wire that are not in its buffer: preamble, FCS and inter-frame gap.
const WIRE_OVERHEAD: u64 = 8 + 4 + 12;
/// A rate counts as reached from this share of it on.
const RATE_REACHED: f64 = 0.995;

/// The raw outcome of a run.
pub struct Outcome<'o> {
    pub options: &'o Options,
    pub backend: String,
    pub sent: Sent,
    /// From the first frame to the last.
    pub elapsed: Duration,
    /// Frames that were due and never sent, because the generator was late.
    pub forgone: u64,
    pub stopped: bool,
    pub sink: Option<SinkResult>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    pub tx: String,
    pub rx: Option<String>,
    pub backend: String,
    /// Seconds from the first frame to the last.
    pub elapsed_s: f64,
    pub sent: u64,
    pub sent_pps: f64,
    /// Bits a second on a wire, with preamble, FCS and gap.
    pub sent_bps: f64,
    /// The requested rate, in frames a second.
    pub wanted_pps: Option<u64>,
    pub flows_opened: u64,
    pub limited_by: String,
    pub stopped: bool,
    pub sink: Option<SinkReport>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SinkReport {
    /// Frames that arrived at the interface.
    pub arrived: u64,
    /// Frames lost on the path: sent less arrived, duplicates not counted.
    pub lost: u64,
    pub lost_share: f64,
    /// Frames that arrived but were lost before the sink's sockets: the sink was too slow, not the path.
    pub lost_at_sink: u64,
    /// The XDP program ran in the driver.
    pub native_xdp: bool,
    /// `None` when frames were only counted.
    pub checks: Option<SinkCounts>,
    /// Flows with at least one frame.
    pub flows_seen: Option<u64>,
    /// `None` when nothing was checked or nothing arrived.
    pub latency_us: Option<Latency>,
}

/// Time from writing a frame to receiving it, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are what the fields are")]
pub struct Latency {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

impl Latency {
    /// From a histogram of nanoseconds.
    pub fn of<T: Counter>(ns: &Histogram<T>) -> Latency {
        let at = |quantile| ns.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            min: ns.min() as f64 / 1e3,
            mean: ns.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: ns.max() as f64 / 1e3,
        }
    }
}

impl Report {
    pub fn new(o: &Outcome<'_>) -> Report {
        let elapsed_s = o.elapsed.as_secs_f64().max(1e-9);
        let sink = o.sink.as_ref().map(|s| SinkReport::new(s, o.sent.frames));
        let sent_pps = o.sent.frames as f64 / elapsed_s;
        Report {
            tx: o.options.tx.to_string(),
            rx: o.options.rx.as_ref().map(ToString::to_string),
            backend: o.backend.clone(),
            elapsed_s,
            sent: o.sent.frames,
            sent_pps,
            sent_bps: (o.sent.bytes + o.sent.frames * WIRE_OVERHEAD) as f64 * 8.0 / elapsed_s,
            wanted_pps: o.options.rate,
            flows_opened: o.sent.flows_opened,
            limited_by: limit(o, sent_pps),
            stopped: o.stopped,
            sink,
        }
    }
}

fn limit(o: &Outcome<'_>, sent_pps: f64) -> String {
    match o.options.rate {
        Some(wanted) if sent_pps >= wanted as f64 * RATE_REACHED => "the requested rate".into(),
        Some(_) if o.sent.blocked == 0 && o.forgone > 0 => {
            format!("the generator's CPU time ({} frames were due and not sent): {}", o.forgone, o.backend)
        }
        _ if o.sent.blocked > 0 => format!("the interface, which was full {} times: {}", o.sent.blocked, o.backend),
        _ => format!("the generator: {}", o.backend),
    }
}

impl SinkReport {
    fn new(sink: &SinkResult, sent: u64) -> SinkReport {
        let checks = sink.checked.as_ref().map(|c| c.counts);
        // Duplicates and frames of other runs do not replace frames of this run.
        let extra = checks.map_or(0, |c| c.duplicated + c.foreign);
        let lost = sent.saturating_sub(sink.arrived.saturating_sub(extra));
        let latency_us = sink.checked.as_ref().filter(|c| !c.latency_ns.is_empty()).map(|c| Latency::of(&c.latency_ns));
        SinkReport {
            arrived: sink.arrived,
            lost,
            lost_share: lost as f64 / sent.max(1) as f64,
            lost_at_sink: sink.lost_at_sockets,
            native_xdp: sink.native,
            checks,
            flows_seen: sink.checked.as_ref().map(|c| c.flows_seen),
            latency_us,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |name: &str, number: &dyn fmt::Display, remark: String| vec![name.to_owned(), number.to_string(), remark];
        let early = if self.stopped { ", stopped by a signal" } else { "" };
        let mut rows = vec![
            row("sent", &self.sent, format!("in {:.2} s{early}", self.elapsed_s)),
            row("  frames/s", &format!("{:.0}", self.sent_pps), format!("{:.3} Gbit/s on a wire", self.sent_bps / 1e9)),
            row("  flows opened", &self.flows_opened, String::new()),
        ];
        if let Some(s) = &self.sink {
            rows.push(row("arrived", &s.arrived, if s.native_xdp { "native XDP" } else { "generic XDP" }.into()));
            rows.push(row("  lost", &s.lost, format!("{:.4} %", s.lost_share * 100.0)));
            rows.push(row("  lost at sink", &s.lost_at_sink, String::new()));
            let checks = s.checks.iter().flat_map(|c| {
                [
                    ("  in order", c.in_order),
                    ("  reordered", c.reordered),
                    ("  duplicated", c.duplicated),
                    ("  too late", c.too_late),
                    ("  corrupt", c.corrupt),
                    ("  of other runs", c.foreign),
                ]
            });
            let flows = s.flows_seen.map(|n| ("  flows seen", n));
            rows.extend(checks.chain(flows).map(|(name, n)| row(name, &n, String::new())));
        }
        writeln!(f, "{} -> {}, {}", self.tx, self.rx.as_deref().unwrap_or("(no sink)"), self.backend)?;
        f.write_str(&columns(rows, &[1]))?;
        if let Some(Latency { min, mean, p50, p90, p99, p99_9, p99_99, max }) = self.sink.as_ref().and_then(|s| s.latency_us) {
            writeln!(f, "latency, us       min {min:.1}  mean {mean:.1}  p50 {p50:.1}  p90 {p90:.1}")?;
            writeln!(f, "                  p99 {p99:.1}  p99.9 {p99_9:.1}  p99.99 {p99_99:.1}  max {max:.1}")?;
        }
        write!(f, "limited by {}", self.limited_by)
    }
}

#[cfg(test)]
mod tests;
