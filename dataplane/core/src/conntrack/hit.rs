//! A flow as a look-up found it.

use super::flow::{Deltas, age_remainder_ms, is_old};
use super::{Direction, Phase, SEEN_RESOLUTION_MS};
use crate::frame::NextHopId;
use crate::tuple::Tuple;

/// Next hops that a flow can name.
const NEXT_HOP_MAX: u16 = (1 << 14) - 1;
const _: () = assert!(crate::routes::NEXT_HOPS_MAX < NEXT_HOP_MAX as usize);
const HOP_GENERATION_BITS: u32 = 12;
const HOP_GENERATION_MASK: u32 = (1 << HOP_GENERATION_BITS) - 1;
/// A flow found, as it was at that moment.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    pub(super) slot: u32,
    /// The state word: generation and LIVE.
    pub(super) state: u64,
    /// Which way the packet goes.
    pub direction: Direction,
    /// The packet's tuple after the rewrite.
    pub new: Tuple,
    /// Its ports in packet layout.
    pub new_ports: u32,
    /// Place of the statistics, see [`crate::services::Backend::stats`].
    pub stats: u32,
    /// Checksum deltas for this direction.
    pub deltas: Deltas,
    /// The flow's phase.
    pub phase: Phase,
    /// When it was last seen, to [`SEEN_RESOLUTION_MS`].
    pub seen_ms: u64,
    /// The `hops` word.
    pub(super) hops: u64,
    /// The `target` word.
    pub(super) target: u64,
}

/// A short reference to a flow: its phase and age, and what is needed to find it again.
#[derive(Clone, Copy, Debug)]
pub struct FlowRef {
    pub(super) slot: u32,
    pub(super) state: u64,
    /// See [`Hit::phase`].
    pub phase: Phase,
    /// See [`Hit::seen_ms`].
    pub seen_ms: u64,
}

impl Hit {
    /// Where the flow is: its slot, and the slot's state word.
    #[inline(always)]
    pub fn place(&self) -> (u32, u64) {
        (self.slot, self.state)
    }

    /// The number of the flow's slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether the last-seen time is so old that it must be written.
    #[inline(always)]
    pub fn is_touch_due(&self, now_ms: u64) -> bool {
        now_ms.wrapping_sub(self.seen_ms) >= SEEN_RESOLUTION_MS
    }

    /// The flow's age modulo [`AGE_MODULUS_MS`](super::AGE_MODULUS_MS), in steps of 125 ms.
    pub fn age_remainder_ms(&self, now_ms: u64) -> u64 {
        age_remainder_ms(self.target, now_ms)
    }

    /// A short reference to the flow.
    pub fn flow_ref(&self) -> FlowRef {
        FlowRef { slot: self.slot, state: self.state, phase: self.phase, seen_ms: self.seen_ms }
    }

    /// The phase before a packet at this time, by the flow's age.
    pub(super) fn phase_by_age(&self, now_ms: u64) -> Phase {
        // Only when the packet's time will be written: until then the fast path, which ignores the age, may take the flow's packets as
        // well.
        let grown_old = now_ms.saturating_sub(self.seen_ms) >= SEEN_RESOLUTION_MS && is_old(self.target, now_ms);
        if grown_old { self.phase.grown_old() } else { self.phase }
    }

    /// The next hop cached for this direction, if it was resolved under this generation of the routes (compared by its low 12 bits).
    #[inline(always)]
    pub fn cached_hop(&self, routes_generation: u64) -> Option<NextHopId> {
        let id = self.cached_hop_or_none(routes_generation)?;
        (id.0 != 0).then_some(id)
    }

    /// Like [`Hit::cached_hop`], but returns id 0 for "none". Hop 0 has MTU 0, so [`check`](crate::rewrite::check) rejects it without an
    /// extra branch.
    #[inline(always)]
    pub fn cached_hop_or_none(&self, routes_generation: u64) -> Option<NextHopId> {
        let half = (self.hops >> hop_shift(self.direction)) as u32;
        let id = (half >> HOP_GENERATION_BITS) as u16 & NEXT_HOP_MAX;
        ((half ^ routes_generation as u32) & HOP_GENERATION_MASK == 0).then_some(NextHopId(id))
    }
}

/// A direction's half of the `hops` word.
pub(super) fn hop_half(routes_generation: u64, hop: NextHopId) -> u64 {
    (u64::from(hop.0 & NEXT_HOP_MAX) << HOP_GENERATION_BITS) | (routes_generation & u64::from(HOP_GENERATION_MASK))
}

#[inline(always)]
pub(super) fn hop_shift(direction: Direction) -> u32 {
    direction as u32 * 32
}
