//! What `explain` answers about a packet.

use std::net::IpAddr;

use nomagic_core::reason::Reason;
use serde::{Deserialize, Serialize};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Sent to a backend.
    Forward,
    /// Answered with ICMP port unreachable, or with a TCP reset.
    Reject,
    /// Silence.
    Drop,
    /// Waits until the next hop's MAC address is known; only of a running gateway.
    Hold,
    /// For the health check server of the proxy itself.
    Local,
    /// Not nomagic's business: the kernel goes on with it.
    Pass,
}

/// The answer about one flow; the fields are those of the JSON output, in its order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The question, as it was put.
    pub flow: String,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why, as the metric label; `null` when it is forwarded.
    pub reason: Option<String>,
    /// `namespace/name`
    pub service: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// `clusterIP`, `nodePort`, `externalIP` or `loadBalancerIP`.
    pub address: Option<String>,
    /// All candidates.
    pub backends: Vec<String>,
    /// The one that this flow gets.
    pub chosen: Option<String>,
    /// The address that replaces the client's, if it is replaced. Its port is chosen at run time.
    pub snat: Option<IpAddr>,
    /// The story in words.
    pub steps: Vec<String>,
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
            snat: None,
            steps: Vec::new(),
        }
    }

    pub fn because(mut self, reason: Reason) -> Answer {
        self.reason = Some(reason.label().into());
        self
    }
}
