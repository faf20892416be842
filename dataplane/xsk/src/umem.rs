//! Shared memory for frames (UMEM), and tokens for exclusive access.
//!
//! A [`Token`] is exclusive access to one frame. It can be neither copied nor created outside of this module, `pool` and `queue`, so its
//! holder is the only user of the frame's bytes. Frames on a ring belong to the kernel and have no token.
#![allow(unsafe_code, reason = "access to frames that the kernel also writes")]

use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use nomagic_sys::process::raise_memory_lock;
use rustix::io::Errno;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};
use xsk_rs::{FrameDesc, Umem};

use crate::error::{EdgeError, os_error};

/// Which UMEM a frame belongs to.
pub type PoolId = u8;

/// Identifies the rings of one queue; see [`Frames`].
pub type RingId = u16;

/// Not on a ring: free, or represented by a token.
const NO_RING: RingId = 0;

/// Exclusive access to one frame.
#[must_use = "a lost token is a lost frame"]
#[derive(Debug)]
pub struct Token {
    desc: FrameDesc,
    pool: PoolId,
}

impl Token {
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// Length of the data, as set by the kernel or [`FramePool::place`].
    pub fn data_len(&self) -> usize {
        self.desc.lengths().data()
    }

    pub(crate) fn desc(&self) -> &FrameDesc {
        &self.desc
    }

    /// Gives the frame up, to a ring.
    pub(crate) fn into_desc(self) -> FrameDesc {
        self.desc
    }
}

#[derive(Clone, Copy, Debug)]
pub struct FrameSizes {
    /// Frames per worker.
    pub share: u32,
    /// Bytes of a frame, a power of two.
    pub frame: u32,
    /// Headroom in addition to the 256 bytes of XDP.
    pub headroom: u32,
    /// Entries of its fill and completion rings.
    pub ring: u32,
    /// Use 2 MiB pages.
    pub huge_pages: bool,
}

/// One UMEM, shared by all workers.
pub struct Frames {
    id: PoolId,
    umem: Umem,
    base: Base,
    frame_size: usize,
    share: u32,
    descs: Box<[FrameDesc]>,
    /// The ring id of each frame: the frames on a socket's rings are found here when it is closed.
    ring_ids: Box<[AtomicU16]>,
}

/// The start of the UMEM.
struct Base(NonNull<u8>);

// SAFETY: the memory is not tied to a thread; tokens grant access frame by frame.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Frames {
    /// Maps and registers the frames of `workers` workers.
    pub fn new(id: PoolId, workers: u32, sizes: FrameSizes) -> Result<Arc<Frames>, EdgeError> {
        let invalid = |detail: String| EdgeError::Config(format!("packet memory: {detail}"));
        let mut frames = workers.checked_mul(sizes.share).ok_or_else(|| invalid("too many frames".into()))?;
        if sizes.huge_pages {
            frames = frames.next_multiple_of((2 << 20) / sizes.frame);
        }
        let bytes = u64::from(frames) * u64::from(sizes.frame);
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(sizes.frame).map_err(|e| invalid(e.to_string()))?)
            .frame_headroom(sizes.headroom)
            .fill_queue_size(QueueSize::new(sizes.ring).map_err(|e| invalid(e.to_string()))?)
            .comp_queue_size(QueueSize::new(sizes.ring).map_err(|e| invalid(e.to_string()))?)
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| invalid("no frames".into()))?;
        let (umem, descs) = Umem::new(config, count, sizes.huge_pages).map_err(|e| create_error(bytes, sizes.huge_pages, &e))?;
        let base = base_of(&umem, descs[0]);
        let ring_ids = descs.iter().map(|_| AtomicU16::new(NO_RING)).collect();
        Ok(Arc::new(Frames { id, umem, base, frame_size: sizes.frame as usize, share: sizes.share, descs: descs.into(), ring_ids }))
    }

    /// A worker's share: the number of its first frame, and its descriptors.
    pub(crate) fn share_of(&self, worker: u32) -> (usize, &[FrameDesc]) {
        let first = worker as usize * self.share as usize;
        (first, &self.descs[first..first + self.share as usize])
    }

    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Frames per worker.
    pub fn share(&self) -> u32 {
        self.share
    }

    /// Makes a token of a frame that has just come off a ring or a free list.
    pub(crate) fn token(&self, desc: FrameDesc) -> Token {
        Token { desc, pool: self.id }
    }

    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// The worker whose share the frame is from.
    pub fn home(&self, token: &Token) -> usize {
        self.index(&token.desc) / self.share as usize
    }

    /// Takes the frames that were on a queue's rings when its socket was closed. Call it once per closed queue.
    pub(crate) fn reclaim(&self, ring_id: RingId) -> Vec<Token> {
        let held = self.ring_ids.iter().zip(&self.descs).filter(|(at, _)| at.compare_exchange(ring_id, NO_RING, Relaxed, Relaxed).is_ok());
        held.map(|(_, desc)| Token { desc: *desc, pool: self.id }).collect()
    }

    /// Buffer size in bytes.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// The whole buffer: headroom, data, tailroom.
    #[inline]
    pub fn bytes<'f>(&'f self, token: &'f mut Token) -> &'f mut [u8] {
        assert_eq!(token.pool, self.id, "a frame is read in the pool it came from");
        let first = token.desc.addr() & !(self.frame_size - 1);
        debug_assert!(first + self.frame_size <= self.descs.len() * self.frame_size);
        // SAFETY: the frame lies in the UMEM: descriptors come only from it or its rings.
        let start = unsafe { self.base.0.add(first) };
        // SAFETY: `self.umem` keeps the memory mapped. The token is the only access to this frame and is borrowed for the life of the slice.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.frame_size) }
    }

    /// Sets `len` bytes from the descriptor's start as the data to send.
    pub(crate) fn set_len(&self, token: &mut Token, len: usize) {
        token.desc.set_options(0);
        // SAFETY: the descriptor is of this UMEM, and only the token's holder uses the frame.
        let mut data = unsafe { self.umem.data_mut(&mut token.desc) };
        data.cursor().set_pos(len);
    }

    /// The frame's index.
    #[inline]
    pub(crate) fn index(&self, desc: &FrameDesc) -> usize {
        desc.addr() >> self.frame_size.trailing_zeros()
    }

    /// Records that the frame goes onto a ring.
    #[inline]
    pub(crate) fn put(&self, desc: &FrameDesc, ring_id: RingId) {
        let at = &self.ring_ids[self.index(desc)];
        debug_assert_eq!(at.load(Relaxed), NO_RING, "a frame is on two rings");
        at.store(ring_id, Relaxed);
    }

    /// Records that the frame came off a ring.
    #[inline]
    pub(crate) fn take(&self, desc: &FrameDesc, ring_id: RingId) {
        let at = &self.ring_ids[self.index(desc)];
        debug_assert_eq!(at.load(Relaxed), ring_id, "a frame came off a ring that it was not on");
        at.store(NO_RING, Relaxed);
    }
}

fn base_of(umem: &Umem, first: FrameDesc) -> Base {
    let mut desc = first;
    let offset = desc.addr();
    // SAFETY: the descriptor is of this UMEM, and no socket or token exists yet.
    let mut data = unsafe { umem.data_mut(&mut desc) };
    // xsk-rs exposes only the part after the headroom; the mapping starts `offset` bytes before it.
    let at = data.contents_mut().as_mut_ptr().expose_provenance() - offset;
    Base(NonNull::new(std::ptr::with_exposed_provenance_mut(at)).expect("a mapping does not start at address 0"))
}

fn create_error(bytes: u64, huge_pages: bool, error: &(dyn std::error::Error + 'static)) -> EdgeError {
    let what = || format!("registering {bytes} bytes of packet memory");
    match os_error(error) {
        Some(Errno::NOMEM) if huge_pages => EdgeError::HugePages { pages: bytes.div_ceil(2 << 20) },
        Some(Errno::NOBUFS) => EdgeError::MemoryLock { what: what(), limit_bytes: raise_memory_lock() },
        Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges(what()),
        Some(code) => EdgeError::Umem { bytes, source: code.into() },
        None => EdgeError::Umem { bytes, source: std::io::Error::other(crate::error::chain(error)) },
    }
}
