//! `/metrics`: concurrent scrapes share a page, and the number of pages is limited.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::{HttpShared, NOSNIFF};
use crate::observe::metrics::{self, Exposition, process, servers};

/// Time limit for the control loop to provide a sample.
const SAMPLE_MAX: Duration = Duration::from_secs(5);
/// Number of pages made without a pause. After these, one page per [`PAGE_EVERY`] is made, and scrapes in between get the last page.
const PAGES_BURST: u32 = 20;
const PAGE_EVERY: Duration = Duration::from_millis(100);

/// Maximum age of the page that scrapes get while another one is made. They would otherwise wait for the server, and connections that wait for
/// the server cannot be displaced.
const PAGE_AGE_MAX: Duration = Duration::from_secs(1);

/// The page made last, and the lock for making pages.
#[derive(Default)]
pub(super) struct Pages {
    /// The start of its making, and its text.
    last: Mutex<Option<(Instant, Bytes)>>,
    /// Locked while a page is made.
    making: tokio::sync::Mutex<Budget>,
}

impl Pages {
    /// Returns the last page if its making began at or after `then`.
    fn since(&self, then: Option<Instant>) -> Option<Bytes> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, page) = last.as_ref()?;
        then.is_none_or(|then| *begun >= then).then(|| page.clone())
    }
}

/// Limits the number of pages made, because the control loop needs its time for tables.
#[derive(Default)]
struct Budget {
    /// The time at which the next page would be due without a burst.
    due: Option<Instant>,
}

impl Budget {
    /// Reports whether a page may be made now, and counts it if so.
    fn take(&mut self, now: Instant) -> bool {
        let due = self.due.map_or(now, |due| due.max(now));
        let may = due.duration_since(now) <= PAGE_EVERY * (PAGES_BURST - 1);
        if may {
            self.due = Some(due + PAGE_EVERY);
        }
        may
    }
}

pub(super) async fn exposition(State(shared): State<Arc<HttpShared>>) -> Response {
    let page = tokio::time::timeout(SAMPLE_MAX, page(&shared, Instant::now())).await;
    let Ok(Some(page)) = page else {
        return (StatusCode::SERVICE_UNAVAILABLE, [NOSNIFF], "the control loop does not answer\n").into_response();
    };
    ([(CONTENT_TYPE.as_str(), metrics::CONTENT_TYPE), NOSNIFF], page).into_response()
}

/// Returns a page begun after `asked`, or an older one if too many are made or requested.
async fn page(shared: &HttpShared, asked: Instant) -> Option<Bytes> {
    let pages = &shared.pages;
    let mut budget = match pages.making.try_lock() {
        Ok(budget) => budget,
        Err(_) => match pages.since(asked.checked_sub(PAGE_AGE_MAX)) {
            Some(page) => return Some(page),
            None => pages.making.lock().await,
        },
    };
    let begun = Instant::now();
    if let Some(page) = pages.since(Some(asked)) {
        return Some(page);
    }
    if !budget.take(begun)
        && let Some(page) = pages.since(None)
    {
        return Some(page);
    }
    let (answer, sample) = oneshot::channel();
    shared.scrapes.try_send(answer).ok()?;
    let sample = sample.await.ok()?;
    let mut out = Exposition::default();
    let proxy = shared.lock().proxy.clone();
    proxy.write(&mut out);
    sample.write(&mut out);
    let mut connections = shared.clients.counts();
    connections.push(sample.control_socket);
    servers::write(&connections, &mut out);
    process::write(&mut out);
    let page = Bytes::from(out.finish());
    *pages.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((begun, page.clone()));
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_pages_at_once_and_then_one_from_time_to_time() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let mut made = |from_ms: u64, to_ms: u64| {
            let asked = (from_ms..to_ms).map(|ms| start + Duration::from_millis(ms));
            asked.filter(|now| budget.take(*now)).count()
        };
        assert_eq!(made(0, 100), 20);
        assert_eq!(made(100, 1_100), 10);
        // A quiet time restores the burst, and no more.
        assert_eq!(made(60_000, 60_100), 20);
    }
}
