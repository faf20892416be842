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
//! The version is kept after faults that cannot be caused by it, so a broken connection needs no new list. Each attempt after a fault reads
//! credentials and certificates again.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use kube::Client;
use nomagic_table::objects::{self, Kind, Object, Unread};
use nomagic_table::problem::{Origin, shown};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::client::{connect, open, refused};
use super::fault::Fault;
use super::lines::Lines;
use super::query::Query;
use super::{Message, Target};

/// Maximum size of a page, bytes: 500 objects of half a megabyte.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// A watch that ends sooner without an event counts as a fault, so that backoff applies.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// A watch that was open for this long resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Annotation of the bookmark that ends a streaming list (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Lists and watches one kind.
pub(super) struct Follower {
    kind: Kind,
    target: Target,
    query: Query,
    sender: mpsc::Sender<Message>,
    /// The latest resource version; `None`: a list is needed.
    version: Option<String>,
    /// The server supports streaming lists, as far as known.
    streaming: bool,
    /// Request the next list without pages: its version was compacted between pages the last time.
    unpaged: bool,
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
struct Page {
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
struct List {
    objects: Vec<Object>,
    unread: Vec<Unread>,
}

impl Follower {
    pub(super) fn new(kind: Kind, target: Target, sender: mpsc::Sender<Message>) -> Follower {
        Follower { kind, query: Query::new(kind, &target.node), target, sender, version: None, streaming: true, unpaged: false }
    }

    /// Runs until the feed is dropped.
    pub(super) async fn run(mut self) {
        let patience = self.target.patience;
        let mut backoff = Backoff::new(patience.pause_min, patience.pause_max);
        loop {
            let Err(fault) = self.follow(&mut backoff).await;
            if !fault.keeps_version() {
                self.version = None;
            }
            let retry_after = match &fault {
                Fault::Closed => return,
                Fault::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            if self.send(Message::Disconnected(self.kind, shown(&fault.to_string()))).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.pause(retry_after)).await;
        }
    }

    /// Lists and watches until a fault.
    async fn follow(&mut self, backoff: &mut Backoff) -> Result<Infallible, Fault> {
        let client = connect(&self.target.server).await?;
        let mut stream = None;
        if self.version.is_none() {
            stream = self.list(&client).await?;
        }
        loop {
            let lines = match stream.take() {
                Some(lines) => lines,
                None => self.open(&client, self.version.as_deref()).await?,
            };
            self.send(Message::Connected(self.kind)).await?;
            let start = Instant::now();
            let heard = self.forward_events(lines, start, backoff).await?;
            if heard == 0 && start.elapsed() < WATCH_MIN {
                return Err(Fault::EndedEarly);
            }
        }
    }

    /// Lists the kind. A streaming list continues as the watch.
    async fn list(&mut self, client: &Client) -> Result<Option<Lines>, Fault> {
        let limit = self.target.patience.list;
        let timed_out = || Fault::LimitExceeded(format!("a list took longer than {limit:?}"));
        if self.streaming {
            match tokio::time::timeout(limit, self.list_streaming(client)).await.unwrap_or_else(|_| Err(timed_out())) {
                Ok(lines) => return Ok(Some(lines)),
                Err(fault) if cannot_stream(&fault) => {
                    tracing::debug!("{}: no streaming list ({fault}): using pages from now on", self.kind);
                    self.streaming = false;
                }
                Err(fault) => return Err(fault),
            }
        }
        tokio::time::timeout(limit, self.list_paged(client)).await.unwrap_or_else(|_| Err(timed_out()))?;
        Ok(None)
    }

    async fn list_streaming(&mut self, client: &Client) -> Result<Lines, Fault> {
        let mut lines = self.open(client, None).await?;
        let mut list = List::default();
        while let Some(line) = lines.next().await? {
            let event = self.parse_event(&line)?;
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => self.add(&mut list, event.object)?,
                "BOOKMARK" if event.object["metadata"]["annotations"][INITIAL_END] == "true" => {
                    self.listed(list, version(&event.object)?).await?;
                    return Ok(lines);
                }
                // A server that ignores the parameter sends the existing objects, but no bookmark that ends them.
                other => return Err(Fault::Refused { code: 501, message: format!("{other} in a streaming list"), retry_after: None }),
            }
        }
        Err(Fault::EndedEarly)
    }

    async fn list_paged(&mut self, client: &Client) -> Result<(), Fault> {
        let mut list = List::default();
        let mut next = None;
        let size = if std::mem::take(&mut self.unpaged) { 0 } else { self.target.page };
        loop {
            let first = next.is_none();
            let patience = self.target.patience;
            let answer = open(client, self.query.list(size, next)?, patience.answer, patience.silence).await;
            if let (Err(Fault::Gone(_)), false) = (&answer, first) {
                self.unpaged = true;
            }
            let text = answer?.whole(PAGE_BYTES_MAX).await?;
            let page: Page = serde_json::from_slice(&text).map_err(|e| Fault::Invalid(format!("invalid list from the API server: {e}")))?;
            for item in page.items.into_iter().flatten() {
                self.add(&mut list, item)?;
            }
            next = page.metadata.more.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| Fault::Invalid("a list has no metadata.resourceVersion".into()))?;
                return self.listed(list, version).await;
            }
        }
    }

    async fn listed(&mut self, list: List, version: String) -> Result<(), Fault> {
        self.version = Some(version);
        self.send(Message::Listed(self.kind, list.objects, list.unread)).await
    }

    fn add(&self, list: &mut List, value: Value) -> Result<(), Fault> {
        if list.objects.len() + list.unread.len() == self.target.objects_max {
            return Err(Fault::LimitExceeded(format!("the API server has more than {} {}s", self.target.objects_max, self.kind)));
        }
        match objects::read(self.kind, value, &Origin::default()) {
            Ok(object) => list.objects.push(object),
            Err(unread) => list.unread.push(*unread),
        }
        Ok(())
    }

    /// Forwards events until the stream ends. Returns their number.
    async fn forward_events(&mut self, mut lines: Lines, start: Instant, backoff: &mut Backoff) -> Result<u64, Fault> {
        let mut heard = 0;
        loop {
            let next = lines.next().await;
            if start.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            let Some(line) = next? else { return Ok(heard) };
            let event = self.parse_event(&line)?;
            let version = version(&event.object)?;
            let message = match event.kind.as_str() {
                "ADDED" | "MODIFIED" => match objects::read(self.kind, event.object, &Origin::default()) {
                    Ok(object) => Message::Applied(object),
                    Err(unread) => Message::Unreadable(*unread),
                },
                "DELETED" => {
                    let key = objects::key(self.kind, &event.object);
                    Message::Deleted(self.kind, key.ok_or_else(|| Fault::Invalid("a DELETED event has no name".into()))?)
                }
                "BOOKMARK" => Message::Bookmark(self.kind),
                other => return Err(Fault::Invalid(format!("an event has the unknown type {other:?}"))),
            };
            self.send(message).await?;
            self.version = Some(version);
            heard += 1;
        }
    }

    /// Parses a line. An ERROR event is a fault.
    fn parse_event(&self, line: &[u8]) -> Result<WatchEvent, Fault> {
        let event: WatchEvent =
            serde_json::from_slice(line).map_err(|e| Fault::Invalid(format!("invalid event from the API server: {e}")))?;
        if event.kind != "ERROR" {
            return Ok(event);
        }
        let code = event.object["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
        Err(refused(code, event.object["message"].as_str().unwrap_or("an error without a message"), None))
    }

    async fn open(&self, client: &Client, version: Option<&str>) -> Result<Lines, Fault> {
        let patience = self.target.patience;
        open(client, self.query.watch(version)?, patience.answer, patience.silence).await
    }

    async fn send(&self, message: Message) -> Result<(), Fault> {
        self.sender.send(message).await.map_err(|_| Fault::Closed)
    }
}

/// An object's resource version.
fn version(object: &Value) -> Result<String, Fault> {
    let version = object["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
    version.map(str::to_owned).ok_or_else(|| Fault::Invalid("an event has no metadata.resourceVersion".into()))
}

/// Whether the fault may mean that streaming lists are not supported.
fn cannot_stream(fault: &Fault) -> bool {
    match fault {
        Fault::Refused { code, .. } => matches!(code, 400 | 422 | 500 | 501),
        Fault::EndedEarly | Fault::LimitExceeded(_) => true,
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
        let follower = |kind| Follower::new(kind, Target::new(Kubernetes::InCluster, "gw".into()), sender.clone());
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
