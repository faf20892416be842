//! What goes wrong on demand.

use std::collections::VecDeque;
use std::time::Duration;

use crate::resources::Resource;

/// Answers ordered in advance at the most.
const ANSWERS_MAX: usize = 10_000;

/// What `sendInitialEvents=true` is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Streaming {
    /// The initial events and the bookmark that ends them.
    #[default]
    Served,
    /// HTTP 422: a server that does not know it.
    Invalid,
    /// HTTP 200, and an ERROR event with code 500 in the stream.
    ErrorInStream,
}

/// How a version that is too old is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gone {
    /// HTTP 200, and an ERROR event with code 410 in the stream: the real server's way.
    #[default]
    InStream,
    /// HTTP 410.
    Status,
}

/// How running watches end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// As after their time: the last chunk is sent.
    Orderly,
    /// In the middle: the connection is closed.
    Cut,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The next requests get these HTTP statuses.
    answers: VecDeque<u16>,
    /// Nothing is answered, and nothing more is sent on what runs.
    pub(crate) silent: bool,
    /// A few bytes at a time, with this pause between them.
    pub(crate) slow: Option<Duration>,
    pub(crate) streaming: Streaming,
    pub(crate) gone: Gone,
    /// Kinds that this server does not know.
    pub(crate) unknown: Vec<Resource>,
    /// Kinds that clients may not ask for (403).
    pub(crate) forbidden: Vec<Resource>,
    /// Grows each time that all watches are ended.
    pub(crate) epoch: u64,
    pub(crate) end: Option<End>,
    /// A line for every running watch, and how many there have been.
    pub(crate) garbage: (u64, String),
}

impl Faults {
    pub(crate) fn order(&mut self, count: usize, status: u16) {
        let room = ANSWERS_MAX.saturating_sub(self.answers.len());
        self.answers.extend(std::iter::repeat_n(status, count.min(room)));
    }

    pub(crate) fn next_answer(&mut self) -> Option<u16> {
        self.answers.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order_and_are_limited() {
        let mut faults = Faults::default();
        faults.order(1, 500);
        faults.order(usize::MAX, 429);
        assert_eq!(faults.answers.len(), ANSWERS_MAX);
        assert_eq!((faults.next_answer(), faults.next_answer()), (Some(500), Some(429)));
    }
}
