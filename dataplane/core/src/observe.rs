//! Observers of the slow path: each hears every decision about a packet.
//!
//! The slow path is generic over its [`Observer`]. The workers use [`Silent`], whose methods are empty and cost nothing. `explain` and live traces
//! record what they hear, see [`process_observed`](crate::pipeline::process_observed). An observer cannot influence a decision.

use crate::conntrack::{Hit, Remembered};
use crate::frame::Verdict;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::reject::Answer;
use crate::routes::Resolution;
use crate::services::{Decision, Source};
use crate::tuple::Tuple;

/// What happens to a known flow when one more packet of it arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowFate {
    /// It goes on; the packet is part of it.
    Continues,
    /// It has timed out and ends.
    TimedOut,
    /// It was closed, and the packet is a SYN that reuses its addresses and ports: it ends.
    Replaced,
}

/// Hears the decisions of the slow path about one packet, in the order of the methods. `'c` is the lifetime of the
/// [`Context`](crate::pipeline::Context), so an observer may keep references into the service table.
pub trait Observer<'c> {
    /// The frame holds a packet that Services may be about.
    fn parsed(&mut self, _packet: &Packet) {}

    /// The packet has the key of a known flow. When that ends, the decisions about a new flow follow.
    fn known_flow(&mut self, _hit: &Hit, _fate: FlowFate) {}

    /// The client's new flow is for a Service port with session affinity. Heard before [`Observer::service`].
    fn affinity(&mut self, _remembered: Remembered) {}

    /// There is no known flow, and this is what the service table says: the Service with its candidates, the slot of the Maglev table and
    /// the backend, or why there is none.
    fn service(&mut self, _decision: &Decision<'c>) {}

    /// The way to the destination of the rewritten packet `new`. For a known flow usually the next hop that it has cached.
    fn next_hop(&mut self, _new: &Tuple, _resolution: &Resolution) {}

    /// The source address of a new flow towards its backend, or why it has none. `needs_internal`: answers come back only to the address that the
    /// kernel routes to the internal port.
    fn source(&mut self, _source: Result<Source, Reason>, _needs_internal: bool) {}

    /// A new flow was created; `hit.new` has the chosen source port.
    fn opened(&mut self, _hit: &Hit) {}

    /// The packet is refused, and its sender is told so by this answer, unless limits forbid it (`sent` is false).
    fn rejected(&mut self, _reason: Reason, _answer: Answer, _sent: bool) {}

    /// The verdict about the frame: the last word.
    fn verdict(&mut self, _verdict: &Verdict) {}
}

/// The observer of the workers: hears nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Silent;

impl Observer<'_> for Silent {}
