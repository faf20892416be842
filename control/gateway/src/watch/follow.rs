//! Following one kind of objects: list, then watch from the list's version on.
//!
//! ```text
//!            +---------------------- version lost: 410, garbage ----------------+
//!            v                                                                  |
//!   list (a stream, or pages) --Listed--> watch from the version --events--> any fault: pause, then
//!                                              ^                                |
//!                                              +------- version known ----------+
//! ```
//!
//! The version survives every fault that does not put it in doubt, so a connection that breaks costs no list. Each attempt after a fault
//! reads credentials and certificates anew.

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

/// Bytes of a page at the most: 500 objects of half a megabyte each.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// A watch that ends sooner without having said anything counts as a fault, so that it is not asked again at once.
const SHORT: Duration = Duration::from_secs(1);
/// A watch that ran this long works: pauses begin with the shortest again.
const STEADY: Duration = Duration::from_secs(5);
/// Marks the bookmark that ends a list that came as a stream (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Follows one kind for ever.
pub(super) struct Follower {
    kind: Kind,
    target: Target,
    query: Query,
    sender: mpsc::Sender<Message>,
    /// The last version heard of; `None`: a list is needed.
    version: Option<String>,
    /// The server may be asked for lists as streams.
    streaming: bool,
    /// The next list comes in one piece: its pages were compacted away the last time.
    in_one: bool,
}

/// One line of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// One page of a list. Items are read one by one, so that a bad one spoils nothing else.
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

/// A list that grows.
#[derive(Default)]
struct List {
    objects: Vec<Object>,
    unread: Vec<Unread>,
}

impl Follower {
    pub(super) fn new(kind: Kind, target: Target, sender: mpsc::Sender<Message>) -> Follower {
        Follower { kind, query: Query::new(kind, &target.node), target, sender, version: None, streaming: true, in_one: false }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn run(mut self) {
        let patience = self.target.patience;
        let mut backoff = Backoff::new(patience.pause_min, patience.pause_max);
        loop {
            let Err(fault) = self.follow(&mut backoff).await;
            if !fault.leaves_the_version() {
                self.version = None;
            }
            let asked = match &fault {
                Fault::Closed => return,
                Fault::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            if self.tell(Message::Away(self.kind, shown(&fault.to_string()))).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.pause(asked)).await;
        }
    }

    /// Ends only by a fault.
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
            self.tell(Message::Connected(self.kind)).await?;
            let start = Instant::now();
            let heard = self.events(lines, start, backoff).await?;
            if heard == 0 && start.elapsed() < SHORT {
                return Err(Fault::EndedEarly);
            }
        }
    }

    /// Lists everything. A list that came as a stream goes on as the watch.
    async fn list(&mut self, client: &Client) -> Result<Option<Lines>, Fault> {
        let limit = self.target.patience.list;
        let too_long = || Fault::TooMuch(format!("a list that takes longer than {limit:?}"));
        if self.streaming {
            match tokio::time::timeout(limit, self.list_as_stream(client)).await.unwrap_or_else(|_| Err(too_long())) {
                Ok(lines) => return Ok(Some(lines)),
                Err(fault) if cannot_stream(&fault) => {
                    tracing::debug!("{}: no list as a stream ({fault}): in pages from now on", self.kind);
                    self.streaming = false;
                }
                Err(fault) => return Err(fault),
            }
        }
        tokio::time::timeout(limit, self.list_in_pages(client)).await.unwrap_or_else(|_| Err(too_long()))?;
        Ok(None)
    }

    async fn list_as_stream(&mut self, client: &Client) -> Result<Lines, Fault> {
        let mut lines = self.open(client, None).await?;
        let mut list = List::default();
        while let Some(line) = lines.next().await? {
            let event = self.event(&line)?;
            match event.kind.as_str() {
                "ADDED" | "MODIFIED" => self.take(&mut list, event.object)?,
                "BOOKMARK" if event.object["metadata"]["annotations"][INITIAL_END] == "true" => {
                    self.listed(list, version(&event.object)?).await?;
                    return Ok(lines);
                }
                // A server that does not know the request tells what is there, but never says when it is done.
                other => return Err(Fault::Refused { code: 501, message: format!("{other} in a list"), retry_after: None }),
            }
        }
        Err(Fault::EndedEarly)
    }

    async fn list_in_pages(&mut self, client: &Client) -> Result<(), Fault> {
        let mut list = List::default();
        let mut next = None;
        let size = if std::mem::take(&mut self.in_one) { 0 } else { self.target.page };
        loop {
            let first = next.is_none();
            let patience = self.target.patience;
            let answer = open(client, self.query.list(size, next)?, patience.answer, patience.silence).await;
            if let (Err(Fault::Gone(_)), false) = (&answer, first) {
                self.in_one = true;
            }
            let text = answer?.whole(PAGE_BYTES_MAX).await?;
            let page: Page =
                serde_json::from_slice(&text).map_err(|e| Fault::Garbled(format!("the API server's list cannot be read: {e}")))?;
            for item in page.items.into_iter().flatten() {
                self.take(&mut list, item)?;
            }
            next = page.metadata.more.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| Fault::Garbled("a list without metadata.resourceVersion".into()))?;
                return self.listed(list, version).await;
            }
        }
    }

    async fn listed(&mut self, list: List, version: String) -> Result<(), Fault> {
        self.version = Some(version);
        self.tell(Message::Listed(self.kind, list.objects, list.unread)).await
    }

    fn take(&self, list: &mut List, value: Value) -> Result<(), Fault> {
        if list.objects.len() + list.unread.len() == self.target.objects_max {
            return Err(Fault::TooMuch(format!("the API server has more than {} {}s", self.target.objects_max, self.kind)));
        }
        match objects::read(self.kind, value, &Origin::default()) {
            Ok(object) => list.objects.push(object),
            Err(unread) => list.unread.push(*unread),
        }
        Ok(())
    }

    /// Passes events on until the stream ends; returns how many there were.
    async fn events(&mut self, mut lines: Lines, start: Instant, backoff: &mut Backoff) -> Result<u64, Fault> {
        let mut heard = 0;
        loop {
            let next = lines.next().await;
            // However it ends: it worked for long enough.
            if start.elapsed() >= STEADY {
                backoff.reset();
            }
            let Some(line) = next? else { return Ok(heard) };
            let event = self.event(&line)?;
            let version = version(&event.object)?;
            let message = match event.kind.as_str() {
                "ADDED" | "MODIFIED" => match objects::read(self.kind, event.object, &Origin::default()) {
                    Ok(object) => Message::Applied(object),
                    Err(unread) => Message::Unreadable(*unread),
                },
                "DELETED" => {
                    let key = objects::key(self.kind, &event.object);
                    Message::Deleted(self.kind, key.ok_or_else(|| Fault::Garbled("a DELETED event without a name".into()))?)
                }
                "BOOKMARK" => Message::Quiet(self.kind),
                other => return Err(Fault::Garbled(format!("an event of the unknown type {other:?}"))),
            };
            self.tell(message).await?;
            self.version = Some(version);
            heard += 1;
        }
    }

    /// Reads a line. ERROR events are faults.
    fn event(&self, line: &[u8]) -> Result<Event, Fault> {
        let event: Event =
            serde_json::from_slice(line).map_err(|e| Fault::Garbled(format!("the API server's event cannot be read: {e}")))?;
        if event.kind != "ERROR" {
            return Ok(event);
        }
        let code = event.object["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
        Err(refused(code, event.object["message"].as_str().unwrap_or("an error without words"), None))
    }

    async fn open(&self, client: &Client, version: Option<&str>) -> Result<Lines, Fault> {
        let patience = self.target.patience;
        open(client, self.query.watch(version)?, patience.answer, patience.silence).await
    }

    async fn tell(&self, message: Message) -> Result<(), Fault> {
        self.sender.send(message).await.map_err(|_| Fault::Closed)
    }
}

/// An object's version.
fn version(object: &Value) -> Result<String, Fault> {
    let version = object["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty());
    version.map(str::to_owned).ok_or_else(|| Fault::Garbled("an event without metadata.resourceVersion".into()))
}

/// Whether pages are worth a try instead.
fn cannot_stream(fault: &Fault) -> bool {
    match fault {
        Fault::Refused { code, .. } => matches!(code, 400 | 422 | 500 | 501),
        Fault::EndedEarly | Fault::TooMuch(_) => true,
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
            match follower(kind).event(&line) {
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
