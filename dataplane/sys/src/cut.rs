//! Mapped files that somebody cuts (`> FILE`, truncate(2)): the process goes on.
//!
//! Access beyond the end of a mapped file raises SIGBUS, which would end the process. A seal would forbid the cut, but only files of
//! memfd_create(2) can have one, and these do not outlive their process. So a handler replaces the whole mapping by private, zeroed memory
//! when that happens: the contents are lost, and what is written from then on is not in the file. A whole mapping of zeros is consistent;
//! one of which parts remain would not be.
#![allow(unsafe_code, reason = "sigaction(2), mmap(2), and a list that a signal handler reads")]

use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Words at the start of the mapping that a replacement begins with, too.
pub const KEPT_WORDS: usize = 8;

const WHOLE: u8 = 0;
const REPLACING: u8 = 1;
const REPLACED: u8 = 2;

/// A mapping that outlives a cut of its file.
#[derive(Debug)]
pub struct CutGuard {
    addresses: Range<usize>,
    words: &'static [AtomicU64],
    kept: [u64; KEPT_WORDS],
    state: AtomicU8,
    next: *const CutGuard,
}

// SAFETY: `next` points to a guard that lives as long as the process and is never written to again; everything else is Sync.
unsafe impl Sync for CutGuard {}
// SAFETY: as above.
unsafe impl Send for CutGuard {}

/// All guards, the newest first.
static GUARDS: AtomicPtr<CutGuard> = AtomicPtr::new(ptr::null_mut());
static HANDLER: Once = Once::new();

impl CutGuard {
    /// Whether the file was cut, so that the memory is no longer the file's.
    pub fn is_cut(&self) -> bool {
        self.state.load(Acquire) != WHOLE
    }

    /// Replaces the mapping, or waits until another thread has. False if there is no memory for it. Called in a signal handler: it makes
    /// system calls, but takes no lock and allocates nothing.
    fn replace(&self) -> bool {
        if let Err(mut state) = self.state.compare_exchange(WHOLE, REPLACING, AcqRel, Acquire) {
            while state == REPLACING {
                std::hint::spin_loop();
                state = self.state.load(Acquire);
            }
            return true;
        }
        let (at, bytes) = (ptr::without_provenance_mut::<c_void>(self.addresses.start), self.addresses.len());
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is this guard's mapping, and the rest of the address space that was reserved for it. References to it are to
        // atomics, which have no invalid bit patterns.
        if unsafe { mmap_anonymous(at, bytes, ProtFlags::READ | ProtFlags::WRITE, flags) }.is_err() {
            return false;
        }
        self.words.iter().zip(self.kept).for_each(|(word, kept)| word.store(kept, Relaxed));
        self.state.store(REPLACED, Release);
        true
    }
}

/// Guards a mapping of [`crate::memory::file_words`]. `bytes` is the length of its file, in whole pages of its file system; the first words
/// are kept as they are now.
///
/// # Errors
/// System errors: the handler cannot be installed.
pub fn guard(words: &'static [AtomicU64], bytes: usize) -> io::Result<&'static CutGuard> {
    let mut installed = Ok(());
    HANDLER.call_once(|| installed = install());
    installed?;
    let start = words.as_ptr().addr();
    let kept = std::array::from_fn(|i| words.get(i).map_or(0, |word| word.load(Relaxed)));
    // Leaked: the handler may read it until the process ends.
    let guard = Box::leak(Box::new(CutGuard {
        addresses: start..start + bytes,
        words,
        kept,
        state: AtomicU8::new(WHOLE),
        next: GUARDS.load(Acquire),
    }));
    loop {
        let newest = guard.next.cast_mut();
        match GUARDS.compare_exchange(newest, guard, AcqRel, Acquire) {
            Ok(_) => return Ok(guard),
            Err(other) => guard.next = other,
        }
    }
}

fn install() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction, with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe, and the action is valid.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// After it returns, the access is made again: in the replaced memory, or, without a handler, to end the process as before.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: that of a fault has an address.
    let at = unsafe { info.si_addr() }.addr();
    let mut guard: *const CutGuard = GUARDS.load(Acquire);
    // SAFETY: guards are never freed, and complete before they are in the list.
    while let Some(this) = unsafe { guard.as_ref() } {
        if this.addresses.contains(&at) && this.replace() {
            return;
        }
        guard = this.next;
    }
    // SAFETY: the default action may always be set.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::file_words;
    use std::fs::File;
    use std::os::fd::AsFd;

    const BYTES: usize = 5 << 20;

    fn mapped(tag: &str) -> (File, &'static [AtomicU64]) {
        let path = format!("/dev/shm/nm-cut-{tag}-{}", std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(BYTES as u64).unwrap();
        let words = file_words(file.as_fd(), BYTES / size_of::<u64>()).unwrap();
        words.iter().enumerate().for_each(|(i, word)| word.store(i as u64 + 1, Relaxed));
        (file, words)
    }

    #[test]
    fn a_cut_file_leaves_zeroed_memory_and_the_first_words() {
        for left in [0, 4_096, BYTES as u64 / 2] {
            let (file, words) = mapped("one");
            let (other_file, other) = mapped("two");
            let (first, second) = (guard(words, BYTES).unwrap(), guard(other, BYTES).unwrap());
            assert!(!first.is_cut() && !second.is_cut());
            file.set_len(left).unwrap();
            // Several threads meet the end at the same time.
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    scope.spawn(move || words[words.len() - 1 - thread * 1_000].fetch_add(7, Relaxed));
                }
            });
            assert!(first.is_cut() && !second.is_cut());
            let sum: u64 = words[KEPT_WORDS..].iter().map(|word| word.load(Relaxed)).sum();
            assert_eq!(sum, 4 * 7, "everything else is zero");
            assert!(words[..KEPT_WORDS].iter().enumerate().all(|(i, word)| word.load(Relaxed) == i as u64 + 1));
            assert_eq!((file.metadata().unwrap().len(), other[9].load(Relaxed)), (left, 10), "the other file is untouched");
            drop(other_file);
        }
    }
}
