//! The clients of the servers. This node's own clients have separate permits, so that other hosts cannot block the kubelet.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::connections::{Limits, Peer, Permit, Permits};
use crate::observe::metrics::servers::ServerCounts;

/// The servers that have separate permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ServerKind {
    Health,
    Metrics,
    /// All health checks together.
    HealthCheckNodePort,
}

impl ServerKind {
    const ALL: [ServerKind; 3] = [ServerKind::Health, ServerKind::Metrics, ServerKind::HealthCheckNodePort];

    /// The metrics' label.
    fn label(self) -> &'static str {
        match self {
            ServerKind::Health => "health",
            ServerKind::Metrics => "metrics",
            ServerKind::HealthCheckNodePort => "health_check_node_port",
        }
    }

    /// Maximum concurrent connections of this node, of other hosts, and of one address among the latter. A metrics page is long, so there are
    /// fewer of them.
    fn limits(self) -> (usize, usize, usize) {
        match self {
            ServerKind::Health | ServerKind::HealthCheckNodePort => (64, 256, 64),
            ServerKind::Metrics => (64, 64, 16),
        }
    }
}

/// The kind of interface that a connection arrived on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CameBy {
    /// The loopback interface: the other end is on this node.
    Loopback,
    /// Any interface, including loopback.
    Any,
}

struct ServerClients {
    node: Arc<Permits>,
    others: Arc<Permits>,
}

/// The clients of all servers.
pub(super) struct Clients([ServerClients; 3]);

impl Clients {
    /// Creates the permits, all free.
    pub(super) fn new() -> Clients {
        let permits = |connections_max, peer_connections_max| Permits::new(Limits { connections_max, peer_connections_max });
        Clients(ServerKind::ALL.map(|kind| {
            let (node, others, address) = kind.limits();
            ServerClients { node: permits(node, node), others: permits(others, address) }
        }))
    }

    /// Returns a permit for a client that has just connected. `None`: the connection has to end.
    pub(super) fn admit(&self, kind: ServerKind, stream: &TcpStream, peer: SocketAddr, came_by: CameBy) -> Option<Permit> {
        let of_node = came_by == CameBy::Loopback || stream.local_addr().is_ok_and(|local| on_one_host(local.ip(), peer.ip()));
        let clients = self.of(kind);
        let permits = if of_node { &clients.node } else { &clients.others };
        permits.acquire(Peer::of(peer.ip()))
    }

    /// Ends a connection because descriptors or memory, which all servers share, have run out: one of another host's to the server with the
    /// most connections, or else one of this node's. Reports whether there was one.
    pub(super) fn make_room(&self, kind: ServerKind) -> bool {
        self.of(kind).others.count_accept_failure();
        let withdraw = |permits_of: fn(&ServerClients) -> &Arc<Permits>| {
            let fullest = self.0.iter().map(permits_of).max_by_key(|permits| permits.counts().connected);
            fullest.is_some_and(|permits| permits.withdraw_one())
        };
        withdraw(|clients| &clients.others) || withdraw(|clients| &clients.node)
    }

    /// The counts of the connections.
    pub(super) fn counts(&self) -> Vec<ServerCounts> {
        let of = |kind: ServerKind| {
            let (clients, server) = (self.of(kind), kind.label());
            [("node", &clients.node), ("others", &clients.others)].map(|(peers, permits)| ServerCounts {
                server,
                peers,
                counts: permits.counts(),
            })
        };
        ServerKind::ALL.into_iter().flat_map(of).collect()
    }

    fn of(&self, kind: ServerKind) -> &ServerClients {
        &self.0[kind as usize]
    }
}

/// Reports whether both ends of a connection are on this host. Used where the loopback interface has no separate socket: the kernel connects to
/// an address of this host from the same address, which no other host can do (its packets would be martians).
fn on_one_host(local: IpAddr, peer: IpAddr) -> bool {
    let (local, peer) = (local.to_canonical(), peer.to_canonical());
    peer.is_loopback() || peer == local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_connections_are_known_by_their_addresses() {
        let ips = |local: &str, peer: &str| on_one_host(local.parse().unwrap(), peer.parse().unwrap());
        assert!(ips("127.0.0.1", "127.0.0.9") && ips("10.0.0.1", "10.0.0.1") && ips("::1", "::1"));
        assert!(ips("::ffff:10.0.0.1", "10.0.0.1") && ips("::ffff:127.0.0.1", "::ffff:127.0.0.1"));
        assert!(!ips("10.0.0.1", "10.0.0.2") && !ips("fd00::1", "fd00::2"));
    }

    #[test]
    fn descriptors_come_from_other_hosts_before_this_node() {
        let clients = Clients::new();
        let acquire =
            |permits: &Arc<Permits>, n: u8| (0..n).map(|n| permits.acquire(Peer::of([10, 0, 0, n].into())).unwrap()).collect::<Vec<_>>();
        let [health, metrics, checks] = &clients.0;
        let _held = (acquire(&health.others, 1), acquire(&metrics.node, 5), acquire(&checks.others, 2));
        let now = || [&health.others, &checks.others, &metrics.node].map(|permits| permits.counts().connected);
        for expected in [[1, 1, 5], [1, 0, 5], [0, 0, 5], [0, 0, 4]] {
            // The fullest of those of others; of two that are as full, the last.
            assert!(clients.make_room(ServerKind::Metrics));
            assert_eq!(now(), expected);
        }
        assert_eq!(metrics.others.counts().accept_failures, 4);
        assert_eq!((0..5).filter(|_| clients.make_room(ServerKind::Health)).count(), 4, "and then there is none");
    }
}
