//! The answer of `explain` about a packet.

use std::net::IpAddr;

use nomagic_core::reason::Reason;
use serde::{Deserialize, Serialize};

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
        }
    }

    pub fn because(mut self, reason: Reason) -> Answer {
        self.reason = Some(reason.label().into());
        self
    }
}
