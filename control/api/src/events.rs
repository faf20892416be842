//! Events: what the slow path of the workers did, read in pages.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::flows::{FlowFilter, FlowState};

/// The version of [`Event`]'s form. It grows with each incompatible change.
pub const EVENT_SCHEMA: u32 = 1;
/// Maximum number of events in one page.
pub const EVENTS_MAX: usize = 4_096;

/// Selects events: those that fit all fields that are set.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// Of the flow, or of the packet if it belongs to none.
    pub flow: FlowFilter,
    /// Of these types only; none: of all.
    pub types: Vec<EventType>,
    /// Label of a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A flow was created.
    New,
    /// A flow has another state.
    Changed,
    /// A flow has ended.
    Ended,
    /// A packet was refused, and its sender told.
    Rejected,
    /// A packet was dropped in silence.
    Dropped,
    /// A packet waits for a neighbour, or for other fragments.
    Held,
    /// A packet was left to the kernel.
    Kernel,
    /// An ICMP error was translated.
    IcmpError,
}

impl EventType {
    pub const ALL: [EventType; 8] = [
        EventType::New,
        EventType::Changed,
        EventType::Ended,
        EventType::Rejected,
        EventType::Dropped,
        EventType::Held,
        EventType::Kernel,
        EventType::IcmpError,
    ];

    pub fn name(self) -> &'static str {
        match self {
            EventType::New => "new",
            EventType::Changed => "changed",
            EventType::Ended => "ended",
            EventType::Rejected => "rejected",
            EventType::Dropped => "dropped",
            EventType::Held => "held",
            EventType::Kernel => "kernel",
            EventType::IcmpError => "icmp_error",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<EventType, String> {
        let name = text.to_ascii_lowercase().replace('-', "_");
        let known = || EventType::ALL.map(EventType::name).join(", ");
        EventType::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("not a type of event; there are {}", known()))
    }
}

/// An event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    /// RFC 3339, UTC.
    pub time: String,
    /// `null`: the control plane.
    pub worker: Option<u32>,
    #[serde(rename = "type")]
    pub kind: EventType,
    /// `null`: the packet could not be read.
    pub proto: Option<String>,
    /// `address:port`: the client for a flow, else the packet's source. For an ICMP error those of the packet that it quotes.
    pub source: Option<String>,
    /// The client's destination for a flow, else the packet's.
    pub destination: Option<String>,
    /// `namespace/name:port name`, if the table of Services in force has the destination.
    pub service: Option<String>,
    pub backend: Option<String>,
    /// What the endpoint sees in place of the client, if something else.
    pub snat: Option<String>,
    /// The flow's state: after the event for new and changed, before it for ended.
    pub state: Option<FlowState>,
    /// Why a flow ended: `timed_out`, `replaced`, `evicted`, `port_reclaimed`, `endpoint_gone` or `command`.
    pub cause: Option<String>,
    /// Label of the reason, as in the metrics.
    pub reason: Option<String>,
    /// What the sender was told: `icmp`, `reset` or `abort`.
    pub answer: Option<String>,
    /// False: limits forbade the answer.
    pub answered: Option<bool>,
    /// The interface that received the frame, if there was one.
    pub interface: Option<String>,
    /// Bytes of the frame.
    pub bytes: u32,
    /// The event in words.
    pub text: String,
}

/// Where reading begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventsFrom {
    /// At the oldest event that is kept.
    Oldest,
    /// With what comes next.
    Newest,
    /// At [`EventsPage::next`] of an earlier page.
    Cursor(Vec<u64>),
}

/// Events in the order of their times.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct EventsPage {
    pub events: Vec<Event>,
    /// The events to go on with, by worker; then those of the control plane.
    pub next: Vec<u64>,
    /// There are more now.
    pub more: bool,
    /// Events that were overwritten before they could be read.
    pub missed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_written() {
        for kind in EventType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(kind.name().replace('_', "-").parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("open".parse::<EventType>().unwrap_err().contains("there are new, changed, "));
    }
}
