//! Counts the source ports of each client and Service, so that none of them can take all ports towards an endpoint.
//!
//! A counter for each (endpoint, client) in one half of an array, and for each (endpoint, Service address) in the other, found by hash.
//! Holders whose hashes collide share a counter. With limits of thousands of ports, and few holders of many, that has no effect in practice.

use super::region::{Region, W_SNAT};
use super::{EndpointPorts, Flow};
use crate::services::PortLimits;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::fast_range;

/// Why a flow gets no source port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPort {
    /// Its client has reached the limit.
    ClientShare,
    /// Its Service has reached the limit.
    ServiceShare,
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
    /// When the client or the Service has reached its limit, or the endpoint is marked as exhausted. Nothing is counted then.
    pub fn take(&self, flow: &Flow, limits: PortLimits) -> Result<EndpointPorts<'r>, NoPort> {
        let holders = self.holders(flow);
        let limits = [(limits.client, NoPort::ClientShare), (limits.service, NoPort::ServiceShare)];
        for (i, (holder, (most, refused))) in holders.iter().zip(limits).enumerate() {
            if holder.fetch_add(1, Relaxed) >= most {
                holders[..=i].iter().for_each(|h| give(h));
                return Err(refused);
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

    /// The most source ports that one client, and that one Service, holds towards one endpoint.
    pub fn largest_shares(&self) -> PortLimits {
        let most = |half: &[AtomicU64]| half.iter().map(|holder| holder.load(Relaxed)).max().unwrap_or(0);
        let (clients, services) = self.halves();
        PortLimits { client: most(clients), service: most(services) }
    }

    fn halves(&self) -> (&'r [AtomicU64], &'r [AtomicU64]) {
        let all = self.region.shares();
        all.split_at(all.len() / 2)
    }

    pub(super) fn holders(&self, flow: &Flow) -> [&'r AtomicU64; 2] {
        let seed = &self.region.seed;
        let kind = (u64::from(flow.backend_port) << 16) | (u64::from(flow.proto as u8) << 8) | u64::from(flow.v6);
        let [b0, b1] = flow.backend;
        let client = seed.hash_words(&[b0, b1, kind, flow.client[0], flow.client[1]]);
        let service = seed.hash_words(&[b0, b1, kind, flow.service[0], flow.service[1], u64::from(flow.service_port)]);
        let (clients, services) = self.halves();
        [(clients, client), (services, service)].map(|(half, hash)| &half[fast_range((hash >> 32) as u32, half.len() as u32) as usize])
    }
}

fn give(holder: &AtomicU64) {
    holder.fetch_sub(1, Relaxed);
}
