//! The page `/metrics` in Prometheus' text format; [`exposition`] says why it is written by hand.
//!
//! [`proxy`] has what kube-proxy has under kube-proxy's names; [`gateway`] is nomagic's own. Both are pure: plain values in, text out.
//! The number of series is bounded: by workers, ports and queues, whose numbers are; and by [`crate::status::TARGETS_SHOWN_MAX`] for
//! pairs of a Service port and a backend.

mod counts;
pub mod exposition;
pub mod gateway;
pub mod histogram;
mod ports;
pub mod process;
pub mod proxy;
pub mod reconciler;
pub mod slis;
mod targets;

pub use exposition::{CONTENT_TYPE, Exposition};

/// Name, words for people, and how to read the value off something.
type Row<T, V> = (&'static str, &'static str, fn(&T) -> V);
