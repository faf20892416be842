//! Follows one kind of objects: list, then watch from the version of the list.
//!
//! ```text
//!            +---------------------- version lost: 410, invalid ----------------+
//!            v                                                                  |
//!   list (a stream, or pages) --Listed--> watch from the version --events--> any fault: pause, then
//!                                              ^                                |
//!                                              +------- version known ----------+
//! ```
//!
//! The version is kept after faults that cannot be caused by it, so a broken connection needs no new list. [`Retry`] has the pauses.
//! Credentials and certificates are read again when their files change, and after the server has refused them.
//!
//! A server whose etcd was restored to an older state accepts a watch from a version in its future, and sends nothing until it gets there: no
//! error, and no bookmarks. So before a watch goes on from a version (after each of its timeouts, 200 to 290 s, and after a fault), a list of
//! one object tells the server's version.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use http::Request;
use nomagic_table::objects::{self, Kind, Object, Unread};
use nomagic_table::problem::{Origin, shown};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::client::{ApiClient, connect, named_files, open, refused};
use super::cluster;
use super::credentials::CredentialFiles;
use super::fault::ApiFault;
use super::lines::Lines;
use super::query::KindQuery;
use super::reach::Reach;
use super::retry::Retry;
use super::{WatchMessage, WatchTarget};

/// Maximum size of a page, bytes: 500 objects of half a megabyte.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// A watch that was open for this long is a good answer. One that ends sooner counts as a fault, so that pauses apply.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// Time limit for the server's version. Without it the watch is opened all the same.
const VERSION_WAIT: Duration = Duration::from_secs(5);
/// How often a watch that was refused looks for new credentials.
const CREDENTIALS_POLL: Duration = Duration::from_millis(250);
/// Annotation of the bookmark that ends a streaming list (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Lists and watches one kind.
pub(super) struct Follower<'r> {
    kind: Kind,
    target: WatchTarget,
    query: KindQuery,
    reach: &'r Reach,
    retry: Retry,
    /// `None`: the credentials must be read.
    client: Option<ApiClient>,
    /// The files of the credentials as they were read last.
    files: CredentialFiles,
    sender: mpsc::Sender<WatchMessage>,
    /// The latest resource version; `None`: a list is needed.
    version: Option<String>,
    /// The server supports streaming lists, as far as known.
    streaming: bool,
    /// Request the next list without pages: its version was compacted between pages the last time.
    unpaged: bool,
    /// Read the cluster's UID beside the next list.
    reads_uid: bool,
}

/// One event of a watch.
#[derive(Deserialize)]
struct WatchEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// One page of a list. Items are read one by one, so that an invalid one does not affect the others.
#[derive(Deserialize)]
struct ListPage {
    metadata: PageMeta,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default, rename = "continue")]
    more: Option<String>,
}

/// The objects of a list so far.
#[derive(Default)]
struct PartialList {
    objects: Vec<Object>,
    unread: Vec<Unread>,
}

impl<'r> Follower<'r> {
    pub(super) fn new(kind: Kind, target: WatchTarget, reach: &'r Reach, sender: mpsc::Sender<WatchMessage>) -> Follower<'r> {
        Follower {
            kind,
            query: KindQuery::new(kind, &target.node),
            reach,
            retry: Retry::new(target.timeouts, Instant::now()),
            client: None,
            files: CredentialFiles::default(),
            reads_uid: target.read_cluster_uid && kind == Kind::Service,
            target,
            sender,
            version: None,
            streaming: true,
            unpaged: false,
        }
    }

    /// Runs until the feed is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let Err(fault) = self.follow().await;
            if matches!(fault, ApiFault::Closed) {
                return;
            }
            if !fault.keeps_version() {
                self.version = None;
            }
            if self.send(WatchMessage::Disconnected(self.kind, shown(&fault.to_string()))).await.is_err() {
                return;
            }
            if self.client.as_ref().is_some_and(|client| !client.survives(&fault)) {
                self.client = None;
            }
            let pause = self.retry.pause(&fault, Instant::now());
            if fault.concerns_credentials() {
                self.sleep_until_new_credentials(pause).await;
            } else {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Sleeps, at most until a file of the credentials has changed.
    async fn sleep_until_new_credentials(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.files.have_changed() && Instant::now() < end {
            tokio::time::sleep(CREDENTIALS_POLL.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// The client, with the credentials of now.
    async fn client(&mut self) -> Result<ApiClient, ApiFault> {
        if let Some(client) = self.client.as_ref().filter(|client| !client.files.have_changed()) {
            return Ok(client.clone());
        }
        self.files = CredentialFiles::new(named_files(&self.target.server));
        let client = connect(&self.target.server, self.target.mark, &self.target.addresses).await?;
        self.files = client.files.clone();
        Ok(self.client.insert(client).clone())
    }

    /// Lists and watches until a fault.
    async fn follow(&mut self) -> Result<Infallible, ApiFault> {
        let (mut stream, mut just_listed) = (None, self.version.is_none());
        if just_listed {
            tokio::time::sleep(self.retry.until_list(Instant::now())).await;
            stream = if self.reads_uid { self.list_and_read_uid().await? } else { self.list().await? };
        }
        loop {
            let lines = match stream.take() {
                Some(lines) => lines,
                None => {
                    let client = self.client().await?;
                    if !just_listed {
                        self.compare_versions(&client).await?;
                    }
                    self.open(&client, self.query.watch(self.version.as_deref())?).await?
                }
            };
            just_listed = false;
            self.send(WatchMessage::Connected(self.kind)).await?;
            let start = Instant::now();
            self.forward_events(lines, start).await?;
            if start.elapsed() < WATCH_MIN {
                return Err(ApiFault::EndedEarly);
            }
        }
    }

    /// Compares the known version with the server's. A list that fails for reasons of its own, such as an etcd without a quorum, is no fault:
    /// the watch may go on from a cache.
    async fn compare_versions(&self, client: &ApiClient) -> Result<(), ApiFault> {
        match tokio::time::timeout(VERSION_WAIT, self.server_version(client)).await {
            Ok(Ok(server)) => self.check_order(&server),
            Ok(Err(fault @ (ApiFault::Connection(_) | ApiFault::Refused { .. }))) if fault.keeps_version() => Err(fault),
            Ok(Err(fault)) => {
                tracing::debug!("{}: the server's version is not known: {fault}", self.kind);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// The latest version, not one in a cache.
    async fn server_version(&self, client: &ApiClient) -> Result<String, ApiFault> {
        let text = self.open(client, self.query.list(1, None)?).await?.whole(PAGE_BYTES_MAX).await?;
        let page: ListPage =
            serde_json::from_slice(&text).map_err(|e| ApiFault::Invalid(format!("invalid list from the API server: {e}")))?;
        Ok(page.metadata.resource_version.unwrap_or_default())
    }

    /// Versions of one kind are numbers that grow; others are not compared.
    fn check_order(&self, server: &str) -> Result<(), ApiFault> {
        let known = self.version.as_deref().and_then(|version| version.parse().ok());
        match (server.parse(), known) {
            (Ok(server), Some(known)) if server < known => Err(ApiFault::WentBack { server, known }),
            _ => Ok(()),
        }
    }

    /// Lists the kind, and reads the cluster's UID meanwhile. If the list fails, the next one tries both again.
    async fn list_and_read_uid(&mut self) -> Result<Option<Lines>, ApiFault> {
        let (client, timeouts) = (self.client().await?, self.target.timeouts);
        let (stream, uid) = cluster::read_uid_beside(&client, timeouts, self.list()).await?;
        self.reads_uid = false;
        self.send(WatchMessage::ClusterUid(uid)).await?;
        Ok(stream)
    }

    /// Lists the kind. A streaming list continues as the watch.
    async fn list(&mut self) -> Result<Option<Lines>, ApiFault> {
        let (client, limit) = (self.client().await?, self.target.timeouts.list);
        let timed_out = || ApiFault::LimitExceeded(format!("a list took longer than {limit:?}"));
        if self.streaming {
            match tokio::time::timeout(limit, self.list_streaming(&client)).await.unwrap_or_else(|_| Err(timed_out())) {
                Ok(lines) => return Ok(Some(lines)),
                Err(fault) if cannot_stream(&fault) => {
                    tracing::debug!("{}: no streaming list ({fault}): using pages from now on", self.kind);
                    self.streaming = false;
                }
                Err(fault) => return Err(fault),
            }
        }
        tokio::time::timeout(limit, self.list_paged(&client)).await.unwrap_or_else(|_| Err(timed_out()))?;
        Ok(None)
    }

    async fn list_streaming(&mut self, client: &ApiClient) -> Result<Lines, ApiFault> {
        let mut lines = self.open(client, self.query.watch(None)?).await?;
        self.retry.list_begins(Instant::now());
        let mut list = PartialList::default();
        while let Some(line) = lines.next().await? {
            let event = self.parse_event(&line)?;
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => self.add(&mut list, event.object)?,
                "BOOKMARK" if event.object["metadata"]["annotations"][INITIAL_END] == "true" => {
                    self.listed(list, version(&event.object)?).await?;
                    return Ok(lines);
                }
                // A server that ignores the parameter sends the existing objects, but no bookmark that ends them.
                other => return Err(ApiFault::Refused { code: 501, message: format!("{other} in a streaming list"), retry_after: None }),
            }
        }
        Err(ApiFault::EndedEarly)
    }

    async fn list_paged(&mut self, client: &ApiClient) -> Result<(), ApiFault> {
        let mut list = PartialList::default();
        let mut next = None;
        let size = if std::mem::take(&mut self.unpaged) { 0 } else { self.target.page };
        loop {
            let first = next.is_none();
            let answer = self.open(client, self.query.list(size, next)?).await;
            if let (Err(ApiFault::Gone(_)), false) = (&answer, first) {
                self.unpaged = true;
            }
            let answer = answer?;
            if first {
                self.retry.list_begins(Instant::now());
            }
            let text = answer.whole(PAGE_BYTES_MAX).await?;
            let page: ListPage =
                serde_json::from_slice(&text).map_err(|e| ApiFault::Invalid(format!("invalid list from the API server: {e}")))?;
            for item in page.items.into_iter().flatten() {
                self.add(&mut list, item)?;
            }
            next = page.metadata.more.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| ApiFault::Invalid("a list has no metadata.resourceVersion".into()))?;
                return self.listed(list, version).await;
            }
        }
    }

    async fn listed(&mut self, list: PartialList, version: String) -> Result<(), ApiFault> {
        self.version = Some(version);
        self.retry.listed();
        self.send(WatchMessage::Listed(self.kind, list.objects, list.unread)).await
    }

    fn add(&self, list: &mut PartialList, value: Value) -> Result<(), ApiFault> {
        if list.objects.len() + list.unread.len() == self.target.objects_max {
            return Err(ApiFault::LimitExceeded(format!("the API server has more than {} {}s", self.target.objects_max, self.kind)));
        }
        match objects::read(self.kind, value, &Origin::default()) {
            Ok(object) => list.objects.push(object),
            Err(unread) => list.unread.push(*unread),
        }
        Ok(())
    }

    /// Forwards events until the stream ends.
    async fn forward_events(&mut self, mut lines: Lines, start: Instant) -> Result<(), ApiFault> {
        loop {
            let next = lines.next().await;
            if start.elapsed() >= WATCH_MIN {
                self.retry.answered();
            }
            let Some(line) = next? else { return Ok(()) };
            let event = self.parse_event(&line)?;
            let version = version(&event.object)?;
            let message = match event.kind.as_str() {
                "ADDED" | "MODIFIED" => match objects::read(self.kind, event.object, &Origin::default()) {
                    Ok(object) => WatchMessage::Applied(object),
                    Err(unread) => WatchMessage::Unreadable(*unread),
                },
                "DELETED" => {
                    let key = objects::key(self.kind, &event.object);
                    WatchMessage::Deleted(self.kind, key.ok_or_else(|| ApiFault::Invalid("a DELETED event has no name".into()))?)
                }
                "BOOKMARK" => {
                    self.check_order(&version)?;
                    WatchMessage::Bookmark(self.kind)
                }
                other => return Err(ApiFault::Invalid(format!("an event has the unknown type {other:?}"))),
            };
            self.send(message).await?;
            self.version = Some(version);
        }
    }

    /// Parses a line. An ERROR event is a fault.
    fn parse_event(&self, line: &[u8]) -> Result<WatchEvent, ApiFault> {
        let event: WatchEvent =
            serde_json::from_slice(line).map_err(|e| ApiFault::Invalid(format!("invalid event from the API server: {e}")))?;
        if event.kind != "ERROR" {
            return Ok(event);
        }
        let code = event.object["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
        Err(refused(code, event.object["message"].as_str().unwrap_or("an error without a message"), None))
    }

    /// Sends a request, when it is this watch's turn.
    async fn open(&self, client: &ApiClient, request: Request<Vec<u8>>) -> Result<Lines, ApiFault> {
        let timeouts = self.target.timeouts;
        self.reach.attempt(open(client, request, timeouts.answer, timeouts.silence)).await
    }

    async fn send(&self, message: WatchMessage) -> Result<(), ApiFault> {
        self.sender.send(message).await.map_err(|_| ApiFault::Closed)
    }
}

/// An object's resource version.
fn version(object: &Value) -> Result<String, ApiFault> {
    let version = object["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
    version.map(str::to_owned).ok_or_else(|| ApiFault::Invalid("an event has no metadata.resourceVersion".into()))
}

/// Whether the fault may mean that streaming lists are not supported.
fn cannot_stream(fault: &ApiFault) -> bool {
    match fault {
        ApiFault::Refused { code, .. } => matches!(code, 400 | 422 | 500 | 501),
        ApiFault::EndedEarly | ApiFault::LimitExceeded(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kubernetes;

    /// Whatever a server sends, reading it ends in an object, an unreadable object or a fault.
    #[test]
    fn mangled_events_never_panic() {
        let (sender, _receiver) = mpsc::channel(1);
        let reach = Reach::new(Duration::ZERO, Duration::ZERO);
        let follower = |kind| Follower::new(kind, WatchTarget::new(Kubernetes::InCluster, "gw".into()), &reach, sender.clone());
        let good = [
            (
                Kind::Service,
                r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7","labels":{"x":"y"}},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":80}]}}}"#,
            ),
            (
                Kind::EndpointSlice,
                r#"{"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"7"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}]}}"#,
            ),
            (
                Kind::Node,
                r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
            ),
            (Kind::ServiceCidr, r#"{"type":"ERROR","object":{"code":410,"message":"gone","reason":"Expired"}}"#),
        ];
        let (mut seed, mut read, mut refused) = (42u64, 0, 0);
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for round in 0..40_000 {
            let (kind, text) = good[round % good.len()];
            let mut line = text.as_bytes().to_vec();
            for _ in 0..random(3) {
                let at = random(line.len().max(1));
                match random(3) {
                    0 => line.iter_mut().skip(at).take(1).for_each(|b| *b = b"\"{}[],:0x-"[random(10)]),
                    1 => drop(line.drain(at..line.len().min(at + 1))),
                    _ => line.truncate(at),
                }
            }
            match follower(kind).parse_event(&line) {
                Ok(event) => {
                    let _ = version(&event.object);
                    read += usize::from(objects::read(kind, event.object, &Origin::default()).is_ok());
                }
                Err(_) => refused += 1,
            }
        }
        assert!(read > 1_000 && refused > 1_000, "{read} {refused}");
    }
}
