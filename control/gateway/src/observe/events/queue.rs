//! Deduplicates and rate-limits events. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Event;

/// Limits for sending. The defaults for burst and attempts are client-go's; the pauses are shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Token bucket: size.
    pub burst: u32,
    /// Token bucket: interval between tokens.
    pub every: Duration,
    /// An equal event is not sent again within this time.
    pub forget_after: Duration,
    /// Maximum attempts per event.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further attempt.
    pub pause_min: Duration,
    /// Longest pause between attempts.
    pub pause_max: Duration,
    /// Timeout for the server's response.
    pub answer: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            burst: 25,
            every: Duration::from_secs(12),
            forget_after: Duration::from_secs(600),
            attempts: 12,
            pause_min: Duration::from_millis(250),
            pause_max: Duration::from_secs(10),
            answer: Duration::from_secs(10),
        }
    }
}

/// Maximum number of remembered events.
const REMEMBERED_MAX: usize = 256;

/// Why an event is not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Repeated,
    RateLimited,
}

/// Recently sent events and the token bucket.
#[derive(Debug)]
pub(super) struct Filter {
    pace: Pace,
    sent: VecDeque<(Instant, Event)>,
    tokens: u32,
    /// When the last token was added.
    filled: Instant,
}

impl Filter {
    pub(super) fn new(pace: Pace, now: Instant) -> Filter {
        Filter { pace, sent: VecDeque::new(), tokens: pace.burst, filled: now }
    }

    /// Decides whether to send an event, and remembers it if so.
    pub(super) fn admit(&mut self, event: &Event, now: Instant) -> Result<(), Refusal> {
        let forget_after = self.pace.forget_after;
        self.sent.retain(|(at, _)| now.saturating_duration_since(*at) < forget_after);
        if self.sent.iter().any(|(_, sent)| sent == event) {
            return Err(Refusal::Repeated);
        }
        self.refill(now);
        self.tokens = self.tokens.checked_sub(1).ok_or(Refusal::RateLimited)?;
        if self.sent.len() == REMEMBERED_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((now, event.clone()));
        Ok(())
    }

    /// Forgets an event that could not be sent, so that the next equal one is sent.
    pub(super) fn failed(&mut self, event: &Event) {
        self.sent.retain(|(_, sent)| sent != event);
    }

    fn refill(&mut self, now: Instant) {
        let every = self.pace.every.max(Duration::from_nanos(1));
        let new = now.saturating_duration_since(self.filled).as_nanos() / every.as_nanos();
        let new = u32::try_from(new).unwrap_or(u32::MAX);
        if u64::from(self.tokens) + u64::from(new) >= u64::from(self.pace.burst) {
            (self.tokens, self.filled) = (self.pace.burst, now);
        } else {
            self.tokens += new;
            self.filled += every * new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: &str) -> Event {
        Event::no_metrics(node, "taken")
    }

    #[test]
    fn equal_events_are_sent_once_per_period() {
        let (start, pace) = (Instant::now(), Pace { forget_after: Duration::from_secs(60), ..Pace::default() });
        let mut filter = Filter::new(pace, start);
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(filter.admit(&event("a"), start), Ok(()));
        assert_eq!(filter.admit(&event("a"), at(59)), Err(Refusal::Repeated));
        assert_eq!(filter.admit(&event("b"), at(59)), Ok(()));
        assert_eq!(filter.admit(&Event::no_metrics("a", "other words"), at(59)), Ok(()));
        assert_eq!(filter.admit(&event("a"), at(60)), Ok(()));
        filter.failed(&event("a"));
        assert_eq!(filter.admit(&event("a"), at(61)), Ok(()));
    }

    #[test]
    fn a_burst_is_followed_by_a_steady_rate() {
        let start = Instant::now();
        let mut filter = Filter::new(Pace { burst: 3, every: Duration::from_secs(10), ..Pace::default() }, start);
        let mut n = 0;
        let mut admit = |s: u64| {
            n += 1;
            filter.admit(&event(&n.to_string()), start + Duration::from_secs(s)).is_ok()
        };
        assert_eq!([admit(0), admit(0), admit(0), admit(0), admit(9)], [true, true, true, false, false]);
        assert_eq!([admit(10), admit(19), admit(20), admit(20)], [true, false, true, false]);
        assert_eq!([admit(1_000), admit(1_000), admit(1_000), admit(1_000)], [true, true, true, false]);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut filter = Filter::new(Pace { burst: u32::MAX, ..Pace::default() }, start);
        (0..REMEMBERED_MAX + 10).for_each(|i| assert_eq!(filter.admit(&event(&i.to_string()), start), Ok(())));
        assert_eq!(filter.sent.len(), REMEMBERED_MAX);
    }
}
