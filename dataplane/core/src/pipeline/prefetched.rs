//! The first two passes over a batch: parse all frames, and prefetch the memory that their look-ups will touch.
#![allow(unsafe_code, reason = "arrays that are written before they are read, without a first clearing")]

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;

use super::Context;
use crate::conntrack::Prefetched;
use crate::fast_parse::Plain;
use crate::frame::{BATCH_MAX, Frame};

/// Frames whose headers are prefetched before they are parsed. Frames lie at multiples of 2 KiB, so all headers fall into two of the 64 sets of
/// a first-level cache, which hold 16 lines.
const HEADERS_AHEAD: usize = 12;

/// What the first passes know of a frame.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'c> {
    /// The result of [`Plain::read`].
    pub read: Option<Plain>,
    /// Where the connection table seems to have a plain frame's key.
    pub prefetched: Prefetched<'c>,
}

/// One entry for each frame. Uninitialised, since clearing it for each batch would take a thirtieth of the packet path.
pub(super) struct BatchScratch<'c>([MaybeUninit<Ahead<'c>>; BATCH_MAX]);

impl BatchScratch<'_> {
    pub(super) fn new() -> Self {
        BatchScratch([const { MaybeUninit::uninit() }; BATCH_MAX])
    }
}

/// Parses the frames and prefetches their flows.
///
/// # Panics
/// When there are more than [`BATCH_MAX`] frames.
#[inline(always)]
pub(super) fn read_and_prefetch<'n, 'c>(ctx: &Context<'c>, frames: &[Frame<'_>], scratch: &'n mut BatchScratch<'c>) -> &'n [Ahead<'c>] {
    let places = &mut scratch.0[..frames.len()];
    frames.iter().take(HEADERS_AHEAD).for_each(Frame::prefetch_head);
    for (i, (frame, place)) in frames.iter().zip(&mut *places).enumerate() {
        if let Some(later) = frames.get(i + HEADERS_AHEAD) {
            later.prefetch_head();
        }
        let Some(plain) = Plain::read(frame) else {
            place.write(Ahead { read: None, prefetched: Prefetched::default() });
            continue;
        };
        let hash = if plain.v6 { key_hash::<true>(ctx, frame, &plain) } else { key_hash::<false>(ctx, frame, &plain) };
        place.write(Ahead { read: Some(plain), prefetched: ctx.table.prefetch_index(hash, plain.v6) });
    }
    // SAFETY: `places` is as long as `frames`, and the loop has written a place for each frame.
    let ahead = unsafe { places.assume_init_mut() };

    let mut second: ArrayVec<u8, BATCH_MAX> = ArrayVec::new();
    for (i, Ahead { prefetched, .. }) in ahead.iter_mut().enumerate() {
        if !ctx.table.prefetch_flow(prefetched) {
            second.push(i as u8);
        }
    }
    for i in second {
        ctx.table.prefetch_second(&mut ahead[usize::from(i)].prefetched);
    }
    ahead
}

#[inline(always)]
fn key_hash<const V6: bool>(ctx: &Context<'_>, frame: &Frame<'_>, plain: &Plain) -> u64 {
    ctx.table.hash_key(&plain.key::<V6>(frame.head()), V6)
}
