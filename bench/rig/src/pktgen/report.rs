//! What a run has shown, as text and as JSON.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

use super::backend::Sent;
use super::check::SinkCounts;
use super::run::Options;
use super::sink::SinkResult;

/// Bytes that a frame takes on the wire beside its buffer: preamble, FCS and the gap to the next one.
const WIRE_OVERHEAD: u64 = 8 + 4 + 12;
/// Share of the wanted rate from which on it counts as reached.
const RATE_REACHED: f64 = 0.995;

/// All that a report is made of.
pub struct Outcome<'o> {
    /// What was asked for.
    pub options: &'o Options,
    /// The backend, in words.
    pub backend: String,
    /// What it sent.
    pub sent: Sent,
    /// From the first frame to the last.
    pub elapsed: Duration,
    /// Frames that the pacer gave up because the generator was late.
    pub forgone: u64,
    /// Ended by a signal.
    pub stopped: bool,
    /// What the sink found.
    pub sink: Option<SinkResult>,
}

/// The result of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Where frames went out.
    pub tx: String,
    /// Where they were expected.
    pub rx: Option<String>,
    /// How they were sent.
    pub backend: String,
    /// Seconds from the first frame to the last.
    pub elapsed_s: f64,
    /// Frames handed to the interface.
    pub sent: u64,
    /// The same a second.
    pub sent_pps: f64,
    /// Bits a second on a wire, with preamble, FCS and gap.
    pub sent_bps: f64,
    /// The rate that was asked for, in frames a second.
    pub wanted_pps: Option<u64>,
    /// Flows opened.
    pub flows_opened: u64,
    /// What set the rate.
    pub limited_by: String,
    /// Ended by a signal.
    pub stopped: bool,
    /// The sink's side.
    pub sink: Option<SinkReport>,
}

/// What arrived.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SinkReport {
    /// Frames that arrived at the interface.
    pub arrived: u64,
    /// Sent, and not arrived (duplicates taken off): lost on the way.
    pub lost: u64,
    /// The share of the frames sent.
    pub lost_share: f64,
    /// Arrived, but lost between the interface and the sink's sockets: the sink was too slow, not the way.
    pub lost_at_sink: u64,
    /// The XDP program ran in the driver.
    pub native_xdp: bool,
    /// Counts by name; `None` when frames were only counted.
    pub checks: Option<SinkCounts>,
    /// Flows of which a frame arrived.
    pub flows_seen: Option<u64>,
    /// Latency; `None` when nothing was checked or arrived.
    pub latency_us: Option<Latency>,
}

/// Latency from a frame's writing to its receipt, in microseconds.
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

impl Report {
    /// Draws the conclusions.
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

/// What set the rate.
fn limit(o: &Outcome<'_>, sent_pps: f64) -> String {
    match o.options.rate {
        Some(wanted) if sent_pps >= wanted as f64 * RATE_REACHED => "the rate that was asked for".into(),
        Some(_) if o.sent.blocked == 0 && o.forgone > 0 => {
            format!("the generator's CPU time ({} frames were due and not made): {}", o.forgone, o.backend)
        }
        _ if o.sent.blocked > 0 => format!("the interface, which took no more {} times: {}", o.sent.blocked, o.backend),
        _ => format!("the generator: {}", o.backend),
    }
}

impl SinkReport {
    fn new(sink: &SinkResult, sent: u64) -> SinkReport {
        let checks = sink.checked.as_ref().map(|c| c.counts);
        // What is not of this run did not come instead of a frame of it.
        let extra = checks.map_or(0, |c| c.duplicated + c.foreign);
        let lost = sent.saturating_sub(sink.arrived.saturating_sub(extra));
        let latency_us = sink.checked.as_ref().filter(|c| !c.latency_ns.is_empty()).map(|c| {
            let at = |quantile| c.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
            Latency {
                min: c.latency_ns.min() as f64 / 1e3,
                mean: c.latency_ns.mean() / 1e3,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                p99_99: at(0.9999),
                max: c.latency_ns.max() as f64 / 1e3,
            }
        });
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
        writeln!(f, "{} -> {}, {}", self.tx, self.rx.as_deref().unwrap_or("(no sink)"), self.backend)?;
        let early = if self.stopped { ", stopped by a signal" } else { "" };
        writeln!(f, "sent              {:>14}   in {:.2} s{early}", self.sent, self.elapsed_s)?;
        writeln!(f, "  frames/s        {:>14.0}   {:.3} Gbit/s on a wire", self.sent_pps, self.sent_bps / 1e9)?;
        writeln!(f, "  flows opened    {:>14}", self.flows_opened)?;
        if let Some(s) = &self.sink {
            writeln!(f, "arrived           {:>14}   {}", s.arrived, if s.native_xdp { "native XDP" } else { "generic XDP" })?;
            writeln!(f, "  lost            {:>14}   {:.4} %", s.lost, s.lost_share * 100.0)?;
            writeln!(f, "  lost at sink    {:>14}", s.lost_at_sink)?;
            if let Some(c) = &s.checks {
                let rows = [
                    ("in order", c.in_order),
                    ("reordered", c.reordered),
                    ("duplicated", c.duplicated),
                    ("too late", c.too_late),
                    ("corrupt", c.corrupt),
                    ("of other runs", c.foreign),
                ];
                for (name, n) in rows {
                    writeln!(f, "  {name:<15} {n:>14}")?;
                }
            }
            if let Some(flows) = s.flows_seen {
                writeln!(f, "  flows seen      {flows:>14}")?;
            }
            if let Some(l) = &s.latency_us {
                let Latency { min, mean, p50, p90, p99, p99_9, p99_99, max } = l;
                writeln!(f, "latency, us         min {min:.1}  mean {mean:.1}  p50 {p50:.1}  p90 {p90:.1}")?;
                writeln!(f, "                    p99 {p99:.1}  p99.9 {p99_9:.1}  p99.99 {p99_99:.1}  max {max:.1}")?;
            }
        }
        write!(f, "limited by {}", self.limited_by)
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
