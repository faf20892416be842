//! Memory that outlives every borrow: the connection table, and the BPF arrays shared with the XDP program.
//!
//! Mappings are never undone: the process's threads and the kernel read them until the process ends.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// What mappings of files begin at a multiple of: the largest page of x86-64 and of arm64 with pages of 4 KiB, so that a file in a hugetlbfs fits too.
const RESERVED_PAGE: usize = 1 << 30;

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
/// SIGBUS), and no worker waits for one. In a tmpfs the pages become huge ones where Linux (6.1 or later) finds them, whatever its settings say: some
/// milliseconds each, once; whoever maps the file later finds them there.
pub fn file_words(file: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU64]> {
    let at = reserve(byte_count::<AtomicU64>(words)?)?;
    let mapped: &'static [AtomicU64] = map_at(at, words, libc::MAP_SHARED | libc::MAP_FIXED, Some(file))?;
    let (at, bytes) = (mapped.as_ptr().cast_mut().cast(), size_of_val(mapped));
    // SAFETY: the range was mapped above. Huge pages are advice, which some tmpfs follow at once; both calls leave the contents as they are.
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
    // SAFETY: as above. Advice too: a refusal changes nothing.
    unsafe { libc::madvise(at, bytes, libc::MADV_COLLAPSE) };
    Ok(mapped)
}

/// Address space that begins where a huge page may, and has room for so many bytes in whole pages of that size.
fn reserve(bytes: usize) -> io::Result<*mut libc::c_void> {
    let room =
        bytes.checked_next_multiple_of(RESERVED_PAGE).and_then(|b| b.checked_add(RESERVED_PAGE)).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: no address is asked for, so no existing mapping is touched.
    let at = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // What lies beside the part that is used stays reserved: address space, no memory.
    Ok(at.map_addr(|a| a.next_multiple_of(RESERVED_PAGE)))
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

fn byte_count<W: Word>(words: usize) -> io::Result<usize> {
    words.checked_mul(size_of::<W>()).filter(|&b| b > 0 && b <= isize::MAX as usize).ok_or(io::ErrorKind::InvalidInput.into())
}

fn map<W: Word>(words: usize, flags: i32, fd: Option<BorrowedFd<'_>>) -> io::Result<&'static [W]> {
    map_at(ptr::null_mut(), words, flags, fd)
}

/// With MAP_FIXED `wanted` must be address space of ours that nobody uses.
fn map_at<W: Word>(wanted: *mut libc::c_void, words: usize, flags: i32, fd: Option<BorrowedFd<'_>>) -> io::Result<&'static [W]> {
    let bytes = byte_count::<W>(words)?;
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: no address is asked for, so no existing mapping is touched; or one that was reserved for this.
    let at = unsafe { libc::mmap(wanted, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
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
    use std::os::fd::AsFd;
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
    fn a_file_keeps_what_was_written_through_another_mapping() {
        let path = format!("/dev/shm/nm-memory-{}", std::process::id());
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let words = (5 << 20) / size_of::<u64>();
        file.set_len(5 << 20).unwrap();
        let (first, second) = (file_words(file.as_fd(), words).unwrap(), file_words(file.as_fd(), words).unwrap());
        for place in [0, words / 2, words - 1] {
            first[place].store(place as u64 + 1, Relaxed);
            assert_eq!(second[place].load(Relaxed), place as u64 + 1);
        }
        assert!(first.as_ptr().addr().is_multiple_of(RESERVED_PAGE) && first.as_ptr() != second.as_ptr());
        assert!(file_words(file.as_fd(), 0).is_err() && file_words(file.as_fd(), usize::MAX / 8).is_err());
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
