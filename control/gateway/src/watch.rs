//! Watches a Kubernetes API server: from lists and events to objects in the index.
//!
//! A thread lists and watches each kind ([`follow`]) and recovers from every fault ([`retry`], [`reach`]). Its messages go through a bounded queue to the control
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
mod cluster;
mod credentials;
pub(crate) mod fault;
mod feed;
mod follow;
pub(crate) mod lines;
mod query;
mod reach;
mod retry;
mod servers;

use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_table::objects::{Kind, NamespacedName, Object, Unread};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::config::Kubernetes;
use crate::threads;
pub use feed::Feed;
use follow::Follower;
use reach::Reach;
pub use servers::ServerAddresses;

/// Capacity of the queue to the control loop. When it is full, the watches wait.
const MESSAGES_MAX: usize = 1_024;

/// Maximum number of objects of a kind: ten times the size that Kubernetes is tested with.
const OBJECTS_MAX: usize = 200_000;

/// Timeouts and retry intervals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchTimeouts {
    /// Until the head of a response.
    pub answer: Duration,
    /// Between two chunks of a list or a watch. A server sends a bookmark about once a minute.
    pub silence: Duration,
    /// For a complete list.
    pub list: Duration,
    /// The longest pause before the first retry after a fault; longer pauses are multiples of it.
    pub pause_min: Duration,
    /// The longest pause before any retry.
    pub pause_max: Duration,
}

impl Default for WatchTimeouts {
    fn default() -> WatchTimeouts {
        WatchTimeouts {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(100),
            list: Duration::from_secs(300),
            pause_min: Duration::from_millis(250),
            pause_max: Duration::from_secs(30),
        }
    }
}

/// The server to watch, with timeouts and limits.
#[derive(Clone, Debug)]
pub struct WatchTarget {
    pub server: Kubernetes,
    /// This node's name; only its Node object is watched.
    pub node: String,
    pub timeouts: WatchTimeouts,
    /// Page size of lists, objects.
    pub page: u32,
    /// Maximum number of objects of a kind.
    pub objects_max: usize,
    /// Read the UID of the Namespace kube-system too, once.
    pub read_cluster_uid: bool,
    /// The mark of the connections (`SO_MARK`).
    pub mark: Option<u32>,
    /// Where its addresses are noted.
    pub addresses: ServerAddresses,
}

impl WatchTarget {
    /// A target with default limits.
    pub fn new(server: Kubernetes, node: String) -> WatchTarget {
        let timeouts = WatchTimeouts::default();
        WatchTarget {
            server,
            node,
            timeouts,
            page: 500,
            objects_max: OBJECTS_MAX,
            read_cluster_uid: false,
            mark: None,
            addresses: ServerAddresses::default(),
        }
    }
}

/// Messages of the watch thread.
#[derive(Debug)]
enum WatchMessage {
    /// The watch of this kind is open.
    Connected(Kind),
    /// A complete list of the kind.
    Listed(Kind, Vec<Object>, Vec<Unread>),
    /// An object was created or changed.
    Applied(Object),
    /// An object was created or changed, and cannot be read.
    Unreadable(Unread),
    /// An object was deleted.
    Deleted(Kind, NamespacedName),
    /// A bookmark: no changes.
    Bookmark(Kind),
    /// The cluster's UID, or why it cannot be read. Sent once, after a list of the Services.
    ClusterUid(Result<String, String>),
    /// The watch was interrupted, with the reason.
    Disconnected(Kind, String),
}

/// Starts the watch thread. It ends after the feed is dropped.
pub fn start(mut target: WatchTarget) -> Result<Feed> {
    // Fails if a provider is installed already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let mut feed = Feed::new(receiver, target.server.to_string(), target.objects_max, target.read_cluster_uid);
    feed.addresses = target.addresses.clone();
    let work = move |runtime: &Runtime| {
        if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
            tracing::warn!("the watch thread could not drop capabilities: {e}");
        }
        target.mark = target.mark.and_then(usable_mark);
        runtime.block_on(async {
            let reach = Reach::new(target.timeouts.pause_min, target.timeouts.pause_max);
            let all = Kind::ALL.map(|kind| Follower::new(kind, target.clone(), &reach, sender.clone()).run());
            tokio::select! {
                _ = futures::future::join_all(all) => {}
                () = sender.closed() => {}
            }
        });
    };
    threads::start("nm-watch", work).context("cannot start a thread for the watch")?;
    Ok(feed)
}

/// The mark, if this thread may set it. Logs if not.
fn usable_mark(mark: u32) -> Option<u32> {
    let usable = client::can_mark(mark);
    if let Err(e) = &usable {
        tracing::warn!(
            "cannot mark the connections to the API server (SO_MARK: {e}): a Service that claims the server's address and port can cut them off. \
             Give nomagic CAP_NET_ADMIN"
        );
    }
    usable.is_ok().then_some(mark)
}
