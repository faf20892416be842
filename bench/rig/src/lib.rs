//! The benchmarks of nomagic.
//!
//! [`pktgen`] is the traffic generator with its sink; [`ndr`] searches the highest rate without loss; [`compare`]
//! measures nomagic next to its peers, and [`report`] shows the [`results`]. [`preflight`] checks whether a machine
//! is ready for nomagic.

#![allow(missing_docs, reason = "the crate has no users outside of this workspace")]

pub mod compare;
pub mod format;
pub mod ndr;
pub mod pktgen;
pub mod preflight;
pub mod report;
pub mod results;
pub mod xdp_features;
