//! Watches a Kubernetes API server: from lists and events to objects in the index.
//!
//! A thread lists and watches each kind ([`follow`]) and recovers from every fault. Its messages go through a bounded queue to the control
//! loop, where a [`Feed`] applies them to the index. While the server is unreachable the objects stay.
//!
//! kube provides kubeconfig, service accounts, reloading of token and CA files, TLS, HTTP and the forms of requests. The watch loop is
//! nomagic's own because of defects of `kube::runtime::watcher` (5.0): after an HTTP 410 at the start of a watch it repeats the request with
//! the same version for ever; it skips an event that cannot be read, so that change is lost until the next relist; one item that does not
//! deserialise fails the whole list; after an error in a stream with `sendInitialEvents` it repeats the same request; it reconnects without
//! delay to a server that ends each watch at once; it does not limit the length of lines and lists; and it does not report that a watch is
//! connected again, or that bookmarks arrive.

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

/// Capacity of the queue to the control loop. When it is full, the watches wait.
const MESSAGES_MAX: usize = 1_024;

/// Maximum number of objects of a kind: ten times the size that Kubernetes is tested with.
const OBJECTS_MAX: usize = 200_000;

/// Timeouts and retry intervals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Until the head of a response.
    pub answer: Duration,
    /// Between two chunks of a list or a watch. A server sends a bookmark about once a minute.
    pub silence: Duration,
    /// For a complete list.
    pub list: Duration,
    /// Before the first retry after a fault; doubled for each further one.
    pub pause_min: Duration,
    /// Before any retry.
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

/// The server to watch, and how.
#[derive(Clone, Debug)]
pub struct Target {
    pub server: Kubernetes,
    /// This node's name; only its Node object is watched.
    pub node: String,
    pub patience: Patience,
    /// Page size of lists, objects.
    pub page: u32,
    /// Maximum number of objects of a kind.
    pub objects_max: usize,
}

impl Target {
    /// A target with default limits.
    pub fn new(server: Kubernetes, node: String) -> Target {
        Target { server, node, patience: Patience::default(), page: 500, objects_max: OBJECTS_MAX }
    }
}

/// Messages of the watch thread.
#[derive(Debug)]
enum Message {
    /// The watch of this kind is open.
    Connected(Kind),
    /// A complete list of the kind.
    Listed(Kind, Vec<Object>, Vec<Unread>),
    /// An object was created or changed.
    Applied(Object),
    /// An object was created or changed, and cannot be read.
    Unreadable(Unread),
    /// An object was deleted.
    Deleted(Kind, Key),
    /// A bookmark: no changes.
    Bookmark(Kind),
    /// The watch was interrupted, with the reason.
    Disconnected(Kind, String),
}

/// Starts the watch thread. It ends after the feed is dropped.
pub fn start(target: Target) -> Result<Feed> {
    // Fails if a provider is installed already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime for the watch")?;
    let feed = Feed::new(receiver, target.server.to_string(), target.objects_max);
    let work = move || {
        if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
            tracing::warn!("the watch thread could not drop capabilities: {e}");
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
