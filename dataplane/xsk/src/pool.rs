//! A worker's frames.
//!
//! All workers share a UMEM; each is the home of an equal share of its frames. A frame handed over to another worker returns to its home
//! when it is free again.

use std::sync::Arc;

use arrayvec::ArrayVec;
use xsk_rs::FrameDesc;

use crate::umem::{Frames, PoolId, RingId, SEGMENTS_MAX, Token};

/// The locations of the frames of a worker's share. `free + fill + tx + held + in_hand + away = total`, always.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrameAccount {
    pub total: u32,
    pub free: u32,
    /// With the kernel for receiving: on fill rings, or received and still on the rx rings.
    pub fill: u32,
    /// With the kernel for sending: on tx rings, or sent and still on the completion rings.
    pub tx: u32,
    /// Held for neighbours.
    pub held: u32,
    /// With the worker: lent to the packet path for building rejects.
    pub in_hand: u32,
    /// Frames handed over to other workers minus frames taken over from them. Summed over all workers: frames in transit.
    pub away: i32,
}

impl FrameAccount {
    /// Whether every frame is accounted for.
    pub fn closes(&self) -> bool {
        let here = self.free + self.fill + self.tx + self.held + self.in_hand;
        i64::from(here) + i64::from(self.away) == i64::from(self.total)
    }

    /// The sum of this account and another worker's.
    #[must_use]
    pub fn and(&self, other: &FrameAccount) -> FrameAccount {
        FrameAccount {
            total: self.total + other.total,
            free: self.free + other.free,
            fill: self.fill + other.fill,
            tx: self.tx + other.tx,
            held: self.held + other.held,
            in_hand: self.in_hand + other.in_hand,
            away: self.away + other.away,
        }
    }
}

/// One worker's share of a UMEM.
pub struct FramePool {
    frames: Arc<Frames>,
    first: usize,
    free: Vec<FrameDesc>,
    /// Free frames of other shares, to be returned.
    strays: Vec<FrameDesc>,
    /// See [`FrameAccount::away`].
    away: i32,
}

impl FramePool {
    /// A worker's share, with all frames free.
    pub(crate) fn of_worker(frames: &Arc<Frames>, worker: u32) -> FramePool {
        let (first, free) = frames.share_of(worker);
        FramePool::new(frames.clone(), first, free.to_vec())
    }

    /// The frames from number `first` on, all free.
    pub(crate) fn new(frames: Arc<Frames>, first: usize, free: Vec<FrameDesc>) -> FramePool {
        FramePool { frames, first, free, strays: Vec::new(), away: 0 }
    }

    /// The id of its UMEM.
    pub fn id(&self) -> PoolId {
        self.frames.id()
    }

    /// The number of frames in the share.
    pub fn total(&self) -> u32 {
        self.frames.share()
    }

    /// The number of free frames.
    pub fn free(&self) -> u32 {
        (self.free.len() + self.strays.len()) as u32
    }

    /// The number of free frames that can be taken: those of this share.
    pub fn takeable(&self) -> usize {
        self.free.len()
    }

    /// Frames handed over minus frames taken over.
    pub fn away(&self) -> i32 {
        self.away
    }

    /// Takes a free frame.
    pub fn take(&mut self) -> Option<Token> {
        self.free.pop().map(|desc| self.frames.token(desc))
    }

    /// Frees the frames of a packet.
    pub fn give(&mut self, token: Token) {
        assert_eq!(token.pool(), self.frames.id(), "a frame returns to the pool it came from");
        let (first, rest) = token.into_descs();
        self.give_desc(first);
        rest.into_iter().flat_map(|rest| *rest).for_each(|desc| self.give_desc(desc));
    }

    /// Frees a frame of this or another share.
    #[inline]
    fn give_desc(&mut self, desc: FrameDesc) {
        if self.frames.index(&desc).wrapping_sub(self.first) < self.frames.share() as usize {
            self.free.push(desc);
        } else {
            self.strays.push(desc);
        }
    }

    /// Records frames that are handed over.
    pub fn hand_over(&mut self, token: &Token) {
        debug_assert_eq!(token.pool(), self.frames.id());
        self.away = self.away.wrapping_add_unsigned(token.segments() as u32);
    }

    /// Records frames that are taken over.
    pub fn take_over(&mut self, token: &Token) {
        debug_assert_eq!(token.pool(), self.frames.id());
        self.away = self.away.wrapping_sub_unsigned(token.segments() as u32);
    }

    /// Records that a closed queue's frames leave this worker.
    pub(crate) fn leave_behind(&mut self, frames: u32) {
        self.away = self.away.wrapping_add_unsigned(frames);
    }

    /// Takes a free frame of another share, with the worker to return it to.
    pub fn stray(&mut self) -> Option<(Token, usize)> {
        let token = self.frames.token(self.strays.pop()?);
        let home = self.frames.home(&token);
        Some((token, home))
    }

    /// Makes a token of a frame that came off a ring.
    #[inline]
    pub(crate) fn token_of(&self, desc: FrameDesc, ring_id: RingId) -> Token {
        self.frames.take(&desc, ring_id);
        self.frames.token(desc)
    }

    /// Frees a sent frame that came off a ring.
    #[inline]
    pub(crate) fn complete(&mut self, desc: FrameDesc, ring_id: RingId) {
        self.frames.take(&desc, ring_id);
        self.give_desc(desc);
    }

    /// Frees a staged frame that does not go onto a ring.
    pub(crate) fn give_up(&mut self, desc: FrameDesc) {
        self.give_desc(desc);
    }

    /// Takes a free frame for a ring.
    pub(crate) fn take_desc(&mut self) -> Option<FrameDesc> {
        self.free.pop()
    }

    /// Records frames that go onto a ring. Call this before the kernel can see them.
    #[inline]
    pub(crate) fn put(&self, descs: &[FrameDesc], ring_id: RingId) {
        descs.iter().for_each(|desc| self.frames.put(desc, ring_id));
    }

    /// Records frames that did not fit onto the ring.
    pub(crate) fn take_off(&self, descs: &[FrameDesc], ring_id: RingId) {
        descs.iter().for_each(|desc| self.frames.take(desc, ring_id));
    }

    /// Offset of the data in [`FramePool::bytes`].
    #[inline]
    pub fn data_start(&self, token: &Token) -> usize {
        token.desc().addr() & (self.frames.frame_size() - 1)
    }

    /// Bytes of data that fit into a frame.
    pub fn room(&self, token: &Token) -> usize {
        self.frames.frame_size() - self.data_start(token)
    }

    /// Frames that a packet may have.
    pub fn segments_max(&self) -> usize {
        self.frames.segments_max()
    }

    /// The whole buffer of the first frame: headroom, data, tailroom.
    #[inline]
    pub fn bytes<'f>(&'f self, token: &'f mut Token) -> &'f mut [u8] {
        self.frames.bytes(token)
    }

    /// The same, and the data of the frames behind it.
    pub fn bytes_and_tail<'f>(&'f self, token: &'f mut Token, tail: &mut ArrayVec<&'f [u8], SEGMENTS_MAX>) -> &'f mut [u8] {
        self.frames.bytes_and_tail(token, tail)
    }

    /// Sets `bytes[start..start + len]` as the data of the first frame. Moves the bytes if they do not start where the descriptor points, which
    /// happens only when the link-layer header has changed its length. False if they do not fit.
    pub fn place(&self, token: &mut Token, start: usize, len: usize) -> bool {
        let data_start = self.data_start(token);
        if len > self.frames.frame_size() - data_start {
            return false;
        }
        if start != data_start {
            self.bytes(token).copy_within(start..start + len, data_start);
        }
        self.frames.set_len(token, len);
        true
    }

    /// Copies a packet of another pool, in pieces, into free frames of this one.
    pub fn copy_from(&mut self, pieces: &[&[u8]]) -> Result<Token, CopyError> {
        let mut left = Pieces { pieces, taken: 0 };
        let mut token = self.copy_frame(&mut left)?;
        while !left.is_empty() {
            let next = if token.segments() < self.frames.segments_max() { self.copy_frame(&mut left) } else { Err(CopyError::TooLong) };
            match next {
                Ok(next) => token.append(next),
                Err(e) => {
                    self.give(token);
                    return Err(e);
                }
            }
        }
        Ok(token)
    }

    /// Fills one frame.
    fn copy_frame(&mut self, left: &mut Pieces<'_>) -> Result<Token, CopyError> {
        let mut token = self.take().ok_or(CopyError::Empty)?;
        let start = self.data_start(&token);
        let len = left.copy_to(&mut self.bytes(&mut token)[start..]);
        self.place(&mut token, start, len);
        Ok(token)
    }
}

/// What is left to be copied of a packet in pieces.
struct Pieces<'p> {
    pieces: &'p [&'p [u8]],
    /// Bytes of the first one that are copied.
    taken: usize,
}

impl Pieces<'_> {
    fn is_empty(&self) -> bool {
        self.pieces.iter().map(|piece| piece.len()).sum::<usize>() == self.taken
    }

    /// Copies as many bytes as fit, and returns their number.
    fn copy_to(&mut self, mut room: &mut [u8]) -> usize {
        let before = room.len();
        while let Some((piece, rest)) = self.pieces.split_first() {
            let piece = &piece[self.taken..];
            let n = piece.len().min(room.len());
            room[..n].copy_from_slice(&piece[..n]);
            room = &mut room[n..];
            if n < piece.len() {
                self.taken += n;
                break;
            }
            (self.pieces, self.taken) = (rest, 0);
        }
        before - room.len()
    }
}

/// Why a frame could not be copied into another pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyError {
    /// No free frame in the target pool.
    Empty,
    /// Longer than the frames of a packet may be in the target pool.
    TooLong,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::umem::FrameSizes;

    /// The pool of the only worker.
    pub fn pool(id: PoolId, share: u32) -> FramePool {
        FramePool::of_worker(&frames(id, 1, share), 0)
    }

    pub fn frames(id: PoolId, workers: u32, share: u32) -> Arc<Frames> {
        let sizes = FrameSizes { share, frame: 2048, headroom: 0, ring: 64, huge_pages: false, segmented: false };
        Frames::new(id, workers, sizes).expect("needs root or CAP_NET_RAW")
    }

    #[test]
    fn frames_are_disjoint_have_headroom_and_return() {
        let mut pool = pool(3, 8);
        let mut tokens: Vec<Token> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((tokens.len(), pool.free()), (8, 0));
        for (i, token) in tokens.iter_mut().enumerate() {
            assert!(pool.data_start(token) >= nomagic_core::frame::HEADROOM_MIN);
            pool.bytes(token).fill(i as u8);
        }
        for (i, token) in tokens.iter_mut().enumerate() {
            let bytes = pool.bytes(token);
            assert!(bytes.len() == 2048 && bytes.iter().all(|&b| b == i as u8));
        }
        tokens.into_iter().for_each(|t| pool.give(t));
        assert_eq!(pool.free(), pool.total());
    }

    #[test]
    fn a_handed_over_frame_returns_home() {
        let frames = frames(0, 2, 4);
        let (mut a, mut b) = (FramePool::of_worker(&frames, 0), FramePool::of_worker(&frames, 1));
        let token = a.take().unwrap();
        a.hand_over(&token);
        b.take_over(&token);
        let account = |p: &FramePool| FrameAccount { total: p.total(), free: p.free(), away: p.away(), ..FrameAccount::default() };
        b.give(token);
        assert!(account(&a).closes() && account(&b).closes(), "{:?} {:?}", account(&a), account(&b));
        assert_eq!((account(&a).away, account(&b).away, b.free()), (1, -1, 5));
        let own: Vec<Token> = std::iter::from_fn(|| b.take()).collect();
        assert_eq!(own.len(), 4, "another share's frames are not used");
        let (stray, home) = b.stray().unwrap();
        assert_eq!((home, b.stray().is_none()), (0, true));
        b.hand_over(&stray);
        a.take_over(&stray);
        a.give(stray);
        own.into_iter().for_each(|t| b.give(t));
        assert_eq!((account(&a).and(&account(&b)).away, a.free(), b.free()), (0, 4, 4));
    }

    #[test]
    fn frames_on_the_rings_of_a_closed_queue_are_reclaimed() {
        let frames = frames(0, 1, 8);
        let mut pool = FramePool::of_worker(&frames, 0);
        let (on, off) = ([pool.take_desc().unwrap(), pool.take_desc().unwrap()], pool.take_desc().unwrap());
        pool.put(&on, 7);
        pool.put(&[off], 8);
        pool.leave_behind(2);
        let tokens = frames.reclaim(7);
        assert_eq!((tokens.len(), frames.reclaim(7).len()), (2, 0));
        for token in tokens {
            pool.take_over(&token);
            pool.give(token);
        }
        assert_eq!((pool.free(), pool.away()), (7, 0));
        pool.complete(off, 8);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn moved_data_is_shifted_back_to_the_descriptors_start() {
        let mut pool = pool(0, 1);
        let mut token = pool.copy_from(&[b"....abcdef"]).unwrap();
        let start = pool.data_start(&token);
        assert!(pool.place(&mut token, start + 4, 6));
        assert_eq!(&pool.bytes(&mut token)[start..start + 6], b"abcdef");
        assert_eq!(token.head_len(), 6);
        pool.bytes(&mut token)[start - 2..start].copy_from_slice(b"<<");
        assert!(pool.place(&mut token, start - 2, 8));
        assert_eq!(&pool.bytes(&mut token)[start..start + 8], b"<<abcdef");
        assert!(!pool.place(&mut token, 0, 2048), "longer than what lies behind the headroom");
        pool.give(token);
        assert_eq!(pool.copy_from(&[&[0; 1793]]).unwrap_err(), CopyError::TooLong);
        let token = pool.copy_from(&[&[0; 1792]]).unwrap();
        assert_eq!(pool.copy_from(&[b"x"]).unwrap_err(), CopyError::Empty);
        pool.give(token);
    }

    #[test]
    fn a_long_packet_is_copied_into_several_frames_and_all_return() {
        let sizes = FrameSizes { share: 20, frame: 2048, headroom: 0, ring: 64, huge_pages: false, segmented: true };
        let mut pool = FramePool::of_worker(&Frames::new(0, 1, sizes).unwrap(), 0);
        let bytes: Vec<u8> = (0..9_014u32).map(|i| (i % 251) as u8).collect();
        for cut in [0, 1, 1_791, 1_792, 1_793, 9_014] {
            let (head, tail) = bytes.split_at(cut);
            let mut token = pool.copy_from(&[head, b"", tail]).unwrap();
            assert_eq!((token.segments(), token.head_len(), token.total_len(), pool.free()), (6, 1_792, 9_014, 14));
            let start = pool.data_start(&token);
            let whole = {
                let mut rest = ArrayVec::new();
                let head = pool.bytes_and_tail(&mut token, &mut rest)[start..].to_vec();
                [&[head.as_slice()], rest.as_slice()].concat().concat()
            };
            assert!(whole == bytes);
            pool.give(token);
            assert_eq!(pool.free(), 20);
        }
        assert_eq!(pool.copy_from(&[&[0; 1_792 * SEGMENTS_MAX + 1]]).unwrap_err(), CopyError::TooLong);
        let token = pool.copy_from(&[&[0; 1_792 * SEGMENTS_MAX]]).unwrap();
        assert_eq!(pool.copy_from(&[&[0; 9_014]]).unwrap_err(), CopyError::Empty);
        pool.give(token);
        assert_eq!(pool.free(), 20);
    }

    #[test]
    #[should_panic(expected = "returns to the pool it came from")]
    fn a_frame_of_another_pool_is_refused() {
        let (mut a, mut b) = (pool(0, 1), pool(1, 1));
        b.give(a.take().unwrap());
    }
}
