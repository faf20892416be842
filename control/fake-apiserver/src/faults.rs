//! Faults on demand.

use std::collections::VecDeque;
use std::time::Duration;

use crate::resources::Resource;

/// Maximum number of queued failures.
const FAILURES_MAX: usize = 10_000;

/// How `sendInitialEvents=true` is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Streaming {
    /// Initial events, then the bookmark that ends them.
    #[default]
    Served,
    /// HTTP 422: a server without this feature.
    Invalid,
    /// HTTP 200, and an ERROR event with code 500 in the stream.
    ErrorInStream,
}

/// How a request for a compacted version fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gone {
    /// HTTP 200, and an ERROR event with code 410 in the stream, like the real server.
    #[default]
    InStream,
    /// HTTP 410.
    Status,
}

/// How open watches end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// As after their timeout: the last chunk is sent.
    Orderly,
    /// The connection is closed without a last chunk.
    Cut,
}

/// The active faults.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// HTTP statuses for the next requests.
    failures: VecDeque<u16>,
    /// The HTTP status for all requests after those.
    pub(crate) failure: Option<u16>,
    /// Sends no responses and no watch events.
    pub(crate) silent: bool,
    /// Sends small chunks with this pause between them.
    pub(crate) slow: Option<Duration>,
    pub(crate) streaming: Streaming,
    pub(crate) gone: Gone,
    /// A watch from a version in the future is accepted and hears nothing until then.
    pub(crate) future_watches: bool,
    /// Every watch from a version gets 410.
    pub(crate) watches_gone: bool,
    /// Kinds that get 404.
    pub(crate) unknown: Vec<Resource>,
    /// Kinds that get 403.
    pub(crate) forbidden: Vec<Resource>,
    /// Kinds that get no response.
    pub(crate) unanswered: Vec<Resource>,
    /// Incremented each time all watches are ended.
    pub(crate) epoch: u64,
    pub(crate) end: Option<End>,
    /// A line to send to every open watch, and the number of such lines so far.
    pub(crate) garbage: (u64, String),
}

impl Faults {
    pub(crate) fn queue_failures(&mut self, count: usize, status: u16) {
        let room = FAILURES_MAX.saturating_sub(self.failures.len());
        self.failures.extend(std::iter::repeat_n(status, count.min(room)));
    }

    pub(crate) fn next_failure(&mut self) -> Option<u16> {
        self.failures.pop_front().or(self.failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_served_in_order_and_limited() {
        let mut faults = Faults::default();
        faults.queue_failures(1, 500);
        faults.queue_failures(usize::MAX, 429);
        assert_eq!(faults.failures.len(), FAILURES_MAX);
        assert_eq!((faults.next_failure(), faults.next_failure()), (Some(500), Some(429)));
        let mut faults = Faults { failure: Some(403), ..Faults::default() };
        faults.queue_failures(1, 500);
        assert_eq!((faults.next_failure(), faults.next_failure(), faults.next_failure()), (Some(500), Some(403), Some(403)));
    }
}
