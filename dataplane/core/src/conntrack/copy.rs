//! Copies what the fate of one packet depends on into another table, so that it can be tried out without touching the living one.
//!
//! The table that is copied from is only read, while workers use it. The other one must be the caller's alone, and have the same seed.

use super::flow::{HOPS, HOPS_MASK, TARGET, created_of, with_created};
use super::{Conntrack, CountedClient, Flow, Hit, Sticky};
use crate::services::PortLimits;
use crate::sync::Ordering::Relaxed;

/// Copies the flow behind `hit`, as it was when it was found: phase, times, cached next hops, sequence numbers, and what is counted for it. `None`: it
/// has ended meanwhile, has been copied before, or there is no room.
pub fn copy_flow(from: &Conntrack<'_>, hit: &Hit, to: &Conntrack<'_>) -> Option<Flow> {
    let mut flow = from.flow(hit)?;
    let (hash, port) = (to.hash(&flow.original()), flow.source_port);
    let pending = to.reserve(&mut flow, hash, hit.phase, hit.seen_ms, std::iter::once(port)).ok()?;
    let copy = to.commit(pending).ok()?;
    let words = to.region.slot(copy.slot).0;
    words[TARGET].store(with_created(copy.target, created_of(hit.target)), Relaxed);
    words[HOPS].store((copy.hops & !HOPS_MASK) | (hit.hops & HOPS_MASK), Relaxed);
    to.region.sequence(copy.slot).store(from.region.sequence(hit.slot).load(Relaxed), Relaxed);
    if let Some(client) = flow.counted.filter(|_| !hit.phase.is_over()) {
        let _ = to.clients().take(client, u64::MAX);
    }
    if flow.replaces_source() {
        // Without a limit it cannot fail but for a mark that nobody has set here.
        let _ = to.snat_ports().take(&flow, PortLimits::NONE);
    }
    Some(flow)
}

/// Copies how many source ports each client and Service holds, and what is known of the ports of these flows' endpoints.
pub fn copy_port_counts(from: &Conntrack<'_>, flows: &[Flow], to: &Conntrack<'_>) {
    for (theirs, ours) in from.region.shares().iter().zip(to.region.shares()) {
        ours.store(theirs.load(Relaxed), Relaxed);
    }
    for flow in flows {
        to.snat_ports().copy_line(&from.snat_ports(), flow);
    }
}

/// Copies how many flows are counted for a client.
pub fn copy_client_count(from: &Conntrack<'_>, client: CountedClient, to: &Conntrack<'_>) {
    to.clients().copy(&from.clients(), client);
}

/// Copies which endpoint is remembered for a client, and since when. Returns both, see [`Affinity::remembered`](super::Affinity::remembered).
pub fn copy_affinity(from: &Conntrack<'_>, sticky: &Sticky, now_ms: u64, to: &Conntrack<'_>) -> Option<(u64, u64)> {
    let (identity, age_s) = from.affinity().remembered(sticky, now_ms)?;
    to.affinity().stick(sticky, now_ms.saturating_sub(age_s * 1_000), |_| false, identity);
    Some((identity, age_s))
}

#[cfg(test)]
mod tests;
