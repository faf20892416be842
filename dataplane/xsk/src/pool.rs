//! Frames in shared memory (UMEM), and the right to touch them.
//!
//! A [`Token`] is the right to one frame: it can be neither copied nor made outside of this module and `queue`, so whoever
//! has it is alone with the frame's bytes. Frames on a ring belong to the kernel and have no token.

use std::num::NonZeroU32;
use std::ptr::NonNull;

use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};
use xsk_rs::{FrameDesc, Umem};

use crate::error::{EdgeError, os_error};

/// Which pool a frame comes from and returns to.
pub type PoolId = u8;

/// The right to one frame.
#[must_use = "a lost token is a lost frame"]
#[derive(Debug)]
pub struct Token {
    desc: FrameDesc,
    pool: PoolId,
}

impl Token {
    /// The pool it returns to.
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// Bytes of data, as the kernel or [`Pool::place`] set them.
    pub fn data_len(&self) -> usize {
        self.desc.lengths().data()
    }

    /// Gives the frame away, to a ring.
    pub(crate) fn into_desc(self) -> FrameDesc {
        self.desc
    }
}

/// One UMEM and its free frames.
pub struct Pool {
    id: PoolId,
    umem: Umem,
    base: Base,
    frame_size: usize,
    frames: u32,
    free: Vec<FrameDesc>,
}

/// The start of the UMEM.
struct Base(NonNull<u8>);

// SAFETY: the memory is not tied to a thread; access is granted frame by frame through tokens.
unsafe impl Send for Base {}

/// Where the frames of a pool are. `free + fill + tx + held + in_hand = total`, always.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrameAccount {
    /// All frames.
    pub total: u32,
    /// Unused.
    pub free: u32,
    /// With the kernel for receiving: on fill rings, and received but not yet taken from the rx rings.
    pub fill: u32,
    /// With the kernel for sending: on tx rings, and sent but not yet taken from the completion rings.
    pub tx: u32,
    /// Waiting for neighbours.
    pub held: u32,
    /// With the worker: lent to the packet path to build rejects in.
    pub in_hand: u32,
}

impl FrameAccount {
    /// Whether every frame is somewhere.
    pub fn closes(&self) -> bool {
        self.free + self.fill + self.tx + self.held + self.in_hand == self.total
    }
}

impl Pool {
    /// Maps and registers `frames` frames of `frame_size` bytes; `ring_size` is that of its fill and completion rings.
    pub fn new(id: PoolId, frames: u32, frame_size: u32, ring_size: u32) -> Result<Pool, EdgeError> {
        let bytes = u64::from(frames) * u64::from(frame_size);
        let invalid = |detail: String| EdgeError::Config(format!("packet memory: {detail}"));
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_size).map_err(|e| invalid(e.to_string()))?)
            .fill_queue_size(QueueSize::new(ring_size).map_err(|e| invalid(e.to_string()))?)
            .comp_queue_size(QueueSize::new(ring_size).map_err(|e| invalid(e.to_string()))?)
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| invalid("no frames".into()))?;
        let (umem, free) = Umem::new(config, count, false).map_err(|e| create_error(bytes, &e))?;
        let base = base_of(&umem, free[0]);
        Ok(Pool { id, umem, base, frame_size: frame_size as usize, frames, free })
    }

    /// For binding sockets.
    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Its number.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// All frames.
    pub fn total(&self) -> u32 {
        self.frames
    }

    /// Unused frames.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// A free frame.
    pub fn take(&mut self) -> Option<Token> {
        self.free.pop().map(|desc| Token { desc, pool: self.id })
    }

    /// Takes a frame back.
    pub fn give(&mut self, token: Token) {
        assert_eq!(token.pool, self.id, "a frame returns to the pool it came from");
        self.free.push(token.desc);
    }

    /// A frame that came off one of this pool's rings.
    pub(crate) fn token_of(&self, desc: FrameDesc) -> Token {
        Token { desc, pool: self.id }
    }

    /// Takes back a frame that came off one of this pool's rings.
    pub(crate) fn give_desc(&mut self, desc: FrameDesc) {
        self.free.push(desc);
    }

    /// A free frame for one of this pool's rings.
    pub(crate) fn take_desc(&mut self) -> Option<FrameDesc> {
        self.free.pop()
    }

    /// Where the data starts in [`Pool::bytes`].
    #[inline]
    pub fn data_start(&self, token: &Token) -> usize {
        token.desc.addr() & (self.frame_size - 1)
    }

    /// The whole frame: headroom, data, tailroom.
    #[inline]
    pub fn bytes<'f>(&'f self, token: &'f mut Token) -> &'f mut [u8] {
        assert_eq!(token.pool, self.id, "a frame is read in the pool it came from");
        let first = token.desc.addr() & !(self.frame_size - 1);
        debug_assert!(first + self.frame_size <= self.frames as usize * self.frame_size);
        // SAFETY: the frame lies inside of the UMEM, which `self.umem` keeps mapped; descriptors only come from it or from
        // its rings. The token is the only right to this frame and is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.base.0.as_ptr().add(first), self.frame_size) }
    }

    /// Makes `bytes[start..start + len]` the data that will be sent. Moves the bytes when they start elsewhere than the
    /// descriptor says, which only happens when the link-layer header has grown or shrunk. False when they do not fit.
    pub fn place(&self, token: &mut Token, start: usize, len: usize) -> bool {
        let data_start = self.data_start(token);
        if len > self.frame_size - data_start {
            return false;
        }
        if start != data_start {
            self.bytes(token).copy_within(start..start + len, data_start);
        }
        token.desc.set_options(0);
        // SAFETY: the descriptor is of this UMEM and the token's holder alone uses the frame.
        let mut data = unsafe { self.umem.data_mut(&mut token.desc) };
        data.cursor().set_pos(len);
        true
    }

    /// Copies a frame of another pool into a free frame of this one. `Err` gives the reason: no free frame, or too long.
    pub fn copy_from(&mut self, data: &[u8]) -> Result<Token, CopyError> {
        let mut token = self.take().ok_or(CopyError::Empty)?;
        let start = self.data_start(&token);
        if data.len() > self.frame_size - start {
            self.give(token);
            return Err(CopyError::TooLong);
        }
        self.bytes(&mut token)[start..start + data.len()].copy_from_slice(data);
        self.place(&mut token, start, data.len());
        Ok(token)
    }
}

/// Why a frame could not be copied into another pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyError {
    /// No free frame there.
    Empty,
    /// Longer than a frame there.
    TooLong,
}

fn base_of(umem: &Umem, first: FrameDesc) -> Base {
    let mut desc = first;
    let offset = desc.addr();
    // SAFETY: the descriptor is of this UMEM, and no socket or token exists yet.
    let mut data = unsafe { umem.data_mut(&mut desc) };
    // xsk-rs hands out the part behind the headroom only; the mapping starts `offset` bytes before it.
    let at = data.contents_mut().as_mut_ptr().expose_provenance() - offset;
    Base(NonNull::new(std::ptr::with_exposed_provenance_mut(at)).expect("a mapping does not start at address 0"))
}

fn create_error(bytes: u64, error: &(dyn std::error::Error + 'static)) -> EdgeError {
    let what = || format!("registering {bytes} bytes of packet memory");
    match os_error(error) {
        Some(libc::ENOBUFS) => EdgeError::MemoryLock { what: what(), limit_bytes: crate::sys::raise_memory_lock() },
        Some(libc::EPERM | libc::EACCES) => EdgeError::Privileges { what: what() },
        Some(code) => EdgeError::Umem { bytes, source: std::io::Error::from_raw_os_error(code) },
        None => EdgeError::Umem { bytes, source: std::io::Error::other(crate::error::chain(error)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_disjoint_have_headroom_and_return() {
        let mut pool = Pool::new(3, 8, 2048, 64).expect("needs root or CAP_NET_RAW");
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
    fn data_that_moved_is_brought_back_to_where_the_descriptor_points() {
        let mut pool = Pool::new(0, 1, 2048, 64).expect("needs root or CAP_NET_RAW");
        let mut token = pool.copy_from(b"....abcdef").unwrap();
        let start = pool.data_start(&token);
        assert!(pool.place(&mut token, start + 4, 6));
        assert_eq!(&pool.bytes(&mut token)[start..start + 6], b"abcdef");
        assert_eq!(token.data_len(), 6);
        pool.bytes(&mut token)[start - 2..start].copy_from_slice(b"<<");
        assert!(pool.place(&mut token, start - 2, 8));
        assert_eq!(&pool.bytes(&mut token)[start..start + 8], b"<<abcdef");
        assert!(!pool.place(&mut token, 0, 2048), "longer than what lies behind the headroom");
        pool.give(token);
        assert_eq!(pool.copy_from(&[0; 1793]).unwrap_err(), CopyError::TooLong);
        let token = pool.copy_from(&[0; 1792]).unwrap();
        assert_eq!(pool.copy_from(b"x").unwrap_err(), CopyError::Empty);
        pool.give(token);
    }

    #[test]
    #[should_panic(expected = "returns to the pool it came from")]
    fn a_frame_of_another_pool_is_refused() {
        let mut a = Pool::new(0, 1, 2048, 64).expect("needs root or CAP_NET_RAW");
        let mut b = Pool::new(1, 1, 2048, 64).expect("needs root or CAP_NET_RAW");
        b.give(a.take().unwrap());
    }
}
