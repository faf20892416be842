//! System calls that the standard library does not offer, each behind a safe function.
//!
//! Most go through [`rustix`], which needs no `unsafe` here. The rest stands in the modules that allow it: [`bpf`] (bpf(2)), [`memory`]
//! (mappings), [`mount`] (unshare(2)), [`netns`] (a hook between fork and exec) and [`xdp_socket`] (one socket option). Each `unsafe` block there
//! says why rustix does not do it.

pub mod bpf;
pub mod capabilities;
pub mod cpu;
pub mod fds;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod process;
pub mod time;
pub mod xdp_socket;
