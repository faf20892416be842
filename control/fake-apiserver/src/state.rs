//! The server's state, shared by all connections and the handle that controls it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::faults::Faults;
use crate::resources::Resource;
use crate::store::Store;

/// Maximum number of logged requests.
pub(crate) const REQUESTS_MAX: usize = 10_000;
/// Default interval between bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

pub(crate) struct ServerState {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) bookmark_interval: Duration,
    /// The accepted bearer token; `None`: requests need no token.
    pub(crate) token: Option<String>,
    /// The latest requests: method, path and query.
    pub(crate) requests: VecDeque<String>,
}

pub(crate) struct SharedState {
    state: Mutex<ServerState>,
    /// Number of changes of the state; tasks wait for it to change.
    changes: watch::Sender<u64>,
}

impl SharedState {
    pub(crate) fn new() -> Arc<SharedState> {
        let state = ServerState {
            store: Store::default(),
            faults: Faults::default(),
            bookmark_interval: BOOKMARK_INTERVAL,
            token: None,
            requests: VecDeque::new(),
        };
        Arc::new(SharedState { state: Mutex::new(state), changes: watch::channel(0).0 })
    }

    /// Locks the state for reading.
    pub(crate) fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes waiting tasks.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut ServerState) -> T) -> T {
        let result = work(&mut self.state());
        self.changes.send_modify(|n| *n += 1);
        result
    }

    /// Subscribes to changes from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) async fn wait_while_silent(&self) {
        self.wait_while(|state| state.faults.silent).await;
    }

    pub(crate) async fn wait_while_unanswered(&self, resource: Resource) {
        self.wait_while(|state| state.faults.unanswered.contains(&resource)).await;
    }

    async fn wait_while(&self, holds: impl Fn(&ServerState) -> bool) {
        let mut changes = self.subscribe();
        while holds(&self.state()) && changes.changed().await.is_ok() {}
    }
}
