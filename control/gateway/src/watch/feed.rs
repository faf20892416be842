//! The control loop's end of the watch: applies messages to the index and keeps the status of each kind's watch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use nomagic_api::{ApiWatch, KindWatch, WatchState};
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, Object, Service, Unread};
use nomagic_table::problem::{Origin, Problem};
use tokio::sync::mpsc;

use super::{ServerAddresses, WatchMessage};

/// Maximum number of messages applied at a time: many changes become few tables, and the control loop is not blocked.
const BATCH_MAX: usize = 4_096;
/// Maximum number of unreadable objects that are reported by name.
const UNREAD_MAX: usize = 1_000;

/// Status of the watch of one kind.
#[derive(Debug)]
struct KindStatus {
    listed: bool,
    /// Failed although Services and EndpointSlices could be listed: nothing waits for it.
    unavailable: bool,
    connected: bool,
    /// The latest fault.
    error: Option<String>,
    /// When `connected` last changed.
    since: Instant,
    /// When the last message arrived.
    heard: Option<Instant>,
    lists: u64,
    events: u64,
    faults: u64,
}

/// The cluster's UID, as far as it is needed.
#[derive(Debug)]
enum ClusterUid {
    Unneeded,
    Awaited,
    /// Read, or why it cannot be read.
    Settled(Result<String, String>),
}

/// Receives the messages of the watch thread.
pub struct Feed {
    messages: mpsc::Receiver<WatchMessage>,
    server: String,
    /// The server's addresses.
    pub(super) addresses: ServerAddresses,
    objects_max: usize,
    /// By [`Kind`].
    watches: [KindStatus; Kind::ALL.len()],
    uid: ClusterUid,
    /// Unreadable objects, by kind and name.
    unread: BTreeMap<(Kind, String), Problem>,
    /// There were more unreadable Services than that.
    overfull: bool,
}

impl Feed {
    pub(super) fn new(messages: mpsc::Receiver<WatchMessage>, server: String, objects_max: usize, read_cluster_uid: bool) -> Feed {
        let watches = Kind::ALL.map(|_| KindStatus {
            listed: false,
            unavailable: false,
            connected: false,
            error: None,
            since: Instant::now(),
            heard: None,
            lists: 0,
            events: 0,
            faults: 0,
        });
        let uid = if read_cluster_uid { ClusterUid::Awaited } else { ClusterUid::Unneeded };
        let addresses = ServerAddresses::default();
        Feed { messages, server, addresses, objects_max, watches, uid, unread: BTreeMap::new(), overfull: false }
    }

    /// The addresses of the server that are known now: literal or resolved.
    pub fn server_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.all()
    }

    /// Waits for a message and applies all queued ones. True when objects or their problems have changed. Cancel-safe.
    ///
    /// # Errors
    /// When the watch thread has ended.
    pub async fn changed(&mut self, index: &mut Index) -> Result<bool> {
        let Some(first) = self.messages.recv().await else { bail!("the thread that watches {} has ended", self.server) };
        let mut changed = self.apply(first, index);
        for _ in 1..BATCH_MAX {
            let Ok(next) = self.messages.try_recv() else { break };
            changed |= self.apply(next, index);
        }
        Ok(changed)
    }

    /// Whether Services and EndpointSlices were listed, the Node and the ServiceCIDRs were listed too or are unavailable, and the cluster's UID
    /// is settled. Before that no table may be published.
    pub fn complete(&self) -> bool {
        self.watches().all(|(_, c)| c.listed || c.unavailable) && self.main_kinds_listed() && !matches!(self.uid, ClusterUid::Awaited)
    }

    /// The UID of the Namespace kube-system, or why it cannot be read; `None`: it was not asked for, or is not settled.
    pub fn cluster_uid(&self) -> Option<Result<&str, &str>> {
        match &self.uid {
            ClusterUid::Unneeded | ClusterUid::Awaited => None,
            ClusterUid::Settled(uid) => Some(uid.as_deref().map_err(String::as_str)),
        }
    }

    fn main_kinds_listed(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice].into_iter().all(|kind| self.watches[kind as usize].listed)
    }

    fn watches(&self) -> impl Iterator<Item = (Kind, &KindStatus)> {
        Kind::ALL.into_iter().zip(&self.watches)
    }

    /// The kinds that have not been listed yet, and why.
    pub fn missing(&self) -> String {
        let missing = self.watches().filter(|(_, c)| !c.listed);
        let words = missing.map(|(kind, c)| match &c.error {
            Some(error) => format!("{kind}s ({error})"),
            None => format!("{kind}s"),
        });
        let mut words: Vec<String> = words.collect();
        if words.is_empty() && matches!(self.uid, ClusterUid::Awaited) {
            words.push("the Namespace kube-system".into());
        }
        format!("not listed yet at {}: {}", self.server, words.join(", "))
    }

    /// Problems of unreadable objects.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.unread.values()
    }

    /// Whether there are Services of which nothing is in the index.
    pub fn incomplete(&self) -> bool {
        self.overfull
    }

    /// For `nomagic status`.
    pub fn status(&self, index: &Index) -> ApiWatch {
        let state = |c: &KindStatus| match (c.connected, c.faults) {
            (true, _) => WatchState::Connected,
            (false, 0) => WatchState::Connecting,
            (false, _) => WatchState::Away,
        };
        let kinds = self.watches().map(|(kind, c)| KindWatch {
            kind: kind.to_string(),
            state: state(c),
            for_s: c.since.elapsed().as_secs(),
            listed: c.listed,
            objects: index.count(kind),
            heard_s_ago: c.heard.map(|h| h.elapsed().as_secs()),
            lists: c.lists,
            events: c.events,
            faults: c.faults,
            error: c.error.clone(),
        });
        ApiWatch { server: self.server.clone(), kinds: kinds.collect() }
    }

    fn apply(&mut self, message: WatchMessage, index: &mut Index) -> bool {
        match message {
            WatchMessage::Connected(kind) | WatchMessage::Bookmark(kind) => {
                self.heard(kind, 0);
                false
            }
            WatchMessage::Listed(kind, objects, unread) => {
                let watch = self.heard(kind, 0);
                watch.listed = true;
                watch.lists += 1;
                tracing::debug!("{kind}: {} listed", objects.len());
                if kind == Kind::Node && objects.is_empty() && unread.is_empty() {
                    tracing::warn!("{} has no Node with this node's name: node.name must be the Node object's name", self.server);
                }
                let before = self.unread.len();
                self.unread.retain(|(k, _), _| *k != kind);
                let cleared = before != self.unread.len();
                let kept: BTreeSet<_> = unread.iter().filter_map(|u| u.key.clone()).collect();
                let has_unread = !unread.is_empty();
                self.overfull &= kind != Kind::Service;
                let stand_ins: Vec<_> = unread.into_iter().filter_map(|u| self.record(u)).collect();
                let changed = index.replace(kind, objects, &kept);
                stand_ins.into_iter().for_each(|service| put_stand_in(service, index));
                changed | cleared | has_unread
            }
            WatchMessage::Applied(object) => {
                let (kind, key) = (object.kind(), object.key().clone());
                self.heard(kind, 1);
                let readable_again = self.unread.remove(&(kind, key.to_string())).is_some();
                let known = index.knows(kind, &key) && !(kind == Kind::Service && index.service(&key).is_some_and(|s| s.stands_in()));
                if index.count(kind) >= self.objects_max && !known {
                    let stand_in = self.record(limit_exceeded(&object, self.objects_max));
                    stand_in.into_iter().for_each(|service| put_stand_in(service, index));
                    return true;
                }
                index.apply(object) | readable_again
            }
            WatchMessage::Unreadable(unread) => {
                self.heard(unread.kind, 1);
                let stand_in = self.record(unread);
                stand_in.into_iter().for_each(|service| put_stand_in(service, index));
                true
            }
            WatchMessage::Deleted(kind, key) => {
                self.heard(kind, 1);
                let readable_again = self.unread.remove(&(kind, key.to_string())).is_some();
                index.delete(kind, &key) | readable_again
            }
            WatchMessage::ClusterUid(uid) => {
                if matches!(self.uid, ClusterUid::Awaited) {
                    self.uid = ClusterUid::Settled(uid);
                }
                false
            }
            WatchMessage::Disconnected(kind, error) => {
                self.disconnected(kind, error);
                false
            }
        }
    }

    fn heard(&mut self, kind: Kind, events: u64) -> &mut KindStatus {
        let (server, watch) = (&self.server, &mut self.watches[kind as usize]);
        watch.heard = Some(Instant::now());
        watch.events += events;
        if !watch.connected {
            watch.connected = true;
            watch.since = Instant::now();
            tracing::info!("watching {kind}s at {server}");
        }
        watch
    }

    fn disconnected(&mut self, kind: Kind, error: String) {
        let main_listed = self.main_kinds_listed();
        let watch = &mut self.watches[kind as usize];
        watch.unavailable |= main_listed;
        watch.faults += 1;
        // Logged once for each cause, not for each attempt.
        if watch.connected || watch.error.as_ref() != Some(&error) {
            let stays = if watch.listed { "; known objects stay in force" } else { "" };
            tracing::warn!("{kind}s at {}: {error}{stays}", self.server);
        }
        if watch.connected {
            watch.connected = false;
            watch.since = Instant::now();
        }
        watch.error = Some(error);
    }

    /// Records an unreadable object. Returns its stand-in, if it has one and is within the limit.
    fn record(&mut self, unread: Unread) -> Option<Arc<Service>> {
        let name = unread.key.map_or_else(|| format!("?{}", unread.problem), |k| k.to_string());
        let id = (unread.kind, name);
        let room = self.unread.len() < UNREAD_MAX || self.unread.contains_key(&id);
        self.overfull |= !room && unread.stand_in.is_some();
        room.then(|| self.unread.insert(id, unread.problem));
        unread.stand_in.filter(|_| room)
    }
}

/// Puts a Service's cluster IPs into the index, unless a valid version of it is in force.
fn put_stand_in(service: Arc<Service>, index: &mut Index) {
    if index.service(&service.key).is_none_or(|known| known.stands_in()) {
        index.apply(Object::Service(service));
    }
}

fn limit_exceeded(object: &Object, max: usize) -> Unread {
    let (kind, key) = (object.kind(), object.key().clone());
    let message = format!("{max} {kind}s are allowed; this one is skipped");
    let problem = Problem { origin: Origin::default(), object: format!("{kind} {key}"), field: String::new(), message };
    let stand_in = if let Object::Service(service) = object { Some(service.over_limit()) } else { None };
    Unread { kind, key: Some(key), problem, stand_in }
}

#[cfg(test)]
mod tests {
    use nomagic_table::objects::{NamespacedName, read};
    use serde_json::json;

    use super::*;

    fn feed() -> (mpsc::Sender<WatchMessage>, Feed) {
        let (sender, messages) = mpsc::channel(8);
        (sender, Feed::new(messages, "https://a".into(), 10_000, false))
    }

    fn service(name: &str) -> Object {
        read(
            Kind::Service,
            json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
            &Origin::default(),
        )
        .unwrap()
    }

    fn unread(name: &str) -> Unread {
        *read(Kind::Service, json!({"metadata": {"name": name}, "spec": 7}), &Origin::default()).unwrap_err()
    }

    fn key(name: &str) -> NamespacedName {
        NamespacedName { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn complete_needs_services_and_slices_and_the_others_listed_or_unavailable() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        let mut apply = |feed: &mut Feed, message| {
            feed.apply(message, &mut index);
            feed.complete()
        };
        let disconnected = |kind| WatchMessage::Disconnected(kind, "no".into());
        assert!(!apply(&mut feed, disconnected(Kind::Node)) && !apply(&mut feed, disconnected(Kind::ServiceCidr)));
        assert!(!apply(&mut feed, WatchMessage::Listed(Kind::Service, vec![], vec![])));
        assert!(!apply(&mut feed, WatchMessage::Listed(Kind::EndpointSlice, vec![], vec![])), "an older fault does not count");
        assert_eq!(feed.missing(), "not listed yet at https://a: Nodes (no), ServiceCIDRs (no)");
        assert!(!apply(&mut feed, WatchMessage::Listed(Kind::Node, vec![], vec![])));
        assert!(apply(&mut feed, disconnected(Kind::ServiceCidr)));
        assert!(apply(&mut feed, disconnected(Kind::Service)), "listed kinds stay listed");
    }

    #[test]
    fn complete_needs_the_clusters_uid_if_it_is_asked_for() {
        let (_sender, messages) = mpsc::channel(8);
        let mut feed = Feed::new(messages, "https://a".into(), 10_000, true);
        let mut index = Index::default();
        for kind in Kind::ALL {
            feed.apply(WatchMessage::Listed(kind, vec![], vec![]), &mut index);
        }
        assert!(!feed.complete() && feed.missing().contains("kube-system"), "{}", feed.missing());
        assert_eq!(feed.cluster_uid(), None);
        assert!(!feed.apply(WatchMessage::ClusterUid(Err("no".into())), &mut index), "no table depends on it yet");
        feed.apply(WatchMessage::ClusterUid(Ok("late".into())), &mut index);
        assert_eq!((feed.complete(), feed.cluster_uid()), (true, Some(Err("no"))), "settled once");
    }

    #[test]
    fn cluster_ips_of_services_that_are_not_in_force_are_known() {
        let (_sender, messages) = mpsc::channel(8);
        let mut feed = Feed::new(messages, "https://a".into(), 2, false);
        let mut index = Index::default();
        let why = |index: &Index, name: &str| index.service(&key(name)).map(|s| s.ignored);
        let unreadable = |name: &str| {
            let value = json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.0.0.1", "ports": 7}});
            *read(Kind::Service, value, &Origin::default()).unwrap_err()
        };
        let (unread, over) = (Some(Some("it could not be read")), Some(Some("there are too many Services")));
        feed.apply(WatchMessage::Listed(Kind::Service, vec![service("a")], vec![unreadable("b")]), &mut index);
        assert_eq!((why(&index, "a"), why(&index, "b")), (Some(None), unread));
        // The last valid version stays in force.
        feed.apply(WatchMessage::Unreadable(unreadable("a")), &mut index);
        assert_eq!(why(&index, "a"), Some(None));
        // What could not be read does not count; then there is no room for it.
        for (name, expected) in [("c", Some(None)), ("b", over), ("d", over)] {
            feed.apply(WatchMessage::Applied(service(name)), &mut index);
            assert_eq!(why(&index, name), expected, "{name}");
        }
        feed.apply(WatchMessage::Deleted(Kind::Service, key("a")), &mut index);
        feed.apply(WatchMessage::Applied(service("b")), &mut index);
        assert_eq!((why(&index, "b"), why(&index, "a"), feed.incomplete()), (Some(None), None, false));
        // More than can be known make the index incomplete, until a list says otherwise.
        for i in 0..=UNREAD_MAX {
            feed.apply(WatchMessage::Unreadable(unreadable(&format!("s{i}"))), &mut index);
        }
        assert!(feed.incomplete());
        feed.apply(WatchMessage::Listed(Kind::Service, vec![], vec![]), &mut index);
        assert!(!feed.incomplete());
    }

    #[test]
    fn apply_reports_real_changes_only() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        let mut apply = |message| feed.apply(message, &mut index);
        assert!(apply(WatchMessage::Listed(Kind::Service, vec![service("a")], vec![])));
        assert!(!apply(WatchMessage::Listed(Kind::Service, vec![service("a")], vec![])));
        assert!(!apply(WatchMessage::Applied(service("a"))) && apply(WatchMessage::Applied(service("b"))));
        assert!(!apply(WatchMessage::Bookmark(Kind::Service)) && !apply(WatchMessage::Connected(Kind::Service)));
        assert!(!apply(WatchMessage::Disconnected(Kind::Service, "no".into())));
        assert!(apply(WatchMessage::Unreadable(unread("a"))) && apply(WatchMessage::Applied(service("a"))), "a problem is gone");
        assert!(apply(WatchMessage::Unreadable(unread("c"))) && apply(WatchMessage::Deleted(Kind::Service, key("c"))));
        assert!(apply(WatchMessage::Deleted(Kind::Service, key("a"))) && !apply(WatchMessage::Deleted(Kind::Service, key("a"))));
        assert_eq!((index.count(Kind::Service), feed.problems().count()), (1, 0));
    }

    #[test]
    fn problems_are_limited() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        for i in 0..UNREAD_MAX + 5 {
            feed.apply(WatchMessage::Unreadable(unread(&format!("s{i}"))), &mut index);
        }
        assert_eq!(feed.problems().count(), UNREAD_MAX);
        feed.apply(WatchMessage::Listed(Kind::Service, vec![], vec![unread("s1")]), &mut index);
        assert_eq!(feed.problems().count(), 1);
    }

    #[tokio::test]
    async fn queued_messages_are_applied_together_and_the_end_is_an_error() {
        let (sender, mut feed) = feed();
        let mut index = Index::default();
        for name in ["a", "b", "c"] {
            sender.send(WatchMessage::Applied(service(name))).await.unwrap();
        }
        assert!(feed.changed(&mut index).await.unwrap());
        assert_eq!(index.count(Kind::Service), 3);
        drop(sender);
        assert!(feed.changed(&mut index).await.unwrap_err().to_string().contains("https://a"));
    }
}
