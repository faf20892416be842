//! The deny list: the XDP filter drops packets of these sources, of those that it would take otherwise.
//!
//! Whatever else a denied source sends (ssh, BGP, ICMP) still reaches the kernel: the list must not cut the node off. Tests compare the
//! program's look-up (`dataplane/xsk/bpf/filter.c`) with [`DenyList::longest_match`].

use std::collections::HashSet;
use std::net::IpAddr;

use crate::tuple::Prefix;

/// Maximum number of prefixes in the deny list, of all origins together.
pub const DENY_PREFIXES_MAX: usize = 65_536;

/// What becomes of a denied packet, as [`crate::counters::XdpCounts`] names it.
pub const OUTCOME: &str = "denied";

/// Denied sources.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DenyList {
    prefixes: HashSet<Prefix>,
}

impl DenyList {
    /// The prefix under which a packet of this source is dropped and counted; `None`: it is not denied.
    pub fn longest_match(&self, source: IpAddr) -> Option<Prefix> {
        let bits = Prefix::host(source).prefix_len();
        (0..=bits).rev().filter_map(|len| Prefix::new(source, len)).find(|prefix| self.prefixes.contains(prefix))
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether nothing is denied.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }
}

impl FromIterator<Prefix> for DenyList {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> DenyList {
        DenyList { prefixes: prefixes.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_that_has_the_source_matches() {
        let list: DenyList =
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "fd00::/8", "fd00:1::/32", "::/0"].iter().map(|p| p.parse().unwrap()).collect();
        assert_eq!((list.len(), DenyList::default().is_empty()), (6, true));
        let cases = [
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("10.1.2.4", Some("10.1.0.0/16")),
            ("10.2.0.0", Some("10.0.0.0/8")),
            ("11.0.0.0", None),
            ("fd00:1::1", Some("fd00:1::/32")),
            ("fd01::1", Some("fd00::/8")),
            // IPv4's words in an IPv6 address are another address.
            ("::ffff:10.1.2.3", Some("::/0")),
        ];
        for (source, expected) in cases {
            let found = list.longest_match(source.parse().unwrap()).map(|prefix| prefix.to_string());
            assert_eq!(found.as_deref(), expected, "{source}");
        }
        assert!(crate::counters::XdpCounts::OUTCOMES.contains(&OUTCOME));
        assert_eq!(DenyList::default().longest_match("10.1.2.3".parse().unwrap()), None);
    }
}
