//! The atomics of the shared tables: the standard library's, or loom's when a model checks them.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

// "Publish first, look second" needs one order of all publications and looks that everybody agrees on. Sequentially consistent accesses give
// it without a fence of its own (on x86 the publishing exchange is one already); loom knows that order from fences only.

/// How an entry is published that must be seen by whoever looks later.
pub const PUBLISH: Ordering = if cfg!(loom) { Ordering::AcqRel } else { Ordering::SeqCst };
/// How the entries of others are looked at after publishing one's own.
pub const LOOK: Ordering = if cfg!(loom) { Ordering::Acquire } else { Ordering::SeqCst };

/// Between publishing and looking.
#[inline(always)]
pub fn publish_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// A relaxed store to a word of one's own that others may still compare and exchange, who must not succeed afterwards. They cannot, since nothing comes
/// between what a compare-exchange reads and what it writes; loom only knows that of other such operations.
#[inline(always)]
pub fn overwrite(word: &AtomicU64, value: u64) {
    #[cfg(loom)]
    word.swap(value, Ordering::Relaxed);
    #[cfg(not(loom))]
    word.store(value, Ordering::Relaxed);
}
