//! Metrics of the connections to nomagic's own servers.

use super::Exposition;
use super::exposition::MetricType::{Counter, Gauge};
use crate::connections::Counts;

/// The connections of one server, with one kind of peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerCounts {
    pub server: &'static str,
    /// `node`: this node's own, `others`: other hosts, `processes`: of the control socket.
    pub peers: &'static str,
    pub counts: Counts,
}

/// Writes the counts as metrics.
pub fn write(servers: &[ServerCounts], out: &mut Exposition) {
    let labels = |s: &ServerCounts| [("server", s.server), ("peers", s.peers)];
    let name = "nomagic_server_connections";
    out.begin(name, Gauge, "Current connections to nomagic's own servers.");
    servers.iter().for_each(|s| out.sample(name, &labels(s), s.counts.connected));
    let name = "nomagic_server_connections_accepted_total";
    out.begin(name, Counter, "Accepted connections to nomagic's own servers.");
    servers.iter().for_each(|s| out.sample(name, &labels(s), s.counts.accepted));
    let name = "nomagic_server_connections_cut_total";
    let help = "Of these, those that nomagic ended: displaced by a new connection at the limit of connections or descriptors, refused because all connections waited for nomagic itself, or timed_out.";
    out.begin(name, Counter, help);
    for s in servers {
        let [server, peers] = labels(s);
        for (reason, n) in [("displaced", s.counts.displaced), ("refused", s.counts.refused), ("timed_out", s.counts.timed_out)] {
            out.sample(name, &[server, peers, ("reason", reason)], n);
        }
    }
    let name = "nomagic_server_accept_failures_total";
    out.begin(name, Counter, "Failures to accept a connection, for lack of file descriptors or memory.");
    let mut rest = servers;
    while let Some(first) = rest.first() {
        let (same, others) = rest.split_at(rest.iter().take_while(|s| s.server == first.server).count());
        out.sample(name, &[("server", first.server)], same.iter().map(|s| s.counts.accept_failures).sum::<u64>());
        rest = others;
    }
}
