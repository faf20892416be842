//! Where, when and with what a comparison was made, and how its traffic went.

use serde::{Deserialize, Serialize};

/// Where, when and with what a run was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Seconds that it took.
    pub duration_s: u64,
    pub command: String,
    pub version: String,
    /// The commit that it was built from, if known.
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

/// What kind of interfaces traffic went over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RigKind {
    /// veth pairs on one machine. Nothing measured there is a NIC's.
    Veth,
    Nic,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rig {
    pub kind: RigKind,
    /// The way of a frame, a sentence or two.
    pub description: String,
    /// The CPU of the subject: all that a load balancer does but the receiving interface's NAPI, see `napi`.
    pub lb_cpu: u32,
    pub generator_cpu: u32,
    pub napi: Vec<Napi>,
    /// Frame size in bytes, with FCS.
    pub frame_bytes: u32,
    pub flows: u32,
    /// Seconds of one trial of the rates.
    pub trial_s: f64,
    /// Rounds of the rates in which subjects took turns; those without a close rival in a part of them.
    pub rounds: u32,
    /// The largest share of CPU time that the hypervisor took in a trial that counted.
    pub steal_share_max: f64,
    /// The same for processes that are not of the rig.
    pub foreign_share_max: f64,
    /// Trials that were thrown away and repeated, because steal or foreign CPU was over the limit.
    pub trials_repeated: u32,
    pub trials: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Napi {
    /// Which interface, and of which subjects when not all.
    pub interface: String,
    pub cpu: u32,
    /// Why there, and whose work it is.
    pub why: String,
}
