//! Shared memory for frames (UMEM), and tokens for exclusive access.
//!
//! A [`Token`] is exclusive access to the frames of one packet: one, or several for a packet that is longer than a frame (multi-buffer). It can be
//! neither copied nor created outside of this module, `pool` and `queue`, so its holder is the only user of the frames' bytes. Frames on a ring
//! belong to the kernel and have no token.
#![allow(unsafe_code, reason = "access to frames that the kernel also writes")]

use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use arrayvec::ArrayVec;
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

/// Maximum number of frames of one packet: what the kernel sends in copy mode through any driver (its default for `CONFIG_MAX_SKB_FRAGS`).
pub const SEGMENTS_MAX: usize = 17;

/// The descriptors of the frames of one packet.
pub(crate) type Segments = ArrayVec<FrameDesc, SEGMENTS_MAX>;

/// Exclusive access to the frames of one packet.
#[must_use = "a lost token is a lost frame"]
#[derive(Debug)]
pub struct Token {
    desc: FrameDesc,
    pool: PoolId,
    /// The frames behind the first one. Rare, and long: on the heap.
    rest: Option<Box<Segments>>,
}

impl Token {
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// Length of the data in the first frame, as set by the kernel or [`FramePool::place`].
    pub fn head_len(&self) -> usize {
        self.desc.lengths().data()
    }

    /// Length of the data in the frames behind the first one.
    #[inline]
    pub fn tail_len(&self) -> usize {
        self.rest().iter().map(|desc| desc.lengths().data()).sum()
    }

    /// Length of the data in all frames.
    pub fn total_len(&self) -> usize {
        self.head_len() + self.tail_len()
    }

    /// The number of frames.
    #[inline]
    pub fn segments(&self) -> usize {
        1 + self.rest().len()
    }

    pub(crate) fn desc(&self) -> &FrameDesc {
        &self.desc
    }

    /// The frames behind the first one.
    #[inline]
    pub(crate) fn rest(&self) -> &[FrameDesc] {
        self.rest.as_deref().map_or(&[], |rest| rest.as_slice())
    }

    /// Adds a frame behind the others.
    ///
    /// # Panics
    /// Panics if it has [`SEGMENTS_MAX`] frames: a caller's error.
    pub(crate) fn append(&mut self, next: Token) {
        assert_eq!(self.pool, next.pool, "the frames of a packet are of one pool");
        assert!(self.segments() < SEGMENTS_MAX && next.rest.is_none(), "a packet of too many frames");
        self.rest.get_or_insert_default().push(next.desc);
    }

    /// Gives the frames up, to a ring or a free list.
    pub(crate) fn into_descs(self) -> (FrameDesc, Option<Box<Segments>>) {
        (self.desc, self.rest)
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
    /// Whether a packet may have several frames: the sockets are bound with XDP_USE_SG.
    pub segmented: bool,
}

/// One UMEM, shared by all workers.
pub struct Frames {
    id: PoolId,
    umem: Umem,
    base: Base,
    frame_size: usize,
    share: u32,
    segments_max: usize,
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
        let (frame_size, segments_max) = (sizes.frame as usize, if sizes.segmented { SEGMENTS_MAX } else { 1 });
        Ok(Arc::new(Frames { id, umem, base, frame_size, share: sizes.share, segments_max, descs: descs.into(), ring_ids }))
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
        Token { desc, pool: self.id, rest: None }
    }

    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// The worker whose share the first frame is from.
    pub fn home(&self, token: &Token) -> usize {
        self.index(&token.desc) / self.share as usize
    }

    /// Takes the frames that were on a queue's rings when its socket was closed. Call it once per closed queue.
    pub(crate) fn reclaim(&self, ring_id: RingId) -> Vec<Token> {
        let held = self.ring_ids.iter().zip(&self.descs).filter(|(at, _)| at.compare_exchange(ring_id, NO_RING, Relaxed, Relaxed).is_ok());
        held.map(|(_, desc)| self.token(*desc)).collect()
    }

    /// Maximum number of frames of a packet.
    pub fn segments_max(&self) -> usize {
        self.segments_max
    }

    /// Buffer size in bytes.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// The whole buffer of the first frame: headroom, data, tailroom.
    #[inline]
    pub fn bytes<'f>(&'f self, token: &'f mut Token) -> &'f mut [u8] {
        assert_eq!(token.pool, self.id, "a frame is read in the pool it came from");
        // SAFETY: the token is the only access to this frame and is borrowed for the life of the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start_of(&token.desc), self.frame_size) }
    }

    /// The whole buffer of the first frame, and the data of those behind it, which `tail` must have room for.
    pub fn bytes_and_tail<'f>(&'f self, token: &'f mut Token, tail: &mut ArrayVec<&'f [u8], SEGMENTS_MAX>) -> &'f mut [u8] {
        assert_eq!(token.pool, self.id, "a frame is read in the pool it came from");
        for desc in token.rest() {
            let (offset, len) = (desc.addr() & (self.frame_size - 1), desc.lengths().data());
            assert!(len <= self.frame_size - offset, "data beyond the end of a frame");
            // SAFETY: the data lies in the frame, see the line above.
            let data = unsafe { self.start_of(desc).add(offset) };
            // SAFETY: the token is the only access to its frames and is borrowed for the life of the slices, which are of different frames.
            tail.push(unsafe { std::slice::from_raw_parts(data, len) });
        }
        self.bytes(token)
    }

    /// The start of a frame. `self.umem` keeps it mapped.
    #[inline]
    fn start_of(&self, desc: &FrameDesc) -> *mut u8 {
        let first = desc.addr() & !(self.frame_size - 1);
        debug_assert!(first + self.frame_size <= self.descs.len() * self.frame_size);
        // SAFETY: the frame lies in the UMEM: descriptors come only from it or its rings.
        unsafe { self.base.0.add(first) }.as_ptr()
    }

    /// Sets `len` bytes from the descriptor's start as the data of the first frame.
    pub(crate) fn set_len(&self, token: &mut Token, len: usize) {
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
