//! Events: what kube-proxy tells a cluster's people about itself, in its words, as objects of events.k8s.io/v1.
//!
//! Four of them (kube-proxy v1.36, `cmd/kube-proxy/app/server.go` and `pkg/proxy/healthcheck/service_health.go`): it has started, a
//! Service's `healthCheckNodePort` cannot be answered, nor `/healthz`, nor `/metrics` (kube-proxy tells of the last two only with
//! `bindAddressHardFail`; here each is told of). The reporting controller is nomagic.
//!
//! They are a courtesy, so everything about them is bounded: whoever records one never waits, the queue is short, a repeated one is
//! dropped, there is a rate, and a few attempts. What becomes of each is counted ([`Counts`]).

mod object;
mod queue;
mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use nomagic_table::objects::Key;
use tokio::sync::mpsc;

use crate::config::Kubernetes;
pub use queue::Pace;

/// Events that wait to be sent at the most.
pub const QUEUE_MAX: usize = 64;

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Regarding {
    /// A Node, by its name.
    Node(String),
    /// A Service.
    Service(Key),
}

/// Whether anybody has to do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// No.
    Normal,
    /// Yes.
    Warning,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The object that it is about.
    pub regarding: Regarding,
    /// Normal or Warning.
    pub kind: Type,
    /// Why, as a word of kube-proxy's.
    pub reason: &'static str,
    /// What was being done, as a word of kube-proxy's.
    pub action: &'static str,
    /// In words.
    pub note: String,
}

impl Event {
    fn about_node(node: &str, kind: Type, reason: &'static str, note: String) -> Event {
        Event { regarding: Regarding::Node(node.into()), kind, reason, action: "StartKubeProxy", note }
    }

    /// Services are carried on this node from now on.
    pub fn starting(node: &str) -> Event {
        Event::about_node(node, Type::Normal, "Starting", format!("nomagic {} carries Services on this node", env!("CARGO_PKG_VERSION")))
    }

    /// `/healthz` cannot be answered; why.
    pub fn no_healthz(node: &str, why: &str) -> Event {
        Event::about_node(node, Type::Warning, "FailedToStartProxierHealthcheck", why.into())
    }

    /// `/metrics` cannot be answered; why.
    pub fn no_metrics(node: &str, why: &str) -> Event {
        Event::about_node(node, Type::Warning, "FailedToStartMetricServer", why.into())
    }

    /// A Service's `healthCheckNodePort` cannot be answered; why.
    pub fn no_health_check(node: &str, service: &Key, port: u16, why: &str) -> Event {
        Event {
            regarding: Regarding::Service(service.clone()),
            kind: Type::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {why}"),
        }
    }
}

/// What became of events.
#[derive(Default, Debug)]
pub struct Counts {
    /// The API server has them.
    sent: AtomicU64,
    /// Given up: the API server refused or was away for too long.
    failed: AtomicU64,
    /// Dropped: the same was sent lately.
    repeated: AtomicU64,
    /// Dropped: too many in a short time.
    rate_limited: AtomicU64,
    /// Dropped: too many were waiting.
    queue_full: AtomicU64,
}

impl Counts {
    /// `(outcome, events)` for each outcome.
    pub fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("sent", self.sent.load(Relaxed)),
            ("failed", self.failed.load(Relaxed)),
            ("repeated", self.repeated.load(Relaxed)),
            ("rate_limited", self.rate_limited.load(Relaxed)),
            ("queue_full", self.queue_full.load(Relaxed)),
        ]
    }
}

/// Takes events from anybody; clones lead to the same thread, which ends when the last of them has gone.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    node: Arc<str>,
    sender: mpsc::Sender<Message>,
    counts: Arc<Counts>,
}

/// On the queue.
#[derive(Debug)]
enum Message {
    Event(Event),
    /// Everything before this was sent or given up.
    Flushed(std::sync::mpsc::SyncSender<()>),
}

impl Recorder {
    /// Without an API server: nothing is recorded.
    pub fn off() -> Recorder {
        Recorder::default()
    }

    /// Starts the thread that sends to this server. `node`: this node's name.
    pub fn start(server: Kubernetes, node: String) -> Result<Recorder> {
        Recorder::start_at(server, node, Pace::default())
    }

    /// The same at another pace.
    pub fn start_at(server: Kubernetes, node: String, pace: Pace) -> Result<Recorder> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        send::start(server, node.clone(), pace, receiver, counts.clone())?;
        Ok(Recorder { running: Some(Running { node: node.into(), sender, counts }) })
    }

    /// Takes an event, and never waits: when the queue is full it is dropped, and counted.
    pub fn record(&self, event: Event) {
        if let Some(running) = &self.running
            && running.sender.try_send(Message::Event(event)).is_err()
        {
            running.counts.queue_full.fetch_add(1, Relaxed);
        }
    }

    /// Records what is made of this node's name. Where nobody listens nothing is made.
    pub fn record_here(&self, make: impl FnOnce(&str) -> Event) {
        if let Some(running) = &self.running {
            self.record(make(&running.node));
        }
    }

    /// Waits until everything recorded so far was sent or given up, but not for longer than this. For a process that is about to end.
    pub fn flush(&self, limit: Duration) {
        let Some(running) = &self.running else { return };
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        if running.sender.try_send(Message::Flushed(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }

    /// What became of events so far.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        self.running.as_ref().map_or_else(|| Counts::default().read(), |r| r.counts.read())
    }
}
