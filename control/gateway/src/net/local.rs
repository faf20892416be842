//! The node's own connections to Services: routes and rules that lead them into the internal port.
//!
//! The main table is not changed. Rules with `iif lo` look up nomagic's own tables for packets that this node itself sends. Forwarded packets
//! never use these tables, so packets that nomagic returns to the kernel follow the kernel's routes and cannot loop.
//!
//! [`LocalPlan`] computes the wanted routes and rules (pure); [`LocalRoutes`] reads those of the kernel, compares, and changes only entries with
//! nomagic's protocol number. One foreign rule is moved: the kernel's rule for the `local` table. It decides about the node's own addresses
//! before any other rule, so rules for ports on them must come first, as with VRFs.
//!
//! nomagic's own connections to the API server have a mark, and rules with that mark let them pass all of the above: no Service can take
//! them, whatever addresses it claims. Otherwise the deletion of such a Service could not be heard.

mod kernel;
mod plan;
mod rules;

pub use kernel::{LocalRoutes, RouteChanges};
pub use plan::{LocalAction, LocalPlan, OwnPorts, PlanInputs, PlanLimits, PlanOverflow};

/// The protocol number of nomagic's routes and rules (`proto 78` in iproute2), used by no known daemon.
pub const PROTOCOL: u8 = 78;
/// The table for Service addresses that are not addresses of this node: `nm` in ASCII.
pub const SERVICES_TABLE: u32 = 0x6e6d;
/// The table for Service ports on addresses of this node.
pub const OWN_TABLE: u32 = SERVICES_TABLE + 1;

/// The mark (`SO_MARK`) of nomagic's connections to the API server. kube-proxy, Calico and Cilium use other bits.
pub const BYPASS_MARK: u32 = PROTOCOL as u32;

/// Preferences of the rules with that mark: for the `local` table, and for the jump to the rule after that for Service addresses.
const BYPASS_PREFERENCES: [u32; 2] = [68, 69];
/// Preference of the rules for the node's own addresses.
const OWN_PREFERENCE: u32 = 70;
/// Preference to which the rule for the `local` table is moved if it precedes those.
const MOVED_PREFERENCE: u32 = 71;
/// Preference of the rule for Service addresses: after the `local` table, and before policy routing by source, which would otherwise match as
/// soon as a connection has a source address.
const SERVICES_PREFERENCE: u32 = 110;
