//! The atomics of the shared tables: the standard library's, or loom's when a model checks them.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

// "Publish first, look second" needs one total order of all publications and looks. Sequentially consistent accesses give it without a separate
// fence (on x86 the publishing exchange is a full fence already); loom derives that order from fences only.

/// Ordering for publishing an entry that every later look must see.
pub const PUBLISH: Ordering = if cfg!(loom) { Ordering::AcqRel } else { Ordering::SeqCst };
/// Ordering for looking at other workers' entries after publishing.
pub const LOOK: Ordering = if cfg!(loom) { Ordering::Acquire } else { Ordering::SeqCst };

/// Goes between publishing and looking.
#[inline(always)]
pub fn publish_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Overwrites a word that this thread owns. A concurrent compare-exchange that still expects the old value fails afterwards. Under loom this must
/// be a read-modify-write, because loom orders a compare-exchange only against other such operations.
#[inline(always)]
pub fn overwrite(word: &AtomicU64, value: u64) {
    #[cfg(loom)]
    word.swap(value, Ordering::Relaxed);
    #[cfg(not(loom))]
    word.store(value, Ordering::Relaxed);
}
