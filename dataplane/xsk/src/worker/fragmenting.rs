//! Packets that leave in fragments.
//!
//! The packet path says that a packet is to be fragmented, and where it goes. Here each fragment gets frames of its own: a batch may become more of
//! them than the packet path has spare frames for, those stay for rejects, and a packet's fragments leave in a row, in the order of their offsets.

use arrayvec::ArrayVec;
use nomagic_core::fragmenting::{FRAGMENTS_MAX, Split};
use nomagic_core::frame::{Frame, OUTPUT_MAX, PortId};
use nomagic_core::reason::Reason;
use nomagic_core::wire::ethernet;

use super::{Worker, tails_for, view};
use crate::hold::OwnedFrame;
use crate::pool::{CopyError, FramePool};
use crate::queue::Origin;
use crate::umem::Token;

/// The fragments of one packet.
type Fragments = ArrayVec<Token, FRAGMENTS_MAX>;

impl Worker {
    /// Sends a rewritten packet by this port in fragments of at most `mtu` bytes. If there are too few frames for all of them, none is sent: without
    /// one of them the others are of no use.
    pub(super) fn send_fragments(&mut self, mut packet: OwnedFrame, port: PortId, mtu: u16) {
        let pool = usize::from(packet.token.pool());
        let mut fragments = Fragments::new();
        let written = write_fragments(&mut self.io.pools[pool], &mut packet, mtu, &mut self.fragment, &mut fragments);
        let (bytes, received, queue) = (packet.total_len(), packet.port, packet.queue);
        self.io.free(packet.token);
        if let Err(reason) = written {
            fragments.drain(..).for_each(|token| self.io.free(token));
            self.io.shared.counters.forward_failed(reason, bytes);
            return self.io.shared.record_drop(self.io.now_ns, reason, bytes);
        }
        self.io.shared.counters.path.fragments_made.add(fragments.len() as u64);
        for token in fragments {
            self.io.shared.counters.frames.made.count(token.total_len());
            let (start, len) = (self.io.pools[pool].data_start(&token), token.head_len());
            let fragment = OwnedFrame { token, start, len, port: received, queue, held_since_ns: None, given_up: None };
            self.io.send(fragment, port, Origin::Made);
        }
    }
}

/// Writes the fragments of a packet into free frames of its pool. They are no longer than a packet in this pool can be, if that is less than the MTU.
/// `scratch`: where one of them is put together.
fn write_fragments(
    pool: &mut FramePool,
    packet: &mut OwnedFrame,
    mtu: u16,
    scratch: &mut Vec<u8>,
    fragments: &mut Fragments,
) -> Result<(), Reason> {
    let (room, segments_max) = (pool.room(&packet.token), pool.segments_max());
    let longest = usize::from(mtu).min(room * segments_max - ethernet::HEADER_LEN);
    let split = seen(pool, packet, |frame| Split::of(frame, longest)).ok_or(Reason::FrameTooLong)?;
    if split.count() > FRAGMENTS_MAX {
        return Err(Reason::TooManyFragments);
    }
    // The last ones are left for rejects.
    let frames = split.count() * (ethernet::HEADER_LEN + longest).div_ceil(room);
    if pool.takeable() < frames + OUTPUT_MAX {
        return Err(Reason::PoolEmpty);
    }
    scratch.resize(ethernet::HEADER_LEN + usize::from(u16::MAX), 0);
    for number in 0..split.count() {
        let len = seen(pool, packet, |frame| split.write(number, frame, scratch)).ok_or(Reason::FrameTooLong)?;
        let copy = pool.copy_from(&[&scratch[..len]]).map_err(|error| match error {
            CopyError::Empty => Reason::PoolEmpty,
            CopyError::TooLong => Reason::FrameTooLong,
        });
        fragments.push(copy?);
    }
    Ok(())
}

/// Calls `f` with the packet as the packet path sees it.
fn seen<T>(pool: &FramePool, packet: &mut OwnedFrame, f: impl FnOnce(&Frame<'_>) -> T) -> T {
    let mut tails = tails_for(std::slice::from_ref(packet));
    let mut tails = tails.iter_mut();
    let frame = view(pool, 0, false, packet, &mut tails);
    f(&frame)
}
