//! Pods that are told by the interfaces that the kernel routes their addresses to.

use nomagic_core::tuple::Prefix;

use crate::config::{Config, DetectLocal};
use crate::net::Mirror;

/// Addresses and ranges of local pods at the most: each new connection's client is looked for among them.
const RANGES_MAX: usize = 4_096;

/// The ranges of the pods of this node, as the kernel has them now; `None`: pods are told in another way.
pub fn ranges(config: &Config, mirror: &Mirror) -> Option<Vec<Prefix>> {
    let DetectLocal::Interfaces(patterns) = &config.detect_local else { return None };
    let ranges = mirror.ranges_behind(|name| patterns.iter().any(|p| p.matches(name)), RANGES_MAX);
    if ranges.len() == RANGES_MAX {
        tracing::warn!("detectLocal: {RANGES_MAX} addresses of pods are told from other clients, that is the limit");
    }
    Some(ranges)
}
