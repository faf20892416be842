//! Watches: streams of changes, one JSON object per line.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use futures::stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::faults::{End, Gone, Streaming};
use crate::query::Query;
use crate::resources::ResourcePath;
use crate::response::{Chunk, failure, status, streaming_response};
use crate::selector::Selector;
use crate::state::{ServerState, SharedState};
use crate::store::ObjectChange;

/// Timeout of a watch without `timeoutSeconds`, and the maximum.
const TIMEOUT_MAX: Duration = Duration::from_secs(1_800);
/// Maximum number of changes read at a time.
const BATCH_MAX: usize = 256;

/// Handles `GET` of a collection with `watch=true`.
pub(crate) fn handle(shared: &Arc<SharedState>, path: &ResourcePath, query: &Query) -> Response<Body> {
    let selector = match Selector::parse(query.text("labelSelector"), query.text("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(shared, 400, &message),
    };
    let watcher = {
        let state = shared.state();
        Watcher::start(&state, shared.clone(), path.clone(), query, selector)
    };
    match watcher {
        Err((code, message)) => failure(shared, code, &message),
        Ok(watcher) => streaming_response(shared, 200, stream::unfold(Some(watcher), |watcher| async move { watcher?.next().await })),
    }
}

/// One open watch.
struct Watcher {
    shared: Arc<SharedState>,
    path: ResourcePath,
    selector: Selector,
    /// Changes up to this version have been sent.
    position: u64,
    /// Lines to send.
    queued: VecDeque<Bytes>,
    /// The watch ends after the queued lines.
    ending: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    epoch: u64,
    garbage_seen: u64,
}

impl Watcher {
    fn start(
        state: &ServerState,
        shared: Arc<SharedState>,
        path: ResourcePath,
        query: &Query,
        selector: Selector,
    ) -> Result<Watcher, (u16, String)> {
        let (store, faults) = (&state.store, &state.faults);
        let text = query.text("resourceVersion");
        let from = match text {
            "" | "0" => None,
            text => Some(text.parse::<u64>().map_err(|_| (400, format!("invalid resource version {text:?}")))?),
        };
        let streaming = query.flag("sendInitialEvents");
        if streaming && (query.text("resourceVersionMatch") != "NotOlderThan" || faults.streaming == Streaming::Invalid) {
            return Err((
                422,
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
                    .into(),
            ));
        }
        if let Some(from) = from.filter(|from| *from > store.version() && !faults.future_watches) {
            return Err((504, format!("Too large resource version: {from}, current: {}", store.version())));
        }
        let too_old = !streaming && from.is_some_and(|from| from < store.compacted());
        let gone = faults.watches_gone && from.is_some();
        if (too_old || gone) && faults.gone == Gone::Status {
            return Err((410, too_old_text(from.unwrap_or(0), store.compacted())));
        }
        let timeout = query.number("timeoutSeconds").map_or(TIMEOUT_MAX, Duration::from_secs);
        let now = Instant::now();
        let mut watcher = Watcher {
            selector,
            position: from.filter(|_| !streaming).unwrap_or(store.version()),
            queued: VecDeque::new(),
            ending: false,
            bookmarks: query.flag("allowWatchBookmarks"),
            next_bookmark: now + state.bookmark_interval,
            deadline: now + timeout.min(TIMEOUT_MAX),
            epoch: faults.epoch,
            garbage_seen: faults.garbage.0,
            shared,
            path,
        };
        if gone {
            watcher.finish(&status(410, "Expired", &too_old_text(from.unwrap_or(0), store.version())));
        } else if streaming && faults.streaming == Streaming::ErrorInStream {
            watcher.finish(&status(500, "InternalError", "Internal error occurred: streaming lists are not supported here"));
        } else if streaming || from.is_none() {
            let objects = store.at(watcher.path.resource, store.version()).unwrap_or_default();
            let selected: Vec<_> = objects.iter().filter(|(key, o)| watcher.selects(&key.1, o)).map(|(_, o)| o.clone()).collect();
            selected.iter().for_each(|o| watcher.push("ADDED", o));
            if streaming && watcher.bookmarks {
                watcher.push("BOOKMARK", &watcher.bookmark(true));
            }
        }
        Ok(watcher)
    }

    /// Waits for the next line. `None`: the watch has ended.
    async fn next(mut self) -> Option<(Chunk, Option<Watcher>)> {
        let shared = self.shared.clone();
        loop {
            let mut changes = shared.subscribe();
            {
                let state = shared.state();
                if state.faults.epoch != self.epoch {
                    let cut = state.faults.end == Some(End::Cut);
                    return cut.then(|| (Err(io::Error::from(io::ErrorKind::ConnectionReset)), None));
                }
                if self.garbage_seen != state.faults.garbage.0 {
                    self.garbage_seen = state.faults.garbage.0;
                    self.queued.push_back(Bytes::from(format!("{}\n", state.faults.garbage.1)));
                }
                if self.queued.is_empty() && !self.ending {
                    self.queue_changes(&state);
                }
            }
            if let Some(line) = self.queued.pop_front() {
                return Some((Ok(line), Some(self)));
            }
            let now = Instant::now();
            if self.ending || now >= self.deadline {
                return None;
            }
            if self.bookmarks && now >= self.next_bookmark {
                let version = {
                    let state = shared.state();
                    self.next_bookmark = now + state.bookmark_interval;
                    state.store.version()
                };
                // Like the real server, which sends nothing that is older than the watch's version.
                if self.position <= version {
                    self.push("BOOKMARK", &self.bookmark(false));
                }
                continue;
            }
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Queues lines for the changes since `position`.
    fn queue_changes(&mut self, state: &ServerState) {
        let Some(changes) = state.store.after(self.position, BATCH_MAX) else {
            return self.finish(&status(410, "Expired", &too_old_text(self.position, state.store.compacted())));
        };
        let changes: Vec<ObjectChange> = changes.cloned().collect();
        for change in &changes {
            self.position = change.version;
            if change.key.0 == self.path.resource {
                self.push_change(change);
            }
        }
        if changes.len() < BATCH_MAX {
            self.position = self.position.max(state.store.version());
        }
    }

    /// Queues one change. An object that stops matching the selectors is DELETED for the client, one that starts matching is ADDED.
    fn push_change(&mut self, change: &ObjectChange) {
        let namespace = &change.key.1;
        let selected = |object: &Option<Arc<Value>>| object.clone().filter(|o| self.selects(namespace, o));
        match (selected(&change.old), selected(&change.new)) {
            (None, None) => {}
            (None, Some(new)) => self.push("ADDED", &new),
            (Some(_), Some(new)) => self.push("MODIFIED", &new),
            (Some(old), None) => {
                // The last state, with the version of the deletion.
                let mut object = (*old).clone();
                object["metadata"]["resourceVersion"] = json!(change.version.to_string());
                self.push("DELETED", &object);
            }
        }
    }

    fn selects(&self, namespace: &str, object: &Value) -> bool {
        self.path.namespace.as_ref().is_none_or(|n| n == namespace) && self.selector.matches(object)
    }

    fn push(&mut self, kind: &str, object: &Value) {
        self.queued.push_back(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))));
    }

    /// Queues an ERROR event and ends the watch.
    fn finish(&mut self, status: &Value) {
        self.push("ERROR", status);
        self.ending = true;
    }

    fn bookmark(&self, ends_initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"kind": self.path.resource.kind(), "apiVersion": self.path.resource.version(), "metadata": metadata})
    }
}

fn too_old_text(requested: u64, compacted: u64) -> String {
    format!("too old resource version: {requested} ({compacted})")
}
