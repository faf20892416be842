//! The node itself: its addresses, and the source ports that its own connections use.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::NetError;
use super::decode::OwnScope;
use super::socket::Requests;
use super::state::{MirrorLimits, NetState};

/// The node's addresses without loopback and link-local ones, preferred ones first, then by interface.
pub fn local_addresses() -> Result<Vec<IpAddr>, NetError> {
    Ok(usable(&read()?))
}

/// Dumps links and addresses only.
fn read() -> Result<NetState, NetError> {
    let mut requests = Requests::open()?;
    let mut state = NetState::new(MirrorLimits::default());
    let listings = [
        ("read the interfaces", Message::GetLink(LinkMessage::default())),
        ("read the addresses", Message::GetAddress(AddressMessage::default())),
    ];
    for (what, request) in listings {
        for message in &requests.dump(what, request)?.messages {
            state.apply(message, false);
        }
    }
    Ok(state)
}

pub(super) fn usable(state: &NetState) -> Vec<IpAddr> {
    let mut found: Vec<_> = state.addresses.iter().filter(|a| a.scope != OwnScope::Restricted && !is_local_only(a.addr)).collect();
    found.sort_by_key(|a| (a.scope, a.link, a.addr.is_ipv6(), a.addr));
    let mut seen = BTreeSet::new();
    found.into_iter().map(|a| a.addr).filter(|a| seen.insert(*a)).collect()
}

fn is_local_only(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_unspecified(),
    }
}

/// The kernel's ephemeral ports cover a range for SNAT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnatRangeError {
    /// The configured range.
    pub range: (u16, u16),
    /// net.ipv4.ip_local_port_range.
    pub ephemeral: (u16, u16),
    /// A suitable value of net.ipv4.ip_local_reserved_ports.
    pub reserve: String,
}

impl std::error::Error for SnatRangeError {}

impl fmt::Display for SnatRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnatRangeError { range: (first, last), ephemeral: (low, high), reserve } = self;
        write!(
            f,
            "snat.ports {first}-{last}: all of them are ephemeral ports of the kernel (net.ipv4.ip_local_port_range {low}-{high}): {}",
            snat_ports_remedy(self.range, self.ephemeral, reserve)
        )
    }
}

/// What to do if no port of `range` is left for SNAT. Reserving all ephemeral ports would leave none to the node's own connections.
pub(crate) fn snat_ports_remedy(range: (u16, u16), (low, high): (u16, u16), reserve: &str) -> String {
    if range.0 <= low && high <= range.1 {
        "set a smaller range of ephemeral ports, such as `sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"`, or choose other snat.ports".into()
    } else {
        format!("set `sysctl -w net.ipv4.ip_local_reserved_ports={reserve}`, or choose other snat.ports")
    }
}

/// The ports of a SNAT range that must be left to the node's own connections, if the sources of SNAT are addresses of the node: those of
/// net.ipv4.ip_local_port_range, except net.ipv4.ip_local_reserved_ports. From the first to the last of them; `None` if there are none.
///
/// # Errors
/// If no port of the range remains.
pub fn ports_of_the_node(first: u16, last: u16) -> Result<Option<RangeInclusive<u16>>, NetError> {
    let ephemeral = read_proc("/proc/sys/net/ipv4/ip_local_port_range")?;
    let reserved = read_proc("/proc/sys/net/ipv4/ip_local_reserved_ports")?;
    Ok(ephemeral_ports((first, last), &ephemeral, &reserved)?)
}

fn read_proc(path: &str) -> Result<String, NetError> {
    std::fs::read_to_string(path).map_err(|source| NetError::Proc { what: "read".into(), path: path.into(), source })
}

/// The ports of a range that the kernel may assign to local sockets, from the texts of the two settings.
pub(crate) fn ephemeral_ports(range: (u16, u16), ephemeral: &str, reserved: &str) -> Result<Option<RangeInclusive<u16>>, SnatRangeError> {
    let mut words = ephemeral.split_whitespace().filter_map(|w| w.parse::<u16>().ok());
    let (Some(low), Some(high)) = (words.next(), words.next()) else { return Ok(None) };
    let reserved = parse_ranges(reserved);
    let is_reserved = |port: &u16| reserved.iter().any(|(a, b)| (a..=b).contains(&port));
    let mut shared = (range.0.max(low)..=range.1.min(high)).filter(|port| !is_reserved(port));
    let Some(first) = shared.next() else { return Ok(None) };
    let last = shared.next_back().unwrap_or(first);
    if (first, last) == range {
        let reserve = format_ranges(reserved.into_iter().chain([range]));
        return Err(SnatRangeError { range, ephemeral: (low, high), reserve });
    }
    Ok(Some(first..=last))
}

/// Parses `8080,9000-9010`.
fn parse_ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

/// Formats ranges in order, with overlapping and adjacent ones joined.
fn format_ranges(ranges: impl Iterator<Item = (u16, u16)>) -> String {
    let mut ranges: Vec<(u16, u16)> = ranges.collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    let words = joined.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_ports_are_left_to_the_node() {
        let excluded = |first, last, reserved| ephemeral_ports((first, last), "32768\t60999\n", reserved);
        assert_eq!(excluded(61_000, 65_535, "\n"), Ok(None));
        assert_eq!(excluded(1_024, 65_535, "61000-65535\n"), Ok(Some(32_768..=60_999)));
        assert_eq!(excluded(50_000, 50_100, "49000-50050,50051-51000\n"), Ok(None));
        assert_eq!(excluded(50_000, 61_000, "50000-50099"), Ok(Some(50_100..=60_999)));
        assert_eq!(excluded(60_999, 61_000, ""), Ok(Some(60_999..=60_999)));
        let text = excluded(50_000, 50_100, "80,50040-50050\n").unwrap_err().to_string();
        assert!(text.contains("`sysctl -w net.ipv4.ip_local_reserved_ports=80,50000-50100`"), "{text}");
        assert!(text.contains("32768-60999") && text.contains("50000-50100"), "{text}");
        excluded(60_999, 60_999, "").unwrap_err();
        let text = ephemeral_ports((1_024, 65_535), "1024 65535", "").unwrap_err().to_string();
        assert!(text.contains("ip_local_port_range=") && !text.contains("reserved_ports"), "the node needs some: {text}");
        assert_eq!(ephemeral_ports((1_024, 65_535), "1024 65535", "61000-65535"), Ok(Some(1_024..=60_999)));
    }

    #[test]
    fn ranges_are_joined_and_formatted_for_the_sysctl() {
        assert_eq!(format_ranges([(5, 9), (1, 1), (10, 12), (7, 8), (65_535, 65_535)].into_iter()), "1,5-12,65535");
        assert_eq!(parse_ranges("1,5-12,65535\n"), [(1, 1), (5, 12), (65_535, 65_535)]);
        assert_eq!(parse_ranges("\n"), []);
        assert_eq!(parse_ranges("x,70000,3-y,4"), [(4, 4)]);
    }

    // Copied from a kernel.
}
