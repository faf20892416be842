//! Fragments that wait for the others of their datagram, and the room that they may take.
//!
//! The caller owns the frames; this is the order in which they leave. The room is bounded in number (a frame has a bounded size, so in bytes, too)
//! and in time. A sender has a share of it. Whoever comes finds room: in a share that is used up, the oldest of the same sender makes room; if all
//! is used up, the oldest of all. So a flood from one address does not touch the others, and one from forged addresses shortens the time that
//! everybody's fragments may wait, which is milliseconds for most.

use std::collections::VecDeque;

use crate::frame::Waiting;

/// How long a fragment waits, milliseconds: longer than its first one waits for a next hop that does not answer (3 s), and less than the result
/// for the first one is remembered ([`FRAGMENTS_AGE_MAX_S`](crate::conntrack::FRAGMENTS_AGE_MAX_S)).
pub const WAIT_MAX_MS: u64 = 4_000;
/// What a sender may hold of it: two datagrams of 65,535 bytes on a link with an MTU of 1,280.
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
    waiting: Waiting,
    since_ms: u64,
}

/// The held fragments, oldest first.
pub struct FragmentHold<T> {
    frames: VecDeque<Held<T>>,
    frames_max: usize,
    /// Frames by sender.
    senders: Box<[u16; SENDERS]>,
}

fn sender_of(waiting: &Waiting) -> usize {
    waiting.sender as usize % SENDERS
}

impl<T> FragmentHold<T> {
    /// Room for so many frames, at least for one.
    pub fn new(frames_max: usize) -> FragmentHold<T> {
        let frames_max = frames_max.max(1);
        FragmentHold { frames: VecDeque::with_capacity(frames_max), frames_max, senders: Box::new([0; SENDERS]) }
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

    /// Holds a frame. Returns the one that makes room for it, if one must.
    pub fn keep(&mut self, frame: T, waiting: Waiting, now_ms: u64) -> Option<T> {
        let sender = sender_of(&waiting);
        let leaves = if usize::from(self.senders[sender]) >= SENDER_SHARE {
            self.frames.iter().position(|held| sender_of(&held.waiting) == sender)
        } else {
            (self.frames.len() >= self.frames_max).then_some(0)
        };
        let evicted = leaves.and_then(|place| self.frames.remove(place)).map(|held| self.let_go(held));
        self.senders[sender] += 1;
        self.frames.push_back(Held { frame, waiting, since_ms: now_ms });
        evicted
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
        *count = count.saturating_sub(1);
        held.frame
    }
}

#[cfg(test)]
mod tests;
