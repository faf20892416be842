//! Limits of ICMP errors that pass through.
//!
//! Anybody can forge an error about a connection whose addresses and ports it knows or guesses, from any source address. So the limits do not go by
//! the error's sender, but by the flow that it claims to be about: how sure it is that its client exists, and who that is. Errors about flows that
//! forged packets can open do not reach the limit of connections that both sides have confirmed.

use crate::conntrack::{Phase, PhaseKind};
use crate::counters::Labels;
use crate::reject::{Limited, Rate};

/// What an ICMP error is about. Each class has limits of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorClass {
    /// A connection that both sides have confirmed: no forged address leads here.
    Confirmed,
    /// A UDP flow that was answered. Forged packets can get there, at some expense.
    Answered,
    /// A flow that is not confirmed.
    Unconfirmed,
    /// No known flow: the error goes to the kernel.
    Unknown,
}

impl ErrorClass {
    /// The class of errors about a flow in this phase.
    pub fn of(phase: Phase) -> ErrorClass {
        match (phase.kind(), phase.eviction_rank(0)) {
            (PhaseKind::Replied | PhaseKind::Confirmed | PhaseKind::Stream, _) => ErrorClass::Answered,
            (_, None) => ErrorClass::Confirmed,
            _ => ErrorClass::Unconfirmed,
        }
    }
}

impl Limited for ErrorClass {
    /// As for nomagic's own "too big": when an MTU shrinks every flow needs to be told, and it needs that once. The kernel's `icmp_msgs_per_sec` for
    /// the rest.
    fn limit(self) -> Rate {
        match self {
            ErrorClass::Confirmed | ErrorClass::Answered => Rate { per_second: 10_000, burst: 2_000 },
            ErrorClass::Unconfirmed | ErrorClass::Unknown => Rate { per_second: 1_000, burst: 200 },
        }
    }

    /// The share of a flow's client; of an error's sender where no flow is known.
    fn share(self) -> Rate {
        match self {
            ErrorClass::Confirmed | ErrorClass::Answered => Rate { per_second: 1_000, burst: 200 },
            ErrorClass::Unconfirmed | ErrorClass::Unknown => Rate { per_second: 100, burst: 50 },
        }
    }
}

impl Labels for ErrorClass {
    type LabelValue = ErrorClass;
    const NAME: &'static str = "class";
    const ALL: &'static [ErrorClass] = &[ErrorClass::Confirmed, ErrorClass::Answered, ErrorClass::Unconfirmed, ErrorClass::Unknown];

    fn index(class: ErrorClass) -> usize {
        class as usize
    }

    fn label(class: ErrorClass) -> &'static str {
        match class {
            ErrorClass::Confirmed => "confirmed",
            ErrorClass::Answered => "answered",
            ErrorClass::Unconfirmed => "unconfirmed",
            ErrorClass::Unknown => "unknown",
        }
    }

    /// Those without a flow are counted by their reason, as all that is left to the kernel.
    fn holds(class: ErrorClass) -> bool {
        class != ErrorClass::Unknown
    }
}
