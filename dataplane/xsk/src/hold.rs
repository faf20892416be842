//! Frames that wait for a neighbour, and the questions that are asked for them. Both are bounded.

use std::collections::{HashMap, VecDeque};

use crossbeam::channel::Sender;
use nomagic_core::counters::NeighbourCounters;
use nomagic_core::frame::{PortId, Wanted};

use crate::umem::Token;

/// Neighbours that are being asked for at the most.
pub const WANTED_MAX: usize = 1024;
/// Milliseconds before a neighbour that is still wanted is asked for again.
const ASK_AGAIN_MS: u64 = 250;

/// A frame on its way through the worker.
#[derive(Debug)]
pub struct Packet {
    /// The right to its bytes.
    pub token: Token,
    /// Where its data starts in the frame.
    pub start: usize,
    /// Bytes of data.
    pub len: usize,
    /// The port it came in by.
    pub port: PortId,
    /// The queue it came in by.
    pub queue: u32,
    /// When it was held first, in ns of CLOCK_MONOTONIC; `None`: never.
    pub held_since_ns: Option<u64>,
}

/// The waiting frames, oldest first.
pub struct Hold {
    packets: VecDeque<Packet>,
    frames_max: usize,
    age_max_ns: u64,
}

impl Hold {
    /// Room for `frames_max` frames, for `age_max_ns` nanoseconds each.
    pub fn new(frames_max: usize, age_max_ns: u64) -> Hold {
        Hold { packets: VecDeque::with_capacity(frames_max), frames_max, age_max_ns }
    }

    /// Waiting frames.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Waiting frames of a pool.
    pub fn of_pool(&self, pool: usize) -> u32 {
        self.packets.iter().filter(|p| usize::from(p.token.pool()) == pool).count() as u32
    }

    /// Keeps a frame. Gives it back when there is no room.
    pub fn keep(&mut self, mut packet: Packet, now_ns: u64) -> Result<(), Packet> {
        if self.packets.len() >= self.frames_max {
            return Err(packet);
        }
        packet.held_since_ns.get_or_insert(now_ns);
        self.packets.push_back(packet);
        Ok(())
    }

    /// The oldest frame if it has waited for too long.
    pub fn expired(&mut self, now_ns: u64) -> Option<Packet> {
        let since = self.packets.front()?.held_since_ns?;
        if now_ns.saturating_sub(since) < self.age_max_ns {
            return None;
        }
        self.packets.pop_front()
    }

    /// The oldest frame.
    pub fn pop(&mut self) -> Option<Packet> {
        self.packets.pop_front()
    }

    /// The oldest frame if it is of this pool.
    pub fn pop_of_pool(&mut self, pool: usize) -> Option<Packet> {
        if usize::from(self.packets.front()?.token.pool()) != pool {
            return None;
        }
        self.packets.pop_front()
    }

    /// The pool of the oldest frame.
    pub fn front_pool(&self) -> Option<usize> {
        self.packets.front().map(|p| usize::from(p.token.pool()))
    }
}

/// Tells control which neighbours are missing, without flooding it.
pub struct Asker {
    channel: Sender<Wanted>,
    asked_ms: HashMap<Wanted, u64>,
}

impl Asker {
    /// Asks over this channel.
    pub fn new(channel: Sender<Wanted>) -> Asker {
        Asker { channel, asked_ms: HashMap::with_capacity(WANTED_MAX) }
    }

    /// Asks for a neighbour unless it was asked for a moment ago.
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
    use crate::pool::{Pool, tests::pool};

    fn packet(pool: &mut Pool) -> Packet {
        let token = pool.take().unwrap();
        Packet { token, start: 256, len: 60, port: PortId(0), queue: 0, held_since_ns: None }
    }

    #[test]
    fn frames_are_held_up_to_the_limits_of_number_and_time() {
        let mut pool = pool(0, 8);
        let mut hold = Hold::new(2, 100);
        hold.keep(packet(&mut pool), 1_000).unwrap();
        hold.keep(packet(&mut pool), 1_050).unwrap();
        let refused = hold.keep(packet(&mut pool), 1_050).unwrap_err();
        pool.give(refused.token);
        assert!(hold.expired(1_099).is_none());
        let old = hold.expired(1_100).unwrap();
        // Held again: its first time counts.
        hold.keep(old, 1_100).unwrap();
        assert_eq!(hold.of_pool(0), 2);
        assert!(hold.expired(1_120).is_none(), "the one at the front is younger");
        for _ in 0..2 {
            let p = hold.expired(1_150).unwrap();
            pool.give(p.token);
        }
        assert_eq!((hold.len(), pool.free()), (0, pool.total()));
    }

    #[test]
    fn questions_are_few_and_bounded() {
        let (sender, receiver) = crossbeam::channel::bounded(2000);
        let (mut asker, counters) = (Asker::new(sender), NeighbourCounters::default());
        let wanted = |i: u32| Wanted { port: PortId(0), addr: std::net::Ipv4Addr::from(i).into() };
        (0..100).for_each(|now_ms| asker.ask(wanted(1), now_ms, &counters));
        assert_eq!(receiver.len(), 1);
        asker.ask(wanted(1), ASK_AGAIN_MS, &counters);
        assert_eq!(receiver.len(), 2);
        (0..3000).for_each(|i| asker.ask(wanted(i), ASK_AGAIN_MS, &counters));
        assert_eq!(receiver.len(), 1 + WANTED_MAX);
        assert_eq!(counters.suppressed.get(), 3000 - WANTED_MAX as u64);
        asker.ask(wanted(5000), 2 * ASK_AGAIN_MS, &counters);
        assert_eq!(receiver.len(), 2 + WANTED_MAX, "old questions make room");
    }

    #[test]
    fn control_that_does_not_listen_costs_nothing() {
        let (sender, _receiver) = crossbeam::channel::bounded(1);
        let (mut asker, counters) = (Asker::new(sender), NeighbourCounters::default());
        (0..10u8).for_each(|i| asker.ask(Wanted { port: PortId(0), addr: [10, 0, 0, i].into() }, 0, &counters));
        assert_eq!((counters.asked.get(), counters.suppressed.get()), (1, 9));
    }
}
