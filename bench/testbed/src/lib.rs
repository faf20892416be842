//! The testbed of nomagic: network namespaces with real peers, and the demo. The tests of every crate may use it; it
//! runs `nomagic` by its path.
//!
//! [`rig`] creates namespaces, cables and processes and removes them again, even after ^C. [`peers`] are real pods
//! and clients; [`gateway`] is a running nomagic between them. [`demo`] combines them: `make demo`.

#![allow(missing_docs, reason = "the crate has no users outside of this workspace")]

pub mod columns;
pub mod demo;
pub mod gateway;
pub mod peers;
pub mod rig;
