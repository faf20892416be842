//! The interfaces of a gateway.

use nomagic_core::counters::{SocketCounts, XdpCounts};
use serde::{Deserialize, Serialize};

/// A port: an interface with AF_XDP sockets on its queues.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusPort {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    pub queues: u32,
    /// The worker that owns each queue.
    pub owners: Vec<u16>,
    /// Whether its XDP program is attached and all its queues are bound.
    pub bound: bool,
    /// The same in words, with the reason.
    pub condition: String,
    #[serde(default)]
    pub link: PortLink,
    pub rebinds: u64,
    pub xdp_mode: XdpMode,
    pub zero_copy: bool,
    pub rss: Rss,
    pub xdp: Xdp,
    /// By queue.
    pub sockets: Vec<SocketCounts>,
}

/// The state of a port's link.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortLink {
    /// Up, with a carrier.
    Up,
    /// Administratively down, or the interface does not exist.
    Down,
    /// Up without a carrier: no cable, or the other end is down.
    NoCarrier,
    /// The gateway is of a version that does not say.
    #[default]
    Unknown,
}

impl std::fmt::Display for PortLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PortLink::Up => "up",
            PortLink::Down => "down",
            PortLink::NoCarrier => "no carrier",
            PortLink::Unknown => "unknown",
        })
    }
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

/// Whether the queue of a reply is predictable, so that source ports are chosen by it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rss {
    /// With the NIC's indirection table of this size.
    Predicted { entries: usize },
    /// Unpredictable, with the reason.
    Unknown { because: String },
}

/// The XDP program's counters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Xdp {
    /// All frames: passed, taken, denied and dropped.
    pub received: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// Dropped because no worker takes them.
    pub dropped: u64,
    /// The counter of each outcome.
    #[serde(flatten)]
    pub counts: XdpCounts,
}

impl From<XdpCounts> for Xdp {
    fn from(counts: XdpCounts) -> Xdp {
        Xdp { received: counts.received(), passed: counts.passed(), dropped: counts.dropped(), counts }
    }
}

/// A redirect port: an interface whose captured frames go to the internal port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RedirectPort {
    pub name: String,
    pub ifindex: u32,
    pub xdp_mode: XdpMode,
    pub bound: bool,
    pub condition: String,
}
