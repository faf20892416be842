//! Resets to both ends of a TCP connection that ends by its idle timeout: an option.
//!
//! Without these resets, both ends keep the connection open until they send again. Without SNAT, nomagic then picks the connection up, maybe with
//! another backend, which resets it. With SNAT, nomagic resets it.
//!
//! A host takes a reset only with exactly the number that it expects next (RFC 5961, 3.2), so with this option the fast path notes the numbers
//! of every reply. A reply acknowledges what the client has sent, so both numbers are in it.

use super::{Context, resolve};
use crate::conntrack::{Flow, NextNumbers};
use crate::frame::{Outputs, PortId};
use crate::observe::Silent;
use crate::reject::{self, Class};
use crate::rewrite;
use crate::tuple::Tuple;

/// Resets the client and the backend of a flow that has ended.
pub(super) fn reset_both(ctx: &mut Context<'_>, flow: &Flow, next: NextNumbers, out: &mut Outputs<'_>) {
    let NextNumbers { client, backend } = next;
    for (tuple, sequence, acknowledgment) in [(flow.original().reversed(), backend, client), (flow.reply().reversed(), client, backend)] {
        let sent = reset(ctx, &tuple, sequence, acknowledgment, out);
        let rejects = &ctx.counters.path;
        if sent { &rejects.rejects_made } else { &rejects.rejects_suppressed }.of(Class::Idle).add(1);
    }
}

/// Builds one of them. False when it is over a limit, there is no spare frame, or its receiver cannot be reached now.
fn reset(ctx: &mut Context<'_>, tuple: &Tuple, sequence: u32, acknowledgment: u32, out: &mut Outputs<'_>) -> bool {
    if out.made.is_full() || out.spare.is_empty() {
        return false;
    }
    let Ok(onward) = resolve(ctx, (tuple, PortId::NONE), tuple, &mut Silent) else { return false };
    let (table, now_ms) = (ctx.table, ctx.now_ms);
    let receiver = reject::sender_hash(tuple.dst_addr(), now_ms, |words| table.hash_words(words));
    if !ctx.worker.limiter.take(Class::Idle, receiver, now_ms) {
        return false;
    }
    let Some(mut spare) = out.spare.pop() else { return false };
    let Some(l3) = reject::build_idle_reset(tuple, sequence, acknowledgment, &mut spare) else {
        out.spare.push(spare);
        return false;
    };
    rewrite::link(&mut spare, l3, onward.hop.src_mac(), onward.hop.dst_mac());
    ctx.counters.frames.made.count(spare.head_len());
    out.made.push((spare, onward.hop.port, onward.id));
    true
}
