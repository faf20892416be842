//! Ends connections whose endpoint is gone, as [`nomagic_table::compile::serving`] says, on a thread of its own: the table may hold millions.
//!
//! ```text
//! control   hold    publish the table   every worker uses it   follow                        hold ...
//! thread    pauses  ....................................       walks the table, in pieces    pauses ...
//! ```
//!
//! Only after every worker uses a table is no connection to an endpoint opened that it does not have. And before the next table is published the
//! walk has to pause: it would not know the endpoints to which connections are opened then. A walk that was interrupted goes on where it was,
//! by the newest rule, until every place was looked at since the last change that asked for a walk.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nomagic_core::conntrack::Conntrack;
use nomagic_core::filter::ReplyFilter;
use nomagic_core::pipeline::end_connection;
use nomagic_table::compile::serving::{Rule, Serving};

use crate::observe::metrics::reconciler::Reconciled;

/// Places of the table between two looks at whether there is something new: a fraction of a millisecond.
const PIECE: u32 = 4_096;

/// The control loop's end.
#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    followed: Serving,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    woken: Condvar,
    /// Counts the holds. Who has read a connection and finds it unchanged knows that the connection is not of a newer table than its rule.
    holds: AtomicU64,
}

#[derive(Default, Debug)]
struct State {
    /// `None`: on hold.
    serving: Option<Serving>,
    /// The whole table is to be looked at again.
    again: bool,
    stop: bool,
    done: Reconciled,
}

impl Shared {
    /// What the mutex guards is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconciler {
    /// For the connections of this table and their announcements. It does nothing before the first [`Reconciler::follow`].
    ///
    /// # Errors
    /// When no thread can be started: the system's error.
    pub fn start(table: Conntrack<'static>, replies: ReplyFilter<'static>) -> io::Result<Reconciler> {
        let shared = Arc::new(Shared { state: Mutex::default(), woken: Condvar::new(), holds: AtomicU64::new(0) });
        let walk = Walk { shared: shared.clone(), table, replies, at: 0, end: 0, left: 0, began: None };
        let thread = std::thread::Builder::new().name("nm-reconcile".into()).spawn(move || {
            let _alarm = Alarm;
            walk.run();
        })?;
        Ok(Reconciler { shared, thread: Some(thread), followed: Serving::default() })
    }

    /// A table is about to be published: nothing is ended by the endpoints of the one before any more.
    pub fn hold(&self) {
        let mut state = self.shared.lock();
        state.serving = None;
        self.shared.holds.fetch_add(1, Relaxed);
    }

    /// Every worker uses the table of these endpoints.
    pub fn follow(&mut self, serving: &Serving) {
        let ends_some = serving.ends_some_of(&self.followed);
        self.followed = serving.clone();
        let mut state = self.shared.lock();
        state.again |= ends_some;
        state.serving = Some(serving.clone());
        drop(state);
        self.shared.woken.notify_one();
    }

    /// A worker may have gone on by an older table for a while: the next [`Reconciler::follow`] looks at everything again.
    pub fn distrust(&mut self) {
        self.followed = Serving::default();
    }

    /// What is wrong with the thread.
    pub fn problem(&self) -> Option<&'static str> {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished).then_some(PANICKED)
    }

    /// What was done so far.
    pub fn done(&self) -> Reconciled {
        self.shared.lock().done.clone()
    }
}

impl Drop for Reconciler {
    /// Waits for the thread: afterwards it does not touch the table any more.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.holds.fetch_add(1, Relaxed);
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was said when it happened.
            let _ = thread.join();
        }
    }
}

/// Says what follows when the thread panics.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("{PANICKED}");
        }
    }
}

const PANICKED: &str = "the thread nm-reconcile has panicked (see its message in the log): UDP connections to endpoints that are gone do not end \
                        any more, so their clients get no answer until they have been silent for the idle time; all else goes on. Restart \
                        nomagic: it begins by looking at every connection";

/// The thread's end.
struct Walk {
    shared: Arc<Shared>,
    table: Conntrack<'static>,
    replies: ReplyFilter<'static>,
    /// The next place. At `end` it goes on from the first one.
    at: u32,
    end: u32,
    /// Places that are still to be looked at.
    left: u32,
    /// When the walk was asked for.
    began: Option<Instant>,
}

impl Walk {
    fn run(mut self) {
        while let Some((serving, holds)) = self.next() {
            let rule = serving.rule();
            let mut ended = [0; 2];
            while self.left > 0 && self.shared.holds.load(Relaxed) == holds {
                self.piece(&rule, holds, &mut ended);
            }
            let took = if self.left == 0 { self.began.take() } else { None };
            self.shared.lock().done.add(ended, took.map(|began| began.elapsed()));
            if ended != [0; 2] {
                tracing::info!("{} IPv4 and {} IPv6 UDP connections ended: their endpoints no longer serve", ended[0], ended[1]);
            }
        }
    }

    /// Waits until there is something to do; `None`: the end.
    fn next(&mut self) -> Option<(Serving, u64)> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        while !state.stop {
            match &state.serving {
                Some(serving) if state.again || self.left > 0 => {
                    let (serving, holds) = (serving.clone(), shared.holds.load(Relaxed));
                    if std::mem::take(&mut state.again) {
                        self.began.get_or_insert_with(Instant::now);
                        // Places that are first used later hold connections of a later time.
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

    fn piece(&mut self, rule: &Rule, holds: u64, ended: &mut [u64; 2]) {
        let places = PIECE.min(self.left).min(self.end - self.at);
        self.table.walk(self.at..self.at + places, |hit, flow| {
            // A connection that was opened by a newer table was opened after a hold, which is seen by whoever has seen the connection.
            if !rule.keeps(flow) && self.shared.holds.load(Relaxed) == holds && end_connection(self.table, Some(self.replies), hit) {
                ended[usize::from(flow.v6)] += 1;
            }
        });
        // A hold in between has spared connections that are to end: this piece is looked at again. Loads of one counter never go back, so
        // when this one still finds the old number, so did all of those above.
        if self.shared.holds.load(Relaxed) == holds {
            self.left -= places;
            self.at = if self.at + places < self.end { self.at + places } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use nomagic_core::conntrack::{Flow, Phase};
    use nomagic_core::tuple::{Proto, addr_words};
    use nomagic_table::index::Index;
    use nomagic_table::objects::{Kind, read};
    use nomagic_table::problem::Origin;
    use serde_json::json;

    use super::*;

    /// The endpoints of a DNS Service that has one left, 10.1.0.1.
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

    #[test]
    fn a_piece_that_was_held_up_is_looked_at_again() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let replies: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
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
        };
        let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Udp, 0));
        let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(1)).unwrap();
        table.commit(pending).unwrap();

        let shared = Arc::new(Shared { state: Mutex::default(), woken: Condvar::new(), holds: AtomicU64::new(1) });
        let replies = ReplyFilter::new(replies.leak(), 7).unwrap();
        let mut walk = Walk { shared, table, replies, at: 0, end: table.slots_used(), left: table.slots_used(), began: None };
        let (serving, mut ended) = (one_endpoint(), [0; 2]);
        walk.piece(&serving.rule(), 0, &mut ended);
        assert_eq!((ended, walk.left, table.live()), ([0, 0], table.slots_used(), 1), "a hold has come meanwhile");
        walk.piece(&serving.rule(), 1, &mut ended);
        assert_eq!((ended, walk.left, table.live()), ([1, 0], 0, 0));
    }

    #[test]
    fn a_thread_that_has_ended_is_a_problem() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let replies: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
        let table = Conntrack::format(words.leak(), 8, 1, [0, 0]).unwrap();
        let mut reconciler = Reconciler::start(table, ReplyFilter::new(replies.leak(), 7).unwrap()).unwrap();
        reconciler.follow(&Serving::default());
        assert_eq!(reconciler.problem(), None);
        // As a panic leaves it: nobody told it to end.
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
