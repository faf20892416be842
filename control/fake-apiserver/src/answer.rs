//! HTTP answers: objects, Statuses, and bodies that come at the speed that is asked for.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode, header};
use futures::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};

use crate::server::Shared;

/// Bytes sent at a time while the server is slow.
const SLOW_BYTES: usize = 64;

/// A chunk of a body, or the reason why the connection is cut.
pub(crate) type Chunk = io::Result<Bytes>;

/// A `Status` object as the real server makes it.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

/// A failure.
pub(crate) fn failure(shared: &Arc<Shared>, code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    with(shared, code, &status(code, reason, message))
}

/// A JSON answer.
pub(crate) fn with(shared: &Arc<Shared>, code: u16, value: &Value) -> Response<Body> {
    streamed(shared, code, stream::iter([Ok(Bytes::from(format!("{value}\n")))]))
}

/// An answer whose body comes bit by bit.
pub(crate) fn streamed(shared: &Arc<Shared>, code: u16, body: impl Stream<Item = Chunk> + Send + 'static) -> Response<Body> {
    let body = Body::from_stream(paced(shared.clone(), body.boxed()));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// The same bytes; silence and slowness are obeyed on the way.
fn paced(shared: Arc<Shared>, body: stream::BoxStream<'static, Chunk>) -> impl Stream<Item = Chunk> {
    stream::unfold((shared, body, Bytes::new()), |(shared, mut body, mut rest)| async move {
        if rest.is_empty() {
            match body.next().await? {
                Ok(bytes) => rest = bytes,
                Err(e) => return Some((Err(e), (shared, body, rest))),
            }
        }
        shared.wait_while_silent().await;
        let slow = shared.state().faults.slow;
        let part = match slow {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                rest.split_to(rest.len().min(SLOW_BYTES))
            }
            None => std::mem::take(&mut rest),
        };
        Some((Ok(part), (shared, body, rest)))
    })
}
