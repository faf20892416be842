//! The pure core of nomagic: frames in, verdicts out.
//!
//! No clock, no threads, no sockets, no allocation per packet. Time, seeds, tables and memory are arguments, so the same code
//! serves the dataplane, `explain`, the tests, the fuzzers and the benchmarks.
#![warn(missing_docs)]

pub mod answer;
mod backend;
pub mod capture;
pub mod checksum;
pub mod conntrack;
pub mod counters;
pub mod filter;
pub mod frame;
pub mod hash;
pub mod lately;
pub mod maglev;
pub mod parse;
pub mod pipeline;
pub mod plain;
pub mod prefetch;
pub mod reason;
pub mod rewrite;
pub mod routes;
pub mod rss;
mod scan;
pub mod services;
pub mod shared;
mod sync;
mod takeover;
pub mod tuple;
pub mod wire;
