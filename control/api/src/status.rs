//! The status of a gateway, at one moment.
//!
//! Field names are the keys in JSON. Within a schema version, fields are only added: a reader ignores unknown fields and takes missing ones
//! as zero or empty.

mod ports;

use std::path::PathBuf;

use nomagic_core::counters::{Volume, WorkerCounts};
use serde::{Deserialize, Serialize};

use crate::deny::Deny;

pub use ports::{PortLink, RedirectPort, Rss, StatusPort, Xdp, XdpMode};

/// Version of the schema; raised when a field is removed or changes its meaning.
pub const SCHEMA: u32 = 1;

/// The status of a gateway. It has no workers yet while it waits for its first objects.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// It can carry: all tables are in force, all workers are alive, and all ports are bound and have a carrier.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready: Vec<String>,
    /// `nomagic drain` has told load balancers to leave.
    pub draining: bool,
    pub uptime_s: u64,
    /// Where the seed of the hash that chooses endpoints comes from; `None`: it is not chosen yet. The seed itself is never shown.
    pub hash_seed_source: Option<SeedSource>,
    /// The watch of an API server; `None` if objects come from files.
    pub api: Option<ApiWatch>,
    pub workers: Vec<Worker>,
    /// Workers that are neither dead nor stuck.
    pub workers_alive: usize,
    pub totals: Totals,
    pub conntrack: Conntrack,
    pub snat: Snat,
    pub replies: Replies,
    /// The packet memories. Each account is consistent while nothing moves.
    pub pools: Vec<Pool>,
    pub ports: Vec<StatusPort>,
    pub redirect_ports: Vec<RedirectPort>,
    /// The XDP program's counters, summed over all redirect ports.
    pub redirect_xdp: Xdp,
    /// Answers of endpoints behind the kernel, which its routes send out of the ports.
    #[serde(default)]
    pub answers: Answers,
    /// The deny list; what it drops is in [`StatusPort::xdp`].
    pub deny: Deny,
    pub services: Services,
    pub routes: Table,
    /// The traffic of the Services' backends, sorted: those that got counters first, up to a limit.
    pub targets: Vec<Target>,
    /// The traffic of all other backends.
    pub targets_beyond: Beyond,
    /// Service ports that have no backends or have refused packets, sorted, up to a limit.
    pub service_ports: Vec<ServicePort>,
    /// The number of such ports beyond the limit.
    pub service_ports_beyond: u64,
}

impl Default for Status {
    fn default() -> Status {
        Status {
            schema: SCHEMA,
            ready: false,
            not_ready: Vec::new(),
            draining: false,
            uptime_s: 0,
            hash_seed_source: None,
            api: None,
            workers: Vec::new(),
            workers_alive: 0,
            totals: Totals::default(),
            conntrack: Conntrack::default(),
            snat: Snat::default(),
            replies: Replies::default(),
            pools: Vec::new(),
            ports: Vec::new(),
            redirect_ports: Vec::new(),
            redirect_xdp: Xdp::default(),
            answers: Answers::default(),
            deny: Deny::default(),
            services: Services::default(),
            routes: Table::default(),
            targets: Vec::new(),
            targets_beyond: Beyond::default(),
            service_ports: Vec::new(),
            service_ports_beyond: 0,
        }
    }
}

impl Status {
    /// The port with this interface.
    pub fn port(&self, name: &str) -> Option<&StatusPort> {
        self.ports.iter().find(|p| p.name == name)
    }
}

/// Answers of endpoints on the node's own network, and of pods behind interfaces that nomagic does not look at, captured where they leave the
/// node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Answers {
    /// Captured for the workers.
    pub taken: u64,
    /// Dropped because no worker takes them.
    pub dropped: u64,
    /// Ports where they are not captured (nm1: some redirect port): endpoints behind the kernel see `snat.internalAddresses` in place of clients there.
    pub unseen_ports: Vec<String>,
}

/// The source of the seed of the hash that chooses endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedSource {
    /// `hash.seed`.
    Configured,
    /// `hash.seedFile`.
    File,
    /// The UID of the Namespace kube-system.
    Cluster,
    /// Chosen at random and kept in the state directory.
    Random,
}

impl std::fmt::Display for SeedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SeedSource::Configured => "configured (hash.seed)",
            SeedSource::File => "file (hash.seedFile)",
            SeedSource::Cluster => "cluster (the UID of the Namespace kube-system)",
            SeedSource::Random => "random (kept in the state directory; every gateway has its own)",
        })
    }
}

/// The watch of an API server.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ApiWatch {
    pub server: String,
    pub kinds: Vec<KindWatch>,
}

/// The watch of one kind of object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KindWatch {
    pub kind: String,
    pub state: WatchState,
    /// Seconds in this state.
    pub for_s: u64,
    /// Whether all objects were listed at least once.
    pub listed: bool,
    pub objects: usize,
    /// Seconds since the server last sent anything.
    pub heard_s_ago: Option<u64>,
    pub lists: u64,
    pub events: u64,
    pub faults: u64,
    /// The latest fault.
    pub error: Option<String>,
}

/// Whether a watch is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    Connected,
    Connecting,
    /// The connection was lost, or could not be established.
    Away,
}

impl std::fmt::Display for WatchState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WatchState::Connected => "connected",
            WatchState::Connecting => "connecting",
            WatchState::Away => "away",
        })
    }
}

/// One worker.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    pub id: u32,
    /// Whether its thread runs.
    pub alive: bool,
    pub heartbeat_age_ns: u64,
    /// Frames held for a neighbour or another fragment now.
    pub held_now: u64,
    /// From receive to send, of one frame in 1,024.
    pub latency: WorkerLatency,
    #[serde(flatten)]
    pub counts: WorkerCounts,
}

/// How long frames stay in a worker: from the moment when it takes them off a ring until the kernel has been told to send them.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLatency {
    pub samples: u64,
    pub sum_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
    /// Samples within so many nanoseconds, cumulative: bound and number.
    pub within: Vec<(u64, u64)>,
}

/// The sums over all workers.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Frames held for a neighbour or another fragment now.
    pub held_now: u64,
    #[serde(flatten)]
    pub counts: WorkerCounts,
}

/// The connection table; its events are counted in [`Totals`].
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// The number of connections.
    pub live: u64,
    pub capacity: u32,
    /// The table's file, if it outlives the process.
    pub file: Option<PathBuf>,
    /// What was recovered from an earlier process's file.
    pub taken_over: Option<TakenOver>,
    /// Connections ended because their endpoint no longer serves.
    pub endpoint_gone: u64,
    /// Scans of the whole table for those connections.
    pub walks: u64,
}

/// Connections recovered from the file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct TakenOver {
    /// Connections that continue.
    pub connections: u32,
    /// Connections that were half created, half ended or damaged.
    pub not_whole: u32,
    /// Connections that were intact but no longer fit the configuration.
    pub unwanted: u32,
    /// Whether the earlier process shut down cleanly.
    pub detached: bool,
}

/// Source NAT.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Snat {
    /// Connections with a source port allocated by the gateway.
    pub connections: u64,
    /// The most source ports in use towards one endpoint.
    pub fullest_endpoint: u64,
    /// The most source ports that a single client holds towards one endpoint.
    pub largest_client_share: u64,
    /// The most that a single Service holds.
    pub largest_service_share: u64,
    /// The number of source ports towards one endpoint, for each SNAT address.
    pub ports: u64,
    /// The most of them that a single client may hold.
    pub client_share_max: u64,
    /// The most that a single Service may hold.
    pub service_share_max: u64,
}

/// The reply filter.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Replies {
    pub announced: u64,
    pub capacity: u64,
}

/// The locations of a packet memory's frames.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    pub total: u32,
    pub free: u32,
    pub fill: u32,
    pub tx: u32,
    pub held: u32,
    pub in_hand: u32,
    /// In transit between workers; negative while only one of two workers has counted a frame.
    pub handed_over: i32,
}

impl Pool {
    /// Whether every frame is accounted for.
    pub fn closes(&self) -> bool {
        let here = self.free + self.fill + self.tx + self.held + self.in_hand;
        i64::from(here) + i64::from(self.handed_over) == i64::from(self.total)
    }
}

/// The service table.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Services {
    #[serde(flatten)]
    pub table: Table,
    /// Service ports.
    pub ports: usize,
    /// The number of addresses and ports where they answer.
    pub addresses: usize,
    /// Current problems of the objects and of the gateway's environment.
    pub problems: Vec<String>,
    /// Objects that a Service proxy sets aside by design, such as headless Services: a line for each reason, with the first names.
    pub set_aside: Vec<String>,
}

/// A table that workers read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Table {
    /// Generation of the latest published table.
    pub generation: u64,
    /// Whether every worker uses it.
    pub applied: bool,
}

/// A Service port and one of its backends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    pub namespace: String,
    pub service: String,
    pub port_name: String,
    /// The Service port's number; `None` if it no longer exists.
    pub port: Option<u16>,
    pub protocol: String,
    /// `address:port`.
    pub backend: String,
    #[serde(flatten)]
    pub carried: Carried,
}

/// A Service port that has no backends or has refused packets.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    pub namespace: String,
    pub service: String,
    pub port_name: String,
    pub port: u16,
    pub protocol: String,
    /// The number of its backends.
    pub backends: usize,
    /// Packets that its Service rejected: their sender was told, within limits.
    pub rejected: u64,
    /// Packets to it that were dropped in silence, by policy or for want of something.
    pub dropped: u64,
}

impl ServicePort {
    /// In the notation `namespace/name:port/protocol`.
    pub fn service_port(&self) -> String {
        format!("{}/{}:{}/{}", self.namespace, self.service, self.port, self.protocol)
    }
}

impl Target {
    /// The Service port in the notation `namespace/name:port/protocol`.
    pub fn service_port(&self) -> String {
        let port = self.port.map_or_else(|| self.port_name.clone(), |port| port.to_string());
        format!("{}/{}:{port}/{}", self.namespace, self.service, self.protocol)
    }
}

/// Traffic of backends.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Carried {
    /// Connections opened.
    pub flows: u64,
    /// Connections refused because there was no SNAT port for them.
    pub snat_refused: u64,
    /// Connections refused by the limit of new ones a second.
    pub rate_limited: u64,
    /// Connections refused because their client had as many to the Service as it may.
    pub client_limited: u64,
    pub to_backend: Volume,
    pub to_client: Volume,
}

impl Carried {
    /// Adds another one's counts.
    pub fn add(&mut self, other: &Carried) {
        self.flows += other.flows;
        self.snat_refused += other.snat_refused;
        self.rate_limited += other.rate_limited;
        self.client_limited += other.client_limited;
        for (sum, volume) in [(&mut self.to_backend, &other.to_backend), (&mut self.to_client, &other.to_client)] {
            sum.packets += volume.packets;
            sum.bytes += volume.bytes;
        }
    }
}

/// Pairs of a Service port and a backend beyond the limit of [`Status::targets`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Beyond {
    /// The current number of such pairs.
    pub targets: u64,
    /// The traffic of these pairs and of earlier ones beyond the limit.
    #[serde(flatten)]
    pub carried: Carried,
}

#[cfg(test)]
mod tests;
