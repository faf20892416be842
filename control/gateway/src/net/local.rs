//! The node's own connections to Services: routes and rules that lead them into the internal port.
//!
//! Nothing of this stands in the main table. Tables of our own are asked for what this node itself sends (`iif lo`) and for nothing else:
//! what is forwarded never sees them, so what nomagic gives back to the kernel goes on by the kernel's own routes and cannot come back.
//!
//! [`Plan`] says what there should be (pure), [`LocalRoutes`] makes the kernel have it, whatever was there before: it reads, compares, and
//! changes only what bears our protocol number. The one rule of others that it touches is the kernel's own for the `local` table: connections
//! to the node's own addresses are decided there before anything else, so rules for their ports need a place before it, as VRFs do.

mod kernel;
mod plan;
mod rules;

pub use kernel::{Changes, LocalRoutes};
pub use plan::{Inputs, LeftOut, Limits, OwnPorts, Plan, Way};

/// What our routes and rules are marked with (`proto 78` in iproute2's words): not in use by any known daemon.
pub const PROTOCOL: u8 = 78;
/// The table for addresses that Services have and this node has not: `nm` in ASCII.
pub const SERVICES_TABLE: u32 = 0x6e6d;
/// The table for ports of Services on addresses of this node.
pub const OWN_TABLE: u32 = SERVICES_TABLE + 1;

/// Preference of the rules for the node's own addresses.
const OWN_PREFERENCE: u32 = 70;
/// Where the rule for the `local` table is moved to when it stands before those.
const MOVED_PREFERENCE: u32 = 71;
/// Preference of the rule for Services' addresses: behind the `local` table, before policy routing by source, which would take over as soon as
/// a connection has its source.
const SERVICES_PREFERENCE: u32 = 110;
