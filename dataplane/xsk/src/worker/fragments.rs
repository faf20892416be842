//! Fragments that a worker holds until the others of their datagram are known.

use arrayvec::ArrayVec;
use nomagic_core::fragment_hold::Leave;
use nomagic_core::frame::{BATCH_MAX, Waiting};

use super::Worker;
use crate::hold::{GivenUp, OwnedFrame, buffers_of_pool};

/// How often the held fragments are looked through: not in each round, since there may be many, and forged ones cost nothing.
const LOOK_EVERY_NS: u64 = 50_000;

impl Worker {
    /// Releases fragments now and then.
    pub(super) fn tend_fragments(&mut self) {
        if self.io.now_ns.saturating_sub(self.fragments_seen_ns) >= LOOK_EVERY_NS {
            self.fragments_seen_ns = self.io.now_ns;
            self.release_fragments();
        }
    }

    /// Holds a fragment. Others may have to make room.
    pub(super) fn hold_fragment(&mut self, mut packet: OwnedFrame, waiting: Waiting) {
        let now_ns = self.io.now_ns;
        packet.held_since_ns = Some(now_ns);
        let (leaving, buffers) = (&mut self.leaving, packet.token.segments());
        self.fragments.keep(packet, buffers, waiting, now_ns / 1_000_000, |mut evicted| {
            evicted.given_up = Some(GivenUp::Evicted);
            leaving.push_back(evicted);
        });
    }

    /// Submits the fragments again that wait no longer: some worker has their first one, or their time is over.
    pub(super) fn release_fragments(&mut self) {
        if self.fragments.is_empty() {
            return;
        }
        let Worker { fragments, leaving, table, io, .. } = self;
        let (now_ns, now_ms, table) = (io.now_ns, io.now_ns / 1_000_000, table.fragments());
        let is_settled = |waiting: &Waiting| table.is_settled(waiting, now_ms);
        fragments.release(now_ms, BATCH_MAX, is_settled, |mut packet, why| {
            // If it has to wait for a next hop now, its time begins.
            packet.held_since_ns = Some(now_ns);
            packet.given_up = (why == Leave::Overdue).then_some(GivenUp::Overdue);
            leaving.push_back(packet);
        });
        self.submit_leaving();
    }

    /// Submits the fragments that are not held any longer. Ends, since one that was given up is not held again.
    pub(super) fn submit_leaving(&mut self) {
        while let Some(pool) = self.leaving.front().map(|packet| packet.token.pool()) {
            let mut packets: ArrayVec<OwnedFrame, BATCH_MAX> = ArrayVec::new();
            while !packets.is_full()
                && self.leaving.front().is_some_and(|packet| packet.token.pool() == pool)
                && let Some(packet) = self.leaving.pop_front()
            {
                packets.push(packet);
            }
            self.process_batch(pool.into(), &mut packets);
        }
    }

    /// The number of held buffers from a pool.
    pub(super) fn fragments_of_pool(&self, pool: usize) -> u32 {
        buffers_of_pool(self.fragments.iter(), pool)
    }
}
