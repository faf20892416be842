//! The edge of nomagic: how frames come in and go out.
//!
//! An XDP filter on each interface takes what is nomagic's and leaves the rest to the kernel (`nomagic_core::capture`). Taken frames reach a
//! worker through AF_XDP sockets; the worker runs them through `nomagic_core::pipeline` and does what the verdicts say. [`Edge`] puts
//! it all together: it is what the control plane starts, publishes tables to, and stops.
//!
//! `unsafe` is confined to `umem` (frames' bytes), `queue` (rings), `bind` (socket creation) and `ethtool` (one ioctl); system calls are in
//! `nomagic_sys`.

mod bind;
mod config;
mod edge;
mod error;
mod ethtool;
mod filter;
mod hold;
mod io;
mod lanes;
mod limits;
mod link;
mod pins;
mod pool;
mod ports;
mod program;
mod published;
mod queue;
mod redirect;
pub mod region;
mod setup;
mod shared;
mod status;
mod tables;
mod topology;
mod umem;
mod worker;
mod workers;
mod xdp_features;

pub use config::{EdgeConfig, Idle, InternalPair, OnFailure, PORTS_MAX, PacketPath, QUEUES_MAX, REDIRECTS_MAX, REPLY_BUCKETS_MAX};
pub use edge::{Applied, Edge};
pub use error::EdgeError;
pub use ethtool::{RssError, prepare_kernel_side};
pub use filter::{ADDRESSES_MAX, SERVICE_CIDRS_MAX, SERVICES_MAX, SNAT_MAX};
pub use limits::{FrameSize, Headroom, InterfaceName, Limited, OutOfLimits, RingSize, WorkerCount};
pub use link::{Attached, Link};
pub use nomagic_core::conntrack::Recovered;
pub use pins::cleanup;
pub use pool::FrameAccount;
pub use published::{Published, Reader};
pub use status::{Condition, EdgeStatus, PortInfo, PortStatus, RedirectStatus, WorkerStatus};
pub use xdp_features::xdp_features;

const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Edge>();
};
