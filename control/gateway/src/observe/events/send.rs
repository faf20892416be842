//! The thread that sends events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result};
use http::{Request, header};
use kube::Client;
use tokio::sync::mpsc;

use super::object::object;
use super::queue::{Filter, Pace, Refusal};
use super::{Counts, Event, Message};
use crate::config::Kubernetes;
use crate::observe::health::Moment;
use crate::watch::backoff::Backoff;
use crate::watch::client::{connect, open};
use crate::watch::fault::Fault;

/// Bytes of the server's answer at the most: it is the event.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Starts it. It ends when all senders have gone.
pub(super) fn start(server: Kubernetes, node: String, pace: Pace, queue: mpsc::Receiver<Message>, counts: Arc<Counts>) -> Result<()> {
    // Errs when there is one already, which then is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime for events")?;
    let sender = Sender { server, node, pace, counts, client: None, said: None };
    let work = move || {
        if let Err(e) = nomagic_sys::capabilities::keep_nothing() {
            tracing::warn!("capabilities that sending events does not need could not be given up: {e}");
        }
        runtime.block_on(sender.run(queue));
    };
    std::thread::Builder::new().name("nm-events".into()).spawn(work).context("cannot start a thread for events")?;
    Ok(())
}

struct Sender {
    server: Kubernetes,
    node: String,
    pace: Pace,
    counts: Arc<Counts>,
    /// Made anew after each fault, so that credentials are read anew.
    client: Option<Client>,
    /// What was last said to be wrong: it is said once.
    said: Option<String>,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut filter = Filter::new(self.pace, Instant::now());
        while let Some(message) = queue.recv().await {
            let event = match message {
                Message::Event(event) => event,
                Message::Flushed(done) => {
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

    /// Sends an event, if need be several times. False: given up.
    async fn send(&mut self, event: &Event) -> bool {
        let object = object(event, &self.node, Moment::now().wall);
        let Ok(body) = serde_json::to_vec(&object) else { return false };
        let mut backoff = Backoff::new(self.pace.pause_min, self.pace.pause_max);
        for attempt in 1..=self.pace.attempts {
            let fault = match self.post(object.metadata.namespace.as_deref().unwrap_or_default(), body.clone()).await {
                Ok(()) => {
                    self.said = None;
                    return true;
                }
                // The answer to an attempt before was lost: the event is there.
                Err(Fault::Refused { code: 409, .. }) if attempt > 1 => return true,
                Err(fault) => fault,
            };
            self.client = None;
            let (again, asked) = match &fault {
                Fault::Refused { code, retry_after, .. } => (*code == 429 || *code >= 500, *retry_after),
                _ => (true, None),
            };
            self.say(event, &fault);
            if !again {
                return false;
            }
            if attempt < self.pace.attempts {
                tokio::time::sleep(backoff.pause(asked)).await;
            }
        }
        false
    }

    async fn post(&mut self, namespace: &str, body: Vec<u8>) -> Result<(), Fault> {
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(connect(&self.server).await?),
        };
        let request = Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| Fault::Unusable(format!("no request can be made of this: {e}")))?;
        open(client, request, self.pace.answer, self.pace.answer).await?.whole(ANSWER_BYTES_MAX).await?;
        Ok(())
    }

    fn say(&mut self, event: &Event, fault: &Fault) {
        let what = match fault {
            Fault::Refused { code: 403, message, .. } => format!(
                "{} takes no events (403: {message}): allow `create` on events of events.k8s.io, as deploy/base/cluster-role.yaml does; everything else goes on",
                self.server
            ),
            Fault::Refused { code, message, .. } => format!("{} takes no events ({code}: {message})", self.server),
            fault => format!("events cannot be sent to {}: {fault}", self.server),
        };
        // Said once for each cause: the server's words may name the event.
        let cause = match fault {
            Fault::Refused { code, .. } => code.to_string(),
            _ => "away".into(),
        };
        if self.said.as_ref() != Some(&cause) {
            tracing::warn!("{what}; the first one: {} ({})", event.reason, event.note);
            self.said = Some(cause);
        }
    }
}
