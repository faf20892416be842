//! The gateway: the command line, the configuration, the sources of objects, the mirror of the kernel's routes, what a gateway tells
//! about itself, and `run`, which puts it all together.
#![forbid(unsafe_code)]

pub mod cli;
mod clock;
pub mod config;
pub mod connections;
pub mod deny;
pub mod events;
pub mod flows;
pub mod kubeproxy;
pub mod log;
pub mod manifests;
pub mod net;
pub mod observe;
pub mod parity;
pub mod preflight;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod seed;
pub mod services;
pub mod status;
pub mod taps;
mod threads;
pub mod watch;
