//! The two fixed servers' pages: `/healthz` and `/livez` on one, `/metrics`, `/metrics/slis`, `/healthz` and `/proxyMode` on the other.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::sync::oneshot;

use super::{JSON, NOSNIFF, Shared};
use crate::observe::health::{Moment, NODE_ELIGIBLE};
use crate::observe::metrics::{self, Exposition, process};

/// How long the control loop may take to say how things are.
const SAMPLE_MAX: Duration = Duration::from_secs(5);
/// The mode of kube-proxy whose rules these are.
const PROXY_MODE: &str = "nftables";

/// `/healthz` and `/livez`.
pub(super) fn health(shared: Arc<Shared>) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state(shared)
}

/// `/metrics` and its neighbours.
pub(super) fn metrics(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", any(exposition))
        .route("/metrics/slis", any(slis))
        .route("/healthz", any(|| async { ([NOSNIFF], "ok") }))
        .route("/proxyMode", any(|| async { ([NOSNIFF], PROXY_MODE) }))
        .with_state(shared)
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let mut state = shared.lock();
    let now = Moment::now();
    let checks = state.health.checks(now);
    state.slis.observe("healthz", checks);
    let (good, body) = state.health.healthz(now);
    state.proxy.count_healthz(good);
    report(good, body)
}

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    let mut state = shared.lock();
    let now = Moment::now();
    // A node that is about to go does not need a new proxy.
    let checks = state.health.checks(now).into_iter().filter(|(name, _)| *name != NODE_ELIGIBLE);
    state.slis.observe("livez", checks);
    let (good, body) = state.health.livez(now);
    state.proxy.count_livez(good);
    report(good, body)
}

fn report(good: bool, body: String) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(CONTENT_TYPE.as_str(), JSON), NOSNIFF], body).into_response()
}

async fn slis(State(shared): State<Arc<Shared>>) -> Response {
    let mut out = Exposition::default();
    shared.lock().slis.write(&mut out);
    ([(CONTENT_TYPE.as_str(), metrics::CONTENT_TYPE), NOSNIFF], out.finish()).into_response()
}

async fn exposition(State(shared): State<Arc<Shared>>) -> Response {
    let (answer, sample) = oneshot::channel();
    if shared.scrapes.try_send(answer).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, [NOSNIFF], "too many scrapes at a time\n").into_response();
    }
    let Ok(Ok(sample)) = tokio::time::timeout(SAMPLE_MAX, sample).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, [NOSNIFF], "the control loop does not answer\n").into_response();
    };
    let mut out = Exposition::default();
    let proxy = shared.lock().proxy.clone();
    proxy.write(&mut out);
    sample.write(&mut out);
    process::write(&mut out);
    ([(CONTENT_TYPE.as_str(), metrics::CONTENT_TYPE), NOSNIFF], out.finish()).into_response()
}
