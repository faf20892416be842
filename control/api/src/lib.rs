//! Types that cross a process boundary: the [`Status`] of a gateway, and the requests and answers of its control socket.
//!
//! Types only. The gateway fills them in; its status page, `--format json`, `/metrics`, tests and other programs read them.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "only fields whose names do not suffice have comments")]

pub mod deny;
pub mod events;
pub mod explain;
pub mod flows;
pub mod services;
pub mod socket;
mod status;
pub mod taps;

pub use status::{
    Answers, ApiWatch, Beyond, Carried, Conntrack, KindWatch, Pool, PortLink, RedirectPort, Replies, Rss, SCHEMA, SeedSource, ServicePort,
    Services, Snat, Status, StatusPort, Table, TakenOver, Target, Totals, WatchState, Worker, WorkerLatency, Xdp, XdpMode,
};
