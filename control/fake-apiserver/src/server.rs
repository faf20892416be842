//! Routes a request to its handler: faults first, then authentication, then the object or collection that the path names.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use serde_json::json;

use crate::query::Query;
use crate::resources::{Resource, ResourcePath};
use crate::response::{failure, json_response};
use crate::state::{REQUESTS_MAX, SharedState};
use crate::store::{OBJECT_BYTES_MAX, ObjectKey};
use crate::{events, list, watch};

/// Handles one request.
pub(crate) async fn handle(State(shared): State<Arc<SharedState>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), Query::parse(parts.uri.query().unwrap_or("")));
    let fault = shared.change(|state| {
        if state.requests.len() == REQUESTS_MAX {
            state.requests.pop_front();
        }
        state.requests.push_back(format!("{} {}", parts.method, parts.uri));
        state.faults.next_failure()
    });
    shared.wait_while_silent().await;
    if let Some(code) = fault {
        let mut response = failure(&shared, code, "failure requested by the test");
        if code == 429 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        return response;
    }
    if !is_authorized(&shared, &parts.headers) {
        return failure(&shared, 401, "Unauthorized");
    }
    if path == "/version" {
        return json_response(&shared, 200, &json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0-fake", "platform": "linux/amd64"}));
    }
    let known = |path: &ResourcePath| !shared.state().faults.unknown.contains(&path.resource);
    let Some(path) = ResourcePath::parse(&path).filter(known) else {
        return failure(&shared, 404, "the server could not find the requested resource");
    };
    shared.wait_while_unanswered(path.resource).await;
    if shared.state().faults.forbidden.contains(&path.resource) {
        return failure(&shared, 403, &format!("{} is forbidden: User \"test\" cannot do that", path.resource.plural()));
    }
    let Some(name) = path.name.clone() else {
        return match parts.method {
            Method::GET if query.flag("watch") => watch::handle(&shared, &path, &query),
            Method::GET => list::handle(&shared, &path, &query),
            Method::POST => put(&shared, body, &path).await,
            _ => failure(&shared, 405, "only GET and POST are served here"),
        };
    };
    let key: ObjectKey = (path.resource, path.namespace.clone().unwrap_or_default(), name);
    match parts.method {
        Method::GET => match shared.state().store.get(&key).cloned() {
            Some(object) => json_response(&shared, 200, &object),
            None => not_found(&shared, &key),
        },
        Method::PUT => put(&shared, body, &path).await,
        Method::DELETE => match shared.change(|state| state.store.delete(&key)) {
            Some(_) => json_response(&shared, 200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
            None => not_found(&shared, &key),
        },
        _ => failure(&shared, 405, "only GET, PUT and DELETE are served here"),
    }
}

fn is_authorized(shared: &SharedState, headers: &HeaderMap) -> bool {
    let state = shared.state();
    let Some(token) = &state.token else { return true };
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    given == Some(token)
}

fn not_found(shared: &Arc<SharedState>, key: &ObjectKey) -> Response<Body> {
    failure(shared, 404, &format!("{} {:?} not found", key.0.plural(), key.2))
}

/// Creates or replaces the object in a request's body (JSON).
async fn put(shared: &Arc<SharedState>, body: Body, path: &ResourcePath) -> Response<Body> {
    let bytes = match axum::body::to_bytes(body, OBJECT_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(e) => return failure(shared, 400, &format!("the body cannot be read: {e}")),
    };
    let object: serde_json::Value = match serde_json::from_slice(&bytes) {
        Ok(object) => object,
        Err(e) => return failure(shared, 400, &format!("not JSON: {e}")),
    };
    if path.resource == Resource::Events
        && let Err(message) = events::validate(&object, path.namespace.as_deref())
    {
        return failure(shared, 422, &message);
    }
    match shared.change(|state| state.store.put(object.clone())) {
        Ok(_) => json_response(shared, 200, &object),
        Err(message) => failure(shared, 422, &message),
    }
}
