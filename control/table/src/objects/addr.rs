//! Parses addresses like Kubernetes, and rejects those that no endpoint or Service can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::tuple::Prefix;

/// Parses an address like Kubernetes: `010.0.0.1` is 10.0.0.1 (decimal, not octal), `::ffff:10.0.0.1` is 10.0.0.1.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let v6: Ipv6Addr = text.parse().ok()?;
        return Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4));
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_octet(parts.next()?)?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn parse_octet(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.len() <= 8 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse::<u32>().ok()).flatten().and_then(|n| u8::try_from(n).ok())
}

/// Parses a CIDR like Kubernetes: ignores surrounding blanks and clears host bits. A bare address is not a CIDR.
pub fn parse_cidr(text: &str) -> Option<Prefix> {
    let (addr, len) = text.trim().split_once('/')?;
    let digits = !len.is_empty() && len.len() <= 8 && len.bytes().all(|b| b.is_ascii_digit());
    let len = digits.then(|| len.parse::<u32>().ok()).flatten()?;
    Prefix::new(parse_ip(addr)?, u8::try_from(len).ok()?)
}

/// Why an address can be neither an endpoint's nor a Service's; `None`: it can.
pub fn fault(addr: IpAddr) -> Option<&'static str> {
    let link_local = match addr {
        IpAddr::V4(a) if a.is_broadcast() => return Some("the broadcast address"),
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    match addr {
        a if a.is_unspecified() => Some("the unspecified address"),
        a if a.is_loopback() => Some("a loopback address"),
        a if a.is_multicast() => Some("a multicast address"),
        _ if link_local => Some(LINK_LOCAL),
        _ => None,
    }
}

/// The same for a cluster IP: the API server gives out link-local ones if a ServiceCIDR says so.
pub fn fault_of_cluster_ip(addr: IpAddr) -> Option<&'static str> {
    fault(addr).filter(|fault| *fault != LINK_LOCAL)
}

const LINK_LOCAL: &str = "a link-local address";

/// `ip:port`, or `[v6]:port`.
pub fn socket(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.008.0.01", Some("10.8.0.1")),
            ("192.168.000.010", Some("192.168.0.10")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00:0:0::0A", Some("fd00::a")),
            ("256.0.0.1", None),
            ("1.2.3", None),
            ("1.2.3.4.5", None),
            ("1.2..4", None),
            ("+1.2.3.4", None),
            ("0x10.0.0.1", None),
            ("000000000001.2.3.4", None),
            ("fe80::1%eth0", None),
            ("pod-1.example", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_ip(text).map(|a| a.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn cidrs() {
        let table = [
            (" 203.0.113.0/25", Some("203.0.113.0/25")),
            ("010.1.2.3/08 ", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/256", None),
            ("10.0.0.0/", None),
            ("::/129", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_cidr(text).map(|p| p.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn faults() {
        let bad = ["0.0.0.0", "127.0.0.1", "127.9.9.9", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1"];
        assert!(bad.iter().all(|a| fault(a.parse().unwrap()).is_some()));
        assert!(["10.0.0.1", "fd00::1", "2001:db8::1"].iter().all(|a| fault(a.parse().unwrap()).is_none()));
    }
}
