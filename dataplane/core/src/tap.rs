//! Taps: packets that fit a filter are watched on their way through the packet path, each decision about them is noted, and nothing is changed.
//!
//! Packets of established flows usually take the fast path, which tells nothing. Where a [`Tap`] wants a packet, the slow path takes it, whose answers
//! are the same. All other packets of the batch go as ever, at the cost of the question.

mod filter;
mod notes;

pub use filter::{FlowView, PacketFilter};
pub use notes::{Decided, Notes, Outcome};

use crate::conntrack::Conntrack;
use crate::fast_parse::Plain;
use crate::frame::{Frame, NextHopId, PortId, Verdict};
use crate::parse::{NotPacket, parse};
use crate::services::Services;
use crate::tuple::Tuple;

/// Watches packets.
pub trait Tap {
    /// False: it wants none, and need not be asked.
    const WATCHES: bool = true;

    /// Whether it wants to watch this packet. Heard before the packet is changed.
    fn wants(&mut self, view: &FlowView<'_, '_>, frame: &Frame<'_>) -> bool;

    /// What became of a packet that it wants, with the frames that were made for it.
    fn judged(&mut self, frame: &Frame<'_>, verdict: &Verdict, notes: &Notes, made: &[(Frame<'_>, PortId, NextHopId)]);
}

/// Wants no packet.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoTap;

impl Tap for NoTap {
    const WATCHES: bool = false;

    fn wants(&mut self, _: &FlowView<'_, '_>, _: &Frame<'_>) -> bool {
        false
    }

    fn judged(&mut self, _: &Frame<'_>, _: &Verdict, _: &Notes, _: &[(Frame<'_>, PortId, NextHopId)]) {}
}

/// A frame as taps see it: its packet, and where its flow is looked up.
pub(crate) fn view<'v, 'c>(
    services: &'v Services,
    table: &'v Conntrack<'c>,
    frame: &Frame<'_>,
    plain: Option<(&Plain, u64)>,
) -> FlowView<'v, 'c> {
    let (packet, hash) = match plain {
        Some((plain, hash)) => (Some(plain.packet(frame.head()).tuple), Some(hash)),
        None => (other_packet(frame), None),
    };
    FlowView { services, table, packet, hash }
}

/// The packet of a frame that is not plain: of a later fragment without ports, of an ICMP error the one that its flow goes by.
#[cold]
fn other_packet(frame: &Frame<'_>) -> Option<Tuple> {
    match parse(frame) {
        Ok(packet) => Some(packet.tuple),
        Err(NotPacket::Later(fragment)) => Some(fragment.tuple),
        Err(NotPacket::Error(error)) => Some(error.key()),
        Err(NotPacket::Echo(echo)) => Some(echo.packet.tuple),
        Err(NotPacket::Malformed(_) | NotPacket::Kernel(_)) => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
