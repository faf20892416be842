//! Makes the kernel resolve neighbours, with limits on the rate and on the number of managed neighbours.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::NetError;
use super::socket::Requests;

/// Minimum interval between two requests for one neighbour. The kernel repeats its probes every second by itself.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of requests in [`REPEAT_INTERVAL`], all neighbours together; bounds the load of a scan over a large subnet.
const REQUESTS_MAX: usize = 1_024;
/// Maximum number of managed neighbours (NTF_EXT_MANAGED), which the kernel keeps resolved; further ones are resolved once.
const MANAGED_MAX: usize = 4_096;

/// The outcome of a request to resolve a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResolveOutcome {
    /// The kernel is resolving it; the result arrives as a change of the mirror.
    Resolving,
    /// Requested less than a second ago.
    Recent,
    /// Too many requests in the last second.
    Limited,
    /// The port has no interface.
    NoPort,
}

/// A neighbour: interface index and address.
type NeighbourKey = (u32, IpAddr);

/// Sends requests and remembers recent ones.
#[derive(Debug, Default)]
pub(super) struct NeighbourResolver {
    recent: HashMap<NeighbourKey, Instant>,
    managed: HashSet<NeighbourKey>,
    /// The kernel does not support managed neighbours (before 5.16).
    unmanaged: bool,
}

impl NeighbourResolver {
    pub(super) fn resolve(&mut self, requests: &mut Requests, key: NeighbourKey, now: Instant) -> Result<ResolveOutcome, NetError> {
        match self.admit(key, now) {
            ResolveOutcome::Resolving => self.request(requests, key).map(|()| ResolveOutcome::Resolving),
            refused => Ok(refused),
        }
    }

    /// Applies the limits; an admitted request is recorded.
    fn admit(&mut self, key: NeighbourKey, now: Instant) -> ResolveOutcome {
        let recent = |requested: &Instant| now.saturating_duration_since(*requested) < REPEAT_INTERVAL;
        if self.recent.get(&key).is_some_and(recent) {
            return ResolveOutcome::Recent;
        }
        if self.recent.len() >= REQUESTS_MAX {
            self.recent.retain(|_, requested| recent(requested));
        }
        if self.recent.len() >= REQUESTS_MAX {
            return ResolveOutcome::Limited;
        }
        self.recent.insert(key, now);
        ResolveOutcome::Resolving
    }

    fn request(&mut self, requests: &mut Requests, key: NeighbourKey) -> Result<(), NetError> {
        let manage = !self.unmanaged && (self.managed.len() < MANAGED_MAX || self.managed.contains(&key));
        if manage {
            match requests.request(|| describe(key), resolve_message(key, true), NLM_F_CREATE | NLM_F_REPLACE) {
                Ok(()) => {
                    self.managed.insert(key);
                    return Ok(());
                }
                Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    self.unmanaged = true;
                }
                Err(e) => return Err(e),
            }
        }
        requests.request(|| describe(key), resolve_message(key, false), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Handles a neighbour in state FAILED. Deletes a managed one, because the kernel would probe it forever. The next frame requests it again.
    pub(super) fn failed(&mut self, requests: &mut Requests, key: NeighbourKey) -> Result<(), NetError> {
        if !self.managed.remove(&key) {
            return Ok(());
        }
        match requests.request(|| format!("delete neighbour {} of interface {}", key.1, key.0), delete_message(key), 0) {
            Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// A neighbour was deleted.
    pub(super) fn removed(&mut self, key: NeighbourKey) {
        self.managed.remove(&key);
    }

    /// An interface was deleted, and with it its neighbours.
    pub(super) fn link_removed(&mut self, link: u32) {
        self.managed.retain(|(l, _)| *l != link);
        self.recent.retain(|(l, _), _| *l != link);
    }
}

fn describe((link, addr): NeighbourKey) -> String {
    format!("resolve neighbour {addr} of interface {link}")
}

fn delete_message((link, addr): NeighbourKey) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(addr)));
    Message::DelNeighbour(message)
}

/// `ip neigh replace ADDR dev LINK use [managed]`.
fn resolve_message((link, addr): NeighbourKey, managed: bool) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = link;
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(addr)));
    if managed {
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    }
    Message::NewNeighbour(message)
}

fn family(addr: IpAddr) -> rtnetlink::packet_route::AddressFamily {
    if addr.is_ipv6() { rtnetlink::packet_route::AddressFamily::Inet6 } else { rtnetlink::packet_route::AddressFamily::Inet }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> NeighbourKey {
        (1, std::net::Ipv4Addr::from(n).into())
    }

    #[test]
    fn requests_are_limited_per_neighbour_and_in_total() {
        let (mut resolver, start) = (NeighbourResolver::default(), Instant::now());
        assert_eq!(resolver.admit(key(0), start), ResolveOutcome::Resolving);
        assert_eq!(resolver.admit(key(0), start + REPEAT_INTERVAL / 2), ResolveOutcome::Recent);
        assert_eq!(resolver.admit(key(0), start + REPEAT_INTERVAL), ResolveOutcome::Resolving);
        for n in 1..REQUESTS_MAX as u32 {
            assert_eq!(resolver.admit(key(n), start + REPEAT_INTERVAL), ResolveOutcome::Resolving);
        }
        assert_eq!(resolver.admit(key(5_000), start + REPEAT_INTERVAL), ResolveOutcome::Limited);
        assert_eq!(resolver.admit(key(5_000), start + REPEAT_INTERVAL * 2), ResolveOutcome::Resolving);
        assert_eq!(resolver.recent.len(), 1, "old requests are forgotten");
    }

    #[test]
    fn removing_an_interface_removes_its_requests() {
        let mut resolver = NeighbourResolver::default();
        resolver.admit(key(1), Instant::now());
        resolver.managed.insert(key(1));
        resolver.link_removed(2);
        assert!(!resolver.recent.is_empty() && !resolver.managed.is_empty());
        resolver.link_removed(1);
        assert!(resolver.recent.is_empty() && resolver.managed.is_empty());
    }
}
