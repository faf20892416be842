//! What a batch is decided with.

use std::sync::Arc;

use super::evict::Evictor;
use super::recorder::Recorder;
use crate::conntrack::{Conntrack, IdleTimes, SEEN_RESOLUTION_MS, Timeouts};
use crate::counters::Counters;
use crate::datagrams::Datagrams;
use crate::events::EventRing;
use crate::filter::ReplyFilter;
use crate::icmp::ErrorClass;
use crate::reject::Limiter;
use crate::route_cache::RouteCache;
use crate::routes::Routes;
use crate::services::Services;

/// The inputs of a batch's verdicts.
pub struct Context<'c> {
    /// Monotonic time, milliseconds.
    pub now_ms: u64,
    /// The service table.
    pub services: &'c Services,
    /// Routes and neighbours.
    pub routes: &'c Routes,
    /// The connection table.
    pub table: Conntrack<'c>,
    /// The reply filter. `None`: the caller receives every frame anyway (tests, benchmarks).
    pub filter: Option<ReplyFilter<'c>>,
    /// The worker's counters.
    pub counters: &'c Counters,
    /// The worker's own state.
    pub worker: &'c mut WorkerState,
}

impl Context<'_> {
    /// Hits within this time after the last one that was noted write nothing, milliseconds. A reset after the idle timeout needs the sequence
    /// numbers of the last segments.
    #[inline(always)]
    pub(super) fn touch_ms(&self) -> u64 {
        if self.services.reset_idle { 0 } else { SEEN_RESOLUTION_MS }
    }
}

/// State that one worker owns.
#[derive(Debug)]
pub struct WorkerState {
    pub(super) number: u16,
    /// Spreads the workers over the source ports.
    pub(super) port_hint: u32,
    pub(super) limiter: Limiter,
    /// Of the ICMP errors that pass through.
    pub(super) errors: Limiter<ErrorClass>,
    pub(super) idle: IdleTimes,
    pub(super) route_cache: RouteCache,
    pub(super) evictor: Evictor,
    pub(super) datagrams: Datagrams,
    pub(super) recorder: Recorder,
}

impl WorkerState {
    /// The state of worker number `worker`, with the default timeouts.
    pub fn new(worker: u16) -> WorkerState {
        WorkerState::with_timeouts(worker, Timeouts::default())
    }

    /// The state of worker number `worker`.
    pub fn with_timeouts(worker: u16, timeouts: Timeouts) -> WorkerState {
        WorkerState {
            number: worker,
            port_hint: u32::from(worker).wrapping_mul(0x9e37_79b9),
            limiter: Limiter::default(),
            errors: Limiter::default(),
            idle: timeouts.table(),
            route_cache: RouteCache::default(),
            evictor: Evictor::default(),
            datagrams: Datagrams::default(),
            recorder: Recorder::default(),
        }
    }

    /// Records events in this ring from now on. No other thread may record there.
    pub fn record_in(mut self, ring: Arc<EventRing>) -> WorkerState {
        self.recorder = Recorder::new(ring);
        self
    }
}
