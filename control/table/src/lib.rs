//! The pure part of the control plane: from Kubernetes objects to the service table of the packet path, and explanations of it.
//!
//! ```text
//! objects  -> index   -> compile -> nomagic_core::services::Services
//! (read)     (changes)  (Settings)  explain
//! ```
//!
//! No clock, threads, sockets or files: objects and [`settings::Settings`] are arguments. Nothing here needs clang, kube or tokio.
#![forbid(unsafe_code)]

pub mod changes;
pub mod compile;
pub mod explain;
pub mod findings;
pub mod index;
pub mod listing;
pub mod objects;
pub mod problem;
pub mod settings;
