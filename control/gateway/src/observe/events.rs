//! Kubernetes Events (events.k8s.io/v1), with kube-proxy's reasons and actions.
//!
//! There are four (kube-proxy v1.36, `cmd/kube-proxy/app/server.go` and `pkg/proxy/healthcheck/service_health.go`): the proxy started; it
//! cannot serve a Service's `healthCheckNodePort`; it cannot serve `/healthz`; it cannot serve `/metrics`. kube-proxy sends the last two
//! only with `bindAddressHardFail`, nomagic always. The reporting controller is nomagic.
//!
//! Events are best effort and bounded: recording never blocks, the queue is short, duplicates are dropped, the rate and the number of
//! attempts are limited. Every outcome is counted.

mod object;
mod queue;
mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use nomagic_table::objects::NamespacedName;
use tokio::sync::mpsc;

use crate::config::Kubernetes;
use crate::net::local::BYPASS_MARK;
pub use queue::Pace;

/// Maximum number of queued events.
pub const QUEUE_MAX: usize = 64;

/// The object an event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Regarding {
    /// A Node, by name.
    Node(String),
    Service(NamespacedName),
}

/// The `type` of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Normal,
    Warning,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub regarding: Regarding,
    pub kind: Type,
    /// kube-proxy's reason.
    pub reason: &'static str,
    /// kube-proxy's action.
    pub action: &'static str,
    /// The message for people.
    pub note: String,
}

impl Event {
    fn about_node(node: &str, kind: Type, reason: &'static str, note: String) -> Event {
        Event { regarding: Regarding::Node(node.into()), kind, reason, action: "StartKubeProxy", note }
    }

    /// The gateway has started to carry Services on this node.
    pub fn starting(node: &str) -> Event {
        Event::about_node(node, Type::Normal, "Starting", format!("nomagic {} carries Services on this node", env!("CARGO_PKG_VERSION")))
    }

    /// `/healthz` cannot be served, because of `why`.
    pub fn no_healthz(node: &str, why: &str) -> Event {
        Event::about_node(node, Type::Warning, "FailedToStartProxierHealthcheck", why.into())
    }

    /// `/metrics` cannot be served, because of `why`.
    pub fn no_metrics(node: &str, why: &str) -> Event {
        Event::about_node(node, Type::Warning, "FailedToStartMetricServer", why.into())
    }

    /// A Service's `healthCheckNodePort` cannot be served, because of `why`.
    pub fn no_health_check(node: &str, service: &NamespacedName, port: u16, why: &str) -> Event {
        Event {
            regarding: Regarding::Service(service.clone()),
            kind: Type::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {why}"),
        }
    }
}

/// Events by outcome.
#[derive(Default, Debug)]
struct Counts {
    /// Accepted by the API server.
    sent: AtomicU64,
    /// Abandoned: the API server refused the event or was unreachable for too long.
    failed: AtomicU64,
    /// Dropped: an equal event was sent recently.
    repeated: AtomicU64,
    /// Dropped by the rate limit.
    rate_limited: AtomicU64,
    /// Dropped: the queue was full.
    queue_full: AtomicU64,
}

impl Counts {
    /// Returns `(outcome, number of events)` for each outcome.
    fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("sent", self.sent.load(Relaxed)),
            ("failed", self.failed.load(Relaxed)),
            ("repeated", self.repeated.load(Relaxed)),
            ("rate_limited", self.rate_limited.load(Relaxed)),
            ("queue_full", self.queue_full.load(Relaxed)),
        ]
    }
}

/// Queues events for the sender thread. Clones share the thread; it ends when the last clone is dropped.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    running: Option<RunningRecorder>,
}

#[derive(Clone, Debug)]
struct RunningRecorder {
    node: Arc<str>,
    sender: mpsc::Sender<QueueItem>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum QueueItem {
    Event(Event),
    /// Signals the sender once all earlier events are sent or abandoned.
    Flush(std::sync::mpsc::SyncSender<()>),
}

impl Recorder {
    /// A recorder that discards all events, for a gateway without an API server.
    pub fn off() -> Recorder {
        Recorder::default()
    }

    /// Starts the sender thread. `node` is this node's name.
    pub fn start(server: Kubernetes, node: String) -> Result<Recorder> {
        Recorder::start_marked(server, node, Pace::default(), Some(BYPASS_MARK))
    }

    /// Like [`Recorder::start`], with other limits.
    pub fn start_at(server: Kubernetes, node: String, pace: Pace) -> Result<Recorder> {
        Recorder::start_marked(server, node, pace, None)
    }

    fn start_marked(server: Kubernetes, node: String, pace: Pace, mark: Option<u32>) -> Result<Recorder> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        send::start(server, node.clone(), pace, mark, receiver, counts.clone())?;
        Ok(Recorder { running: Some(RunningRecorder { node: node.into(), sender, counts }) })
    }

    /// Queues an event without blocking. If the queue is full, the event is dropped and counted.
    pub fn record(&self, event: Event) {
        if let Some(running) = &self.running
            && running.sender.try_send(QueueItem::Event(event)).is_err()
        {
            running.counts.queue_full.fetch_add(1, Relaxed);
        }
    }

    /// Records the event that `make` builds from this node's name. `make` is not called if the recorder is off.
    pub fn record_here(&self, make: impl FnOnce(&str) -> Event) {
        if let Some(running) = &self.running {
            self.record(make(&running.node));
        }
    }

    /// Waits until all recorded events are sent or abandoned, at most for `limit`. For a process that is about to exit.
    pub fn flush(&self, limit: Duration) {
        let Some(running) = &self.running else { return };
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        if running.sender.try_send(QueueItem::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }

    /// Returns `(outcome, number of events)` for each outcome.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        self.running.as_ref().map_or_else(|| Counts::default().read(), |r| r.counts.read())
    }
}
