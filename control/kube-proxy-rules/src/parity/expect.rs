//! What nomagic's table does with a packet, in the terms of a comparison.

use std::net::SocketAddr;

use nomagic_api::explain::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::services::{Decision, Services, SnatCause};
use nomagic_core::tuple::Tuple;

use crate::compare::Expected;

/// The table's answer, with its reason.
pub struct TableAnswer {
    pub outcome: Expected,
    /// Why the packet is not forwarded.
    pub reason: Option<Reason>,
}

/// What the table does with the first packet of a connection.
pub fn expected(services: &Services, tuple: &Tuple) -> TableAnswer {
    let refused = |verdict, reason| TableAnswer {
        outcome: Expected { verdict, backends: [].into(), snat: false, affinity_s: None },
        reason: Some(reason),
    };
    // Such packets never reach the packet path.
    if tuple.dst_addr().is_loopback() {
        return refused(Verdict::Pass, Reason::NotOurs);
    }
    match services.decide(tuple) {
        Decision::Pass(reason) => refused(Verdict::Pass, reason),
        Decision::Reject(_, reason) => refused(Verdict::Reject, reason),
        Decision::Drop(_, reason) => refused(Verdict::Drop, reason),
        Decision::Forward { matched, pool, snat, .. } => TableAnswer {
            outcome: Expected {
                verdict: Verdict::Forward,
                backends: pool.backends.iter().map(|backend| SocketAddr::new(backend.addr, backend.port)).collect(),
                snat: snat == Some(SnatCause::Masquerade),
                affinity_s: matched.frontend.port.affinity.map(|affinity| affinity.timeout_s),
            },
            reason: None,
        },
    }
}
