//! The flows of the connection table, read in pages.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of [`Flow`]'s form. It grows with each incompatible change.
pub const FLOW_SCHEMA: u32 = 1;
/// Maximum number of table slots that one request looks at.
pub const SLOTS_MAX: u32 = 1 << 18;
/// Maximum number of flows in one page.
pub const FLOWS_MAX: usize = 4_096;
/// Maximum number of groups in one page; the flows of all others are added up.
pub const GROUPS_MAX: usize = 4_096;

/// Selects flows: those that fit all fields that are set.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// An address, a CIDR, or an address with a port: of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// An address or a CIDR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The port that the client sends to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<FlowState>,
}

/// The state of a flow, with the names of the kernel's conntrack where it has one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FlowState {
    /// The client has sent its SYN.
    SynSent,
    /// The endpoint has answered it.
    SynRecv,
    /// The client has confirmed.
    Established,
    /// One side has sent its FIN.
    FinWait,
    /// Half-closed.
    CloseWait,
    /// Both sides have sent their FIN.
    LastAck,
    /// Both FINs are acknowledged.
    TimeWait,
    /// Reset.
    Close,
    /// First seen mid-stream, and only one side so far.
    PickedUp,
    /// UDP: unanswered.
    Unreplied,
    /// UDP: answered.
    Replied,
    /// UDP: answered, and continued by the client or for more than 2 s.
    Assured,
}

impl FlowState {
    pub const ALL: [FlowState; 12] = [
        FlowState::SynSent,
        FlowState::SynRecv,
        FlowState::Established,
        FlowState::FinWait,
        FlowState::CloseWait,
        FlowState::LastAck,
        FlowState::TimeWait,
        FlowState::Close,
        FlowState::PickedUp,
        FlowState::Unreplied,
        FlowState::Replied,
        FlowState::Assured,
    ];

    pub fn name(self) -> &'static str {
        match self {
            FlowState::SynSent => "SYN_SENT",
            FlowState::SynRecv => "SYN_RECV",
            FlowState::Established => "ESTABLISHED",
            FlowState::FinWait => "FIN_WAIT",
            FlowState::CloseWait => "CLOSE_WAIT",
            FlowState::LastAck => "LAST_ACK",
            FlowState::TimeWait => "TIME_WAIT",
            FlowState::Close => "CLOSE",
            FlowState::PickedUp => "PICKED_UP",
            FlowState::Unreplied => "UNREPLIED",
            FlowState::Replied => "REPLIED",
            FlowState::Assured => "ASSURED",
        }
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for FlowState {
    type Err = String;

    /// In any case, with `-` or `_`.
    fn from_str(text: &str) -> Result<FlowState, String> {
        let name = text.to_ascii_uppercase().replace('-', "_");
        let known = || FlowState::ALL.map(FlowState::name).join(", ");
        FlowState::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| format!("not a state; there are {}", known()))
    }
}

/// What flows are counted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountBy {
    Service,
    Backend,
    Client,
    State,
}

/// A flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// [`FLOW_SCHEMA`].
    pub schema: u32,
    pub proto: String,
    /// `address:port`.
    pub client: String,
    /// What the client sends to.
    pub destination: String,
    /// `namespace/name:port name`; `null`: no Service has the destination any more, or the client sends to the endpoint itself.
    pub service: Option<String>,
    pub backend: String,
    /// What the endpoint sees in place of the client, if something else.
    pub snat: Option<String>,
    pub state: FlowState,
    /// Since the last packet, in steps of a quarter of a second.
    pub idle_ms: u64,
    /// Until the flow ends if nothing comes.
    pub expires_in_ms: u64,
}

/// A part of the table.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FlowsPage {
    /// The flows that fit, unless they were counted.
    pub flows: Vec<Flow>,
    /// The numbers of flows that fit by group, if they were counted.
    pub groups: BTreeMap<String, u64>,
    /// The number of flows in groups beyond [`GROUPS_MAX`].
    pub other: u64,
    /// The number of flows that fit.
    pub matched: u64,
    /// The slot to go on at; `null`: the table has been seen.
    pub next: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_written() {
        for state in FlowState::ALL {
            assert_eq!(state.name().parse(), Ok(state));
            assert_eq!(state.name().to_lowercase().replace('_', "-").parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        assert!("OPEN".parse::<FlowState>().unwrap_err().contains("there are SYN_SENT, SYN_RECV, "));
    }
}
