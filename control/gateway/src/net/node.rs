//! The node itself: its addresses, and whether a range of ports on them is free for SNAT.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::NetError;
use super::decode::OwnScope;
use super::socket::Requests;
use super::state::{Limits, NetState};

/// The node's addresses without loopback and link-local ones, preferred ones first, then by interface.
pub fn local_addresses() -> Result<Vec<IpAddr>, NetError> {
    Ok(usable(&read()?))
}

/// Dumps links and addresses only.
fn read() -> Result<NetState, NetError> {
    let mut requests = Requests::open()?;
    let mut state = NetState::new(Limits::default());
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

/// Why a port range cannot be used for SNAT on an address of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnatRangeError {
    /// The range overlaps the kernel's ephemeral ports.
    Ephemeral {
        /// The address that belongs to this node.
        addr: IpAddr,
        /// The configured range.
        range: (u16, u16),
        /// net.ipv4.ip_local_port_range.
        ephemeral: (u16, u16),
        /// A suitable value of net.ipv4.ip_local_reserved_ports.
        reserve: String,
    },
    /// A local socket uses a port of the range.
    Socket {
        /// The configured range.
        range: (u16, u16),
        /// The socket's table: tcp, tcp6, udp or udp6.
        table: &'static str,
        /// The socket's address.
        addr: IpAddr,
        /// The socket's port.
        port: u16,
        /// The socket's inode, as in `ss -e`.
        inode: u64,
    },
}

impl std::error::Error for SnatRangeError {}

impl fmt::Display for SnatRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnatRangeError::Ephemeral { addr, range: (first, last), ephemeral: (low, high), reserve } => write!(
                f,
                "snat.ports {first}-{last} on {addr}, an address of this node, overlaps the kernel's ephemeral ports \
                 (net.ipv4.ip_local_port_range {low}-{high}): set `sysctl -w net.ipv4.ip_local_reserved_ports={reserve}`, or choose other snat.ports"
            ),
            SnatRangeError::Socket { range: (first, last), table, addr, port, inode } => {
                let local = std::net::SocketAddr::new(*addr, *port);
                write!(
                    f,
                    "snat.ports {first}-{last}: a local {} socket uses {local} (inode {inode}; find it with `ss -aep 'sport = :{port}'`): \
                     stop it, or choose other snat.ports",
                    &table[..3]
                )
            }
        }
    }
}

/// Checks that the node itself does not use a SNAT port range and will not. Passes for addresses that are not the node's.
pub fn check_snat_range(addresses: &[IpAddr], first: u16, last: u16) -> Result<(), NetError> {
    let state = read()?;
    let own: Vec<IpAddr> = addresses.iter().copied().filter(|a| state.addresses.iter().any(|o| o.addr == *a)).collect();
    let Some(addr) = own.first() else { return Ok(()) };
    let ephemeral = read_proc("/proc/sys/net/ipv4/ip_local_port_range")?;
    let reserved = read_proc("/proc/sys/net/ipv4/ip_local_reserved_ports")?;
    check_ephemeral(*addr, (first, last), &ephemeral, &reserved)?;
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        // A kernel without IPv6 has no tcp6 and udp6. `thread-self` is the calling thread's namespace, not the process's.
        let Ok(text) = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")) else { continue };
        check_sockets(table, &text, &own, (first, last))?;
    }
    Ok(())
}

fn read_proc(path: &str) -> Result<String, NetError> {
    std::fs::read_to_string(path).map_err(|source| NetError::Proc { what: "read".into(), path: path.into(), source })
}

fn check_ephemeral(addr: IpAddr, range: (u16, u16), ephemeral: &str, reserved: &str) -> Result<(), SnatRangeError> {
    let mut words = ephemeral.split_whitespace().filter_map(|w| w.parse::<u16>().ok());
    let (Some(low), Some(high)) = (words.next(), words.next()) else { return Ok(()) };
    let reserved = parse_ranges(reserved);
    let is_reserved = |port: &u16| reserved.iter().any(|(a, b)| (a..=b).contains(&port));
    if (range.0.max(low)..=range.1.min(high)).all(|port| is_reserved(&port)) {
        return Ok(());
    }
    let reserve = format_ranges(reserved.into_iter().chain([range]));
    Err(SnatRangeError::Ephemeral { addr, range, ephemeral: (low, high), reserve })
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

/// Checks the sockets in one of /proc/net/{tcp,tcp6,udp,udp6}.
fn check_sockets(table: &'static str, text: &str, own: &[IpAddr], range: (u16, u16)) -> Result<(), SnatRangeError> {
    for (addr, port, inode) in text.lines().skip(1).filter_map(parse_socket) {
        let concerns = addr.is_unspecified() || own.contains(&addr);
        if concerns && (range.0..=range.1).contains(&port) {
            return Err(SnatRangeError::Socket { range, table, addr, port, inode });
        }
    }
    Ok(())
}

/// Parses local address, port and inode. `None` for malformed lines and sockets in TIME_WAIT.
fn parse_socket(line: &str) -> Option<(IpAddr, u16, u64)> {
    let mut words = line.split_whitespace();
    let (addr, port) = words.nth(1)?.split_once(':')?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok()?;
    if state == "06" {
        return None;
    }
    // 32-bit words, printed in host byte order.
    let word = |i: usize| u32::from_str_radix(addr.get(i * 8..i * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let addr = match addr.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((addr, u16::from_str_radix(port, 16).ok()?, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn ephemeral_ports_must_be_reserved() {
        let check = |first, last, reserved| check_ephemeral(ip("10.0.0.1"), (first, last), "32768\t60999\n", reserved);
        assert_eq!(check(61_000, 65_535, "\n"), Ok(()));
        assert_eq!(check(50_000, 50_100, "49000-50050,50051-51000\n"), Ok(()));
        let error = check(60_000, 61_000, "80,60500-60999\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`sysctl -w net.ipv4.ip_local_reserved_ports=80,60000-61000`"), "{text}");
        assert!(text.contains("10.0.0.1") && text.contains("32768-60999") && text.contains("60000-61000"), "{text}");
        assert!(check(60_999, 60_999, "").is_err());
    }

    #[test]
    fn ranges_join_and_print_as_the_sysctl_wants_them() {
        assert_eq!(format_ranges([(5, 9), (1, 1), (10, 12), (7, 8), (65_535, 65_535)].into_iter()), "1,5-12,65535");
        assert_eq!(parse_ranges("1,5-12,65535\n"), [(1, 1), (5, 12), (65_535, 65_535)]);
        assert_eq!(parse_ranges("\n"), []);
        assert_eq!(parse_ranges("x,70000,3-y,4"), [(4, 4)]);
    }

    // Lines as the kernel writes them.
    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 0100000A:EE48 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0\n\
        \x20  1: 0100000A:EE49 0200000A:0050 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0000000000000000\n\
        garbage\n";
    const UDP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
        \x20  7: 0000000000000000FFFF00000100000A:F000 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0000000000000000 0\n\
        \x20  8: 00000000000000000000000000000000:F001 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 98 2 0000000000000000 0\n";

    #[test]
    fn sockets_in_the_range_are_named() {
        let own = [ip("10.0.0.1")];
        let error = check_sockets("tcp", TCP, &own, (61_000, 61_000)).unwrap_err();
        assert_eq!(error, SnatRangeError::Socket { range: (61_000, 61_000), table: "tcp", addr: own[0], port: 61_000, inode: 4711 });
        assert!(error.to_string().contains("tcp socket uses 10.0.0.1:61000 (inode 4711"), "{error}");
        assert_eq!(check_sockets("tcp", TCP, &own, (61_001, 61_002)), Ok(()), "TIME_WAIT and garbage");
        assert_eq!(check_sockets("tcp", TCP, &[ip("10.0.0.9")], (61_000, 61_000)), Ok(()), "another address");
        assert!(check_sockets("udp6", UDP6, &own, (0xf000, 0xf000)).is_err(), "a mapped address");
        assert!(check_sockets("udp6", UDP6, &[ip("fd00::1")], (0xf001, 0xf001)).is_err(), "the wildcard");
        assert_eq!(check_sockets("udp6", UDP6, &own, (0xf002, 0xffff)), Ok(()));
    }
}
