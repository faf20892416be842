//! Ending flows: timed out, or on request.

use arrayvec::ArrayVec;

use super::Context;
use super::idle_reset::reset_both;
use crate::conntrack::{Conntrack, Flow, Hit, IdleTimes, NextNumbers, Phase};
use crate::counters::Counter;
use crate::events::EndCause;
use crate::filter::ReplyFilter;
use crate::frame::{OUTPUT_MAX, Outputs};
use crate::reject::Class;

/// Ends the timed-out flows among the next `places` slots of the connection table. If the configuration says so, both ends of established TCP
/// connections among them get a reset in `out`, as far as there are spare frames.
pub fn sweep(ctx: &mut Context<'_>, places: u32, out: &mut Outputs<'_>) {
    let (now_ms, idle) = (ctx.now_ms, &ctx.worker.idle);
    let mut to_reset: ArrayVec<(Flow, NextNumbers), OUTPUT_MAX> = ArrayVec::new();
    ctx.table.sweep(
        places,
        ctx.routes.generation,
        |hit| expired(hit, idle, now_ms),
        |flow, phase, next| {
            ctx.counters.conntrack.expired.add(1);
            ctx.worker.recorder.ended(now_ms, &flow, EndCause::TimedOut, phase);
            withdraw(ctx.filter, &flow);
            if let Some(next) = next.filter(|_| ctx.services.reset_idle)
                && to_reset.try_push((flow, next)).is_err()
            {
                ctx.counters.path.rejects_suppressed.of(Class::Idle).add(2);
            }
        },
    );
    to_reset.iter().for_each(|(flow, next)| reset_both(ctx, flow, *next, out));
}

/// Ends a flow and withdraws its announcement. Any thread may call it while workers use the table. False when the flow had ended already.
///
/// A flow is announced before it goes live, and withdrawn by the one thread that ended it. So each announcement is withdrawn once. A
/// successor with the same reply tuple has an entry of its own in the filter.
pub fn end_connection(table: Conntrack<'_>, filter: Option<ReplyFilter<'_>>, hit: &Hit) -> bool {
    take_out(table, filter, hit).is_some()
}

/// The same. Returns the flow that has ended.
pub fn take_out(table: Conntrack<'_>, filter: Option<ReplyFilter<'_>>, hit: &Hit) -> Option<Flow> {
    let flow = table.end(hit)?;
    withdraw(filter, &flow);
    Some(flow)
}

#[inline(always)]
pub(super) fn expired(hit: &Hit, idle: &IdleTimes, now_ms: u64) -> bool {
    silent(hit.phase, hit.seen_ms, idle, now_ms)
}

/// Whether a flow in `phase`, last seen at `seen_ms`, has timed out.
#[inline(always)]
pub(super) fn silent(phase: Phase, seen_ms: u64, idle: &IdleTimes, now_ms: u64) -> bool {
    now_ms.saturating_sub(seen_ms) >= idle.of(phase)
}

/// Ends a flow, counts it and records why.
pub(super) fn end(ctx: &Context<'_>, hit: &Hit, counter: &Counter, cause: EndCause) {
    if let Some(flow) = take_out(ctx.table, ctx.filter, hit) {
        counter.add(1);
        ctx.worker.recorder.ended(ctx.now_ms, &flow, cause, hit.phase);
    }
}

pub(super) fn withdraw(filter: Option<ReplyFilter<'_>>, flow: &Flow) {
    if let (Some(filter), true) = (filter, flow.announced) {
        filter.remove(&flow.reply());
        if flow.is_direct() {
            filter.remove(&flow.original());
        }
    }
}
