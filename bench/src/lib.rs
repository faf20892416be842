//! The rig of nomagic: network namespaces with real peers, the demo, the benchmarks.
//!
//! [`rig`] lays out namespaces, cables and processes and takes them down again, also after ^C. [`peers`] are the real pods and
//! clients that talk through the gateway; [`gateway`] is a running nomagic between them. [`demo`] puts all together and is what
//! `make demo` runs. [`pktgen`] is the traffic generator with its sink, [`ndr`] searches the highest rate without loss, [`compare`] puts nomagic
//! beside its peers, [`report`] shows the [`results`]; [`preflight`] says what is missing on a machine before one measures there.

pub mod compare;
pub mod demo;
pub mod format;
pub mod gateway;
pub mod ndr;
pub mod peers;
pub mod pktgen;
pub mod preflight;
pub mod report;
pub mod results;
pub mod rig;
