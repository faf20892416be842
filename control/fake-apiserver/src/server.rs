//! The state that everybody shares, and who answers which request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shares;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use serde_json::json;
use tokio::sync::watch;

use crate::answer::{failure, with};
use crate::faults::Faults;
use crate::query::Query;
use crate::resources::{Place, Resource};
use crate::store::{Key, OBJECT_BYTES_MAX, Store};
use crate::{events, list, watch as watches};

/// Requests remembered at the most.
const REQUESTS_MAX: usize = 10_000;
/// How often a client that asked for bookmarks gets one, unless told otherwise.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) bookmark_every: Duration,
    /// The bearer token that is accepted; `None`: everybody is.
    pub(crate) token: Option<String>,
    /// The last requests: method, path and query.
    pub(crate) requests: VecDeque<String>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state, for those who wait for one.
    tick: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new() -> Arc<Shared> {
        let state = State {
            store: Store::default(),
            faults: Faults::default(),
            bookmark_every: BOOKMARK_EVERY,
            token: None,
            requests: VecDeque::new(),
        };
        Arc::new(Shared { state: Mutex::new(state), tick: watch::channel(0).0 })
    }

    /// The state, to look at.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state and wakes those who wait.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.state());
        self.tick.send_modify(|n| *n += 1);
        result
    }

    /// Changes from here on are seen.
    pub(crate) fn ticks(&self) -> watch::Receiver<u64> {
        self.tick.subscribe()
    }

    pub(crate) async fn wait_while_silent(&self) {
        let mut ticks = self.ticks();
        while self.state().faults.silent && ticks.changed().await.is_ok() {}
    }
}

/// Answers a request.
pub(crate) async fn answer(Shares(shared): Shares<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), Query::parse(parts.uri.query().unwrap_or("")));
    let fault = shared.change(|state| {
        if state.requests.len() == REQUESTS_MAX {
            state.requests.pop_front();
        }
        state.requests.push_back(format!("{} {}", parts.method, parts.uri));
        state.faults.next_answer()
    });
    shared.wait_while_silent().await;
    if let Some(code) = fault {
        let mut response = failure(&shared, code, "asked for by the test");
        if code == 429 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        return response;
    }
    if !admitted(&shared, &parts.headers) {
        return failure(&shared, 401, "Unauthorized");
    }
    if path == "/version" {
        return with(&shared, 200, &json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0-fake", "platform": "linux/amd64"}));
    }
    let known = |place: &Place| !shared.state().faults.unknown.contains(&place.resource);
    let Some(place) = Place::parse(&path).filter(known) else {
        return failure(&shared, 404, "the server could not find the requested resource");
    };
    if shared.state().faults.forbidden.contains(&place.resource) {
        return failure(&shared, 403, &format!("{} is forbidden: User \"test\" cannot do that", place.resource.plural()));
    }
    let Some(name) = place.name.clone() else {
        return match parts.method {
            Method::GET if query.flag("watch") => watches::answer(&shared, &place, &query),
            Method::GET => list::answer(&shared, &place, &query),
            Method::POST => put(&shared, body, &place).await,
            _ => failure(&shared, 405, "only GET and POST are served here"),
        };
    };
    let key: Key = (place.resource, place.namespace.clone().unwrap_or_default(), name);
    match parts.method {
        Method::GET => match shared.state().store.get(&key).cloned() {
            Some(object) => with(&shared, 200, &object),
            None => not_found(&shared, &key),
        },
        Method::PUT => put(&shared, body, &place).await,
        Method::DELETE => match shared.change(|state| state.store.delete(&key)) {
            Some(_) => with(&shared, 200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
            None => not_found(&shared, &key),
        },
        _ => failure(&shared, 405, "only GET, PUT and DELETE are served here"),
    }
}

fn admitted(shared: &Shared, headers: &HeaderMap) -> bool {
    let state = shared.state();
    let Some(token) = &state.token else { return true };
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    given == Some(token)
}

fn not_found(shared: &Arc<Shared>, key: &Key) -> Response<Body> {
    failure(shared, 404, &format!("{} {:?} not found", key.0.plural(), key.2))
}

/// Creates or replaces the object in a request's body (JSON).
async fn put(shared: &Arc<Shared>, body: Body, place: &Place) -> Response<Body> {
    let bytes = match axum::body::to_bytes(body, OBJECT_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(e) => return failure(shared, 400, &format!("the body cannot be read: {e}")),
    };
    let object: serde_json::Value = match serde_json::from_slice(&bytes) {
        Ok(object) => object,
        Err(e) => return failure(shared, 400, &format!("not JSON: {e}")),
    };
    if place.resource == Resource::Events
        && let Err(message) = events::validate(&object, place.namespace.as_deref())
    {
        return failure(shared, 422, &message);
    }
    match shared.change(|state| state.store.put(object.clone())) {
        Ok(_) => with(shared, 200, &object),
        Err(message) => failure(shared, 422, &message),
    }
}
