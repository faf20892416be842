//! Source addresses and ports for SNAT.

use std::net::IpAddr;

use crate::tuple::AddrWords;

/// The source address of a flow towards its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The client's.
    Client,
    /// An address of the gateway.
    Replaced(AddrWords),
}

/// Source addresses and ports for connections whose client address is replaced.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnatRange {
    /// The IPv4 address, if any.
    pub v4: Option<IpAddr>,
    /// The IPv6 address, if any.
    pub v6: Option<IpAddr>,
    /// First port.
    pub port_first: u16,
    /// Last port, inclusive. Smaller than `port_first`: no ports.
    pub port_last: u16,
    /// Largest share of the ports towards one endpoint that one client or one Service may hold, percent; 0 and 100: no limit.
    pub share_percent: u8,
    /// IPv4 address that the kernel routes to the internal port: the source towards backends whose answers would not come back otherwise.
    pub internal_v4: Option<IpAddr>,
    /// The IPv6 one.
    pub internal_v6: Option<IpAddr>,
}

impl SnatRange {
    /// The address of a family.
    pub fn addr(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6 } else { self.v4 }
    }

    /// The address of a family that the kernel routes to the internal port.
    pub fn internal(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.internal_v6 } else { self.internal_v4 }
    }

    /// Most ports towards one endpoint that one client or one Service may hold.
    pub fn holder_max(&self) -> u64 {
        let ports = (u64::from(self.port_last) + 1).saturating_sub(u64::from(self.port_first));
        match self.share_percent {
            0 | 100.. => u64::MAX,
            percent => (ports * u64::from(percent) / 100).max(1),
        }
    }

    /// Whether packets to this address and port are answers to replaced sources.
    pub fn contains(&self, addr: IpAddr, port: u16) -> bool {
        self.addr(addr.is_ipv6()) == Some(addr) && (self.port_first..=self.port_last).contains(&port)
    }
}
