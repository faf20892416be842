//! Where a packet goes next.

use super::{Mac, Port};
use crate::frame::{NextHopId, PortId, Wanted};
use crate::reason::Reason;

/// A link-layer destination, in 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Destination and source MAC addresses, in frame layout.
    pub link: [u8; 12],
    /// The port that sends.
    pub port: PortId,
    /// MTU of the port: bytes of an IP packet, which are 65,535 at the most.
    pub mtu: u16,
}

impl NextHop {
    pub(super) fn new(id: PortId, port: &Port, dst: Mac) -> NextHop {
        let mut link = [0; 12];
        link[..6].copy_from_slice(&dst);
        link[6..].copy_from_slice(&port.mac);
        NextHop { link, port: id, mtu: u16::try_from(port.mtu).unwrap_or(u16::MAX) }
    }

    /// The same with a route's own MTU, which cannot exceed the port's.
    pub(super) fn with_mtu(self, mtu: u16) -> NextHop {
        NextHop { mtu: self.mtu.min(mtu), ..self }
    }

    /// To this MAC address.
    pub fn dst_mac(&self) -> Mac {
        std::array::from_fn(|i| self.link[i])
    }

    /// From this one.
    pub fn src_mac(&self) -> Mac {
        std::array::from_fn(|i| self.link[6 + i])
    }
}

/// The route of a destination, resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The next hop with its MAC address.
    Hop(NextHopId),
    /// The neighbour's MAC address must be resolved first.
    Ask(Wanted),
    /// Through the kernel: see [`Routes::kernel_hop`](super::Routes::kernel_hop).
    Kernel {
        /// Answers arrive at an interface with the XDP filter.
        captured: bool,
    },
    /// Unreachable.
    Nowhere(Reason),
}
