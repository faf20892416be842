//! The benchmarks of nomagic.
//!
//! [`pktgen`] is the traffic generator with its sink; [`ndr`] searches the highest rate without loss; [`compare`] measures nomagic next to its peers, and
//! [`report`] shows the [`results`].

#![allow(missing_docs, reason = "the crate has no users outside of this workspace")]

pub mod compare;
pub mod format;
pub mod ndr;
pub mod pktgen;
pub mod report;
pub mod results;
