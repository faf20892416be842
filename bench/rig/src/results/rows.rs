//! The rows of the results, one type for each measurement.

use serde::{Deserialize, Serialize};

use super::{Estimate, Latency, Outcome};

/// Kinds of traffic of the rates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Traffic {
    Established,
    /// A share of the frames opens new flows.
    NewFlows,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateRow {
    pub subject: String,
    pub traffic: Traffic,
    pub zero_loss: Outcome<Estimate>,
    /// The highest rate with at most 0.5 % loss.
    pub half_percent: Outcome<Estimate>,
    /// The generator's highest rate while the subject works, whatever is lost.
    pub generator_pps: Option<f64>,
    /// The zero-loss rate of each round.
    pub rounds: Vec<f64>,
}

/// One subject's zero-loss rate over another's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RatioRow {
    pub subject: String,
    pub over: String,
    pub traffic: Traffic,
    pub ratio: Outcome<Estimate>,
    pub rounds: Vec<f64>,
}

/// Latency at a share of the subject's own zero-loss rate.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyRow {
    pub subject: String,
    /// Percent of its zero-loss rate.
    pub load_percent: u32,
    /// Frames a second.
    pub offered_pps: f64,
    /// Time from making a frame to receiving it, in microseconds.
    pub latency_us: Outcome<Latency>,
}

/// CPU time a packet, by kind. Sampled by the kernel's tick unless the kernel accounts exactly.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuRow {
    pub subject: String,
    pub offered_pps: f64,
    pub per_packet: Outcome<CpuTime>,
}

/// CPU time of one packet in nanoseconds. A polling worker is always busy: its `lb_*` is the packet's share of the core at this rate.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuTime {
    /// On the subject's core, in user space.
    pub lb_user_ns: f64,
    /// On the subject's core, in system calls.
    pub lb_system_ns: f64,
    /// On the subject's core, in interrupts and softirqs.
    pub lb_softirq_ns: f64,
    /// On the generator's core, in softirqs: the receiving interface's NAPI, charged to the subject.
    pub generator_softirq_ns: f64,
    /// Share of the subject's core that was busy.
    pub lb_busy_share: f64,
}

/// Connections a second of real sockets: connect, request, answer, close.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRow {
    pub subject: String,
    /// Connections a second.
    pub per_second: Outcome<Estimate>,
    /// The measured rate, whether it counts or not.
    pub seen_per_second: Estimate,
    pub failed: u64,
}

/// Loss during an event.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChurnRow {
    pub subject: String,
    /// For instance "10,000 Services reloaded".
    pub event: String,
    pub offered_pps: f64,
    pub events: u32,
    pub lost: u64,
    /// Lost frames over the offered rate: how long an event blocks traffic, in milliseconds.
    pub blocked_ms: Outcome<Estimate>,
    /// Frames that arrived in each interval, of the trial with the largest loss; the generator's pauses are left out.
    pub timeline: Vec<u64>,
    /// Milliseconds of one interval.
    pub interval_ms: f64,
    /// Places in `timeline` at which events began.
    pub event_at: Vec<u32>,
}

/// Established flows under a SYN flood from random sources.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FloodRow {
    pub subject: String,
    /// Frames a second of the established flows.
    pub offered_pps: f64,
    /// SYNs a second.
    pub flood_pps: f64,
    /// The share of the established flows' frames that arrived.
    pub goodput: Outcome<Estimate>,
}

/// Time from the change of an object to the first packet that follows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgrammingRow {
    pub subject: String,
    /// How the change is made, such as "nft -f with the changed chain".
    pub how: String,
    /// Milliseconds.
    pub ms: Outcome<Estimate>,
}

/// Cost of a packet in memory, without sockets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CostRow {
    /// For instance "nomagic, established" or "memory floor".
    pub name: String,
    pub flows: u64,
    /// Nanoseconds a packet.
    pub ns: Outcome<Estimate>,
}
