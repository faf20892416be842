//! The request handlers: `/healthz`, `/livez` and `/readyz` of the health server; `/metrics`, `/metrics/slis`, `/healthz` and `/proxyMode` of the
//! metrics server.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::scrape::exposition;
use super::{HttpShared, JSON, NOSNIFF};
use crate::observe::health::{Moment, NODE_ELIGIBLE};
use crate::observe::metrics::{self, Exposition};

/// The kube-proxy mode whose rules nomagic follows.
const PROXY_MODE: &str = "nftables";

/// Routes of the health server.
pub(super) fn health(shared: Arc<HttpShared>) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).route("/readyz", any(readyz)).with_state(shared)
}

/// Routes of the metrics server.
pub(super) fn metrics(shared: Arc<HttpShared>) -> Router {
    Router::new()
        .route("/metrics", any(exposition))
        .route("/metrics/slis", any(slis))
        .route("/healthz", any(|| async { ([NOSNIFF], "ok") }))
        .route("/proxyMode", any(|| async { ([NOSNIFF], PROXY_MODE) }))
        .with_state(shared)
}

async fn healthz(State(shared): State<Arc<HttpShared>>) -> Response {
    let mut state = shared.lock();
    let now = Moment::now();
    let checks = state.health.checks(now);
    state.slis.observe("healthz", checks);
    let (good, body) = state.health.healthz(now);
    state.proxy.count_healthz(good);
    report(good, body)
}

async fn livez(State(shared): State<Arc<HttpShared>>) -> Response {
    let mut state = shared.lock();
    let now = Moment::now();
    // A node that is about to be deleted needs no proxy restart.
    let checks = state.health.checks(now).into_iter().filter(|(name, _)| *name != NODE_ELIGIBLE);
    state.slis.observe("livez", checks);
    let (good, body) = state.health.livez(now);
    state.proxy.count_livez(good);
    report(good, body)
}

/// nomagic's own: kube-proxy has no such path.
async fn readyz(State(shared): State<Arc<HttpShared>>) -> Response {
    let (good, body) = shared.lock().readyz.respond(Instant::now());
    report(good, body)
}

fn report(good: bool, body: String) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(CONTENT_TYPE.as_str(), JSON), NOSNIFF], body).into_response()
}

async fn slis(State(shared): State<Arc<HttpShared>>) -> Response {
    let mut out = Exposition::default();
    shared.lock().slis.write(&mut out);
    ([(CONTENT_TYPE.as_str(), metrics::CONTENT_TYPE), NOSNIFF], out.finish()).into_response()
}
