//! The edge's status: plain values, read at one moment.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use aya::maps::{MapData, PerCpuArray};
use nomagic_core::counters::{SocketCounts, WorkerCounts, XdpCounts};
use nomagic_core::frame::PortId;
use nomagic_core::rss::Rss;
use nomagic_core::services::PortLimits;
use nomagic_sys::xdp_socket::Statistics;

use crate::error::EdgeError;
use crate::ethtool::RssError;
use crate::latency::Latency;
use crate::link::LinkState;
use crate::pool::FrameAccount;
use crate::shared::WorkerShared;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// The XDP program is attached and all queues are bound.
    Bound,
    /// The interface does not exist; the port is bound again when it reappears.
    Missing,
    /// Another XDP program has replaced nomagic's; see [`EdgeError::XdpBusy`].
    Held {
        /// Id and name of the program.
        program: String,
    },
    /// Binding again failed; retried every second.
    Failed { error: String },
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

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its index in the list of ports.
    pub id: PortId,
    pub name: String,
    /// The interface's index.
    pub ifindex: u32,
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
    pub condition: Condition,
    /// The state of the interface's link when last seen.
    pub link: LinkState,
    /// Times that it was bound again.
    pub rebinds: u64,
    /// How its NIC spreads received packets over the workers, or why that is unknown.
    pub rss: Result<Arc<Rss>, RssError>,
}

/// A redirect port: see [`crate::Edge::redirect`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedirectStatus {
    pub name: String,
    /// The interface's index while the program is attached.
    pub ifindex: u32,
    /// XDP runs in the driver (true) or generically.
    pub native: bool,
    pub condition: Condition,
}

/// Sums over the CPUs.
pub(crate) fn read_xdp(stats: &PerCpuArray<MapData, u64>) -> Result<XdpCounts, EdgeError> {
    XdpCounts::read(|place| Ok(stats.get(&place, 0).map_err(|e| EdgeError::map("stats", &e))?.iter().sum()))
}

/// The kernel's counts of a socket; kernels before 5.9 do not have the last three.
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

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStatus {
    /// The port.
    pub info: PortInfo,
    /// The XDP program's counters since it was first attached, across restarts.
    pub xdp: XdpCounts,
    /// Its sockets, by queue.
    pub sockets: Vec<SocketCounts>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerStatus {
    pub id: u32,
    /// Whether its thread runs.
    pub alive: bool,
    /// Age of its heartbeat in ns.
    pub heartbeat_age_ns: u64,
    /// Frames held for neighbours now.
    pub held_now: u64,
    pub counts: WorkerCounts,
    pub latency: Latency,
    /// Its frame accounts, by pool.
    pub pools: Vec<FrameAccount>,
}

impl WorkerStatus {
    pub(crate) fn read(id: u32, shared: &WorkerShared, heartbeat_age_ns: u64) -> WorkerStatus {
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
            latency: shared.latencies.read(),
            pools: shared.accounts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// What became of answers that the kernel sent out of the ports.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AnswerCounts {
    /// Captured for the workers.
    pub taken: u64,
    /// Dropped because no worker takes them.
    pub dropped: u64,
    /// Ports where they are not captured; the internal port stands for all redirect ports.
    pub unseen_ports: Vec<String>,
}

impl EdgeStatus {
    /// The sum over all workers.
    pub fn totals(&self) -> WorkerCounts {
        let mut totals = WorkerCounts::default();
        self.workers.iter().for_each(|w| totals.add(&w.counts));
        totals
    }
}

/// The edge's status at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EdgeStatus {
    /// By worker.
    pub workers: Vec<WorkerStatus>,
    /// By port.
    pub ports: Vec<PortStatus>,
    /// Redirect ports, by name.
    pub redirects: Vec<RedirectStatus>,
    /// The XDP program's counters, summed over all redirect ports.
    pub redirects_xdp: XdpCounts,
    /// Answers of endpoints behind the kernel, on their way out of the ports.
    pub answers: AnswerCounts,
    /// The frame accounts of all workers, by pool. Consistent while nothing moves; `away` is the number of frames in transit between
    /// workers.
    pub pools: Vec<FrameAccount>,
    /// Live connections.
    pub flows_live: u64,
    /// Maximum number of connections.
    pub flows_capacity: u32,
    /// Replies announced to the XDP filter.
    pub replies_announced: u64,
    /// Connections with a source port allocated by nomagic.
    pub source_ports: u64,
    /// The most source ports in use towards a single endpoint.
    pub source_ports_fullest: u64,
    /// The most source ports that a single client, and a single Service, holds towards one endpoint.
    pub source_port_shares: PortLimits,
    /// Places for announced replies.
    pub replies_capacity: u64,
    /// Generation of the latest published service table.
    pub services_generation: u64,
    /// Whether every worker uses it.
    pub services_applied: bool,
    /// Generation of the latest published routes.
    pub routes_generation: u64,
    /// Whether every worker uses them.
    pub routes_applied: bool,
}
