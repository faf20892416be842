//! Which packets a tap wants.

use std::net::IpAddr;

use crate::conntrack::{Conntrack, Direction};
use crate::services::{ServicePort, Services};
use crate::tuple::{Prefix, Proto, Tuple};

/// Selects the packets of flows, both ways, and the packets that open none: those that fit all fields that are set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PacketFilter {
    /// Namespace and name of the Service.
    pub service: Option<(String, String)>,
    /// The endpoint's address, and perhaps its port.
    pub backend: Option<(Prefix, Option<u16>)>,
    /// The client's address.
    pub client: Option<Prefix>,
    /// The port that the client sends to.
    pub port: Option<u16>,
    /// The transport protocol.
    pub proto: Option<Proto>,
}

/// A packet and what knows its flow.
#[derive(Clone, Copy)]
pub struct FlowView<'v, 'c> {
    /// The table of Services.
    pub services: &'v Services,
    /// The connection table.
    pub table: &'v Conntrack<'c>,
    /// The packet. `None`: it cannot be read.
    pub packet: Option<Tuple>,
    pub(super) hash: Option<u64>,
}

/// A flow as far as it is known before its packet is decided.
pub(super) struct Flow {
    /// The client's packet.
    pub original: Tuple,
    /// As the endpoint gets it. `None`: no endpoint is chosen yet.
    pub rewritten: Option<Tuple>,
}

impl FlowView<'_, '_> {
    fn flow(&self, packet: &Tuple) -> Flow {
        let hash = self.hash.unwrap_or_else(|| self.table.hash(packet));
        match self.table.lookup(packet, hash) {
            Some(hit) if hit.direction == Direction::Original => Flow { original: *packet, rewritten: Some(hit.new) },
            Some(hit) => Flow { original: hit.new.reversed(), rewritten: Some(packet.reversed()) },
            None => Flow { original: *packet, rewritten: None },
        }
    }
}

impl PacketFilter {
    /// Whether a packet fits, as far as that is known before an endpoint is chosen for it: see [`PacketFilter::has_backend`].
    pub fn fits(&self, view: &FlowView<'_, '_>) -> bool {
        let Some(packet) = &view.packet else { return *self == PacketFilter::default() };
        if self.proto.is_some_and(|proto| proto != packet.proto) {
            return false;
        }
        // The cheapest first: most packets are of other Services. A client sends to an address of the table; what comes from elsewhere is a reply.
        let frontend = view.services.frontend(packet.dst_addr(), packet.dport, packet.proto);
        let sent_by_client = frontend.is_some();
        if let Some(frontend) = frontend
            && !self.is_for(&frontend.port)
        {
            return false;
        }
        if sent_by_client && self.backend.is_none() {
            return self.fits_client(packet);
        }
        let Flow { original, rewritten } = view.flow(packet);
        let of_service = || {
            let frontend = view.services.frontend(original.dst_addr(), original.dport, original.proto);
            self.service.is_none() || frontend.is_some_and(|frontend| self.is_for(&frontend.port))
        };
        self.fits_client(&original)
            && rewritten.is_none_or(|new| self.has_backend(new.dst_addr(), new.dport))
            && (sent_by_client || of_service())
    }

    fn is_for(&self, port: &ServicePort) -> bool {
        self.service.as_ref().is_none_or(|(namespace, name)| *namespace == port.namespace && *name == port.name)
    }

    /// Whether the client's packet fits.
    fn fits_client(&self, original: &Tuple) -> bool {
        self.port.is_none_or(|port| port == original.dport) && self.client.is_none_or(|prefix| prefix.contains(original.src_addr()))
    }

    /// Whether an endpoint fits.
    pub fn has_backend(&self, addr: IpAddr, at_port: u16) -> bool {
        self.backend.is_none_or(|(prefix, port)| prefix.contains(addr) && port.is_none_or(|port| port == at_port))
    }
}
