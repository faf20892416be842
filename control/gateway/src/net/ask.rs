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
pub enum Asked {
    /// The kernel is resolving it; the result arrives as a change of the mirror.
    Resolving,
    /// Requested less than a second ago.
    Lately,
    /// Too many requests in the last second.
    Limited,
    /// The port has no interface.
    NoPort,
}

/// A neighbour: interface index and address.
type Key = (u32, IpAddr);

/// Sends requests and remembers recent ones.
#[derive(Debug, Default)]
pub(super) struct Asker {
    lately: HashMap<Key, Instant>,
    managed: HashSet<Key>,
    /// The kernel does not support managed neighbours (before 5.16).
    unmanaged: bool,
}

impl Asker {
    pub(super) fn ask(&mut self, requests: &mut Requests, key: Key, now: Instant) -> Result<Asked, NetError> {
        match self.admit(key, now) {
            Asked::Resolving => self.request(requests, key).map(|()| Asked::Resolving),
            refused => Ok(refused),
        }
    }

    /// Applies the limits; an admitted request is recorded.
    fn admit(&mut self, key: Key, now: Instant) -> Asked {
        let recent = |asked: &Instant| now.saturating_duration_since(*asked) < REPEAT_INTERVAL;
        if self.lately.get(&key).is_some_and(recent) {
            return Asked::Lately;
        }
        if self.lately.len() >= REQUESTS_MAX {
            self.lately.retain(|_, asked| recent(asked));
        }
        if self.lately.len() >= REQUESTS_MAX {
            return Asked::Limited;
        }
        self.lately.insert(key, now);
        Asked::Resolving
    }

    fn request(&mut self, requests: &mut Requests, key: Key) -> Result<(), NetError> {
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

    /// Handles a neighbour in state FAILED. Deletes a managed one, which the kernel would probe for ever; the next frame for it requests it again.
    pub(super) fn failed(&mut self, requests: &mut Requests, key: Key) -> Result<(), NetError> {
        if !self.managed.remove(&key) {
            return Ok(());
        }
        match requests.request(|| format!("delete neighbour {} of interface {}", key.1, key.0), delete_message(key), 0) {
            Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// A neighbour was deleted.
    pub(super) fn removed(&mut self, key: Key) {
        self.managed.remove(&key);
    }

    /// An interface was deleted, and with it its neighbours.
    pub(super) fn link_removed(&mut self, link: u32) {
        self.managed.retain(|(l, _)| *l != link);
        self.lately.retain(|(l, _), _| *l != link);
    }
}

fn describe((link, addr): Key) -> String {
    format!("resolve neighbour {addr} of interface {link}")
}

fn delete_message((link, addr): Key) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(addr)));
    Message::DelNeighbour(message)
}

/// `ip neigh replace ADDR dev LINK use [managed]`.
fn resolve_message((link, addr): Key, managed: bool) -> Message {
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

    fn key(n: u32) -> Key {
        (1, std::net::Ipv4Addr::from(n).into())
    }

    #[test]
    fn each_neighbour_once_a_second_and_all_together_within_the_limit() {
        let (mut asker, start) = (Asker::default(), Instant::now());
        assert_eq!(asker.admit(key(0), start), Asked::Resolving);
        assert_eq!(asker.admit(key(0), start + REPEAT_INTERVAL / 2), Asked::Lately);
        assert_eq!(asker.admit(key(0), start + REPEAT_INTERVAL), Asked::Resolving);
        for n in 1..REQUESTS_MAX as u32 {
            assert_eq!(asker.admit(key(n), start + REPEAT_INTERVAL), Asked::Resolving);
        }
        assert_eq!(asker.admit(key(5_000), start + REPEAT_INTERVAL), Asked::Limited);
        assert_eq!(asker.admit(key(5_000), start + REPEAT_INTERVAL * 2), Asked::Resolving);
        assert_eq!(asker.lately.len(), 1, "old questions are forgotten");
    }

    #[test]
    fn an_interface_takes_its_questions_along() {
        let mut asker = Asker::default();
        asker.admit(key(1), Instant::now());
        asker.managed.insert(key(1));
        asker.link_removed(2);
        assert!(!asker.lately.is_empty() && !asker.managed.is_empty());
        asker.link_removed(1);
        assert!(asker.lately.is_empty() && asker.managed.is_empty());
    }
}
