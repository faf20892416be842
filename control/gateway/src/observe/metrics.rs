//! `/metrics` in Prometheus' text format; [`exposition`] explains why it is hand-written.
//!
//! [`proxy`] has kube-proxy's metrics under their names, [`gateway`] nomagic's own. Both are pure: plain values in, text out. The number
//! of series is bounded by the number of workers, ports and queues, and by [`crate::status::TARGETS_SHOWN_MAX`] for pairs of a Service
//! port and a backend.

mod counts;
pub mod exposition;
pub mod gateway;
mod histogram;
mod ports;
pub(crate) mod process;
pub(crate) mod proxy;
pub mod reconciler;
pub mod servers;
mod service_ports;
pub(crate) mod slis;
pub mod targets;

pub use exposition::{CONTENT_TYPE, Exposition};

/// Name, help text, and the function that reads the value.
type MetricDef<T, V> = (&'static str, &'static str, fn(&T) -> V);
