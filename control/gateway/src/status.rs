//! The status of the running gateway: collected once, then read by the page for people, `--format json` and `/metrics`.

pub mod collect;
pub mod page;
mod targets;

pub use collect::{Control, collect, waiting};
pub use targets::{TARGETS_SHOWN_MAX, TargetReader};
