//! The control plane of nomagic: configuration, Kubernetes objects, the table compiler and `explain`.

pub mod changes;
pub mod cli;
pub mod compile;
pub mod config;
pub mod config_args;
pub mod events;
pub mod explain;
pub mod health;
pub mod http;
pub mod index;
pub mod kubeproxy;
pub mod manifests;
pub mod metrics;
pub mod net;
pub mod objects;
pub mod problem;
pub mod reconcile;
pub mod run;
pub mod watch;
