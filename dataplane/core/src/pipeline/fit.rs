//! Whether a packet fits the way on: whole, in fragments, or not at all.

use super::Context;
use crate::fragmenting::{FRAGMENTS_MAX, Split};
use crate::frame::{Frame, NextHopId, Verdict};
use crate::reason::Reason;
use crate::rewrite;
use crate::routes::NextHop;

/// How a packet goes on by a next hop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Whole,
    InFragments,
}

impl Fit {
    /// Decides by a packet's TTL and its length in bytes. Changes nothing, so that a packet which does not go on is still as it came.
    #[inline]
    pub fn of(ctx: &Context<'_>, frame: &Frame<'_>, (ttl, ip_len): (u8, usize), hop: &NextHop) -> Result<Fit, Reason> {
        match rewrite::check(ttl, ip_len, hop) {
            Ok(()) => Ok(Fit::Whole),
            Err(Reason::TooBig) if ctx.services.fragment => Fit::in_fragments(frame, hop),
            Err(reason) => Err(reason),
        }
    }

    #[cold]
    fn in_fragments(frame: &Frame<'_>, hop: &NextHop) -> Result<Fit, Reason> {
        match Split::of(frame, hop.mtu.into()) {
            Some(split) if split.count() <= FRAGMENTS_MAX => Ok(Fit::InFragments),
            Some(_) => Err(Reason::TooManyFragments),
            None => Err(Reason::TooBig),
        }
    }

    /// The verdict about the packet after its rewrite. Counts it if it becomes fragments.
    #[inline]
    pub fn verdict(self, ctx: &Context<'_>, hop: &NextHop, id: NextHopId) -> Verdict {
        match self {
            Fit::Whole => Verdict::Forward(hop.port, id),
            Fit::InFragments => {
                ctx.counters.path.fragmented.add(1);
                Verdict::Fragment(hop.port, id, hop.mtu)
            }
        }
    }
}
