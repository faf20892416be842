//! The results of a comparison: the data behind the table, the report and its JSON. This module neither measures nor draws.
//!
//! Rates are frames a second, shares are 0 to 1, times have their unit in the name. A value that may be missing is an
//! [`Outcome`] with a reason.

mod rig;
mod rows;
mod stats;

pub use rig::{Manifest, Napi, Rig, RigKind};
pub use rows::{ChurnRow, ConnectionRow, CostRow, CpuRow, CpuTime, FloodRow, LatencyRow, ProgrammingRow, RateRow, RatioRow, Traffic};
pub use stats::{Estimate, median};

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use crate::pktgen::report::Latency;

/// Version of the JSON; others are refused.
pub const FORMAT: u32 = 1;
/// The largest results file, in bytes.
const FILE_MAX: u64 = 64 << 20;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome<T> {
    Measured(T),
    /// The reason, a clause after "not measured: ".
    NotMeasured(String),
}

impl<T> Outcome<T> {
    pub fn value(&self) -> Option<&T> {
        match self {
            Outcome::Measured(value) => Some(value),
            Outcome::NotMeasured(_) => None,
        }
    }

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
    /// Machine, time and programs.
    pub manifest: Manifest,
    /// The path of the traffic, and the disturbances.
    pub rig: Rig,
    /// Rows refer to them by `id`.
    pub subjects: Vec<Subject>,
    pub figures: Vec<Figure>,
    pub rates: Vec<RateRow>,
    /// Rates of one subject over another's, round by round.
    pub ratios: Vec<RatioRow>,
    pub latencies: Vec<LatencyRow>,
    pub cpu: Vec<CpuRow>,
    /// Connections a second, of real sockets.
    pub connections: Vec<ConnectionRow>,
    /// Loss while tables change.
    pub churn: Vec<ChurnRow>,
    /// Established flows under a SYN flood.
    pub flood: Vec<FloodRow>,
    /// Time from a change of the objects until packets follow it.
    pub programming: Vec<ProgrammingRow>,
    /// Cost of a packet in memory, by the size of the connection table.
    pub table_cost: Vec<CostRow>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectKind {
    Nomagic,
    /// The same AF_XDP code with an empty packet path.
    NoWork,
    /// Kernel DNAT by nftables rules like kube-proxy's.
    Nftables,
    /// Kernel DNAT by iptables rules like kube-proxy's.
    Iptables,
    /// The kernel's routing, without rules.
    Routing,
    /// No load balancer: client and server directly connected.
    Direct,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// For rows, such as "nftables-1000".
    pub id: String,
    /// For readers, such as "nftables, 1,000 Services".
    pub label: String,
    pub kind: SubjectKind,
    pub services: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Reached,
    NotReached,
    NotMeasured,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// For instance "zero-loss rate, nomagic / no-work loop".
    pub name: String,
    /// The target, such as ">= 0.95".
    pub wanted: String,
    /// The value with its interval, or why there is none.
    pub found: String,
    pub verdict: Verdict,
}

/// Writes results as JSON. Makes the directory.
pub fn write_json(path: &Path, results: &impl Serialize) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    std::fs::write(path, serde_json::to_string_pretty(results)?).with_context(|| format!("cannot write {}", path.display()))
}

impl Results {
    /// Empty results.
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

    /// Reads a file written by `compare`.
    pub fn read(path: &Path) -> Result<Results> {
        let shown = path.display();
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
        ensure!(size <= FILE_MAX, "{shown}: {size} bytes; results have at most {FILE_MAX}");
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Results::parse(&text).with_context(|| format!("{shown} is not a results file of `nomagic-bench compare`"))
    }

    pub fn parse(text: &str) -> Result<Results> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        ensure!(head.format == FORMAT, "its format is {}, this program knows {FORMAT}", head.format);
        Ok(serde_json::from_str(text)?)
    }

    pub fn subject(&self, id: &str) -> Option<&Subject> {
        self.subjects.iter().find(|s| s.id == id)
    }

    pub fn label<'r>(&'r self, id: &'r str) -> &'r str {
        self.subject(id).map_or(id, |s| &s.label)
    }
}
