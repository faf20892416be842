//! The status of the running gateway, collected once for the text page, `--format json` and `/metrics`.

mod collect;
pub(crate) mod page;
pub mod readiness;
mod service_ports;
mod targets;

pub use collect::{ControlStatus, collect, waiting};
pub use service_ports::service_ports;
pub use targets::{TARGETS_SHOWN_MAX, TargetReader};
