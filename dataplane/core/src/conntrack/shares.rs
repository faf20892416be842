//! Counts the source ports of each client and Service, so that none of them can take all ports towards an endpoint.
//!
//! A counter for each (endpoint, client) and (endpoint, Service address), found by hash. Holders whose hashes collide share a counter. With
//! limits of thousands of ports, and few holders of many, that has no effect in practice.

use super::region::{Region, W_SNAT};
use super::{EndpointPorts, Flow};
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Why a flow gets no source port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPort {
    /// Its client or its Service has reached the limit.
    Share,
    /// All of them are taken.
    Exhausted,
}

/// The source ports of flows with SNAT: see [`Conntrack::snat_ports`](super::Conntrack::snat_ports).
#[derive(Clone, Copy)]
pub struct SnatPorts<'r> {
    pub(super) region: Region<'r>,
}

impl<'r> SnatPorts<'r> {
    /// Counts a source port for a flow's client, Service and endpoint.
    ///
    /// # Errors
    /// When the client or the Service holds `most` already, or the endpoint is marked as exhausted. Nothing is counted then.
    pub fn take(&self, flow: &Flow, most: u64) -> Result<EndpointPorts<'r>, NoPort> {
        let holders = self.holders(flow);
        for (i, holder) in holders.iter().enumerate() {
            if holder.fetch_add(1, Relaxed) >= most {
                holders[..=i].iter().for_each(|h| give(h));
                return Err(NoPort::Share);
            }
        }
        let Some(ports) = self.take_port(flow) else {
            holders.into_iter().for_each(give);
            return Err(NoPort::Exhausted);
        };
        self.region.header(W_SNAT).fetch_add(1, Relaxed);
        Ok(ports)
    }

    /// Reverses [`SnatPorts::take`], when the flow ends or was not created.
    pub fn give_back(&self, flow: &Flow) {
        self.uncount(flow, true);
    }

    /// The same for a flow that found all ports taken. Until one is released, further flows are refused at once.
    pub fn give_back_unfound(&self, flow: &Flow, ports: EndpointPorts<'_>) {
        self.uncount(flow, false);
        ports.none_left();
    }

    fn uncount(&self, flow: &Flow, was_taken: bool) {
        self.holders(flow).into_iter().for_each(give);
        give(self.region.header(W_SNAT));
        self.give_port(flow, was_taken);
    }

    /// Flows with SNAT.
    pub fn in_use(&self) -> u64 {
        self.region.header(W_SNAT).load(Relaxed)
    }

    /// The most source ports that one client or Service holds towards one endpoint.
    pub fn largest_share(&self) -> u64 {
        self.region.shares().iter().map(|holder| holder.load(Relaxed)).max().unwrap_or(0)
    }

    pub(super) fn holders(&self, flow: &Flow) -> [&'r AtomicU64; 2] {
        let seed = &self.region.seed;
        let kind = (u64::from(flow.backend_port) << 16) | (u64::from(flow.proto as u8) << 8) | u64::from(flow.v6);
        let [b0, b1] = flow.backend;
        let client = seed.hash_words(&[b0, b1, kind, flow.client[0], flow.client[1]]);
        let service = seed.hash_words(&[b0, b1, kind, flow.service[0], flow.service[1], u64::from(flow.service_port)]);
        [client, service].map(|hash| self.region.share(hash))
    }
}

fn give(holder: &AtomicU64) {
    holder.fetch_sub(1, Relaxed);
}
