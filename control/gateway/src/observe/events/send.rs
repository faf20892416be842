//! The thread that sends events to the API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result};
use http::{Request, header};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::object::object;
use super::queue::{Filter, Pace, Refusal};
use super::{Counts, Event, QueueItem};
use crate::config::Kubernetes;
use crate::observe::health::Moment;
use crate::threads;
use crate::watch::ServerAddresses;
use crate::watch::backoff::Backoff;
use crate::watch::client::{ApiClient, can_mark, connect, open};
use crate::watch::fault::ApiFault;

/// Maximum length of the server's response, which contains the event.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Starts the thread. It ends when all senders of `queue` are dropped.
pub(super) fn start(
    server: Kubernetes,
    node: String,
    pace: Pace,
    mark: Option<u32>,
    queue: mpsc::Receiver<QueueItem>,
    counts: Arc<Counts>,
) -> Result<()> {
    // Fails if a provider is already installed; that one is then used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut sender = Sender { server, node, pace, mark, counts, client: None, logged: None };
    let work = move |runtime: &Runtime| {
        if let Err(e) = nomagic_sys::capabilities::keep_marking() {
            tracing::warn!("the events thread cannot drop its capabilities: {e}");
        }
        // The watch has logged it if sockets cannot be marked.
        sender.mark = sender.mark.filter(|mark| can_mark(*mark).is_ok());
        runtime.block_on(sender.run(queue));
    };
    threads::start("nm-events", work).context("cannot start a thread for events")?;
    Ok(())
}

struct Sender {
    server: Kubernetes,
    node: String,
    pace: Pace,
    /// The mark of the connections.
    mark: Option<u32>,
    counts: Arc<Counts>,
    /// Created again after each fault, and when the credentials have changed.
    client: Option<ApiClient>,
    /// The cause that was logged last; each is logged once.
    logged: Option<String>,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<QueueItem>) {
        let mut filter = Filter::new(self.pace, Instant::now());
        while let Some(message) = queue.recv().await {
            let event = match message {
                QueueItem::Event(event) => event,
                QueueItem::Flush(done) => {
                    let _ = done.try_send(());
                    continue;
                }
            };
            let counts = self.counts.clone();
            let counter: &AtomicU64 = match filter.admit(&event, Instant::now()) {
                Err(Refusal::Repeated) => &counts.repeated,
                Err(Refusal::RateLimited) => &counts.rate_limited,
                Ok(()) if self.send(&event).await => &counts.sent,
                Ok(()) => {
                    filter.failed(&event);
                    &counts.failed
                }
            };
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Sends an event, with retries. Returns false if all attempts failed.
    async fn send(&mut self, event: &Event) -> bool {
        let object = object(event, &self.node, Moment::now().wall);
        let Ok(body) = serde_json::to_vec(&object) else { return false };
        let mut backoff = Backoff::new(self.pace.pause_min, self.pace.pause_max);
        for attempt in 1..=self.pace.attempts {
            let fault = match self.post(object.metadata.namespace.as_deref().unwrap_or_default(), body.clone()).await {
                Ok(()) => {
                    self.logged = None;
                    return true;
                }
                // An earlier attempt created the event, but its response was lost.
                Err(ApiFault::Refused { code: 409, .. }) if attempt > 1 => return true,
                Err(fault) => fault,
            };
            self.client = None;
            let (retry, retry_after) = match &fault {
                ApiFault::Refused { code, retry_after, .. } => (*code == 429 || *code >= 500, *retry_after),
                _ => (true, None),
            };
            self.log(event, &fault);
            if !retry {
                return false;
            }
            if attempt < self.pace.attempts {
                tokio::time::sleep(backoff.pause(retry_after)).await;
            }
        }
        false
    }

    async fn post(&mut self, namespace: &str, body: Vec<u8>) -> Result<(), ApiFault> {
        self.client = self.client.take().filter(|client| !client.files.have_changed());
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(connect(&self.server, self.mark, &ServerAddresses::default()).await?),
        };
        let request = Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| ApiFault::Unusable(format!("cannot build the request: {e}")))?;
        open(client, request, self.pace.answer, self.pace.answer).await?.whole(ANSWER_BYTES_MAX).await?;
        Ok(())
    }

    fn log(&mut self, event: &Event, fault: &ApiFault) {
        let what = match fault {
            ApiFault::Refused { code: 403, message, .. } => format!(
                "{} rejects events (403: {message}): allow `create` on events of events.k8s.io, as deploy/base/cluster-role.yaml does; nothing else is affected",
                self.server
            ),
            ApiFault::Refused { code, message, .. } => format!("{} rejects events ({code}: {message})", self.server),
            fault => format!("cannot send events to {}: {fault}", self.server),
        };
        // Compare causes, not messages: the server's message may contain the event's name.
        let cause = match fault {
            ApiFault::Refused { code, .. } => code.to_string(),
            _ => "away".into(),
        };
        if self.logged.as_ref() != Some(&cause) {
            tracing::warn!("{what}; first event affected: {} ({})", event.reason, event.note);
            self.logged = Some(cause);
        }
    }
}
