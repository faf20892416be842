//! HTTP responses: objects, `Status` objects, and bodies that are paused or slowed down on demand.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode, header};
use futures::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};

use crate::state::SharedState;

/// Chunk size while the server is slow, bytes.
const SLOW_BYTES: usize = 64;

/// A chunk of a body, or the error that closes the connection.
pub(crate) type Chunk = io::Result<Bytes>;

/// A `Status` object like the real server's.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

/// An error response with a `Status` object.
pub(crate) fn failure(shared: &Arc<SharedState>, code: u16, message: &str) -> Response<Body> {
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
    json_response(shared, code, &status(code, reason, message))
}

/// A response with a JSON body.
pub(crate) fn json_response(shared: &Arc<SharedState>, code: u16, value: &Value) -> Response<Body> {
    streaming_response(shared, code, stream::iter([Ok(Bytes::from(format!("{value}\n")))]))
}

/// A response whose body is a stream.
pub(crate) fn streaming_response(shared: &Arc<SharedState>, code: u16, body: impl Stream<Item = Chunk> + Send + 'static) -> Response<Body> {
    let body = Body::from_stream(paced(shared.clone(), body.boxed()));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Passes the bytes on, with the pauses that `silent` and `slow` demand.
fn paced(shared: Arc<SharedState>, body: stream::BoxStream<'static, Chunk>) -> impl Stream<Item = Chunk> {
    stream::unfold((shared, body, Bytes::new()), |(shared, mut body, mut rest)| async move {
        if rest.is_empty() {
            match body.next().await? {
                Ok(bytes) => rest = bytes,
                Err(e) => return Some((Err(e), (shared, body, rest))),
            }
        }
        shared.wait_while_silent().await;
        let slow = shared.state().faults.slow;
        let chunk = match slow {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                rest.split_to(rest.len().min(SLOW_BYTES))
            }
            None => std::mem::take(&mut rest),
        };
        Some((Ok(chunk), (shared, body, rest)))
    })
}
