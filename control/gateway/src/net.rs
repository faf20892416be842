//! The kernel's network configuration for the dataplane: links, routes and neighbours, mirrored over netlink.
//!
//! [`Mirror`] dumps the kernel's tables, follows its notifications and builds `nomagic_core::routes::Routes`;
//! [`Mirror::resolve_neighbour`] makes the kernel resolve a neighbour. [`internal`] creates the veth pair that returns frames to the
//! kernel, [`local`] routes the node's own connections into it, [`node`] reads the node's addresses and checks that a SNAT port range is free.
//!
//! Everything works in the network namespace of the calling thread.

mod decode;
mod interfaces;
pub mod internal;
pub mod local;
mod mirror;
pub mod node;
mod resolver;
mod reverse_path;
mod rules;
mod socket;
mod state;
mod sysctl;
mod view;

pub use mirror::{Mirror, MirrorCounters};
pub use resolver::ResolveOutcome;
pub use state::{Effect, MirrorLimits, NetState};
pub use view::RouteInputs;

/// Errors of netlink requests, sysctls and the checks of this module.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}{}", hint(.source))]
    Refused {
        /// The request, with the object's name.
        what: String,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// A netlink socket failed.
    #[error("netlink socket: cannot {what}: {source}")]
    Socket {
        /// The operation.
        what: &'static str,
        source: std::io::Error,
    },
    /// No response in time, or only inconsistent dumps.
    #[error("the kernel did not respond to `{0}`, or only with inconsistent dumps; try again")]
    NoResponse(String),
    /// A file in /proc could not be read or written.
    #[error("cannot {what} {path}: {source}{}", hint(.source))]
    Proc {
        /// `read` or `write ... to`.
        what: String,
        path: String,
        source: std::io::Error,
    },
    /// An interface with a name of the internal port exists and is not one of its ends.
    #[error(
        "interface {name} exists but is not an end of the veth pair {kernel}/{edge}: rename it, or delete it with `ip link del {name}`"
    )]
    InternalTaken {
        /// The existing interface.
        name: String,
        /// The kernel's end of the pair.
        kernel: String,
        /// The dataplane's end of the pair.
        edge: String,
    },
    /// A routing table of nomagic holds routes of another program.
    #[error(
        "routing table {0} has routes of another program (not `proto 78`), but nomagic needs it exclusively; see `ip route show table {0}`"
    )]
    TableTaken(u32),
    /// The SNAT port range is in use.
    #[error("{0}")]
    SnatRange(#[from] node::SnatRangeError),
}

/// Advice for an error code.
fn hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (needs root or CAP_NET_ADMIN)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
