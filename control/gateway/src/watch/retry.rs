//! How long a watch waits after a fault.
//!
//! client-go's reflector has one pause for all faults: 0.8 s, doubled to 30 s with up to 100 % of jitter, and back to 0.8 s only after two
//! quiet minutes. It repeats a watch after a refused connection or a 429, and lists after everything else, always behind that pause. So
//! what it learnt in an outage delays it after the outage. Here the pause depends on what happened:
//!
//! | Fault | Pause |
//! |---|---|
//! | no connection | none here: [`super::reach::Reach`] makes about one attempt a second for all kinds |
//! | the first one after a good answer, also a 410 | random, at most `pause_min` |
//! | 429, 5xx, a watch that ends at once, silence, invalid data | doubled from `pause_min` to 1 s, then a sixteenth of the time that such faults have lasted, to `pause_max` |
//! | 401, 403, unusable credentials | the same, and at most 5 s for a kind that was listed once; new credentials are tried within 0.25 s |
//! | 404, more objects than allowed | doubled from `pause_min` to `pause_max` |
//!
//! All are shortened at random by up to half, and are at least what the server's Retry-After says, up to `pause_max`. A list, or a watch
//! that stayed open for a second, is a good answer; faults after it count anew. A good answer does not permit the next list: a list costs
//! the server most, so lists have a brake of their own. The first one after a quiet minute is not delayed; further ones are 1 s apart,
//! doubled up to `pause_max`. A server that answers every watch with 410 therefore sees a list in 15 to 30 s from each gateway.

use std::time::{Duration, Instant};

use super::WatchTimeouts;
use super::backoff::{Backoff, random};
use super::fault::ApiFault;

/// Maximum pause at the beginning of a row of faults.
const QUICK_MAX: Duration = Duration::from_secs(1);
/// The maximum pause grows to this part of the time that a row of faults has lasted.
const LASTED_PART: u32 = 16;
/// Maximum pause while a kind that was listed before is refused.
const REFUSED_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Without a list for this long, the next one is not delayed.
const LISTS_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Faults whose pauses are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// The server does not accept who asks.
    Refused,
    /// Another attempt gets the same answer, until somebody changes the cluster.
    Lasting,
    /// All others.
    Passing,
}

/// Faults of one class without a good answer between them.
#[derive(Clone, Copy, Debug)]
struct FaultRow {
    class: Class,
    since: Instant,
    faults: u32,
}

/// The pauses of one kind's watch.
#[derive(Debug)]
pub(super) struct Retry {
    min: Duration,
    max: Duration,
    row: Option<FaultRow>,
    /// A list has succeeded.
    listed: bool,
    /// The intervals between lists.
    lists: Backoff,
    last_list: Option<Instant>,
    /// No list before this time.
    next_list: Instant,
}

impl Retry {
    pub(super) fn new(timeouts: WatchTimeouts, now: Instant) -> Retry {
        let (min, max) = (timeouts.pause_min, timeouts.pause_max);
        let lists = Backoff::new(QUICK_MAX.min(max), max);
        Retry { min, max, row: None, listed: false, lists, last_list: None, next_list: now }
    }

    /// The pause after a fault.
    pub(super) fn pause(&mut self, fault: &ApiFault, now: Instant) -> Duration {
        let Some(class) = class(fault) else {
            self.row = None;
            return Duration::ZERO;
        };
        let new = FaultRow { class, since: now, faults: 0 };
        let row = self.row.filter(|row| row.class == class).unwrap_or(new);
        self.row = Some(FaultRow { faults: row.faults.saturating_add(1), ..row });
        let pause = match row.faults {
            0 => self.min.mul_f64(random()),
            more => {
                let grown = self.min.saturating_mul(1 << (more - 1).min(20)).min(self.longest(class, now - row.since));
                grown.mul_f64(0.5 + random() / 2.0)
            }
        };
        let ApiFault::Refused { retry_after: Some(asked), .. } = fault else { return pause };
        pause.max((*asked).min(self.max) + self.min.mul_f64(random()))
    }

    fn longest(&self, class: Class, lasted: Duration) -> Duration {
        let grown = (lasted / LASTED_PART).max(QUICK_MAX).min(self.max);
        match class {
            Class::Passing => grown,
            Class::Refused if self.listed => grown.min(REFUSED_AGAIN_MAX),
            Class::Refused => grown,
            Class::Lasting => self.max,
        }
    }

    /// How long a list must still wait.
    pub(super) fn until_list(&self, now: Instant) -> Duration {
        self.next_list.saturating_duration_since(now)
    }

    /// The server has begun to answer a list.
    pub(super) fn list_begins(&mut self, now: Instant) {
        // `Backoff` has no interval of zero: the first list after a quiet time only sets when the one after the next may be.
        if self.last_list.is_none_or(|last| now - last >= LISTS_FORGOTTEN_AFTER) {
            self.lists.reset();
            self.next_list = now;
        } else {
            self.next_list = now + self.lists.pause(None);
        }
        self.last_list = Some(now);
    }

    /// A list is complete.
    pub(super) fn listed(&mut self) {
        self.listed = true;
        self.answered();
    }

    /// A good answer: the next fault counts as the first one.
    pub(super) fn answered(&mut self) {
        self.row = None;
    }
}

/// `None`: not paused here.
fn class(fault: &ApiFault) -> Option<Class> {
    match fault {
        ApiFault::Connection(_) | ApiFault::Closed => None,
        ApiFault::Unusable(_) | ApiFault::Refused { code: 401 | 403, .. } => Some(Class::Refused),
        ApiFault::LimitExceeded(_) | ApiFault::Refused { code: 404, .. } => Some(Class::Lasting),
        ApiFault::Refused { .. }
        | ApiFault::Broken(_)
        | ApiFault::Gone(_)
        | ApiFault::WentBack { .. }
        | ApiFault::Invalid(_)
        | ApiFault::Timeout(_)
        | ApiFault::EndedEarly => Some(Class::Passing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> ApiFault {
        ApiFault::Refused { code, message: String::new(), retry_after: None }
    }

    fn gone() -> ApiFault {
        ApiFault::Gone(String::new())
    }

    fn retry(start: Instant) -> Retry {
        Retry::new(WatchTimeouts::default(), start)
    }

    /// The longest possible pauses of a fault that is repeated for this long: `(after, pause)`.
    fn pauses(retry: &mut Retry, fault: &ApiFault, start: Instant, lasts: Duration) -> Vec<(Duration, Duration)> {
        let (mut now, mut pauses) = (start, Vec::new());
        while now - start < lasts {
            let pause = retry.pause(fault, now);
            pauses.push((now - start, pause));
            now += pause.max(Duration::from_millis(1));
        }
        pauses
    }

    #[test]
    fn pauses_are_short_in_short_outages_and_bound_the_load_in_long_ones() {
        for (fault, listed, longest_s, requests_in_10_minutes) in [
            (refused(503), true, 30, 40..140),
            (refused(503), false, 30, 40..140),
            (ApiFault::EndedEarly, true, 30, 40..140),
            (refused(403), true, 5, 120..300),
            (refused(401), false, 30, 40..140),
            (refused(404), true, 30, 20..60),
        ] {
            let start = Instant::now();
            let mut retry = retry(start);
            if listed {
                retry.listed();
            }
            let seen = pauses(&mut retry, &fault, start, Duration::from_secs(600));
            assert!(requests_in_10_minutes.contains(&seen.len()), "{fault}: {} requests in 10 minutes", seen.len());
            assert!(seen.iter().all(|(_, pause)| *pause <= Duration::from_secs(longest_s)), "{fault}: {seen:?}");
            let lasting = matches!(fault, ApiFault::Refused { code: 404, .. });
            let early = seen.iter().filter(|(after, _)| !lasting && *after < Duration::from_secs(16));
            early.for_each(|(after, pause)| assert!(*pause <= QUICK_MAX, "{fault}: {pause:?} after {after:?}"));
        }
    }

    #[test]
    fn a_good_answer_and_another_class_of_fault_start_anew() {
        let start = Instant::now();
        let mut retry = retry(start);
        let late = start + Duration::from_secs(600);
        pauses(&mut retry, &refused(503), start, Duration::from_secs(600));
        assert!(retry.pause(&refused(403), late) <= WatchTimeouts::default().pause_min);
        pauses(&mut retry, &refused(503), start, Duration::from_secs(600));
        retry.answered();
        assert!(retry.pause(&refused(503), late) <= WatchTimeouts::default().pause_min);
        assert_eq!(retry.pause(&ApiFault::Connection(String::new()), late), Duration::ZERO);
    }

    #[test]
    fn a_servers_retry_after_is_honoured_within_limits() {
        let start = Instant::now();
        for (asked_s, least_s, most_s) in [(1, 1, 2), (7, 7, 8), (1_000, 30, 31)] {
            let busy = ApiFault::Refused { code: 429, message: String::new(), retry_after: Some(Duration::from_secs(asked_s)) };
            let pause = retry(start).pause(&busy, start);
            assert!((Duration::from_secs(least_s)..Duration::from_secs(most_s)).contains(&pause), "{asked_s}: {pause:?}");
        }
    }

    /// Each list succeeds, and the watch after it fails with 410 at once.
    #[test]
    fn the_first_list_after_a_quiet_time_is_not_delayed_and_a_row_of_them_is() {
        let start = Instant::now();
        let mut retry = retry(start);
        let (mut now, mut lists) = (start, Vec::new());
        while now - start < Duration::from_secs(600) {
            now += retry.until_list(now);
            retry.list_begins(now);
            retry.listed();
            lists.push(now - start);
            now += retry.pause(&gone(), now);
        }
        assert!(lists[1] <= Duration::from_millis(250), "the first one comes at once: {lists:?}");
        assert!((20..60).contains(&lists.len()), "{} lists in 10 minutes: {lists:?}", lists.len());
        assert!(lists.iter().rev().zip(lists.iter().rev().skip(1)).take(5).all(|(b, a)| *b - *a >= Duration::from_secs(15)), "{lists:?}");
        now += LISTS_FORGOTTEN_AFTER;
        assert_eq!(retry.until_list(now), Duration::ZERO);
        retry.list_begins(now);
        assert_eq!(retry.until_list(now), Duration::ZERO);
    }

    #[test]
    fn many_gateways_do_not_come_at_once() {
        let start = Instant::now();
        let first: Vec<Duration> = (0..1_000).map(|_| retry(start).pause(&gone(), start)).collect();
        for tenth in 0..10u32 {
            let (from, to) = (WatchTimeouts::default().pause_min / 10 * tenth, WatchTimeouts::default().pause_min / 10 * (tenth + 1));
            let there = first.iter().filter(|p| (from..to).contains(*p)).count();
            assert!((40..200).contains(&there), "{there} of 1,000 in the tenth {tenth}");
        }
    }
}
