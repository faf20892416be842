//! The first two passes over a batch: parse all frames, and prefetch the memory that their look-ups will touch.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;

use super::Context;
use crate::conntrack::Prefetched;
use crate::fast_parse::Plain;
use crate::frame::{BATCH_MAX, Frame};

/// Frames whose headers are prefetched before they are parsed. Frames lie at multiples of 2 KiB, so all headers fall into two of the 64 sets of
/// a first-level cache, which hold 16 lines.
const HEADERS_AHEAD: usize = 12;

/// What the passes know of the frames. Uninitialised, since clearing it for each batch would take a thirtieth of the packet path.
pub(super) struct BatchScratch<'c> {
    read: [MaybeUninit<Option<Plain>>; BATCH_MAX],
    prefetched: [MaybeUninit<Prefetched<'c>>; BATCH_MAX],
}

impl BatchScratch<'_> {
    pub(super) fn new() -> Self {
        BatchScratch { read: [const { MaybeUninit::uninit() }; BATCH_MAX], prefetched: [const { MaybeUninit::uninit() }; BATCH_MAX] }
    }
}

/// For each frame the result of [`Plain::read`], and for plain ones the place where the connection table seems to have their key.
///
/// # Panics
/// When there are more than [`BATCH_MAX`] frames.
#[inline(always)]
pub(super) fn read_and_prefetch<'n, 'c>(
    ctx: &Context<'c>,
    frames: &[Frame<'_>],
    scratch: &'n mut BatchScratch<'c>,
) -> (&'n [Option<Plain>], &'n [Prefetched<'c>]) {
    let BatchScratch { read, prefetched } = scratch;
    let (read, prefetched) = (&mut read[..frames.len()], &mut prefetched[..frames.len()]);
    frames.iter().take(HEADERS_AHEAD).for_each(Frame::prefetch_head);
    for (i, ((frame, read), prefetched)) in frames.iter().zip(&mut *read).zip(&mut *prefetched).enumerate() {
        if let Some(later) = frames.get(i + HEADERS_AHEAD) {
            later.prefetch_head();
        }
        match read.write(Plain::read(frame)) {
            Some(plain) => {
                let hash = if plain.v6 { key_hash::<true>(ctx, frame, plain) } else { key_hash::<false>(ctx, frame, plain) };
                prefetched.write(ctx.table.prefetch_index(hash, plain.v6));
            }
            None => {
                prefetched.write(Prefetched::default());
            }
        }
    }
    // SAFETY: both slices are as long as `frames`, and the loop has written an element of both for each frame.
    let (read, prefetched) = unsafe { (read.assume_init_ref(), prefetched.assume_init_mut()) };

    let mut second: ArrayVec<u8, BATCH_MAX> = ArrayVec::new();
    for (i, prefetched) in prefetched.iter_mut().enumerate() {
        if !ctx.table.prefetch_flow(prefetched) {
            second.push(i as u8);
        }
    }
    for i in second {
        ctx.table.prefetch_second(&mut prefetched[usize::from(i)]);
    }
    (read, prefetched)
}

#[inline(always)]
fn key_hash<const V6: bool>(ctx: &Context<'_>, frame: &Frame<'_>, plain: &Plain) -> u64 {
    ctx.table.hash_key(&plain.key::<V6>(frame.head()), V6)
}
