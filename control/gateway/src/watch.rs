//! Watching a Kubernetes API server: from lists and events to objects in the index.
//!
//! A thread of its own follows each kind ([`follow`]): list once, then watch from there on, for ever, through every fault. What it hears
//! goes over a bounded queue to the control loop, where a [`Feed`] applies it. While the server is away the objects stay.
//!
//! kube supplies what is Kubernetes' own: kubeconfig, service accounts, token and CA files that change, TLS, HTTP, the forms of requests.
//! The loop is ours, since `kube::runtime::watcher` (5.0) does not do what a gateway needs: an HTTP 410 at the start of a watch is asked
//! for again with the same version for ever; an event that cannot be read is passed over, so the change in it is lost until the next relist; one
//! item that does not deserialise fails its whole list; an error in the stream that answers `sendInitialEvents` leads to the same request
//! again; a server that ends each watch at once is asked again at once; lines and lists may be of any length; and nobody learns that a
//! watch is up again, or that bookmarks still come.

pub(crate) mod backoff;
pub(crate) mod client;
pub(crate) mod fault;
mod feed;
mod follow;
pub(crate) mod lines;
mod query;

use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_table::objects::{Key, Kind, Object, Unread};
use tokio::sync::mpsc;

use crate::config::Kubernetes;
pub use feed::Feed;

/// Messages on their way to the control loop at the most. When it does not keep up, the watches wait.
const MESSAGES_MAX: usize = 1_024;

/// Objects of a kind at the most: ten times what Kubernetes is tested with.
const OBJECTS_MAX: usize = 200_000;

/// How long things may take. The defaults suit real servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Until a request is answered at all.
    pub answer: Duration,
    /// Between two pieces of a list or a watch. A server sends a bookmark about once a minute.
    pub silence: Duration,
    /// For a list as a whole.
    pub list: Duration,
    /// Before the first new attempt after a fault; doubled each time.
    pub pause_min: Duration,
    /// Before any new attempt.
    pub pause_max: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(100),
            list: Duration::from_secs(300),
            pause_min: Duration::from_millis(250),
            pause_max: Duration::from_secs(30),
        }
    }
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct Target {
    /// The API server.
    pub server: Kubernetes,
    /// This node's name: of all Nodes only this one is watched.
    pub node: String,
    /// How long things may take.
    pub patience: Patience,
    /// Objects in a page of a list.
    pub page: u32,
    /// Objects of a kind at the most.
    pub objects_max: usize,
}

impl Target {
    /// With the defaults.
    pub fn new(server: Kubernetes, node: String) -> Target {
        Target { server, node, patience: Patience::default(), page: 500, objects_max: OBJECTS_MAX }
    }
}

/// What the watching thread tells.
#[derive(Debug)]
enum Message {
    /// The server answers, and what it says is followed.
    Connected(Kind),
    /// A list is complete: these are all objects of the kind.
    Listed(Kind, Vec<Object>, Vec<Unread>),
    /// An object is new or has changed.
    Applied(Object),
    /// An object is new or has changed, and cannot be read.
    Unreadable(Unread),
    /// An object is gone.
    Deleted(Kind, Key),
    /// Nothing has changed, says the server.
    Quiet(Kind),
    /// The server is away, or refuses; why.
    Away(Kind, String),
}

/// Starts the thread. It ends soon after the feed is dropped.
pub fn start(target: Target) -> Result<Feed> {
    // Errs when there is one already, which then is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime for the watch")?;
    let feed = Feed::new(receiver, target.server.to_string(), target.objects_max);
    let work = move || {
        if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
            tracing::warn!("capabilities that the watch does not need could not be given up: {e}");
        }
        runtime.block_on(async {
            let all = Kind::ALL.map(|kind| follow::Follower::new(kind, target.clone(), sender.clone()).run());
            tokio::select! {
                _ = futures::future::join_all(all) => {}
                () = sender.closed() => {}
            }
        });
    };
    std::thread::Builder::new().name("nm-watch".into()).spawn(work).context("cannot start a thread for the watch")?;
    Ok(feed)
}
