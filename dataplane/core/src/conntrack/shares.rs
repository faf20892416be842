//! Who holds how many source ports: so that one client or one Service cannot take the last ones towards an endpoint.
//!
//! A counter for each (endpoint, client) and (endpoint, Service address), in a table of counters found by hash. Two holders that share a counter
//! are taken for one: with a limit of thousands of ports and few holders of many that costs nobody a port.

use super::region::{Region, W_SNAT};
use super::{EndpointPorts, Flow};
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Why a connection gets no source port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPort {
    /// Its client or its Service holds as many as one may.
    Share,
    /// All of them are taken.
    Exhausted,
}

/// The source ports of the gateway's: see [`Conntrack::snat_ports`](super::Conntrack::snat_ports).
#[derive(Clone, Copy)]
pub struct SnatPorts<'r> {
    pub(super) region: Region<'r>,
}

impl<'r> SnatPorts<'r> {
    /// Counts a source port for a connection's client, Service and endpoint.
    ///
    /// # Errors
    /// When the client or the Service holds `most` already, or it is known that all are taken. Nothing is counted then.
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

    /// Takes back what [`SnatPorts::take`] counted, when the connection ends or never began.
    pub fn give_back(&self, flow: &Flow) {
        self.uncount(flow, true);
    }

    /// The same for a connection that has found all ports taken: until one is given back the next ones are refused at once.
    pub fn give_back_unfound(&self, flow: &Flow, ports: EndpointPorts<'_>) {
        self.uncount(flow, false);
        ports.none_left();
    }

    fn uncount(&self, flow: &Flow, was_taken: bool) {
        self.holders(flow).into_iter().for_each(give);
        give(self.region.header(W_SNAT));
        self.give_port(flow, was_taken);
    }

    /// Connections with a source port of ours.
    pub fn in_use(&self) -> u64 {
        self.region.header(W_SNAT).load(Relaxed)
    }

    /// The most source ports that one client or Service holds towards one endpoint.
    pub fn largest_share(&self) -> u64 {
        self.region.shares().iter().map(|holder| holder.load(Relaxed)).max().unwrap_or(0)
    }

    fn holders(&self, flow: &Flow) -> [&'r AtomicU64; 2] {
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
