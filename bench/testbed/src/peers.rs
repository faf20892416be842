//! Real peers: pods' servers and clients, over the kernel's sockets.

mod blob;
mod client;
mod pod;

pub use blob::{blob, fnv1a};
pub use client::{ClientOptions, HttpAnswer, LoadReport, download, http_get, http_load, http_post, udp_echo, udp_load, upload};
pub use pod::{PodOptions, PodThread, serve_pod, start_pod};
