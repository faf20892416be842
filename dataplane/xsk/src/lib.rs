//! The edge of nomagic: receives and sends frames.
//!
//! An XDP filter on each interface captures nomagic's frames and leaves the others to the kernel (`nomagic_core::capture`). Captured frames
//! reach a worker through AF_XDP sockets; the worker runs them through `nomagic_core::pipeline` and applies the verdicts. [`Edge`] combines
//! these parts: the control plane starts it, publishes tables to it, and stops it.
//!
//! `unsafe` is confined to `umem` (frame buffers), `queue` (rings), `bind` (socket creation), `ethtool` (one ioctl) and `xdp_features` (one
//! libbpf call); system calls are in `nomagic_sys`.

mod addressed;
mod answers;
mod bind;
mod config;
mod denied;
mod edge;
mod error;
mod ethtool;
mod filter;
mod hold;
mod io;
mod lanes;
mod latency;
mod limits;
mod link;
mod outer;
mod pins;
mod pool;
mod ports;
mod program;
mod published;
mod queue;
mod redirect;
pub mod region;
mod reply_key;
mod setup;
mod shared;
mod status;
mod tables;
mod taps;
mod topology;
mod umem;
mod worker;
mod workers;
mod xdp_features;

pub use addressed::{MAC_ADDRESSES_MAX, VLANS_MAX};
pub use config::{EdgeConfig, Idle, InternalPair, OnFailure, PORTS_MAX, PacketPath, QUEUES_MAX, REDIRECTS_MAX, REPLY_BUCKETS_MAX};
pub use denied::{Denied, NO_END_NS};
pub use edge::{Applied, Edge};
pub use error::{EdgeError, permit_hint};
pub use ethtool::{RssError, prepare_kernel_side};
pub use filter::{ADDRESSES_MAX, SERVICE_CIDRS_MAX, SERVICES_MAX};
pub use latency::Latency;
pub use limits::{FrameSize, Headroom, InterfaceName, Limited, MacAddress, OutOfLimits, RingSize, VlanId, WorkerCount};
pub use link::{Attached, Link, LinkState};
pub use nomagic_core::conntrack::Recovered;
pub use pins::{PinsCleaned, cleanup, cleanup_directory};
pub use pool::FrameAccount;
pub use published::{Published, Reader};
pub use status::{AnswerCounts, Condition, EdgeStatus, PortInfo, PortStatus, RedirectStatus, WorkerStatus};
pub use tables::TablesApplied;
pub use taps::{SNAP_LEN_MAX, Snap, TAPS_MAX, TapCounts, TapOptions, TapPacket, TapReader};
pub use umem::SEGMENTS_MAX;
pub use xdp_features::xdp_features;

const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Edge>();
};
