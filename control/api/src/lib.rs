//! What crosses a process border: the [`Status`] of a gateway, and the requests and answers of its control socket.
//!
//! Types only. The gateway fills them in; its status page, `--format json`, `/metrics`, the tests and other programs read them.
#![forbid(unsafe_code)]
// Field names say it; only what they leave open has words.
#![allow(missing_docs)]

pub mod explain;
pub mod socket;
mod status;

pub use status::{
    ApiWatch, Beyond, Carried, Conntrack, KindWatch, Pool, Port, RedirectPort, Replies, Rss, SCHEMA, Services, Snat, Status, Table,
    TakenOver, Target, Totals, WatchState, Worker, Xdp, XdpMode,
};
