//! Shared memory for frames (UMEM), and the right to touch one.
//!
//! A [`Token`] is the right to one frame: it can be neither copied nor made outside of this module, `pool` and `queue`, so whoever
//! has it is alone with the frame's bytes. Frames on a ring belong to the kernel and have no token.
#![allow(unsafe_code)]

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

/// Names the rings of one queue; see [`Frames`].
pub type Place = u16;

/// Not on a ring: free, or in somebody's hands.
const NO_RING: Place = 0;

/// The right to one frame.
#[must_use = "a lost token is a lost frame"]
#[derive(Debug)]
pub struct Token {
    desc: FrameDesc,
    pool: PoolId,
}

impl Token {
    /// The pool it belongs to.
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// Bytes of data, as the kernel or [`Pool::place`] set them.
    pub fn data_len(&self) -> usize {
        self.desc.lengths().data()
    }

    /// What the rings call the frame.
    pub(crate) fn desc(&self) -> &FrameDesc {
        &self.desc
    }

    /// Gives the frame away, to a ring.
    pub(crate) fn into_desc(self) -> FrameDesc {
        self.desc
    }
}

/// Sizes of a UMEM.
#[derive(Clone, Copy, Debug)]
pub struct FrameSizes {
    /// Frames of each worker.
    pub share: u32,
    /// Bytes of a frame, a power of two.
    pub frame: u32,
    /// Bytes before the data, beside the 256 of XDP.
    pub headroom: u32,
    /// Entries of its fill and completion rings.
    pub ring: u32,
    /// On pages of 2 MiB.
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
    /// On which queue's rings each frame is: what a socket held when it was closed is found here.
    places: Box<[AtomicU16]>,
}

/// The start of the UMEM.
struct Base(NonNull<u8>);

// SAFETY: the memory is not tied to a thread; access is granted frame by frame through tokens.
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
        let places = descs.iter().map(|_| AtomicU16::new(NO_RING)).collect();
        Ok(Arc::new(Frames { id, umem, base, frame_size: sizes.frame as usize, share: sizes.share, descs: descs.into(), places }))
    }

    /// A worker's share: the number of its first frame, and all of them.
    pub(crate) fn share_of(&self, worker: u32) -> (usize, &[FrameDesc]) {
        let first = worker as usize * self.share as usize;
        (first, &self.descs[first..first + self.share as usize])
    }

    /// Its number.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Frames of each worker.
    pub fn share(&self) -> u32 {
        self.share
    }

    /// The right to a frame that has just come off a ring or a free list.
    pub(crate) fn token(&self, desc: FrameDesc) -> Token {
        Token { desc, pool: self.id }
    }

    /// For binding sockets.
    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// The worker whose share a frame is of.
    pub fn home(&self, token: &Token) -> usize {
        self.index(&token.desc) / self.share as usize
    }

    /// The frames that a queue's rings held when its socket was closed. To be called once for each closed queue.
    pub(crate) fn reclaim(&self, place: Place) -> Vec<Token> {
        let held = self.places.iter().zip(&self.descs).filter(|(at, _)| at.compare_exchange(place, NO_RING, Relaxed, Relaxed).is_ok());
        held.map(|(_, desc)| Token { desc: *desc, pool: self.id }).collect()
    }

    /// Bytes of a frame.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// The whole frame: headroom, data, tailroom.
    #[inline]
    pub fn bytes<'f>(&'f self, token: &'f mut Token) -> &'f mut [u8] {
        assert_eq!(token.pool, self.id, "a frame is read in the pool it came from");
        let first = token.desc.addr() & !(self.frame_size - 1);
        debug_assert!(first + self.frame_size <= self.descs.len() * self.frame_size);
        // SAFETY: the frame lies inside of the UMEM, which `self.umem` keeps mapped; descriptors only come from it or from
        // its rings. The token is the only right to this frame and is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.base.0.as_ptr().add(first), self.frame_size) }
    }

    /// Makes `len` bytes from where the descriptor points the data that will be sent.
    pub(crate) fn set_len(&self, token: &mut Token, len: usize) {
        token.desc.set_options(0);
        // SAFETY: the descriptor is of this UMEM and the token's holder alone uses the frame.
        let mut data = unsafe { self.umem.data_mut(&mut token.desc) };
        data.cursor().set_pos(len);
    }

    /// A frame's number.
    #[inline]
    pub(crate) fn index(&self, desc: &FrameDesc) -> usize {
        desc.addr() >> self.frame_size.trailing_zeros()
    }

    /// The frame goes onto a ring.
    #[inline]
    pub(crate) fn put(&self, desc: &FrameDesc, place: Place) {
        let at = &self.places[self.index(desc)];
        debug_assert_eq!(at.load(Relaxed), NO_RING, "a frame is on two rings");
        at.store(place, Relaxed);
    }

    /// The frame came off a ring.
    #[inline]
    pub(crate) fn take(&self, desc: &FrameDesc, place: Place) {
        let at = &self.places[self.index(desc)];
        debug_assert_eq!(at.load(Relaxed), place, "a frame came off a ring that it was not on");
        at.store(NO_RING, Relaxed);
    }
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

fn create_error(bytes: u64, huge_pages: bool, error: &(dyn std::error::Error + 'static)) -> EdgeError {
    let what = || format!("registering {bytes} bytes of packet memory");
    match os_error(error) {
        Some(Errno::NOMEM) if huge_pages => EdgeError::HugePages { pages: bytes.div_ceil(2 << 20) },
        Some(Errno::NOBUFS) => EdgeError::MemoryLock { what: what(), limit_bytes: raise_memory_lock() },
        Some(Errno::PERM | Errno::ACCESS) => EdgeError::Privileges { what: what() },
        Some(code) => EdgeError::Umem { bytes, source: code.into() },
        None => EdgeError::Umem { bytes, source: std::io::Error::other(crate::error::chain(error)) },
    }
}
