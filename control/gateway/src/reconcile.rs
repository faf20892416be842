//! Ends UDP connections to endpoints that no longer serve (see [`nomagic_table::compile::serving`]). Runs on its own thread, because the
//! connection table may hold millions of entries.
//!
//! ```text
//! control   hold    publish service table   every worker uses it   follow                          hold ...
//! thread    pauses  ........................................       walks connections in batches    pauses ...
//! ```
//!
//! The walk starts only after every worker uses a service table: until then, workers may still open connections to removed endpoints. The
//! walk pauses before the next service table is published, because it does not know the endpoints that the new table adds. An interrupted
//! walk continues where it stopped, with the newest rule, until every slot was visited since the last change that requires a walk.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nomagic_core::conntrack::Conntrack;
use nomagic_core::events::{EndCause, Event, EventKind, EventRing};
use nomagic_core::filter::ReplyFilter;
use nomagic_core::pipeline::take_out;
use nomagic_sys::time::monotonic_ns;
use nomagic_table::compile::serving::{Rule, Serving};

use crate::observe::metrics::reconciler::Reconciled;

/// Slots per batch; the thread checks for a hold after each batch. A batch takes a fraction of a millisecond.
const BATCH_SLOTS: u32 = 4_096;

/// The control loop's handle to the thread.
#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<ReconcilerShared>,
    /// Flows that the thread has ended. Only it records there.
    events: Arc<EventRing>,
    thread: Option<JoinHandle<()>>,
    followed: Serving,
}

#[derive(Debug)]
struct ReconcilerShared {
    state: Mutex<ReconcilerState>,
    woken: Condvar,
    /// Number of holds. If it is unchanged after a connection was read, the connection is not from a newer service table than the rule.
    holds: AtomicU64,
}

#[derive(Default, Debug)]
struct ReconcilerState {
    /// `None`: on hold.
    serving: Option<Serving>,
    /// A new walk over all slots is due.
    walk_due: bool,
    stop: bool,
    done: Reconciled,
}

impl ReconcilerShared {
    /// Ignores poisoning: the state is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, ReconcilerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconciler {
    /// Starts the thread for this connection table and reply filter. The thread is idle until the first [`Reconciler::follow`].
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(table: Conntrack<'static>, replies: ReplyFilter<'static>) -> io::Result<Reconciler> {
        let shared = Arc::new(ReconcilerShared { state: Mutex::default(), woken: Condvar::new(), holds: AtomicU64::new(0) });
        let events: Arc<EventRing> = Arc::default();
        let walk = Walk { shared: shared.clone(), events: events.clone(), table, replies, at: 0, end: 0, left: 0, began: None };
        let thread = std::thread::Builder::new().name("nm-reconcile".into()).spawn(move || {
            let _alarm = PanicAlarm;
            walk.run();
        })?;
        Ok(Reconciler { shared, events, thread: Some(thread), followed: Serving::default() })
    }

    /// The last flows that it has ended.
    pub fn events(&self) -> Arc<EventRing> {
        self.events.clone()
    }

    /// Pauses the walk. Call it before a service table is published: its endpoints are unknown to the current rule.
    pub fn hold(&self) {
        let mut state = self.shared.lock();
        state.serving = None;
        self.shared.holds.fetch_add(1, Relaxed);
    }

    /// Continues the walk with these endpoints. Call it after every worker uses their service table.
    pub fn follow(&mut self, serving: &Serving) {
        let ends_some = serving.ends_some_of(&self.followed);
        self.followed = serving.clone();
        let mut state = self.shared.lock();
        state.walk_due |= ends_some;
        state.serving = Some(serving.clone());
        drop(state);
        self.shared.woken.notify_one();
    }

    /// Makes the next [`Reconciler::follow`] start a new walk. Call it if a worker may have used an older service table for a while.
    pub fn distrust(&mut self) {
        self.followed = Serving::default();
    }

    /// Reports a thread that has ended.
    pub fn problem(&self) -> Option<&'static str> {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished).then_some(PANICKED)
    }

    /// Counters of ended connections and completed walks.
    pub fn done(&self) -> Reconciled {
        self.shared.lock().done.clone()
    }
}

impl Drop for Reconciler {
    /// Joins the thread, so that it no longer accesses the table.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.holds.fetch_add(1, Relaxed);
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was already logged.
            let _ = thread.join();
        }
    }
}

/// Logs the consequences when the thread panics.
struct PanicAlarm;

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("{PANICKED}");
        }
    }
}

const PANICKED: &str = "the thread nm-reconcile has panicked (see the log): UDP connections to removed endpoints no longer end, so their clients \
                        get no answer until the connections are idle for their timeout; everything else continues. Restart nomagic: it checks \
                        every connection at startup";

/// The state of the thread.
struct Walk {
    shared: Arc<ReconcilerShared>,
    events: Arc<EventRing>,
    table: Conntrack<'static>,
    replies: ReplyFilter<'static>,
    /// The next slot. Wraps around at `end`.
    at: u32,
    end: u32,
    /// Number of slots still to visit.
    left: u32,
    /// Start time of the current walk.
    began: Option<Instant>,
}

impl Walk {
    fn run(mut self) {
        while let Some((serving, holds)) = self.next() {
            let rule = serving.rule();
            let mut ended = [0; 2];
            while self.left > 0 && self.shared.holds.load(Relaxed) == holds {
                self.walk_batch(&rule, holds, &mut ended);
            }
            let took = if self.left == 0 { self.began.take() } else { None };
            self.shared.lock().done.add(ended, took.map(|began| began.elapsed()));
            if ended != [0; 2] {
                tracing::info!("{} IPv4 and {} IPv6 UDP connections ended: their endpoints no longer serve", ended[0], ended[1]);
            }
        }
    }

    /// Waits for work; `None`: stop.
    fn next(&mut self) -> Option<(Serving, u64)> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        while !state.stop {
            match &state.serving {
                Some(serving) if state.walk_due || self.left > 0 => {
                    let (serving, holds) = (serving.clone(), shared.holds.load(Relaxed));
                    if std::mem::take(&mut state.walk_due) {
                        self.began.get_or_insert_with(Instant::now);
                        // Slots that are first used later contain only newer connections.
                        self.end = self.table.slots_used();
                        (self.left, self.at) = (self.end, if self.at < self.end { self.at } else { 0 });
                    }
                    return Some((serving, holds));
                }
                _ => state = shared.woken.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        None
    }

    fn walk_batch(&mut self, rule: &Rule, holds: u64, ended: &mut [u64; 2]) {
        let slots = BATCH_SLOTS.min(self.left).min(self.end - self.at);
        self.table.walk(self.at..self.at + slots, |hit, flow| {
            // A connection from a newer service table was opened after a hold, and a thread that sees the connection also sees the hold.
            if rule.keeps(flow) || self.shared.holds.load(Relaxed) != holds {
                return;
            }
            if let Some(flow) = take_out(self.table, Some(self.replies), hit) {
                ended[usize::from(flow.v6)] += 1;
                let kind = EventKind::Ended(EndCause::EndpointGone, hit.phase.kind());
                self.events.record(&Event::of_flow(monotonic_ns() / 1_000_000, kind, &flow));
            }
        });
        // If a hold intervened, connections that should have ended may remain: this batch is repeated. Loads of one atomic never go
        // backwards, so if this load returns the old number, so did all loads above.
        if self.shared.holds.load(Relaxed) == holds {
            self.left -= slots;
            self.at = if self.at + slots < self.end { self.at + slots } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use nomagic_core::conntrack::{Flow, Phase};
    use nomagic_core::filter::ReplyKey;
    use nomagic_core::tuple::{Proto, addr_words};
    use nomagic_table::index::Index;
    use nomagic_table::objects::{Kind, read};
    use nomagic_table::problem::Origin;
    use serde_json::json;

    use super::*;

    /// A DNS Service with a single endpoint, 10.1.0.1.
    fn one_endpoint() -> Serving {
        let service = json!({
            "metadata": {"name": "dns", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "dns", "protocol": "UDP", "port": 53}]},
        });
        let slice = json!({
            "metadata": {"name": "dns-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "dns"}},
            "addressType": "IPv4", "ports": [{"name": "dns", "protocol": "UDP", "port": 53}], "endpoints": [{"addresses": ["10.1.0.1"]}],
        });
        let objects = [(Kind::Service, service), (Kind::EndpointSlice, slice)];
        let index = Index::of(objects.map(|(kind, value)| read(kind, value, &Origin::default()).unwrap()));
        let mut serving = Serving::default();
        serving.follow(&index, &index.services().map(|s| s.key.clone()).collect());
        serving
    }

    fn replies() -> ReplyFilter<'static> {
        let [words, owners] = [0, 1].map(|_| (0..64).map(|_| AtomicU32::new(0)).collect::<Vec<_>>().leak());
        ReplyFilter::new(words, owners, ReplyKey([7, 8])).unwrap()
    }

    #[test]
    fn a_batch_interrupted_by_a_hold_is_repeated() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(words.leak(), 8, 1, [0, 0]).unwrap();
        let addr = |a: [u8; 4]| addr_words(IpAddr::from(a)).0;
        let mut flow = Flow {
            proto: Proto::Udp,
            v6: false,
            announced: false,
            client: addr([10, 0, 0, 9]),
            client_port: 1,
            service: addr([10, 96, 0, 1]),
            service_port: 53,
            backend: addr([10, 1, 0, 2]),
            backend_port: 53,
            source: addr([10, 0, 0, 9]),
            source_port: 1,
            stats: 0,
            counted: None,
        };
        let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Udp, 0));
        let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(1)).unwrap();
        table.commit(pending).unwrap();

        let shared = Arc::new(ReconcilerShared { state: Mutex::default(), woken: Condvar::new(), holds: AtomicU64::new(1) });
        let mut walk = Walk {
            shared,
            events: Arc::default(),
            table,
            replies: replies(),
            at: 0,
            end: table.slots_used(),
            left: table.slots_used(),
            began: None,
        };
        let (serving, mut ended) = (one_endpoint(), [0; 2]);
        walk.walk_batch(&serving.rule(), 0, &mut ended);
        assert_eq!((ended, walk.left, table.live()), ([0, 0], table.slots_used(), 1), "a hold intervened");
        walk.walk_batch(&serving.rule(), 1, &mut ended);
        assert_eq!((ended, walk.left, table.live()), ([1, 0], 0, 0));
    }

    #[test]
    fn an_ended_thread_is_reported() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(words.leak(), 8, 1, [0, 0]).unwrap();
        let mut reconciler = Reconciler::start(table, replies()).unwrap();
        reconciler.follow(&Serving::default());
        assert_eq!(reconciler.problem(), None);
        // As after a panic: the thread ends without a drop of the reconciler.
        reconciler.shared.lock().stop = true;
        reconciler.shared.woken.notify_one();
        let end = Instant::now() + Duration::from_secs(10);
        while reconciler.problem().is_none() {
            assert!(Instant::now() < end, "the thread does not end");
            std::thread::yield_now();
        }
        assert_eq!(reconciler.problem(), Some(PANICKED));
    }
}
