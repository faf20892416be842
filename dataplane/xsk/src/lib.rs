//! The edge of nomagic: how frames come in and go out.
//!
//! An XDP filter on each interface takes what is nomagic's and leaves the rest to the kernel ([`FilterMaps`]). Taken frames reach a
//! worker through AF_XDP sockets; the worker runs them through `nomagic_core::pipeline` and does what the verdicts say. [`Edge`] puts
//! it all together: it is what the control plane starts, publishes tables to, and stops.
//!
//! `unsafe` is confined to `sys` (system calls), `ethtool` (one ioctl), `link` (one netlink exchange), `memory` (mappings), `umem` (frames' bytes), `queue`
//! (rings), `bind` (socket creation) and `privileges` (capabilities).

mod bind;
mod config;
mod edge;
mod error;
mod ethtool;
mod filter;
#[cfg(test)]
mod filter_tests;
mod hold;
mod io;
mod lanes;
mod link;
pub mod memory;
mod mounts;
mod pins;
mod pool;
mod ports;
mod privileges;
mod program;
mod published;
mod queue;
mod redirect;
pub mod region;
mod setup;
mod shared;
mod status;
mod sys;
mod topology;
mod umem;
mod worker;

pub use config::{
    EdgeConfig, Idle, InternalPair, OnFailure, PORTS_MAX, PacketPath, QUEUES_MAX, REDIRECTS_MAX, REPLY_BUCKETS_MAX, WORKERS_MAX,
};
pub use edge::Edge;
pub use error::EdgeError;
pub use ethtool::prepare_kernel_side;
pub use filter::{ADDRESSES_MAX, FilterMaps, FilterRules, SERVICE_CIDRS_MAX, SERVICES_MAX, SNAT_MAX};
pub use link::{Attached, Link};
pub use nomagic_core::conntrack::Recovered;
pub use pins::cleanup;
pub use pool::FrameAccount;
pub use privileges::{keep_nothing, keep_what_is_needed};
pub use published::{Published, Reader};
pub use status::{Condition, EdgeStatus, PortInfo, PortStatus, RedirectStatus, WorkerStatus};
pub use sys::{close_on_exec, kick_tx, leave_cpus, monotonic_ns, set_tx_budget};

const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Edge>();
};
