//! Which events are worth sending: not the same one again and again, and not too many of them. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Event;

/// How much is sent, and how patiently. The defaults are client-go's for its bursts and attempts, with shorter pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Events that may come at once.
    pub burst: u32,
    /// One more after each of these times.
    pub every: Duration,
    /// The same event is not sent again within this time.
    pub forget_after: Duration,
    /// Attempts for each event.
    pub attempts: u32,
    /// Before the second attempt; doubled each time.
    pub pause_min: Duration,
    /// Before any attempt.
    pub pause_max: Duration,
    /// Until the server answers.
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

/// Events that are remembered at the most.
const REMEMBERED_MAX: usize = 256;

/// Why one is not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Repeated,
    RateLimited,
}

/// What was sent lately.
#[derive(Debug)]
pub(super) struct Filter {
    pace: Pace,
    sent: VecDeque<(Instant, Event)>,
    tokens: u32,
    /// When the last token came.
    filled: Instant,
}

impl Filter {
    pub(super) fn new(pace: Pace, now: Instant) -> Filter {
        Filter { pace, sent: VecDeque::new(), tokens: pace.burst, filled: now }
    }

    /// Whether to send an event; then it is remembered.
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

    /// It was not sent after all: the next one like it may be.
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
    fn the_same_is_sent_once_in_a_while() {
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
    fn a_burst_and_then_a_rate() {
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
