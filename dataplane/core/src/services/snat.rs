//! Source addresses and ports for SNAT.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::tuple::{AddrWords, fast_range};

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
    /// The IPv4 addresses. A flow's hash chooses among them, so they fill evenly.
    pub v4: Vec<IpAddr>,
    /// The IPv6 ones.
    pub v6: Vec<IpAddr>,
    /// First port.
    pub port_first: u16,
    /// Last port, inclusive. Smaller than `port_first`: no ports.
    pub port_last: u16,
    /// Ports in between that are left to the node's own connections.
    pub excluded: Option<RangeInclusive<u16>>,
    /// Largest share of the ports towards one endpoint that one Service may hold, percent; 0 and 100: no limit.
    pub share_percent: u8,
    /// The same for one client.
    pub client_share_percent: u8,
    /// IPv4 address that the kernel routes to the internal port: the source towards backends whose answers would not come back otherwise.
    pub internal_v4: Option<IpAddr>,
    /// The IPv6 one.
    pub internal_v6: Option<IpAddr>,
}

/// The most source ports towards one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortLimits {
    /// For one client.
    pub client: u64,
    /// For one Service.
    pub service: u64,
}

impl PortLimits {
    /// No limits.
    pub const NONE: PortLimits = PortLimits { client: u64::MAX, service: u64::MAX };
}

impl SnatRange {
    /// The addresses of a family.
    pub fn addrs(&self, v6: bool) -> &[IpAddr] {
        if v6 { &self.v6 } else { &self.v4 }
    }

    /// The address for a flow with this hash.
    #[inline]
    pub fn addr_for(&self, v6: bool, hash: u64) -> Option<IpAddr> {
        let addrs = self.addrs(v6);
        addrs.get(fast_range(hash as u32, addrs.len() as u32) as usize).copied()
    }

    /// The address of a family that the kernel routes to the internal port.
    pub fn internal(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.internal_v6 } else { self.internal_v4 }
    }

    /// Whether packets with this source can only come from this gateway.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        let v6 = addr.is_ipv6();
        self.addrs(v6).contains(&addr) || self.internal(v6) == Some(addr)
    }

    /// The source ports.
    pub fn ports(&self) -> PortSet {
        PortSet::new(self.port_first..=self.port_last, self.excluded.clone())
    }

    /// How many ports a client and a Service may hold towards one endpoint.
    pub fn limits(&self) -> PortLimits {
        let ports = u64::from(self.ports().len());
        let of = |percent: u8| match percent {
            0 | 100.. => u64::MAX,
            percent => (ports * u64::from(percent) / 100).max(1),
        };
        PortLimits { client: of(self.client_share_percent), service: of(self.share_percent) }
    }

    /// Whether packets to this address and port look like answers to replaced sources.
    pub fn contains(&self, addr: IpAddr, port: u16) -> bool {
        self.addrs(addr.is_ipv6()).contains(&addr) && self.ports().contains(port)
    }

    /// Whether flows may get this source address and port.
    pub fn gives(&self, addr: IpAddr, port: u16) -> bool {
        self.is_own(addr) && self.ports().contains(port)
    }
}

/// A range of ports with a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortSet {
    first: u16,
    len: u32,
    /// Ports before the gap, and in it.
    gap: (u32, u32),
}

impl PortSet {
    /// These ports without `excluded`.
    pub fn new(ports: RangeInclusive<u16>, excluded: Option<RangeInclusive<u16>>) -> PortSet {
        let len = (u32::from(*ports.end()) + 1).saturating_sub(u32::from(*ports.start()));
        let overlap =
            excluded.map(|gap| (*gap.start().max(ports.start()), *gap.end().min(ports.end()))).filter(|(first, last)| first <= last);
        let gap = overlap.map_or((len, 0), |(first, last)| (u32::from(first - ports.start()), u32::from(last - first) + 1));
        PortSet { first: *ports.start(), len: len - gap.1, gap }
    }

    /// Number of ports.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The port with this number, counted from 0 and below [`PortSet::len`].
    #[inline(always)]
    pub fn port(&self, number: u32) -> u16 {
        let (before, gap) = self.gap;
        self.first.wrapping_add((number + if number < before { 0 } else { gap }) as u16)
    }

    /// Whether a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        let Some(offset) = u32::from(port).checked_sub(u32::from(self.first)) else { return false };
        let (before, gap) = self.gap;
        offset < before.min(self.len) || (before + gap..self.len + gap).contains(&offset)
    }

    /// All ports, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        let set = *self;
        (0..set.len).map(move |number| set.port(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_set_is_a_range_without_a_gap() {
        for (ports, gap) in [
            (1_024..=65_535, Some(32_768..=60_999)),
            (1_024..=65_535, None),
            (61_000..=65_535, Some(32_768..=60_999)),
            (40_000..=50_000, Some(32_768..=60_999)),
            (50_000..=61_010, Some(32_768..=60_999)),
            (30_000..=40_000, Some(32_768..=60_999)),
            (65_535..=65_535, Some(1..=2)),
            (0..=65_535, Some(0..=65_534)),
        ] {
            let expected: Vec<u16> = ports.clone().filter(|port| !gap.as_ref().is_some_and(|gap| gap.contains(port))).collect();
            let set = PortSet::new(ports.clone(), gap.clone());
            assert_eq!(set.iter().collect::<Vec<_>>(), expected, "{ports:?} {gap:?}");
            assert_eq!((0..=u16::MAX).filter(|port| set.contains(*port)).count(), expected.len(), "{ports:?} {gap:?}");
            assert!(expected.iter().all(|port| set.contains(*port)) && set.is_empty() == expected.is_empty());
        }
        let (from, to) = (2, 1);
        assert!(PortSet::new(from..=to, None).is_empty());
    }

    #[test]
    fn several_addresses_are_filled_evenly() {
        let v4: Vec<IpAddr> = (1..=3).map(|last| [10, 0, 0, last].into()).collect();
        let range = SnatRange { v4: v4.clone(), ..SnatRange::default() };
        let mut state = 1;
        let mut counts = [0u32; 3];
        for _ in 0..3_000 {
            let addr = range.addr_for(false, crate::tuple::splitmix64(&mut state)).unwrap();
            counts[v4.iter().position(|known| *known == addr).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
        assert_eq!(range.addr_for(true, 1), None);
    }
}
