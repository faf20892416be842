//! Watches: a stream of changes as lines of JSON.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use futures::stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{Chunk, failure, status, streamed};
use crate::faults::{End, Gone, Streaming};
use crate::query::Query;
use crate::resources::Place;
use crate::selector::Selector;
use crate::server::{Shared, State};
use crate::store::Change;

/// How long a watch lasts when the client names no `timeoutSeconds`.
const LASTS: Duration = Duration::from_secs(1_800);
/// Events prepared in one go.
const BATCH_MAX: usize = 256;

/// Answers `GET` of a collection with `watch=true`.
pub(crate) fn answer(shared: &Arc<Shared>, place: &Place, query: &Query) -> Response<Body> {
    let selector = match Selector::parse(query.text("labelSelector"), query.text("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(shared, 400, &message),
    };
    let watcher = {
        let state = shared.state();
        Watcher::start(&state, shared.clone(), place.clone(), query, selector)
    };
    match watcher {
        Err((code, message)) => failure(shared, code, &message),
        Ok(watcher) => streamed(shared, 200, stream::unfold(Some(watcher), |watcher| async move { watcher?.next().await })),
    }
}

/// One running watch.
struct Watcher {
    shared: Arc<Shared>,
    place: Place,
    selector: Selector,
    /// Everything up to this version has been sent.
    position: u64,
    /// Lines to send.
    waiting: VecDeque<Bytes>,
    /// No more lines after these.
    last: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    epoch: u64,
    garbage_seen: u64,
}

impl Watcher {
    fn start(state: &State, shared: Arc<Shared>, place: Place, query: &Query, selector: Selector) -> Result<Watcher, (u16, String)> {
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
        if let Some(from) = from.filter(|from| *from > store.version()) {
            return Err((504, format!("Too large resource version: {from}, current: {}", store.version())));
        }
        let too_old = !streaming && from.is_some_and(|from| from < store.compacted());
        if too_old && faults.gone == Gone::Status {
            return Err((410, too_old_text(from.unwrap_or(0), store.compacted())));
        }
        let lasts = query.number("timeoutSeconds").map_or(LASTS, Duration::from_secs);
        let now = Instant::now();
        let mut watcher = Watcher {
            selector,
            position: from.filter(|_| !streaming).unwrap_or(store.version()),
            waiting: VecDeque::new(),
            last: false,
            bookmarks: query.flag("allowWatchBookmarks"),
            next_bookmark: now + state.bookmark_every,
            ends: now + lasts.min(LASTS),
            epoch: faults.epoch,
            garbage_seen: faults.garbage.0,
            shared,
            place,
        };
        if streaming && faults.streaming == Streaming::ErrorInStream {
            watcher.finish(&status(500, "InternalError", "Internal error occurred: streaming lists are not possible here"));
        } else if streaming || from.is_none() {
            let objects = store.at(watcher.place.resource, store.version()).unwrap_or_default();
            let wanted: Vec<_> = objects.iter().filter(|(key, o)| watcher.wants(&key.1, o)).map(|(_, o)| o.clone()).collect();
            wanted.iter().for_each(|o| watcher.push("ADDED", o));
            if streaming && watcher.bookmarks {
                watcher.push("BOOKMARK", &watcher.bookmark(true));
            }
        }
        Ok(watcher)
    }

    /// The next line, when there is one. Ends with the watch.
    async fn next(mut self) -> Option<(Chunk, Option<Watcher>)> {
        let shared = self.shared.clone();
        loop {
            let mut ticks = shared.ticks();
            {
                let state = shared.state();
                if state.faults.epoch != self.epoch {
                    let cut = state.faults.end == Some(End::Cut);
                    return cut.then(|| (Err(io::Error::from(io::ErrorKind::ConnectionReset)), None));
                }
                if self.garbage_seen != state.faults.garbage.0 {
                    self.garbage_seen = state.faults.garbage.0;
                    self.waiting.push_back(Bytes::from(format!("{}\n", state.faults.garbage.1)));
                }
                if self.waiting.is_empty() && !self.last {
                    self.prepare(&state);
                }
            }
            if let Some(line) = self.waiting.pop_front() {
                return Some((Ok(line), Some(self)));
            }
            let now = Instant::now();
            if self.last || now >= self.ends {
                return None;
            }
            if self.bookmarks && now >= self.next_bookmark {
                self.next_bookmark = now + shared.state().bookmark_every;
                self.push("BOOKMARK", &self.bookmark(false));
                continue;
            }
            let wake = if self.bookmarks { self.ends.min(self.next_bookmark) } else { self.ends };
            tokio::select! {
                _ = ticks.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Lines for the changes that came since.
    fn prepare(&mut self, state: &State) {
        let Some(changes) = state.store.after(self.position, BATCH_MAX) else {
            return self.finish(&status(410, "Expired", &too_old_text(self.position, state.store.compacted())));
        };
        let changes: Vec<Change> = changes.cloned().collect();
        for change in &changes {
            self.position = change.version;
            if change.key.0 == self.place.resource {
                self.tell(change);
            }
        }
        if changes.len() < BATCH_MAX {
            self.position = state.store.version();
        }
    }

    /// An object that no longer is what the selectors want is as good as deleted, and the other way round.
    fn tell(&mut self, change: &Change) {
        let namespace = &change.key.1;
        let wanted = |object: &Option<Arc<Value>>| object.clone().filter(|o| self.wants(namespace, o));
        match (wanted(&change.old), wanted(&change.new)) {
            (None, None) => {}
            (None, Some(new)) => self.push("ADDED", &new),
            (Some(_), Some(new)) => self.push("MODIFIED", &new),
            (Some(old), None) => {
                // What it was last, with the version of the change.
                let mut object = (*old).clone();
                object["metadata"]["resourceVersion"] = json!(change.version.to_string());
                self.push("DELETED", &object);
            }
        }
    }

    fn wants(&self, namespace: &str, object: &Value) -> bool {
        self.place.namespace.as_ref().is_none_or(|n| n == namespace) && self.selector.matches(object)
    }

    fn push(&mut self, kind: &str, object: &Value) {
        self.waiting.push_back(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))));
    }

    /// An ERROR event, and the end.
    fn finish(&mut self, status: &Value) {
        self.push("ERROR", status);
        self.last = true;
    }

    fn bookmark(&self, ends_initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"kind": self.place.resource.kind(), "apiVersion": self.place.resource.version(), "metadata": metadata})
    }
}

fn too_old_text(wanted: u64, compacted: u64) -> String {
    format!("too old resource version: {wanted} ({compacted})")
}
