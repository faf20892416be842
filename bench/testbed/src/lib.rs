//! The testbed of nomagic: network namespaces with real peers, and the demo. Every crate's tests may use it; it runs the `nomagic` program by its path.
//!
//! [`rig`] lays out namespaces, cables and processes and takes them down again, also after ^C. [`peers`] are the real pods and
//! clients that talk through the gateway; [`gateway`] is a running nomagic between them. [`demo`] puts all together and is what
//! `make demo` runs.

#![allow(missing_docs, reason = "nobody outside of this workspace uses it")]

pub mod columns;
pub mod demo;
pub mod gateway;
pub mod peers;
pub mod rig;
