//! `nomagic-bench pktgen`: a traffic generator and a sink.
//!
//! Pure: a [`profile`] is what to send, a [`stream`] the frames that it stands for (headers from [`template`], the header of their
//! payload from [`payload`], a [`choice`] of flows), [`pcap`] a capture to replay, [`pace`] how fast, [`check`] what the sink finds out.
//!
//! With the kernel: a [`backend`] sends frames (AF_XDP there, BPF live frames in [`live`] with their [`program`]), a [`sink`] receives them.
//! [`mod@run`] puts both on threads as its [`options`] say, and [`report`] says what came of it. All unsafe code is in `xsk`, which has the rings.

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
