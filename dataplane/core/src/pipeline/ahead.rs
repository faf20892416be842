//! The first two passes over a batch: read all frames, and ask for the memory that their look-ups will want.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;

use super::Context;
use crate::conntrack::Ahead;
use crate::frame::{BATCH_MAX, Frame};
use crate::plain::Plain;

/// Frames whose headers are asked for before they are read. Frames lie at multiples of 2 KiB, so that all their headers fall into two of the 64
/// sets of a first-level cache, which hold 16 lines.
const HEADERS_AHEAD: usize = 12;

/// What the passes know of the frames. Not a word of it is written twice: clearing it for each batch would be a thirtieth of the packet path.
pub(super) struct Notes<'c> {
    read: [MaybeUninit<Option<Plain>>; BATCH_MAX],
    ahead: [MaybeUninit<Ahead<'c>>; BATCH_MAX],
}

impl Notes<'_> {
    pub(super) fn new() -> Self {
        Notes { read: [const { MaybeUninit::uninit() }; BATCH_MAX], ahead: [const { MaybeUninit::uninit() }; BATCH_MAX] }
    }
}

/// For each frame what [`Plain::read`] says, and, of plain ones, where the connection table seems to have their key.
///
/// # Panics
/// When there are more than [`BATCH_MAX`] frames.
#[inline(always)]
pub(super) fn look_ahead<'n, 'c>(
    ctx: &Context<'c>,
    frames: &[Frame<'_>],
    notes: &'n mut Notes<'c>,
) -> (&'n [Option<Plain>], &'n [Ahead<'c>]) {
    let Notes { read, ahead } = notes;
    let (read, ahead) = (&mut read[..frames.len()], &mut ahead[..frames.len()]);
    frames.iter().take(HEADERS_AHEAD).for_each(Frame::prefetch_head);
    for (i, ((frame, read), ahead)) in frames.iter().zip(&mut *read).zip(&mut *ahead).enumerate() {
        if let Some(later) = frames.get(i + HEADERS_AHEAD) {
            later.prefetch_head();
        }
        match read.write(Plain::read(frame)) {
            Some(plain) => {
                let hash = if plain.v6 { key_hash::<true>(ctx, frame, plain) } else { key_hash::<false>(ctx, frame, plain) };
                ahead.write(ctx.table.ahead(hash, plain.v6));
            }
            None => {
                ahead.write(Ahead::default());
            }
        }
    }
    // SAFETY: both slices are as long as `frames`, and the loop has written an element of both for each frame.
    let (read, ahead) = unsafe { (read.assume_init_ref(), ahead.assume_init_mut()) };

    let mut second: ArrayVec<u8, BATCH_MAX> = ArrayVec::new();
    for (i, ahead) in ahead.iter_mut().enumerate() {
        if !ctx.table.ahead_flow(ahead) {
            second.push(i as u8);
        }
    }
    for i in second {
        ctx.table.ahead_second(&mut ahead[usize::from(i)]);
    }
    (read, ahead)
}

#[inline(always)]
fn key_hash<const V6: bool>(ctx: &Context<'_>, frame: &Frame<'_>, plain: &Plain) -> u64 {
    ctx.table.hash_key(&plain.key::<V6>(frame.head()), V6)
}
