//! The pure core of nomagic: frames in, verdicts out.
//!
//! No clock, no threads, no sockets, no allocation per packet. Time, seeds, tables and memory are arguments, so the same code
//! serves the dataplane, `explain`, the tests, the fuzzers and the benchmarks.
#![warn(missing_docs)]

mod backend;
mod bucket_scan;
pub mod capture;
pub mod checksum;
pub mod conntrack;
pub mod counters;
pub mod cow_map;
mod datagrams;
pub mod deny;
pub mod events;
pub mod fast_parse;
pub mod filter;
pub mod first_packet;
pub mod fragment_hold;
pub mod fragmenting;
pub mod frame;
pub mod hash;
pub mod icmp;
pub mod maglev;
pub mod mss;
pub mod observe;
pub mod parse;
pub mod pipeline;
pub mod prefetch;
pub mod reason;
pub mod reject;
pub mod rewrite;
pub mod route_cache;
pub mod routes;
pub mod rss;
pub mod services;
mod siphash;
mod sync;
mod takeover;
pub mod tap;
pub mod tuple;
pub mod unused;
pub mod wire;
