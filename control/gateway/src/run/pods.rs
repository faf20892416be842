//! Detection of local pods by the interfaces to which the kernel routes their addresses.

use nomagic_core::tuple::Prefix;

use crate::config::{Config, DetectLocal};
use crate::net::Mirror;

/// Maximum number of addresses and ranges of local pods. Bounded because ranges are searched linearly for each new connection.
const RANGES_MAX: usize = 4_096;

/// The addresses of this node's pods.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PodRanges {
    /// Addresses and ranges, at most [`RANGES_MAX`].
    pub ranges: Vec<Prefix>,
    /// The number of addresses and ranges beyond [`RANGES_MAX`].
    pub left_out: usize,
}

impl PodRanges {
    /// Reads them from the kernel's routes. Returns `None` if local pods are not detected by interfaces.
    pub fn read(config: &Config, mirror: &Mirror) -> Option<PodRanges> {
        let DetectLocal::Interfaces(patterns) = &config.detect_local else { return None };
        Some(PodRanges::of(mirror.ranges_behind(|name| patterns.iter().any(|p| p.matches(name)))))
    }

    fn of(mut ranges: Vec<Prefix>) -> PodRanges {
        let left_out = ranges.len().saturating_sub(RANGES_MAX);
        ranges.truncate(RANGES_MAX);
        PodRanges { ranges, left_out }
    }

    /// Describes the problem if the limit is exceeded.
    pub fn problem(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "detectLocal: the kernel routes more addresses and ranges to pod interfaces than the limit of {RANGES_MAX}, and {} were left out. \
                 Pods there count as clients outside the cluster: their connections to cluster IPs are masqueraded, and with \
                 externalTrafficPolicy Local they reach only this node's endpoints. Detect pods by their ranges instead: detectLocalMode \
                 ClusterCIDR or NodeCIDR",
                self.left_out
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn ranges_beyond_the_limit_are_counted_and_reported() {
        let ranges = |n: usize| (0..n as u32).map(|i| Prefix::host(Ipv4Addr::from(i).into())).collect::<Vec<_>>();
        for (found, kept, left_out) in [(0, 0, 0), (RANGES_MAX, RANGES_MAX, 0), (RANGES_MAX + 3, RANGES_MAX, 3)] {
            let pods = PodRanges::of(ranges(found));
            assert_eq!((pods.ranges.len(), pods.left_out), (kept, left_out));
            let problem = pods.problem();
            assert_eq!(problem.is_some(), left_out > 0);
            assert!(problem.is_none_or(|text| text.contains(" 3 were left out")));
        }
    }
}
