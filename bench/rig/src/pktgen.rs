//! `nomagic-bench pktgen`: a traffic generator and a sink.
//!
//! Pure: a [`profile`] describes the traffic; a [`stream`] is its frames (headers from [`template`], the header of
//! the payload from [`payload`], a [`choice`] of flows); [`pcap`] replays a capture; [`pace`] keeps the rate;
//! [`check`] is the sink's verdict on each frame.
//!
//! With the kernel: a [`backend`] sends frames (by AF_XDP, or as BPF live frames: [`live`] and its [`program`]), a
//! [`sink`] receives them. [`mod@run`] puts both on threads, [`options`] are its input and a [`report`] is its
//! result. All unsafe code is in `xsk`, which owns the rings.

pub mod backend;
pub mod check;
pub mod choice;
pub mod cli;
pub mod interface;
pub mod live;
pub mod options;
pub mod pace;
pub mod payload;
pub mod pcap;
pub mod profile;
pub mod program;
pub mod report;
pub mod run;
pub mod sink;
pub mod stream;
pub mod template;
mod xsk;

pub use cli::PktgenArgs;
pub use options::{BackendKind, Options};
pub use run::run;
