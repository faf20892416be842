//! Frames held for unresolved neighbours, and the requests for these neighbours. Both are bounded.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crossbeam::channel::Sender;
use nomagic_core::counters::NeighbourCounters;
use nomagic_core::frame::{PortId, Wanted};

use crate::umem::Token;

/// Maximum number of neighbours being requested.
pub const WANTED_MAX: usize = 1024;
/// Milliseconds before a neighbour that is still needed is requested again.
const ASK_AGAIN_MS: u64 = 250;
/// So many neighbours at least can have frames waiting at a time.
const NEIGHBOURS_AT_LEAST: usize = 4;
/// So many buffers may wait for one neighbour in any case.
const SHARE_MIN: usize = 8;

/// A received packet in the worker.
#[derive(Debug)]
pub struct OwnedFrame {
    /// Exclusive access to its buffers.
    pub token: Token,
    /// Offset of its data in the first buffer.
    pub start: usize,
    /// Length of its data in the first buffer.
    pub len: usize,
    /// The port it was received on.
    pub port: PortId,
    /// The queue it was received on.
    pub queue: u32,
    /// When it was first held, in ns of CLOCK_MONOTONIC; `None`: never.
    pub held_since_ns: Option<u64>,
    /// It is a fragment that waited for others of its datagram in vain.
    pub given_up: Option<GivenUp>,
}

impl OwnedFrame {
    /// Length of its data in all buffers.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.len + self.token.tail_len()
    }
}

/// Why a fragment is not held any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GivenUp {
    /// Its time is over.
    Overdue,
    /// Others need its room.
    Evicted,
}

/// The held frames, oldest first.
pub struct Hold {
    packets: VecDeque<(OwnedFrame, Wanted)>,
    /// The number of buffers.
    buffers: usize,
    /// The number of buffers for each neighbour.
    waiting: HashMap<Wanted, usize>,
    frames_max: usize,
    age_max_ns: u64,
}

impl Hold {
    /// Room for `frames_max` buffers, each for at most `age_max_ns` nanoseconds.
    pub fn new(frames_max: usize, age_max_ns: u64) -> Hold {
        Hold { packets: VecDeque::with_capacity(frames_max), buffers: 0, waiting: HashMap::new(), frames_max, age_max_ns }
    }

    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// The number of held buffers from a pool.
    pub fn of_pool(&self, pool: usize) -> u32 {
        buffers_of_pool(self.packets.iter().map(|(packet, _)| packet), pool)
    }

    /// Holds a frame. Returns it if there is no room, or if its neighbour has its share: a dead one must not take the room of others.
    pub fn keep(&mut self, mut packet: OwnedFrame, wanted: Wanted, now_ns: u64) -> Result<(), OwnedFrame> {
        let buffers = packet.token.segments();
        let waiting = self.waiting.get(&wanted).copied().unwrap_or(0);
        let share = (self.frames_max / NEIGHBOURS_AT_LEAST).max(SHARE_MIN);
        if self.buffers + buffers > self.frames_max || waiting + buffers > share {
            return Err(packet);
        }
        packet.held_since_ns.get_or_insert(now_ns);
        self.buffers += buffers;
        self.waiting.insert(wanted, waiting + buffers);
        self.packets.push_back((packet, wanted));
        Ok(())
    }

    /// Whether a frame has been held for too long.
    pub fn is_overdue(&self, packet: &OwnedFrame, now_ns: u64) -> bool {
        packet.held_since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= self.age_max_ns)
    }

    /// Removes the oldest frame.
    pub fn pop(&mut self) -> Option<OwnedFrame> {
        let (packet, wanted) = self.packets.pop_front()?;
        let buffers = packet.token.segments();
        self.buffers -= buffers;
        if let Entry::Occupied(mut waiting) = self.waiting.entry(wanted) {
            *waiting.get_mut() -= buffers;
            if *waiting.get() == 0 {
                waiting.remove();
            }
        }
        Some(packet)
    }

    /// Removes the oldest frame if it is from this pool.
    pub fn pop_of_pool(&mut self, pool: usize) -> Option<OwnedFrame> {
        if self.front_pool()? == pool { self.pop() } else { None }
    }

    /// The pool of the oldest frame.
    pub fn front_pool(&self) -> Option<usize> {
        self.packets.front().map(|(p, _)| usize::from(p.token.pool()))
    }

    /// The pool of the oldest frame, if that has been held for too long.
    pub fn overdue_pool(&self, now_ns: u64) -> Option<usize> {
        self.packets.front().filter(|(p, _)| self.is_overdue(p, now_ns)).map(|(p, _)| usize::from(p.token.pool()))
    }
}

/// The number of buffers from a pool.
pub fn buffers_of_pool<'p>(packets: impl Iterator<Item = &'p OwnedFrame>, pool: usize) -> u32 {
    packets.filter(|packet| usize::from(packet.token.pool()) == pool).map(|packet| packet.token.segments() as u32).sum()
}

/// Requests unresolved neighbours from control, rate-limited.
pub struct NeighbourRequester {
    channel: Sender<Wanted>,
    asked_ms: HashMap<Wanted, u64>,
}

impl NeighbourRequester {
    /// Sends requests over this channel.
    pub fn new(channel: Sender<Wanted>) -> NeighbourRequester {
        NeighbourRequester { channel, asked_ms: HashMap::with_capacity(WANTED_MAX) }
    }

    /// Requests a neighbour unless it was requested recently.
    pub fn ask(&mut self, wanted: Wanted, now_ms: u64, counters: &NeighbourCounters) {
        let asked_ms = self.asked_ms.get(&wanted).copied();
        if asked_ms.is_some_and(|at| now_ms.saturating_sub(at) < ASK_AGAIN_MS) {
            return;
        }
        if asked_ms.is_none() && self.asked_ms.len() >= WANTED_MAX {
            self.asked_ms.retain(|_, &mut at| now_ms.saturating_sub(at) < ASK_AGAIN_MS);
        }
        let full = asked_ms.is_none() && self.asked_ms.len() >= WANTED_MAX;
        if full || self.channel.try_send(wanted).is_err() {
            return counters.suppressed.add(1);
        }
        self.asked_ms.insert(wanted, now_ms);
        counters.asked.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{FramePool, tests::pool};

    fn packet(pool: &mut FramePool) -> OwnedFrame {
        let token = pool.take().unwrap();
        OwnedFrame { token, start: 256, len: 60, port: PortId(0), queue: 0, held_since_ns: None, given_up: None }
    }

    fn neighbour(last: u8) -> Wanted {
        Wanted { port: PortId(0), addr: [10, 0, 0, last].into() }
    }

    #[test]
    fn held_frames_are_limited_in_number_and_time() {
        let mut pool = pool(0, 8);
        let mut hold = Hold::new(2, 100);
        hold.keep(packet(&mut pool), neighbour(1), 1_000).unwrap();
        hold.keep(packet(&mut pool), neighbour(2), 1_050).unwrap();
        let refused = hold.keep(packet(&mut pool), neighbour(2), 1_050).unwrap_err();
        pool.give(refused.token);
        assert!(hold.overdue_pool(1_099).is_none());
        assert_eq!(hold.overdue_pool(1_100), Some(0));
        let old = hold.pop().unwrap();
        // Held again: the first time counts.
        hold.keep(old, neighbour(1), 1_100).unwrap();
        assert_eq!(hold.of_pool(0), 2);
        assert!(hold.overdue_pool(1_120).is_none(), "the one at the front is younger");
        for _ in 0..2 {
            assert_eq!(hold.overdue_pool(1_150), Some(0));
            let p = hold.pop().unwrap();
            pool.give(p.token);
        }
        assert_eq!((hold.len(), pool.free(), hold.waiting.len()), (0, pool.total(), 0));
    }

    #[test]
    fn a_dead_neighbour_leaves_room_for_others() {
        let mut pool = pool(0, 128);
        let mut hold = Hold::new(40, 100);
        let mut held = |last: u8| (0..20).filter(|_| hold.keep(packet(&mut pool), neighbour(last), 0).is_ok()).count();
        assert_eq!([held(1), held(1), held(2), held(3)], [10, 0, 10, 10]);
        hold.pop().unwrap();
        assert!(hold.keep(packet(&mut pool), neighbour(1), 0).is_ok(), "its share is free again");
    }

    #[test]
    fn requests_are_rate_limited_and_bounded() {
        let (sender, receiver) = crossbeam::channel::bounded(2000);
        let (mut requester, counters) = (NeighbourRequester::new(sender), NeighbourCounters::default());
        let wanted = |i: u32| Wanted { port: PortId(0), addr: std::net::Ipv4Addr::from(i).into() };
        (0..100).for_each(|now_ms| requester.ask(wanted(1), now_ms, &counters));
        assert_eq!(receiver.len(), 1);
        requester.ask(wanted(1), ASK_AGAIN_MS, &counters);
        assert_eq!(receiver.len(), 2);
        (0..3000).for_each(|i| requester.ask(wanted(i), ASK_AGAIN_MS, &counters));
        assert_eq!(receiver.len(), 1 + WANTED_MAX);
        assert_eq!(counters.suppressed.get(), 3000 - WANTED_MAX as u64);
        requester.ask(wanted(5000), 2 * ASK_AGAIN_MS, &counters);
        assert_eq!(receiver.len(), 2 + WANTED_MAX, "old requests make room");
    }

    #[test]
    fn a_full_channel_does_not_block() {
        let (sender, _receiver) = crossbeam::channel::bounded(1);
        let (mut requester, counters) = (NeighbourRequester::new(sender), NeighbourCounters::default());
        (0..10u8).for_each(|i| requester.ask(Wanted { port: PortId(0), addr: [10, 0, 0, i].into() }, 0, &counters));
        assert_eq!((counters.asked.get(), counters.suppressed.get()), (1, 9));
    }
}
