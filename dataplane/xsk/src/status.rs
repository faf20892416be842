//! What the edge tells about itself: plain values, read at one moment.

use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray};
use nomagic_core::counters::Traffic;
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
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

/// Packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Volume {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl From<&Traffic> for Volume {
    fn from(t: &Traffic) -> Volume {
        Volume { packets: t.packets.get(), bytes: t.bytes.get() }
    }
}

/// The XDP program's counters of one interface: received frames are `passed() + taken + dropped()`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct XdpCounters {
    /// To the kernel: no Service, no announced reply.
    pub pass_not_ours: u64,
    /// To the kernel: neither IPv4 nor IPv6.
    pub pass_not_ip: u64,
    /// To the kernel: fragments.
    pub pass_fragment: u64,
    /// To the kernel: ICMP.
    pub pass_icmp: u64,
    /// To the kernel: transport protocols that are not taken.
    pub pass_other_protocol: u64,
    /// To the kernel: cut short or contradictory.
    pub pass_unreadable: u64,
    /// To the kernel: ours, but no worker has ever run.
    pub pass_never_started: u64,
    /// To the kernel: ours, but the worker has been gone for longer than the grace period.
    pub failed_open: u64,
    /// To the AF_XDP socket.
    pub taken: u64,
    /// Dropped: the worker's socket is closed.
    pub dropped_no_socket: u64,
    /// Dropped: the worker's heartbeat is stale, within the grace period.
    pub dropped_stale: u64,
    /// Dropped: the worker has been gone for longer than the grace period.
    pub failed_closed: u64,
}

impl XdpCounters {
    /// Frames left to the kernel.
    pub fn passed(&self) -> u64 {
        self.pass_not_ours
            + self.pass_not_ip
            + self.pass_fragment
            + self.pass_icmp
            + self.pass_other_protocol
            + self.pass_unreadable
            + self.pass_never_started
            + self.failed_open
    }

    /// Frames dropped by the program.
    pub fn dropped(&self) -> u64 {
        self.dropped_no_socket + self.dropped_stale + self.failed_closed
    }

    /// All frames seen.
    pub fn received(&self) -> u64 {
        self.passed() + self.taken + self.dropped()
    }

    /// Sums up the CPUs; the order of places is `enum stat` of bpf/filter.c.
    pub(crate) fn read(stats: &PerCpuArray<MapData, u64>) -> Result<XdpCounters, EdgeError> {
        let sum =
            |place: u32| -> Result<u64, EdgeError> { Ok(stats.get(&place, 0).map_err(|e| EdgeError::map("stats", &e))?.iter().sum()) };
        Ok(XdpCounters {
            pass_not_ours: sum(0)?,
            pass_not_ip: sum(1)?,
            pass_fragment: sum(2)?,
            pass_icmp: sum(3)?,
            pass_other_protocol: sum(4)?,
            pass_unreadable: sum(5)?,
            pass_never_started: sum(6)?,
            failed_open: sum(7)?,
            taken: sum(8)?,
            dropped_no_socket: sum(9)?,
            dropped_stale: sum(10)?,
            failed_closed: sum(11)?,
        })
    }
}

/// An AF_XDP socket's counters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct XskStatistics {
    /// Received frames lost for other reasons than those below.
    pub rx_dropped: u64,
    /// Bad descriptors on the fill ring.
    pub rx_invalid_descs: u64,
    /// Bad descriptors on the transmit ring.
    pub tx_invalid_descs: u64,
    /// Received frames lost because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was found empty.
    pub rx_fill_ring_empty: u64,
    /// Times that the transmit ring was found empty.
    pub tx_ring_empty: u64,
}

impl From<Statistics> for XskStatistics {
    /// Kernels before 5.9 do not count the last three.
    fn from(raw: Statistics) -> XskStatistics {
        XskStatistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full.unwrap_or(0),
            rx_fill_ring_empty: raw.rx_fill_ring_empty_descs.unwrap_or(0),
            tx_ring_empty: raw.tx_ring_empty_descs.unwrap_or(0),
        }
    }
}

/// A port's counters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortStatus {
    /// The port.
    pub info: PortInfo,
    /// What its XDP program did; since the program was first attached, over restarts.
    pub xdp: XdpCounters,
    /// Its sockets, by queue.
    pub sockets: Vec<XskStatistics>,
}

/// Why sendto() did not send everything at once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TransmitErrors {
    /// Calls.
    pub calls: u64,
    /// EAGAIN: more was left than one call sends.
    pub again: u64,
    /// EBUSY.
    pub busy: u64,
    /// ENOBUFS.
    pub no_buffers: u64,
    /// The port was down or gone.
    pub down: u64,
    /// Anything else.
    pub other: u64,
}

/// A worker's counters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// Its thread runs.
    pub alive: bool,
    /// Age of its heartbeat in ns.
    pub heartbeat_age_ns: u64,
    /// Frames given to the packet path.
    pub received: Volume,
    /// Frames forwarded.
    pub forwarded: Volume,
    /// Frames given back to the kernel.
    pub kernel: Volume,
    /// Frames dropped.
    pub dropped: Volume,
    /// Frames that were held.
    pub held: Volume,
    /// Held frames that were submitted again or given up.
    pub released: Volume,
    /// Frames made (rejects).
    pub made: Volume,
    /// Made frames that could not be sent.
    pub made_failed: u64,
    /// Frames by reason, without those that are 0.
    pub reasons: Vec<(Reason, u64)>,
    /// Frames copied between pools.
    pub copied: Volume,
    /// Frames handed over to other workers, which own the ports they leave by.
    pub handed_over: Volume,
    /// Frames taken over from other workers.
    pub handed_in: Volume,
    /// Those of them that could not be sent.
    pub handed_failed: Volume,
    /// Frames waiting for neighbours now.
    pub held_now: u64,
    /// Neighbours asked for.
    pub neighbours_asked: u64,
    /// Questions about neighbours that were suppressed.
    pub neighbours_suppressed: u64,
    /// sendto() and its errors.
    pub transmit: TransmitErrors,
    /// Rounds of the loop.
    pub rounds: u64,
    /// Sleeps.
    pub sleeps: u64,
    /// Where the frames are, by pool.
    pub frames: Vec<FrameAccount>,
}

impl WorkerStatus {
    pub(crate) fn read(id: u32, shared: &Shared, heartbeat_age_ns: u64) -> WorkerStatus {
        let (c, io, kicks) = (&shared.counters, &shared.io, &shared.kicks);
        let reasons = Reason::ALL.iter().map(|&r| (r, c.reason(r).get())).filter(|&(_, n)| n > 0).collect();
        WorkerStatus {
            id,
            alive: shared.alive.load(std::sync::atomic::Ordering::Relaxed),
            heartbeat_age_ns,
            received: (&c.received).into(),
            forwarded: (&c.forwarded).into(),
            kernel: (&c.kernel).into(),
            dropped: (&c.dropped).into(),
            held: (&c.held).into(),
            released: (&c.released).into(),
            made: (&c.made).into(),
            made_failed: io.made_failed.get(),
            reasons,
            copied: (&io.copied).into(),
            handed_over: (&io.handed_over).into(),
            handed_in: (&io.handed_in).into(),
            handed_failed: (&io.handed_failed).into(),
            held_now: shared.held.load(std::sync::atomic::Ordering::Relaxed),
            neighbours_asked: shared.asks.sent.get(),
            neighbours_suppressed: shared.asks.suppressed.get(),
            transmit: TransmitErrors {
                calls: kicks.calls.get(),
                again: kicks.again.get(),
                busy: kicks.busy.get(),
                no_buffers: kicks.no_buffers.get(),
                down: kicks.down.get(),
                other: kicks.other.get(),
            },
            rounds: io.rounds.get(),
            sleeps: io.sleeps.get(),
            frames: shared.accounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone(),
        }
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
    pub redirects_xdp: XdpCounters,
    /// Where the frames of all workers are, by pool. Adds up while nothing moves; `away` is what is on its way between workers.
    pub frames: Vec<FrameAccount>,
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
