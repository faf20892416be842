//! The limits of connections to one of nomagic's own servers, and the choice of the connection that ends for a new one.
//!
//! A new connection never waits for a slow client. At the limit, it displaces a connection that waits for its client: of the peer with the most
//! connections, the one that has waited for the longest. So a peer with one connection keeps it while another peer has more, and peers with one
//! connection each lose them in order of arrival. A connection that waits for the server is not displaced, because the server limits its own
//! time. Reading a response renews the wait; sending a request in small pieces does not.
//!
//! [`Connections`] is a pure table without clock and sockets. Tasks hold [`permits`].

pub mod permits;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

pub use permits::{Counts, Permit, Permits, Turns};

/// Length of the IPv6 prefix that identifies a peer: a host has all addresses of its /64.
const PEER_BITS_V6: u32 = 64;

/// The other end of a connection, as the limits count it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Peer {
    /// An IPv4 address, or the /64 of an IPv6 address.
    Address(IpAddr),
    /// A process of this machine. `None`: the kernel does not report its number.
    Process(Option<i32>),
    /// All clients of the control socket that may only read: together they leave room for the others.
    Readers,
}

impl Peer {
    /// Returns the peer with this address. An IPv4-mapped IPv6 address is the IPv4 address.
    pub fn of(address: IpAddr) -> Peer {
        Peer::Address(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - PEER_BITS_V6))).into(),
            v4 => v4,
        })
    }
}

/// Maximum numbers of concurrent connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all peers together.
    pub connections_max: usize,
    /// Of one peer.
    pub peer_connections_max: usize,
}

/// The side that a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The client, to send its request or to read the response.
    Client,
    /// The server, to make the response.
    Server,
}

/// An admitted connection.
#[derive(PartialEq, Eq, Debug)]
pub struct Admitted<T> {
    /// The new connection.
    pub id: u64,
    /// The connection that has to end for it.
    pub displaced: Option<T>,
}

/// The connections of a server. `T`: the means to end one.
#[derive(Debug)]
pub struct Connections<T> {
    limits: Limits,
    by_id: BTreeMap<u64, Connection<T>>,
    by_peer: HashMap<Peer, usize>,
    /// Incremented by each new connection and each change of turn, so older ones have smaller numbers.
    sequence: u64,
}

#[derive(Debug)]
struct Connection<T> {
    peer: Peer,
    /// The sequence number at which it began to wait for its client. `None`: it waits for the server.
    waits_since: Option<u64>,
    end: T,
}

impl<T> Connections<T> {
    /// Creates an empty table.
    pub fn new(limits: Limits) -> Connections<T> {
        Connections { limits, by_id: BTreeMap::new(), by_peer: HashMap::new(), sequence: 0 }
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Reports whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Adds a connection of this peer, which waits for its client. Returns `None` if the limit is reached and all connections that could be
    /// displaced wait for the server.
    pub fn admit(&mut self, peer: Peer, end: T) -> Option<Admitted<T>> {
        let peer_full = self.of_peer(peer) >= self.limits.peer_connections_max;
        let displaced = if peer_full {
            Some(self.displace(|c| c.peer == peer)?)
        } else if self.by_id.len() >= self.limits.connections_max {
            Some(self.displace(|_| true)?)
        } else {
            None
        };
        let id = self.next();
        self.by_id.insert(id, Connection { peer, waits_since: Some(id), end });
        *self.by_peer.entry(peer).or_default() += 1;
        Some(Admitted { id, displaced })
    }

    /// Sets the side that this connection waits for from now on.
    pub fn set_turn(&mut self, id: u64, turn: Turn) {
        let now = self.next();
        if let Some(connection) = self.by_id.get_mut(&id) {
            connection.waits_since = (turn == Turn::Client).then_some(now);
        }
    }

    /// Records progress of the client: if the connection waits for it, the wait begins anew.
    pub fn renew(&mut self, id: u64) {
        let now = self.next();
        if let Some(since) = self.by_id.get_mut(&id).and_then(|c| c.waits_since.as_mut()) {
            *since = now;
        }
    }

    /// Removes a connection that has ended. Returns `None` if it was displaced before.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let connection = self.by_id.remove(&id)?;
        if let Some(count) = self.by_peer.get_mut(&connection.peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&connection.peer);
            }
        }
        Some(connection.end)
    }

    /// Removes the connection that a new peer would displace at the limit, because another resource has run out.
    pub fn make_room(&mut self) -> Option<T> {
        self.displace(|_| true)
    }

    fn displace(&mut self, may_end: impl Fn(&Connection<T>) -> bool) -> Option<T> {
        let waiting = self.by_id.iter().filter(|(_, c)| may_end(c)).filter_map(|(id, c)| Some((*id, c.peer, c.waits_since?)));
        let (id, ..) = waiting.min_by_key(|(_, peer, since)| (Reverse(self.of_peer(*peer)), *since))?;
        self.remove(id)
    }

    fn of_peer(&self, peer: Peer) -> usize {
        self.by_peer.get(&peer).copied().unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

#[cfg(test)]
mod tests;
