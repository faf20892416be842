//! The control plane of nomagic: configuration, Kubernetes objects, the table compiler and `explain`.

pub mod cli;
pub mod compile;
pub mod config;
pub mod config_args;
pub mod explain;
pub mod index;
pub mod kubeproxy;
pub mod manifests;
pub mod net;
pub mod objects;
pub mod problem;
pub mod run;
pub mod watch;
