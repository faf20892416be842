//! `nomagic-bench preflight`: what is missing on a machine before one measures there.
//!
//! Facts are gathered once from a [`host`] (files below a root, `ip`, `ethtool`, one question to the kernel): [`facts`] about the machine,
//! [`nic`] about an interface and its namespace. [`checks`] are pure: each looks at the facts and returns a [`finding`]. What could not be found out is
//! `unknown`, never `ok`. Nothing is changed.
//!
//! Tested against trees of files and answers made by hand, in the shape that Linux and ethtool give them, and on veth. It has not run beside a NIC yet.

pub mod checks;
pub mod cli;
pub mod cpus;
pub mod drivers;
pub mod facts;
#[cfg(test)]
mod fake;
pub mod finding;
pub mod host;
pub mod nic;
mod sys;

pub use cli::PreflightArgs;
