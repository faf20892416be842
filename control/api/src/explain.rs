//! The answer of `explain` about a packet.

use std::net::IpAddr;

use nomagic_core::reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::flows::FlowState;

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Sent to a backend.
    Forward,
    /// Answered with ICMP port unreachable, or with a TCP reset.
    Reject,
    /// Dropped silently.
    Drop,
    /// Held until the next hop's MAC address is known; only in answers of a running gateway.
    Hold,
    /// For the proxy's own health check server.
    Local,
    /// Not for nomagic: left to the kernel.
    Pass,
}

/// The answer about one flow. The JSON output has these fields in this order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The question's text.
    pub flow: String,
    pub verdict: Verdict,
    /// The reason, as the metric label; `null` when forwarded.
    pub reason: Option<String>,
    /// `namespace/name`
    pub service: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// `clusterIP`, `nodePort`, `externalIP` or `loadBalancerIP`.
    pub address: Option<String>,
    /// All candidates.
    pub backends: Vec<String>,
    /// The backend that this flow gets; if the answer is not `certain`, only one of those that it may get.
    pub chosen: Option<String>,
    /// False if the flow may get any of several backends, because the seed of the gateway's hash is not known. `chosen` is then the backend
    /// for the seed 0, and `snat` and the verdict are those of that backend.
    #[serde(default = "always")]
    pub certain: bool,
    /// The address that replaces the client's, if any. Its port is chosen at run time.
    pub snat: Option<IpAddr>,
    /// The explanation in sentences.
    pub steps: Vec<String>,
    /// The flow that the packet belongs to, if the running gateway knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_flow: Option<Box<KnownFlow>>,
    /// What was asked about by name, if the question was no flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// The fields that files answer otherwise, if they were asked too. For a known flow they are those of a new one in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<Vec<Difference>>,
}

/// What happens to a known flow when the packet comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowFate {
    Continues,
    /// Its idle time was over before.
    TimedOut,
    /// The packet opens a new flow in its place.
    Replaced,
}

/// A flow that the gateway knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KnownFlow {
    pub state: FlowState,
    pub fate: FlowFate,
    /// The endpoint that it goes to.
    pub backend: String,
    /// Since the last packet, in steps of a quarter of a second.
    pub idle_ms: u64,
    /// Until the flow ends if nothing comes.
    pub expires_in_ms: u64,
    /// How long ago it was opened; `null` if that cannot be told.
    pub age_ms: Option<u64>,
    /// The remainder of its age by `age_modulus_ms`: all that its record tells.
    pub age_remainder_ms: u64,
    pub age_modulus_ms: u64,
    /// Where a new connection from the same address and port would go; `null`: to no endpoint, or it was not asked.
    pub new_one_goes_to: Option<String>,
    /// Why that is not `backend`.
    pub goes_elsewhere_because: Option<String>,
}

/// A question by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// `namespace/name:port`
    pub service_port: String,
    /// `clusterIP`, `nodePort`, `externalIP` or `loadBalancerIP`.
    pub address: String,
    /// `named`, or `outside` and `pod` for addresses that stand for clients there.
    pub client: String,
}

/// A field of an answer that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Difference {
    pub field: String,
    pub live: Value,
    pub files: Value,
}

/// An answer without the field is from a gateway, which knows its seed.
fn always() -> bool {
    true
}

impl Answer {
    pub fn new(flow: &str, verdict: Verdict) -> Answer {
        Answer {
            flow: flow.into(),
            verdict,
            reason: None,
            service: None,
            port: None,
            address: None,
            backends: Vec::new(),
            chosen: None,
            certain: true,
            snat: None,
            steps: Vec::new(),
            known_flow: None,
            asked: None,
            differences: None,
        }
    }

    pub fn because(mut self, reason: Reason) -> Answer {
        self.reason = Some(reason.label().into());
        self
    }
}
