//! Memory that outlives every borrow: the connection table, and the BPF arrays shared with the XDP program.
//!
//! Mappings are never undone: the process's threads and the kernel read them until the process ends.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A word that zeroed shared memory may be viewed as.
///
/// # Safety
/// Every bit pattern must be valid, and access through `&Self` must be atomic.
unsafe trait Word: 'static {}
// SAFETY: atomics have no invalid bit patterns.
unsafe impl Word for AtomicU32 {}
// SAFETY: as above.
unsafe impl Word for AtomicU64 {}

/// Zeroed private memory for the rest of the process's life.
pub fn anonymous(words: usize) -> io::Result<&'static [AtomicU64]> {
    map(words, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
}

/// As [`anonymous`], on huge pages that have been set aside; too few of them are ENOMEM.
pub fn anonymous_huge(words: usize) -> io::Result<&'static [AtomicU64]> {
    map(words, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, None)
}

/// The beginning of a file that is at least as long and stays so. Every page is there afterwards: the file system had room for it (later that would be a
/// SIGBUS), and no worker waits for one.
pub fn file_words(file: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU64]> {
    let mapped: &'static [AtomicU64] = map(words, libc::MAP_SHARED, Some(file))?;
    let (at, bytes) = (mapped.as_ptr().cast_mut().cast(), size_of_val(mapped));
    // SAFETY: the range was mapped above. Huge pages are advice; both calls leave the contents as they are.
    let populated = unsafe {
        libc::madvise(at, bytes, libc::MADV_HUGEPAGE);
        libc::madvise(at, bytes, libc::MADV_POPULATE_WRITE)
    };
    if populated != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: the range was mapped above, and nobody has it yet.
        unsafe { libc::munmap(at, bytes) };
        // Linux 5.14 or later says EFAULT where a write would be a SIGBUS.
        return Err(if error.raw_os_error() == Some(libc::EFAULT) { io::ErrorKind::StorageFull.into() } else { error });
    }
    Ok(mapped)
}

/// As [`anonymous`], in 32-bit words.
pub fn anonymous32(words: usize) -> io::Result<&'static [AtomicU32]> {
    map(words, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
}

/// An array map of 64-bit values.
pub fn bpf_words64(map_fd: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU64]> {
    map(words, libc::MAP_SHARED, Some(map_fd))
}

/// An array map whose values are whole numbers of 32-bit words, and of 8 bytes.
pub fn bpf_words32(map_fd: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU32]> {
    map(words, libc::MAP_SHARED, Some(map_fd))
}

fn map<W: Word>(words: usize, flags: i32, fd: Option<BorrowedFd<'_>>) -> io::Result<&'static [W]> {
    let bytes = words.checked_mul(size_of::<W>()).filter(|&b| b > 0 && b <= isize::MAX as usize).ok_or(io::ErrorKind::InvalidInput)?;
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: no address is asked for, so no existing mapping is touched.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if fd < 0 {
        // SAFETY: the range was mapped above. Advice only: a refusal changes nothing.
        unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
    }
    // SAFETY: `at` is page-aligned, `bytes` long, zeroed or filled by the kernel, and never unmapped; `Word` allows any bits.
    Ok(unsafe { std::slice::from_raw_parts(at.cast::<W>(), words) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn anonymous_memory_is_zeroed_and_writable() {
        let words = anonymous(10_000).unwrap();
        assert!(words.iter().all(|w| w.load(Relaxed) == 0));
        words[9_999].store(7, Relaxed);
        assert_eq!(words[9_999].load(Relaxed), 7);
        assert!(anonymous(0).is_err());
        assert!(anonymous(usize::MAX).is_err());
    }

    #[test]
    fn huge_pages_are_there_or_missed_by_name() {
        match anonymous_huge(1 << 18) {
            Ok(words) => {
                words[(1 << 18) - 1].store(7, Relaxed);
                assert_eq!((words[0].load(Relaxed), words[(1 << 18) - 1].load(Relaxed)), (0, 7));
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOMEM), "{e}"),
        }
    }
}
