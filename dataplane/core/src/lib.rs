//! The pure core of nomagic: frames in, verdicts out.
//!
//! No clock, no threads, no sockets, no allocation per packet. Time, seeds, tables and memory are arguments, so the same code
//! serves the dataplane, `explain`, the tests, the fuzzers and the benchmarks.

#![deny(unsafe_code)]

pub mod conntrack;
pub mod counters;
pub mod filter;
pub mod frame;
pub mod maglev;
pub mod pipeline;
pub mod reason;
pub mod routes;
pub mod services;
pub mod tuple;
