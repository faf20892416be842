//! System calls that the standard library does not offer, each behind a safe function.
//!
//! Most go through [`rustix`], which needs no `unsafe` here. The others are in the modules that allow it: [`bpf`] (bpf(2)), [`cut`] (a signal
//! handler), [`memory`] (mappings), [`mount`] (unshare(2)), [`netns`] (a hook between fork and exec), [`packet_socket`] (an address and options) and [`xdp_socket`] (one socket
//! option). Each `unsafe` block there explains why rustix does not cover it.

pub mod bpf;
pub mod capabilities;
pub mod cpu;
pub mod cut;
pub mod directory;
pub mod fds;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod packet_socket;
pub mod process;
pub mod shortage;
pub mod time;
pub mod xdp_socket;
