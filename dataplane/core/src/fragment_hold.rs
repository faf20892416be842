//! Fragments that wait for the others of their datagram, and the room that they may take.
//!
//! The caller owns the frames; this is the order in which they leave. The room is bounded in buffers (a buffer has a size; a long frame has several)
//! and in time. A sender has a share of it. Whoever comes finds room: in a share that is used up, the oldest of the same sender makes room; if all
//! is used up, the oldest of all. So a flood from one address does not touch the others, and one from forged addresses shortens the time that
//! everybody's fragments may wait, which is milliseconds for most.

use std::collections::VecDeque;

use crate::frame::Waiting;

/// How long a fragment waits, milliseconds: longer than its first one waits for a next hop that does not answer (3 s), and less than the result
/// for the first one is remembered ([`FRAGMENTS_AGE_MAX_S`](crate::conntrack::FRAGMENTS_AGE_MAX_S)).
pub const WAIT_MAX_MS: u64 = 4_000;
/// What a sender may hold of it, buffers: two datagrams of 65,535 bytes on a link with an MTU of 1,280.
pub const SENDER_SHARE: usize = 128;
/// Senders are told apart by so many numbers.
const SENDERS: usize = 256;

/// Why a frame leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// What it waited for is there.
    Settled,
    /// It has waited for too long.
    Overdue,
}

struct Held<T> {
    frame: T,
    buffers: u16,
    waiting: Waiting,
    since_ms: u64,
}

/// The held fragments, oldest first.
pub struct FragmentHold<T> {
    frames: VecDeque<Held<T>>,
    buffers: usize,
    buffers_max: usize,
    /// Buffers by sender.
    senders: Box<[u16; SENDERS]>,
}

fn sender_of(waiting: &Waiting) -> usize {
    waiting.sender as usize % SENDERS
}

impl<T> FragmentHold<T> {
    /// Room for so many buffers, at least for one.
    pub fn new(buffers_max: usize) -> FragmentHold<T> {
        let buffers_max = buffers_max.max(1);
        FragmentHold { frames: VecDeque::with_capacity(buffers_max), buffers: 0, buffers_max, senders: Box::new([0; SENDERS]) }
    }

    /// Frames held.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The held frames.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.frames.iter().map(|held| &held.frame)
    }

    /// Holds a frame of so many buffers, and calls `evicted` with those that make room for it. One that is larger than all the room leaves at once.
    pub fn keep(&mut self, frame: T, buffers: usize, waiting: Waiting, now_ms: u64, mut evicted: impl FnMut(T)) {
        if buffers > self.buffers_max.min(SENDER_SHARE) {
            return evicted(frame);
        }
        let sender = sender_of(&waiting);
        let oldest_of_sender = |frames: &VecDeque<Held<T>>| frames.iter().position(|held| sender_of(&held.waiting) == sender);
        while usize::from(self.senders[sender]) + buffers > SENDER_SHARE
            && let Some(held) = oldest_of_sender(&self.frames).and_then(|place| self.frames.remove(place))
        {
            evicted(self.let_go(held));
        }
        while self.buffers + buffers > self.buffers_max
            && let Some(frame) = self.pop()
        {
            evicted(frame);
        }
        self.senders[sender] += buffers as u16;
        self.buffers += buffers;
        self.frames.push_back(Held { frame, buffers: buffers as u16, waiting, since_ms: now_ms });
    }

    /// Hands out at most `room` frames that wait no longer or have waited for too long, oldest first.
    pub fn release(&mut self, now_ms: u64, room: usize, is_settled: impl Fn(&Waiting) -> bool, mut out: impl FnMut(T, Leave)) {
        let leaves = |held: &Held<T>| {
            let overdue = now_ms.saturating_sub(held.since_ms) >= WAIT_MAX_MS;
            if is_settled(&held.waiting) { Some(Leave::Settled) } else { overdue.then_some(Leave::Overdue) }
        };
        let Some(first) = self.frames.iter().position(|held| leaves(held).is_some()) else { return };
        let (mut place, mut left) = (first, room);
        while left > 0 && place < self.frames.len() {
            match leaves(&self.frames[place]) {
                Some(why) => {
                    if let Some(held) = self.frames.remove(place) {
                        out(self.let_go(held), why);
                    }
                    left -= 1;
                }
                None => place += 1,
            }
        }
    }

    /// Removes the oldest frame.
    pub fn pop(&mut self) -> Option<T> {
        self.frames.pop_front().map(|held| self.let_go(held))
    }

    fn let_go(&mut self, held: Held<T>) -> T {
        let count = &mut self.senders[sender_of(&held.waiting)];
        *count = count.saturating_sub(held.buffers);
        self.buffers -= usize::from(held.buffers);
        held.frame
    }
}

#[cfg(test)]
mod tests;
