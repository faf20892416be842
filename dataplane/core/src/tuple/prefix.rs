//! Address prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address prefix (CIDR).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// A prefix; host bits are cleared. `None` when `len` is longer than the address.
    pub fn new(addr: IpAddr, len: u8) -> Option<Prefix> {
        let bits = if addr.is_ipv6() { 128 } else { 32 };
        if len > bits {
            return None;
        }
        Some(Prefix { addr: mask_addr(addr, len), len })
    }

    /// The single-address prefix.
    pub fn host(addr: IpAddr) -> Prefix {
        Prefix { addr, len: if addr.is_ipv6() { 128 } else { 32 } }
    }

    /// The network address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The number of leading bits that count.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether the address is inside (same family and same leading bits).
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv6() == self.addr.is_ipv6() && mask_addr(addr, self.len) == self.addr
    }
}

/// Disjoint prefixes in the order of their addresses: whether one contains an address takes a binary search.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrefixSet(Box<[Prefix]>);

impl PrefixSet {
    /// A set of these prefixes; those inside of others are left out.
    pub fn new(prefixes: impl IntoIterator<Item = Prefix>) -> PrefixSet {
        let mut prefixes: Vec<Prefix> = prefixes.into_iter().collect();
        // A prefix sorts before those inside of it.
        prefixes.sort_by_key(|p| (p.addr, p.len));
        prefixes.dedup_by(|inner, outer| outer.contains(inner.addr));
        PrefixSet(prefixes.into())
    }

    /// Whether one of them contains the address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let after = self.0.partition_point(|p| p.addr <= addr);
        after > 0 && self.0[after - 1].contains(addr)
    }

    /// The prefixes.
    pub fn prefixes(&self) -> &[Prefix] {
        &self.0
    }
}

/// Clears the host bits of an address.
pub fn mask_addr(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(a) & mask))
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    /// Reads `10.0.0.0/8` or a bare address (a single-address prefix).
    fn from_str(s: &str) -> Result<Prefix, String> {
        let (addr, len) = match s.split_once('/') {
            Some((a, l)) => (a, Some(l)),
            None => (s, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| format!("`{s}` is not an address or CIDR"))?;
        let Some(len) = len else { return Ok(Prefix::host(addr)) };
        let len: u8 = len.parse().map_err(|_| format!("`{s}`: the prefix length is not a number"))?;
        Prefix::new(addr, len).ok_or_else(|| format!("`{s}`: the prefix length is longer than the address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_what_its_prefixes_contain() {
        let parse = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Prefix>>();
        let all = parse(&["10.0.0.8/29", "10.0.0.0/28", "10.0.0.32/32", "10.0.0.0/28", "fd00::/126", "fd00::2/128", "0.0.0.0/30"]);
        let set = PrefixSet::new(all.clone());
        assert_eq!(set.prefixes(), parse(&["0.0.0.0/30", "10.0.0.0/28", "10.0.0.32/32", "fd00::/126"]));
        let v4 = (0..8).chain(0x09ff_fff0u32..0x0a00_0030).map(|a| IpAddr::from(Ipv4Addr::from(a)));
        let v6 = (0..8).flat_map(|a| [Ipv6Addr::from(a), Ipv6Addr::from((0xfd00 << 112) + a)]).map(IpAddr::from);
        for addr in v4.chain(v6) {
            assert_eq!(set.contains(addr), all.iter().any(|p| p.contains(addr)), "{addr}");
            assert!(!PrefixSet::default().contains(addr));
        }
    }

    #[test]
    fn prefixes() {
        let p: Prefix = "10.1.2.3/8".parse().unwrap();
        assert_eq!(p.to_string(), "10.0.0.0/8");
        assert!(p.contains("10.255.0.1".parse().unwrap()));
        assert!(!p.contains("11.0.0.1".parse().unwrap()));
        assert!(!p.contains("::a00:1".parse().unwrap()));
        let all: Prefix = "::/0".parse().unwrap();
        assert!(all.contains("fd00::1".parse().unwrap()));
        for bad in ["10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
