//! What a comparison has found: the data behind the table, the report and its JSON. No measuring and no drawing here.
//!
//! Rates are frames a second, shares are 0 to 1, times have their unit in the name. Whatever can be missing is an [`Outcome`] with the reason.

mod stats;

pub use stats::{Estimate, median};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

pub use crate::pktgen::report::Latency;

/// Version of the JSON; another one is refused.
pub const FORMAT: u32 = 1;
/// Bytes of a results file at the most.
const FILE_MAX: u64 = 64 << 20;

/// Measured, or why not.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome<T> {
    /// A value.
    Measured(T),
    /// The reason, a clause that stands after "not measured: ".
    NotMeasured(String),
}

impl<T> Outcome<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Outcome::Measured(value) => Some(value),
            Outcome::NotMeasured(_) => None,
        }
    }

    /// The value under another form.
    pub fn map<U>(&self, f: impl FnOnce(&T) -> U) -> Outcome<U> {
        match self {
            Outcome::Measured(value) => Outcome::Measured(f(value)),
            Outcome::NotMeasured(why) => Outcome::NotMeasured(why.clone()),
        }
    }
}

/// All of one run of `nomagic-bench compare`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Where, when and with what it was measured.
    pub manifest: Manifest,
    /// How traffic went, and what was watched meanwhile.
    pub rig: Rig,
    /// What was measured; rows name them by `id`.
    pub subjects: Vec<Subject>,
    /// Wanted against found.
    pub figures: Vec<Figure>,
    /// Zero-loss and 0.5 %-loss rates.
    pub rates: Vec<RateRow>,
    /// Rates of one subject over another's, round by round.
    pub ratios: Vec<RatioRow>,
    /// Latency under load.
    pub latencies: Vec<LatencyRow>,
    /// CPU time of a packet.
    pub cpu: Vec<CpuRow>,
    /// Connections a second, of real sockets.
    pub connections: Vec<ConnectionRow>,
    /// What is lost while tables change.
    pub churn: Vec<ChurnRow>,
    /// Established flows under a SYN flood.
    pub flood: Vec<FloodRow>,
    /// From a change of the objects until packets follow it.
    pub programming: Vec<ProgrammingRow>,
    /// What a packet costs in memory, by the size of the connection table.
    pub table_cost: Vec<CostRow>,
}

/// Where, when and with what a run was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Seconds that it took.
    pub duration_s: u64,
    /// The command line.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// The commit that it was built from, if known.
    pub commit: Option<String>,
    /// Files differed from that commit.
    pub dirty: bool,
    /// CPU model.
    pub cpu: String,
    /// CPUs online.
    pub cpus: u32,
    /// Main memory in bytes.
    pub memory_bytes: u64,
    /// The hypervisor's vendor; `None` on bare metal.
    pub hypervisor: Option<String>,
    /// `uname -r`.
    pub kernel: String,
    /// The kernel's command line.
    pub kernel_command_line: String,
    /// The interfaces' driver.
    pub driver: String,
    /// Queues of an interface.
    pub queues: u32,
    /// XDP and AF_XDP mode, such as "native XDP, copy".
    pub mode: String,
    /// Versions of the other tools, such as "nftables v1.0.6".
    pub tools: Vec<String>,
}

/// What kind of interfaces traffic went over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RigKind {
    /// veth pairs on one machine. Nothing measured there is a NIC's.
    Veth,
    /// Network cards between machines.
    Nic,
}

/// How traffic went.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rig {
    /// veth or NIC.
    pub kind: RigKind,
    /// The way of a frame, a sentence or two.
    pub description: String,
    /// The CPU of the subject: all that a load balancer does but the receiving interface's NAPI, see `napi`.
    pub lb_cpu: u32,
    /// The CPU of the generator.
    pub generator_cpu: u32,
    /// Where each interface's NAPI ran.
    pub napi: Vec<Napi>,
    /// Frame size in bytes, with FCS.
    pub frame_bytes: u32,
    /// Flows of the traffic.
    pub flows: u32,
    /// Seconds of one trial of the rates.
    pub trial_s: f64,
    /// Rounds in which all subjects took turns.
    pub rounds: u32,
    /// The largest share of CPU time that the hypervisor took in a trial that counted.
    pub steal_share_max: f64,
    /// The same for processes that are not of the rig.
    pub foreign_share_max: f64,
    /// Trials that were thrown away and repeated, because steal or foreign CPU was over the limit.
    pub trials_repeated: u32,
    /// Trials in all.
    pub trials: u32,
}

/// Where an interface's NAPI ran.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Napi {
    /// Which interface, and of which subjects when not all.
    pub interface: String,
    /// The CPU.
    pub cpu: u32,
    /// Why there, and whose work it is.
    pub why: String,
}

/// What a subject is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectKind {
    /// nomagic.
    Nomagic,
    /// The same AF_XDP code with an empty packet path.
    NoWork,
    /// Kernel DNAT by nftables rules of kube-proxy's shape.
    Nftables,
    /// Kernel DNAT by iptables rules of kube-proxy's shape.
    Iptables,
    /// The kernel's routing, without any rule.
    Routing,
    /// No load balancer: client and server directly connected.
    Direct,
}

/// One thing that was measured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// What rows call it, such as "nftables-1000".
    pub id: String,
    /// What people call it, such as "nftables, 1,000 Services".
    pub label: String,
    /// What it is.
    pub kind: SubjectKind,
    /// Services in its tables.
    pub services: u32,
}

/// How a figure came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Found as wanted, or better.
    Reached,
    /// Found, and worse than wanted.
    NotReached,
    /// Not found out.
    NotMeasured,
}

/// A figure to reach.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// What it is, such as "zero-loss rate, nomagic / no-work loop".
    pub name: String,
    /// What is wanted, such as ">= 0.95".
    pub wanted: String,
    /// What was found, with its interval; or why nothing was.
    pub found: String,
    /// How it came out.
    pub verdict: Verdict,
}

/// Kinds of traffic of the rates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Traffic {
    /// Flows that are known already.
    Established,
    /// A part of the frames open new flows.
    NewFlows,
}

/// Rates of a subject.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateRow {
    /// Of which subject.
    pub subject: String,
    /// With which traffic.
    pub traffic: Traffic,
    /// The highest rate without loss.
    pub zero_loss: Outcome<Estimate>,
    /// The highest rate with at most 0.5 % lost.
    pub half_percent: Outcome<Estimate>,
    /// What the generator can send in the subject's presence, losses not counted.
    pub generator_pps: Option<f64>,
    /// The zero-loss rate of each round.
    pub rounds: Vec<f64>,
}

/// One subject's zero-loss rate over another's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RatioRow {
    /// The subject whose rate is divided.
    pub subject: String,
    /// By whose rate.
    pub over: String,
    /// With which traffic.
    pub traffic: Traffic,
    /// Median of the rounds' ratios.
    pub ratio: Outcome<Estimate>,
    /// The ratio of each round.
    pub rounds: Vec<f64>,
}

/// Latency at a part of the subject's own zero-loss rate.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyRow {
    /// Of which subject.
    pub subject: String,
    /// Percent of its zero-loss rate.
    pub load_percent: u32,
    /// Frames a second.
    pub offered_pps: f64,
    /// From a frame's making to its receipt, in microseconds.
    pub latency_us: Outcome<Latency>,
}

/// CPU time a packet, by where it was spent. Sampled by the kernel's tick unless the manifest's kernel accounts exactly.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuRow {
    /// Of which subject.
    pub subject: String,
    /// Frames a second meanwhile.
    pub offered_pps: f64,
    /// What a packet cost.
    pub per_packet: Outcome<CpuTime>,
}

/// CPU time of one packet in nanoseconds. A worker that polls is busy also without packets: then `lb_*` is what a packet takes of the core at this rate.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuTime {
    /// On the subject's core, in user space.
    pub lb_user_ns: f64,
    /// On the subject's core, in system calls.
    pub lb_system_ns: f64,
    /// On the subject's core, in interrupts and softirqs.
    pub lb_softirq_ns: f64,
    /// On the generator's core, in softirqs: the receiving interface's NAPI, which works for the subject.
    pub generator_softirq_ns: f64,
    /// Share of the subject's core that was busy.
    pub lb_busy_share: f64,
}

/// Connections a second of real sockets: connect, request, answer, close.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRow {
    /// Through which subject.
    pub subject: String,
    /// Connections a second.
    pub per_second: Outcome<Estimate>,
    /// What clients and servers managed, whether it counts or not.
    pub seen_per_second: Estimate,
    /// Connections that failed.
    pub failed: u64,
}

/// What was lost while something changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChurnRow {
    /// Of which subject.
    pub subject: String,
    /// What changed, such as "10,000 Services reloaded".
    pub event: String,
    /// Frames a second meanwhile.
    pub offered_pps: f64,
    /// Events.
    pub events: u32,
    /// Frames lost.
    pub lost: u64,
    /// Lost frames over offered load: how long an event stops traffic, in milliseconds.
    pub blocked_ms: Outcome<Estimate>,
    /// Frames that arrived in each interval of `interval_ms` in the trial that lost most; the generator's pauses are left out.
    pub timeline: Vec<u64>,
    /// Milliseconds of one place in `timeline`.
    pub interval_ms: f64,
    /// Places in `timeline` at which events began.
    pub event_at: Vec<u32>,
}

/// Established flows while SYNs come from everywhere.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FloodRow {
    /// Of which subject.
    pub subject: String,
    /// Frames a second of the established flows.
    pub offered_pps: f64,
    /// SYNs a second beside them.
    pub flood_pps: f64,
    /// Share of the established flows' frames that arrived.
    pub goodput: Outcome<Estimate>,
}

/// From the change of an object until the first packet takes the new way.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgrammingRow {
    /// Of which subject.
    pub subject: String,
    /// How the change is told to it, such as "nft -f with the changed chain".
    pub how: String,
    /// Milliseconds.
    pub ms: Outcome<Estimate>,
}

/// What a packet costs in memory, without sockets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CostRow {
    /// What was measured, such as "nomagic, established" or "memory floor".
    pub name: String,
    /// Connections in the table.
    pub flows: u64,
    /// Nanoseconds a packet.
    pub ns: Outcome<Estimate>,
}

impl Results {
    /// Of these subjects on this rig, with nothing measured yet.
    pub fn new(rig: Rig, subjects: Vec<Subject>) -> Results {
        Results {
            format: FORMAT,
            manifest: Manifest::default(),
            rig,
            subjects,
            figures: Vec::new(),
            rates: Vec::new(),
            ratios: Vec::new(),
            latencies: Vec::new(),
            cpu: Vec::new(),
            connections: Vec::new(),
            churn: Vec::new(),
            flood: Vec::new(),
            programming: Vec::new(),
            table_cost: Vec::new(),
        }
    }

    /// Reads a file that `compare` has written.
    pub fn read(path: &Path) -> Result<Results> {
        let shown = path.display();
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
        ensure!(size <= FILE_MAX, "{shown}: {size} bytes; results have at most {FILE_MAX}");
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Results::parse(&text).with_context(|| format!("{shown} is not a results file of `nomagic-bench compare`"))
    }

    /// Reads the JSON.
    pub fn parse(text: &str) -> Result<Results> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        ensure!(head.format == FORMAT, "its format is {}, this program knows {FORMAT}", head.format);
        Ok(serde_json::from_str(text)?)
    }

    /// The subject of this id.
    pub fn subject(&self, id: &str) -> Option<&Subject> {
        self.subjects.iter().find(|s| s.id == id)
    }

    /// What people call a subject.
    pub fn label<'r>(&'r self, id: &'r str) -> &'r str {
        self.subject(id).map_or(id, |s| &s.label)
    }
}
