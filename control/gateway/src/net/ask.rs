//! Making the kernel resolve neighbours, politely: rate-limited, and with a limit on what is kept alive.

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

/// The same neighbour is asked for at most this often; the kernel itself repeats its probes every second.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Questions in [`AGAIN_AFTER`] at most, all neighbours together. A port scan over a large subnet ends here.
const QUESTIONS_MAX: usize = 1_024;
/// Neighbours that the kernel is told to keep alive (it probes them for ever); those beyond are only resolved.
const MANAGED_MAX: usize = 4_096;

/// What became of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The kernel is resolving it; the answer comes as a change of the mirror.
    Resolving,
    /// It was asked a moment ago already.
    Lately,
    /// Too many neighbours were asked lately.
    Limited,
    /// The port has no interface at the moment.
    NoPort,
}

/// A neighbour: interface index and address.
type Key = (u32, IpAddr);

/// Asks, and remembers what was asked.
#[derive(Debug, Default)]
pub(super) struct Asker {
    lately: HashMap<Key, Instant>,
    managed: HashSet<Key>,
    /// The kernel does not know managed neighbours (before 5.16).
    unmanaged: bool,
}

impl Asker {
    pub(super) fn ask(&mut self, requests: &mut Requests, key: Key, now: Instant) -> Result<Asked, NetError> {
        match self.admit(key, now) {
            Asked::Resolving => self.question(requests, key).map(|()| Asked::Resolving),
            refused => Ok(refused),
        }
    }

    /// Whether a question may be asked now; if so it counts as asked.
    fn admit(&mut self, key: Key, now: Instant) -> Asked {
        let recent = |asked: &Instant| now.saturating_duration_since(*asked) < AGAIN_AFTER;
        if self.lately.get(&key).is_some_and(recent) {
            return Asked::Lately;
        }
        if self.lately.len() >= QUESTIONS_MAX {
            self.lately.retain(|_, asked| recent(asked));
        }
        if self.lately.len() >= QUESTIONS_MAX {
            return Asked::Limited;
        }
        self.lately.insert(key, now);
        Asked::Resolving
    }

    fn question(&mut self, requests: &mut Requests, key: Key) -> Result<(), NetError> {
        let manage = !self.unmanaged && (self.managed.len() < MANAGED_MAX || self.managed.contains(&key));
        if manage {
            match requests.request(|| describe(key), question(key, true), NLM_F_CREATE | NLM_F_REPLACE) {
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
        requests.request(|| describe(key), question(key, false), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The kernel has given up on a neighbour. One that is kept alive would be probed for ever: it is let go, and asked for again if it is wanted.
    pub(super) fn gave_up(&mut self, requests: &mut Requests, key: Key) -> Result<(), NetError> {
        if !self.managed.remove(&key) {
            return Ok(());
        }
        match requests.request(|| format!("forget neighbour {} of interface {}", key.1, key.0), removal(key), 0) {
            Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// A neighbour was removed, by whomever.
    pub(super) fn removed(&mut self, key: Key) {
        self.managed.remove(&key);
    }

    /// An interface is gone, and its neighbours with it.
    pub(super) fn link_gone(&mut self, link: u32) {
        self.managed.retain(|(l, _)| *l != link);
        self.lately.retain(|(l, _), _| *l != link);
    }
}

fn describe((link, addr): Key) -> String {
    format!("resolve neighbour {addr} of interface {link}")
}

fn removal((link, addr): Key) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(addr)));
    Message::DelNeighbour(message)
}

/// `ip neigh replace ADDR dev LINK use [managed]`.
fn question((link, addr): Key, managed: bool) -> Message {
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
        assert_eq!(asker.admit(key(0), start + AGAIN_AFTER / 2), Asked::Lately);
        assert_eq!(asker.admit(key(0), start + AGAIN_AFTER), Asked::Resolving);
        for n in 1..QUESTIONS_MAX as u32 {
            assert_eq!(asker.admit(key(n), start + AGAIN_AFTER), Asked::Resolving);
        }
        assert_eq!(asker.admit(key(5_000), start + AGAIN_AFTER), Asked::Limited);
        assert_eq!(asker.admit(key(5_000), start + AGAIN_AFTER * 2), Asked::Resolving);
        assert_eq!(asker.lately.len(), 1, "old questions are forgotten");
    }

    #[test]
    fn an_interface_takes_its_questions_along() {
        let mut asker = Asker::default();
        asker.admit(key(1), Instant::now());
        asker.managed.insert(key(1));
        asker.link_gone(2);
        assert!(!asker.lately.is_empty() && !asker.managed.is_empty());
        asker.link_gone(1);
        assert!(asker.lately.is_empty() && asker.managed.is_empty());
    }
}
