//! What is measured of each subject: one row a subject. A new subject or another measurement is a change of this table.

use std::time::Duration;

use clap::ValueEnum;

use super::subject::thousands;
use crate::results::SubjectKind::{self, Iptables, Nftables, NoWork, Nomagic, Routing};

/// What is measured besides the rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// Latency and CPU time at 10, 50 and 90 % of the zero-loss rate.
    Load,
    /// Rates when one frame in ten opens a flow.
    NewFlows,
    /// Connections a second of real sockets.
    Connections,
    /// Changes of the tables: lost frames, and the time until packets follow.
    Churn,
    /// Established flows under a SYN flood.
    Flood,
}

/// A change of a subject's tables under load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChurnEvent {
    /// The endpoints of ten Services are replaced, one Service after the other.
    EndpointsReplaced,
    /// All Services get other endpoints at once.
    Reload,
    /// The process ends and starts again.
    Restart,
}

impl ChurnEvent {
    /// How often it is measured. Reloads come in pairs: the second one restores the endpoints.
    pub fn trials(self) -> u32 {
        match self {
            ChurnEvent::EndpointsReplaced => 1,
            ChurnEvent::Reload => 2,
            ChurnEvent::Restart => 3,
        }
    }

    /// How long traffic flows in a trial, at least.
    pub fn traffic(self) -> Duration {
        match self {
            ChurnEvent::EndpointsReplaced | ChurnEvent::Restart => Duration::from_millis(2500),
            ChurnEvent::Reload => Duration::from_secs(3),
        }
    }

    pub fn name(self, services: u32) -> String {
        match self {
            ChurnEvent::EndpointsReplaced => "one Service's endpoints replaced".into(),
            ChurnEvent::Reload => format!("{} Services reloaded", thousands(services)),
            ChurnEvent::Restart => "the process restarted".into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    pub kind: SubjectKind,
    pub services: u32,
    /// It takes part in every so many rounds of the rates, and its 0.5 % rate is searched in every so many.
    pub every: u32,
    pub half_percent_every: u32,
    pub load: bool,
    pub new_flows: bool,
    pub connections: bool,
    /// Measured under load at half of the zero-loss rate.
    pub events: &'static [ChurnEvent],
    /// Changes whose time to the first packet is measured.
    pub changes: u32,
    pub flood: bool,
}

/// A subject of which only the rate is measured, in every tenth round.
const fn rate_only(kind: SubjectKind, services: u32) -> Policy {
    Policy {
        kind,
        services,
        every: 10,
        half_percent_every: u32::MAX,
        load: false,
        new_flows: false,
        connections: false,
        events: &[],
        changes: 0,
        flood: false,
    }
}

/// A subject of a ratio. Ratios near 1 need every round, others every second one.
const fn of_ratio(kind: SubjectKind, services: u32, every: u32) -> Policy {
    Policy { every, half_percent_every: 10, load: true, ..rate_only(kind, services) }
}

/// All subjects. Those of a ratio come first: they are neighbours in a round. The kernel takes a minute for the rules
/// of 10,000 Services, so its reload and its ten changes are left out there.
pub const SUBJECTS: [Policy; 14] = [
    Policy { new_flows: true, connections: true, events: &[ChurnEvent::Restart], flood: true, ..of_ratio(Nomagic, 1, 1) },
    of_ratio(NoWork, 1, 1),
    Policy { new_flows: true, events: &[ChurnEvent::Reload], changes: 10, ..of_ratio(Nomagic, 10_000, 1) },
    Policy { new_flows: true, connections: true, flood: true, ..of_ratio(Nftables, 1, 2) },
    Policy { new_flows: true, connections: true, flood: true, ..of_ratio(Iptables, 1, 2) },
    of_ratio(Routing, 0, 2),
    rate_only(Nomagic, 100),
    rate_only(Nftables, 100),
    rate_only(Iptables, 100),
    Policy { events: &[ChurnEvent::EndpointsReplaced, ChurnEvent::Reload], changes: 10, ..rate_only(Nomagic, 1_000) },
    Policy { events: &[ChurnEvent::EndpointsReplaced, ChurnEvent::Reload], changes: 3, ..rate_only(Nftables, 1_000) },
    Policy { events: &[ChurnEvent::EndpointsReplaced, ChurnEvent::Reload], changes: 3, ..rate_only(Iptables, 1_000) },
    Policy { new_flows: true, changes: 3, ..rate_only(Nftables, 10_000) },
    Policy { new_flows: true, changes: 3, ..rate_only(Iptables, 10_000) },
];

/// Ratios of zero-loss rates: subject over subject.
pub const RATIOS: [(&str, &str); 6] = [
    ("nomagic-1", "no-work"),
    ("nomagic-1", "nftables-1"),
    ("nomagic-1", "iptables-1"),
    ("nomagic-1", "routing"),
    ("nomagic-10000", "nomagic-1"),
    ("nomagic-10000", "nftables-10000"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::subject::subject;

    #[test]
    fn ratios_are_of_subjects() {
        let ids: Vec<String> = SUBJECTS.iter().map(|p| subject(p.kind, p.services).id).collect();
        for (a, b) in RATIOS {
            assert!(ids.iter().any(|id| id == a) && ids.iter().any(|id| id == b), "{a} over {b}");
        }
        assert!(SUBJECTS.iter().all(|p| p.events.is_empty() || p.services > 0));
    }
}
