//! The benchmarks of nomagic.
//!
//! [`pktgen`] is the traffic generator with its sink; [`ndr`] searches the highest rate without loss; [`compare`] measures nomagic next to its peers, and
//! [`report`] shows the [`results`].

#![allow(missing_docs, reason = "nobody outside of this workspace uses it")]

pub mod compare;
pub mod format;
pub mod ndr;
pub mod pktgen;
pub mod report;
pub mod results;
