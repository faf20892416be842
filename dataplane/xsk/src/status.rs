//! What the edge tells about itself: plain values, read at one moment.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use aya::maps::{MapData, PerCpuArray};
use nomagic_core::counters::{SocketCounts, WorkerCounts, XdpCounts};
use nomagic_core::frame::PortId;
use nomagic_core::rss::Rss;
use nomagic_sys::xdp_socket::Statistics;

use crate::error::EdgeError;
use crate::ethtool::RssError;
use crate::pool::FrameAccount;
use crate::shared::Shared;

/// How a port is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Its XDP program is attached and all its queues are bound.
    Bound,
    /// Its interface does not exist; it is bound again when it comes back.
    Missing,
    /// Somebody else's XDP program has taken the place of ours; see [`EdgeError::XdpBusy`].
    Held {
        /// Id and name of the program.
        program: String,
    },
    /// It could not be bound again; tried again every second.
    Failed {
        /// Why.
        error: String,
    },
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Condition::Bound => write!(f, "bound"),
            Condition::Missing => write!(f, "missing"),
            Condition::Held { program } => write!(f, "held by another XDP program ({program})"),
            Condition::Failed { error } => write!(f, "not bound: {error}"),
        }
    }
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its place in the list of ports.
    pub id: PortId,
    /// Its interface.
    pub name: String,
    /// The interface's index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// XDP runs in the driver (true) or generically.
    pub native: bool,
    /// The sockets are zero-copy.
    pub zero_copy: bool,
    /// Receive queues, all bound.
    pub queues: u32,
    /// The worker that owns each queue.
    pub owners: Vec<u16>,
    /// Whether it works.
    pub condition: Condition,
    /// Times that it was bound again.
    pub rebinds: u64,
    /// How its NIC spreads what it receives over the workers; or why that cannot be told.
    pub rss: Result<Arc<Rss>, RssError>,
}

/// A redirect port: see [`crate::Edge::redirect`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedirectStatus {
    /// Its interface.
    pub name: String,
    /// The interface's index while the program is attached.
    pub ifindex: u32,
    /// XDP runs in the driver (true) or generically.
    pub native: bool,
    /// Whether it works.
    pub condition: Condition,
}

/// Sums up the CPUs.
pub(crate) fn read_xdp(stats: &PerCpuArray<MapData, u64>) -> Result<XdpCounts, EdgeError> {
    XdpCounts::read(|place| Ok(stats.get(&place, 0).map_err(|e| EdgeError::map("stats", &e))?.iter().sum()))
}

/// A socket's counts as the kernel keeps them; kernels before 5.9 do not count the last three.
pub(crate) fn socket_counts(raw: &Statistics) -> SocketCounts {
    SocketCounts {
        rx_dropped: raw.rx_dropped,
        rx_invalid_descs: raw.rx_invalid_descs,
        tx_invalid_descs: raw.tx_invalid_descs,
        rx_ring_full: raw.rx_ring_full.unwrap_or(0),
        rx_fill_ring_empty: raw.rx_fill_ring_empty_descs.unwrap_or(0),
        tx_ring_empty: raw.tx_ring_empty_descs.unwrap_or(0),
    }
}

/// A port's counters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStatus {
    /// The port.
    pub info: PortInfo,
    /// What its XDP program did; since the program was first attached, over restarts.
    pub xdp: XdpCounts,
    /// Its sockets, by queue.
    pub sockets: Vec<SocketCounts>,
}

/// A worker's counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// Its thread runs.
    pub alive: bool,
    /// Age of its heartbeat in ns.
    pub heartbeat_age_ns: u64,
    /// Frames waiting for neighbours now.
    pub held_now: u64,
    /// What it counted.
    pub counts: WorkerCounts,
    /// Where its frames are, by pool.
    pub pools: Vec<FrameAccount>,
}

impl WorkerStatus {
    pub(crate) fn read(id: u32, shared: &Shared, heartbeat_age_ns: u64) -> WorkerStatus {
        let counters = &shared.counters;
        WorkerStatus {
            id,
            alive: shared.alive.load(Relaxed),
            heartbeat_age_ns,
            held_now: shared.held.load(Relaxed),
            counts: WorkerCounts {
                frames: counters.frames.read(),
                path: counters.path.read(),
                conntrack: counters.conntrack.read(),
                reasons: counters.reasons.read(),
                io: shared.io.read(),
                sends: shared.sends.read(),
                neighbours: shared.neighbours.read(),
            },
            pools: shared.accounts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl EdgeStatus {
    /// What all workers together counted.
    pub fn totals(&self) -> WorkerCounts {
        let mut totals = WorkerCounts::default();
        self.workers.iter().for_each(|w| totals.add(&w.counts));
        totals
    }
}

/// The edge at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EdgeStatus {
    /// By worker.
    pub workers: Vec<WorkerStatus>,
    /// By port.
    pub ports: Vec<PortStatus>,
    /// Redirect ports, by name.
    pub redirects: Vec<RedirectStatus>,
    /// What the XDP program did on all redirect ports.
    pub redirects_xdp: XdpCounts,
    /// Where the frames of all workers are, by pool. Adds up while nothing moves; `away` is what is on its way between workers.
    pub pools: Vec<FrameAccount>,
    /// Live connections.
    pub flows_live: u64,
    /// Connections at the most.
    pub flows_capacity: u32,
    /// Replies announced to the XDP filter.
    pub replies_announced: u64,
    /// Connections with a source port of ours.
    pub source_ports: u64,
    /// The most source ports in use towards one endpoint.
    pub source_ports_fullest: u64,
    /// The most source ports that one client or one Service holds towards one endpoint.
    pub source_ports_largest: u64,
    /// Places for announced replies.
    pub replies_capacity: u64,
    /// Generation of the service table published last.
    pub services_generation: u64,
    /// Whether every worker uses that one.
    pub services_applied: bool,
    /// Generation of the routes published last.
    pub routes_generation: u64,
    /// Whether every worker uses those.
    pub routes_applied: bool,
}
