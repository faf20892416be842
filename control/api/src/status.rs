//! The status of a gateway, at one moment.
//!
//! Field names are the keys in JSON. Within a schema version fields are only added: a reader passes over those that it does not know and
//! takes those that are missing as zero or empty.

use std::path::PathBuf;

use nomagic_core::counters::{SocketCounts, Volume, WorkerCounts, XdpCounts};
use serde::{Deserialize, Serialize};

/// Version of the schema; raised when a field goes or changes its meaning.
pub const SCHEMA: u32 = 1;

/// The status of a gateway. One that waits for its first objects has no workers yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// All tables are in force, all ports bound and all workers alive.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready: Vec<String>,
    pub uptime_s: u64,
    /// The watch of an API server; none when objects come from files.
    pub api: Option<ApiWatch>,
    pub workers: Vec<Worker>,
    /// Workers that are neither dead nor stuck.
    pub workers_alive: usize,
    pub totals: Totals,
    pub conntrack: Conntrack,
    pub snat: Snat,
    pub replies: Replies,
    /// The packet memories. Each adds up while nothing moves.
    pub pools: Vec<Pool>,
    pub ports: Vec<Port>,
    pub redirect_ports: Vec<RedirectPort>,
    /// What the XDP program did on all redirect ports.
    pub redirect_xdp: Xdp,
    pub services: Services,
    pub routes: Table,
    /// What Services' backends carried, sorted: those whose counters came first, up to a limit.
    pub targets: Vec<Target>,
    /// What the others carried.
    pub targets_beyond: Beyond,
}

impl Default for Status {
    fn default() -> Status {
        Status {
            schema: SCHEMA,
            ready: false,
            not_ready: Vec::new(),
            uptime_s: 0,
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
            services: Services::default(),
            routes: Table::default(),
            targets: Vec::new(),
            targets_beyond: Beyond::default(),
        }
    }
}

impl Status {
    /// The port with this interface.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|p| p.name == name)
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
    /// All objects were listed once.
    pub listed: bool,
    pub objects: usize,
    /// Seconds since the server sent anything.
    pub heard_s_ago: Option<u64>,
    pub lists: u64,
    pub events: u64,
    pub faults: u64,
    /// The last fault.
    pub error: Option<String>,
}

/// Whether a watch is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    Connected,
    Connecting,
    /// It was connected, or could not be.
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
    /// Its thread runs.
    pub alive: bool,
    pub heartbeat_age_ns: u64,
    /// Frames that wait for a neighbour now.
    pub held_now: u64,
    #[serde(flatten)]
    pub counts: WorkerCounts,
}

/// All workers together.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Frames that wait for a neighbour now.
    pub held_now: u64,
    #[serde(flatten)]
    pub counts: WorkerCounts,
}

/// The connection table; what happened in it is counted in [`Totals`].
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// Connections known.
    pub live: u64,
    pub capacity: u32,
    /// The file that holds it, if it outlives the process.
    pub file: Option<PathBuf>,
    /// What an earlier process left in the file.
    pub taken_over: Option<TakenOver>,
    /// Connections ended because their endpoint no longer serves.
    pub endpoint_gone: u64,
    /// Walks over the whole table that looked for those.
    pub walks: u64,
}

/// Connections that were found in the file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct TakenOver {
    /// Connections that go on.
    pub connections: u32,
    /// Connections that were half created, half ended or damaged.
    pub not_whole: u32,
    /// Connections that were whole but no longer wanted.
    pub unwanted: u32,
    /// The earlier process ended in order.
    pub detached: bool,
}

/// Source NAT.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Snat {
    /// Connections with a source port of the gateway's.
    pub connections: u64,
    /// The most source ports in use towards one endpoint.
    pub fullest_endpoint: u64,
    /// The most source ports that one client or one Service holds towards one endpoint.
    pub largest_share: u64,
    /// Source ports that there are towards one endpoint.
    pub ports: u64,
    /// The most of them that one client or one Service may hold.
    pub share_max: u64,
}

/// The reply filter.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Replies {
    pub announced: u64,
    pub capacity: u64,
}

/// Where the frames of a packet memory are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    pub total: u32,
    pub free: u32,
    pub fill: u32,
    pub tx: u32,
    pub held: u32,
    pub in_hand: u32,
    /// On their way between workers; below zero for the one moment in which one worker has counted a frame and the other has not.
    pub handed_over: i32,
}

impl Pool {
    /// Whether every frame is somewhere.
    pub fn closes(&self) -> bool {
        let here = self.free + self.fill + self.tx + self.held + self.in_hand;
        i64::from(here) + i64::from(self.handed_over) == i64::from(self.total)
    }
}

/// A port: an interface with AF_XDP sockets on its queues.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    pub queues: u32,
    /// The worker that owns each queue.
    pub owners: Vec<u16>,
    /// Its XDP program is attached and all its queues are bound.
    pub bound: bool,
    /// The same in words, and why not.
    pub condition: String,
    pub rebinds: u64,
    pub xdp_mode: XdpMode,
    pub zero_copy: bool,
    pub rss: Rss,
    pub xdp: Xdp,
    /// By queue.
    pub sockets: Vec<SocketCounts>,
}

/// Where XDP runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// After the kernel has built an skb.
    Generic,
}

impl std::fmt::Display for XdpMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        })
    }
}

/// Whether the queue of an answer is known beforehand, so that source ports are chosen by it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rss {
    /// By the NIC's table of so many entries.
    Predicted { entries: usize },
    /// Why not.
    Unknown { because: String },
}

/// What the XDP program did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Xdp {
    /// All frames: passed, taken and dropped.
    pub received: u64,
    /// Left to the kernel.
    pub passed: u64,
    pub dropped: u64,
    /// One by one.
    #[serde(flatten)]
    pub counts: XdpCounts,
}

impl From<XdpCounts> for Xdp {
    fn from(counts: XdpCounts) -> Xdp {
        Xdp { received: counts.received(), passed: counts.passed(), dropped: counts.dropped(), counts }
    }
}

/// A redirect port: an interface whose taken frames go to the internal port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RedirectPort {
    pub name: String,
    pub ifindex: u32,
    pub xdp_mode: XdpMode,
    pub bound: bool,
    pub condition: String,
}

/// The service table.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Services {
    #[serde(flatten)]
    pub table: Table,
    /// Service ports.
    pub ports: usize,
    /// Addresses and ports that they are reached at.
    pub addresses: usize,
    /// Problems of the objects in force, and of what else the gateway depends on.
    pub problems: Vec<String>,
}

/// A table that workers read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Table {
    /// Of the table published last.
    pub generation: u64,
    /// Every worker uses that one.
    pub applied: bool,
}

/// A Service port and one of its backends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    pub namespace: String,
    pub service: String,
    pub port_name: String,
    /// The Service port's number; none for one that is no longer there.
    pub port: Option<u16>,
    pub protocol: String,
    /// `address:port`.
    pub backend: String,
    #[serde(flatten)]
    pub carried: Carried,
}

impl Target {
    /// The Service port as people write it: `namespace/name:port/protocol`.
    pub fn service_port(&self) -> String {
        let port = self.port.map_or_else(|| self.port_name.clone(), |port| port.to_string());
        format!("{}/{}:{port}/{}", self.namespace, self.service, self.protocol)
    }
}

/// What backends carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Carried {
    /// Connections opened.
    pub flows: u64,
    pub to_backend: Volume,
    pub to_client: Volume,
}

/// Pairs of a Service port and a backend beyond the limit of [`Status::targets`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Beyond {
    /// How many there are now.
    pub targets: u64,
    /// What they and their predecessors carried.
    #[serde(flatten)]
    pub carried: Carried,
}

#[cfg(test)]
mod tests;
