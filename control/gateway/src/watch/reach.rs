//! Whether the API server can be reached at all: one attempt at a time while it cannot.
//!
//! The watches of all kinds share this. While the server refuses connections, or does not answer them, one watch tries to connect and the
//! others wait for its result. So a gateway makes about one connection a second to a server that is away, and all its watches are back
//! within a second of the server's return. The pauses are random, which spreads the connections of many gateways over that second.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::fault::ApiFault;

/// Maximum time between the starts of two attempts to connect.
pub(super) const ATTEMPTS_EVERY_MAX: Duration = Duration::from_secs(1);

/// Shared by the watches of one server.
pub(super) struct Reach {
    /// False after a failed attempt to connect.
    reached: watch::Sender<bool>,
    /// Held during an attempt while the server is away.
    turn: Mutex<Turn>,
}

struct Turn {
    backoff: Backoff,
    /// No attempt before this time.
    next: Instant,
}

impl Reach {
    /// `pause_min`: after the first failed attempt; doubled for each further one up to `pause_max` and [`ATTEMPTS_EVERY_MAX`].
    pub(super) fn new(pause_min: Duration, pause_max: Duration) -> Reach {
        let backoff = Backoff::new(pause_min, pause_max.min(ATTEMPTS_EVERY_MAX));
        Reach { reached: watch::Sender::new(true), turn: Mutex::new(Turn { backoff, next: Instant::now() }) }
    }

    /// Waits until an attempt may be made, then makes it. Any answer of the server, also a bad one, wakes the other watches.
    pub(super) async fn attempt<T>(&self, work: impl Future<Output = Result<T, ApiFault>>) -> Result<T, ApiFault> {
        let mut turn = self.wait().await;
        let start = Instant::now();
        let outcome = work.await;
        let away = matches!(outcome, Err(ApiFault::Connection(_)));
        let was_reached = self.reached.send_replace(!away);
        if turn.is_none() {
            turn = self.turn.try_lock().ok().filter(|_| was_reached || !away);
        }
        if let Some(turn) = &mut turn {
            if away {
                turn.next = start + turn.backoff.pause(None);
            } else {
                turn.backoff.reset();
            }
        }
        outcome
    }

    /// `None`: the server is reachable, as far as known.
    async fn wait(&self) -> Option<MutexGuard<'_, Turn>> {
        let mut reached = self.reached.subscribe();
        if *reached.borrow_and_update() {
            return None;
        }
        let turn = async {
            let turn = self.turn.lock().await;
            tokio::time::sleep_until(turn.next).await;
            turn
        };
        tokio::select! {
            biased;
            _ = reached.wait_for(|reached| *reached) => None,
            turn = turn => Some(turn),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn one_watch_tries_while_the_server_is_away_and_all_come_back_at_once() {
        let (reach, up, attempts) = (Reach::new(PAUSE, PAUSE), AtomicBool::new(false), AtomicU32::new(0));
        let watch = async || {
            loop {
                let answer = reach.attempt(async {
                    attempts.fetch_add(1, Relaxed);
                    if up.load(Relaxed) { Ok(()) } else { Err(ApiFault::Connection("refused".into())) }
                });
                if answer.await.is_ok() {
                    return;
                }
            }
        };
        let back = async {
            tokio::time::sleep(PAUSE * 25).await;
            let tried = attempts.load(Relaxed);
            up.store(true, Relaxed);
            tried
        };
        let (tried, ..) = tokio::join!(back, watch(), watch(), watch(), watch());
        // Four first attempts, and then one in 20 to 40 ms.
        assert!((5..=4 + 50).contains(&tried), "{tried} attempts in a second");
        assert_eq!(attempts.load(Relaxed), tried + 4, "a successful attempt each after the return");
    }

    #[tokio::test]
    async fn a_long_attempt_is_not_followed_by_a_pause() {
        let reach = Reach::new(Duration::from_secs(60), Duration::from_secs(60));
        let slow = async {
            tokio::time::sleep(ATTEMPTS_EVERY_MAX).await;
            Err::<(), _>(ApiFault::Connection("timed out".into()))
        };
        assert!(reach.attempt(slow).await.is_err());
        let start = Instant::now();
        drop(reach.wait().await.expect("a turn"));
        assert!(start.elapsed() < ATTEMPTS_EVERY_MAX / 2, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_bad_answer_is_an_answer() {
        let reach = Reach::new(PAUSE, PAUSE);
        assert!(reach.attempt(async { Err::<(), _>(ApiFault::Connection("refused".into())) }).await.is_err());
        assert!(!*reach.reached.borrow());
        let bad = ApiFault::Refused { code: 503, message: String::new(), retry_after: None };
        assert!(reach.attempt(async { Err::<(), _>(bad) }).await.is_err());
        assert!(reach.wait().await.is_none());
    }
}
