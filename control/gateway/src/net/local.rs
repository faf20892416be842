//! The node's own connections to Services: routes and rules that lead them into the internal port.
//!
//! The main table is not changed. Rules with `iif lo` look up nomagic's own tables for packets that this node itself sends. Forwarded packets
//! never use these tables, so packets that nomagic returns to the kernel follow the kernel's routes and cannot loop.
//!
//! [`Plan`] computes the wanted routes and rules (pure); [`LocalRoutes`] reads those of the kernel, compares, and changes only entries with
//! nomagic's protocol number. One foreign rule is moved: the kernel's rule for the `local` table. It decides about the node's own addresses
//! before any other rule, so rules for ports on them must come first, as with VRFs.

mod kernel;
mod plan;
mod rules;

pub use kernel::{Changes, LocalRoutes};
pub use plan::{Inputs, LeftOut, Limits, LocalAction, OwnPorts, Plan};

/// The protocol number of nomagic's routes and rules (`proto 78` in iproute2), used by no known daemon.
pub const PROTOCOL: u8 = 78;
/// The table for Service addresses that are not addresses of this node: `nm` in ASCII.
pub const SERVICES_TABLE: u32 = 0x6e6d;
/// The table for Service ports on addresses of this node.
pub const OWN_TABLE: u32 = SERVICES_TABLE + 1;

/// Preference of the rules for the node's own addresses.
const OWN_PREFERENCE: u32 = 70;
/// Preference to which the rule for the `local` table is moved if it precedes those.
const MOVED_PREFERENCE: u32 = 71;
/// Preference of the rule for Service addresses: after the `local` table, and before policy routing by source, which would otherwise match as
/// soon as a connection has a source address.
const SERVICES_PREFERENCE: u32 = 110;
