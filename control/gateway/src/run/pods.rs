//! Pods that are told by the interfaces that the kernel routes their addresses to.

use nomagic_core::tuple::Prefix;

use crate::config::{Config, DetectLocal};
use crate::net::Mirror;

/// Addresses and ranges of local pods at the most: the ranges among them are gone through for each new connection.
const RANGES_MAX: usize = 4_096;

/// Where the pods of this node are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PodRanges {
    /// Addresses and ranges, [`RANGES_MAX`] at the most.
    pub ranges: Vec<Prefix>,
    /// Those that had no room.
    pub left_out: usize,
}

impl PodRanges {
    /// As the kernel has them now; `None`: pods are told in another way.
    pub fn read(config: &Config, mirror: &Mirror) -> Option<PodRanges> {
        let DetectLocal::Interfaces(patterns) = &config.detect_local else { return None };
        Some(PodRanges::of(mirror.ranges_behind(|name| patterns.iter().any(|p| p.matches(name)))))
    }

    fn of(mut ranges: Vec<Prefix>) -> PodRanges {
        let left_out = ranges.len().saturating_sub(RANGES_MAX);
        ranges.truncate(RANGES_MAX);
        PodRanges { ranges, left_out }
    }

    /// What is wrong when some had no room.
    pub fn problem(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "detectLocal: the kernel routes more addresses and ranges to interfaces of pods than the {RANGES_MAX} that are taken in, and {} were \
                 left out. Pods there count as clients from outside of the cluster: their connections to cluster IPs are masqueraded, and \
                 with externalTrafficPolicy Local they reach this node's endpoints only. Tell pods by their ranges instead: detectLocalMode \
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
    fn what_has_no_room_is_counted_and_named() {
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
