//! The control plane of nomagic: configuration, Kubernetes objects, the table compiler and `explain`.

pub mod compile;
pub mod config;
pub mod index;
pub mod manifests;
pub mod net;
pub mod objects;
pub mod problem;
