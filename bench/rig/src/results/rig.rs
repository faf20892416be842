//! Machine, time and programs of a comparison, and the path of its traffic.

use serde::{Deserialize, Serialize};

/// Machine, time and programs of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Duration in seconds.
    pub duration_s: u64,
    pub command: String,
    pub version: String,
    /// The commit of the build, if known.
    pub commit: Option<String>,
    pub dirty: bool,
    pub cpu: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// The hypervisor's vendor; `None` on bare metal.
    pub hypervisor: Option<String>,
    /// `uname -r`.
    pub kernel: String,
    pub kernel_command_line: String,
    pub driver: String,
    pub queues: u32,
    /// XDP and AF_XDP mode, such as "native XDP, copy".
    pub mode: String,
    /// Versions of the other tools, such as "nftables v1.0.6".
    pub tools: Vec<String>,
}

/// Kind of the interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RigKind {
    /// veth pairs on one machine: the results say nothing about NICs.
    Veth,
    Nic,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rig {
    pub kind: RigKind,
    /// The path of a frame, in a sentence or two.
    pub description: String,
    /// The CPU of the subject: it does all of a load balancer's work but the receiving interface's NAPI, see `napi`.
    pub lb_cpu: u32,
    pub generator_cpu: u32,
    pub napi: Vec<Napi>,
    /// Frame size in bytes, with FCS.
    pub frame_bytes: u32,
    pub flows: u32,
    /// Seconds of one trial of the rates.
    pub trial_s: f64,
    /// Rounds of the rates; subjects outside of close ratios take part in some of them.
    pub rounds: u32,
    /// The hypervisor's largest share of CPU time in a trial that counted.
    pub steal_share_max: f64,
    /// The same for processes outside of the rig.
    pub foreign_share_max: f64,
    /// Trials that were discarded and repeated, because steal or foreign CPU time was over the limit.
    pub trials_repeated: u32,
    pub trials: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Napi {
    /// The interface, and its subjects unless all.
    pub interface: String,
    pub cpu: u32,
    /// Why there, and whom it is charged to.
    pub why: String,
}
