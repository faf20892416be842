//! The kernel's view for the dataplane: links, routes and neighbours mirrored over netlink, nothing configured twice.
//!
//! [`Mirror`] reads everything once, follows the kernel's notifications and builds `nomagic_core::routes::Routes`;
//! [`Mirror::ask`] makes the kernel resolve a neighbour. [`internal`] makes the veth pair by which frames go back to the kernel,
//! [`local`] leads the node's own connections into it, [`node`] knows the node's own addresses and whether a SNAT port range is free to use.
//!
//! All of it works in the network namespace of the calling thread.

mod ask;
mod decode;
mod interfaces;
pub mod internal;
pub mod local;
mod mirror;
pub mod node;
mod socket;
mod state;
mod sysctl;
mod view;

pub use ask::Asked;
pub use mirror::{Mirror, MirrorCounters};
pub use state::{Effect, Limits, NetState};
pub use view::Inputs;

/// What can go wrong between nomagic and the kernel's network configuration.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}{}", hint(.source))]
    Refused {
        /// The request in words, with the object's name.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A netlink socket failed.
    #[error("netlink socket: cannot {what}: {source}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No answer in time, or none that could be read in several tries.
    #[error("the kernel's answer to `{0}` did not come or stayed inconsistent; try again")]
    NoAnswer(String),
    /// A file below /proc could not be read or written.
    #[error("cannot {what} {path}: {source}{}", hint(.source))]
    Proc {
        /// `read` or `write ... to`.
        what: String,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// An interface of the internal port's name exists and is something else.
    #[error(
        "interface {name} exists but is not one end of the veth pair {kernel}/{edge}: rename it, or remove it with `ip link del {name}`"
    )]
    InternalTaken {
        /// The interface that is in the way.
        name: String,
        /// The kernel's end of the pair.
        kernel: String,
        /// The dataplane's end of the pair.
        edge: String,
    },
    /// Somebody else's routes are in a table of ours.
    #[error(
        "routing table {0} has routes that are not nomagic's (not `proto 78`): it needs this table for itself, `ip route show table {0}`"
    )]
    TableTaken(u32),
    /// The SNAT port range is not free to use.
    #[error("{0}")]
    SnatRange(#[from] node::SnatRangeError),
}

/// What to do about an error code, where there is something to do.
fn hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (needs root or CAP_NET_ADMIN)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
