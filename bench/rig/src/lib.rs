//! The benchmarks of nomagic.
//!
//! [`pktgen`] is the traffic generator with its sink; [`ndr`] searches the highest rate without loss; [`compare`] measures nomagic next to its peers,
//! [`report`] shows the [`results`], [`floods`] shows how floods affect honest clients,
//! [`bulk`] what large transfers reach, and [`observed`] what observing costs.

#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "rates and coordinates, never negative or that large")]
#![allow(missing_docs, reason = "the crate has no users outside of this workspace")]

pub mod bulk;
pub mod compare;
pub mod floods;
pub mod format;
pub mod ndr;
pub mod observed;
pub mod pktgen;
pub mod report;
pub mod results;
pub mod servers;
