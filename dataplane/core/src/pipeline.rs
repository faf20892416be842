//! The story of a packet (API; body follows).
use arrayvec::ArrayVec;

use crate::conntrack::Conntrack;
use crate::counters::Counters;
use crate::filter::ReplyFilter;
use crate::frame::{BATCH_MAX, Frame, Outputs, Verdict};
use crate::reason::Reason;
use crate::routes::Routes;
use crate::services::Services;

/// What belongs to one worker alone.
#[derive(Debug, Default)]
pub struct WorkerState {}

impl WorkerState {
    /// The state of worker number `worker`.
    pub fn new(_worker: u16) -> WorkerState {
        WorkerState {}
    }
}

/// Everything a batch is judged by.
pub struct Context<'c> {
    /// Milliseconds of a clock that never goes back.
    pub now_ms: u64,
    /// The service table.
    pub services: &'c Services,
    /// Routes and neighbours.
    pub routes: &'c Routes,
    /// The connection table.
    pub table: Conntrack<'c>,
    /// The reply filter; `None`: every frame comes up anyway (tests, `explain`).
    pub filter: Option<ReplyFilter<'c>>,
    /// The worker's counters.
    pub counters: &'c Counters,
    /// The worker's own state.
    pub worker: &'c mut WorkerState,
}

/// Judges and rewrites a batch: one verdict a frame, in order.
pub fn process<'f>(_ctx: &mut Context<'_>, frames: &mut [Frame<'f>], verdicts: &mut ArrayVec<Verdict, BATCH_MAX>, _out: &mut Outputs<'f>) {
    verdicts.clear();
    for _ in frames.iter() {
        verdicts.push(Verdict::Kernel(Reason::NotOurs));
    }
}

/// Looks at the next `flows_max` places of the connection table and ends what has timed out.
pub fn sweep(_ctx: &mut Context<'_>, _flows_max: u32) {}
