//! Connection permits for the tasks that serve clients: [`Connections`] behind a lock, with counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Connections, Limits, Peer, Turn};

/// Counts of the connections to a server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Current connections.
    pub connected: u64,
    /// Accepted connections.
    pub accepted: u64,
    /// Of these, ended because a new connection needed the permit or the file descriptor.
    pub displaced: u64,
    /// Of these, ended at once because all permits were held by connections that waited for the server.
    pub refused: u64,
    /// Of these, ended because the client was too slow.
    pub timed_out: u64,
    /// Failures to accept a connection, for lack of file descriptors or memory.
    pub accept_failures: u64,
}

/// The permits of a server.
#[derive(Debug)]
pub struct Permits(Mutex<State>);

#[derive(Debug)]
struct State {
    /// A connection ends when its sender is dropped.
    connections: Connections<oneshot::Sender<()>>,
    counts: Counts,
}

impl Permits {
    /// Creates the permits, all free.
    pub fn new(limits: Limits) -> Arc<Permits> {
        Arc::new(Permits(Mutex::new(State { connections: Connections::new(limits), counts: Counts::default() })))
    }

    /// Returns a permit for a client that has just connected; another connection may end for it. `None`: this connection has to end.
    pub fn acquire(self: &Arc<Self>, peer: Peer) -> Option<Permit> {
        let mut state = self.lock();
        let (end, withdrawn) = oneshot::channel();
        state.counts.accepted += 1;
        let Some(admitted) = state.connections.admit(peer, end) else {
            state.counts.refused += 1;
            return None;
        };
        state.counts.displaced += u64::from(admitted.displaced.is_some());
        Some(Permit { turns: Turns { permits: self.clone(), id: admitted.id }, withdrawn })
    }

    /// Withdraws a permit because the process is out of file descriptors or memory. Reports whether there was one to withdraw.
    pub fn withdraw_one(&self) -> bool {
        let mut state = self.lock();
        let withdrawn = state.connections.make_room().is_some();
        state.counts.displaced += u64::from(withdrawn);
        withdrawn
    }

    /// Counts a failure to accept a connection.
    pub fn count_accept_failure(&self) {
        self.lock().counts.accept_failures += 1;
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let state = self.lock();
        Counts { connected: state.connections.len() as u64, ..state.counts }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's permit. Dropping it frees its place.
#[derive(Debug)]
pub struct Permit {
    turns: Turns,
    withdrawn: oneshot::Receiver<()>,
}

impl Permit {
    /// Waits until the permit is withdrawn; the connection then has to end at once. Cancel-safe.
    pub async fn withdrawn(&mut self) {
        // The sender sends nothing; it is dropped.
        let _ = (&mut self.withdrawn).await;
    }

    /// Returns the means to set the side that the connection waits for.
    pub fn turns(&self) -> Turns {
        self.turns.clone()
    }

    /// Counts the connection as ended because its client was too slow.
    pub fn count_timed_out(&self) {
        self.turns.permits.lock().counts.timed_out += 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.turns.permits.lock().connections.remove(self.turns.id);
    }
}

/// Sets the side that a connection waits for.
#[derive(Clone, Debug)]
pub struct Turns {
    permits: Arc<Permits>,
    id: u64,
}

impl Turns {
    /// Records that the client has read a part of the response.
    pub fn renew(&self) {
        self.permits.lock().connections.renew(self.id);
    }

    /// Sets the side that the connection waits for from now on.
    pub fn set(&self, turn: Turn) {
        self.permits.lock().connections.set_turn(self.id, turn);
    }
}
