//! Memory with the `'static` lifetime: the connection table, and the BPF arrays shared with the XDP program.
//!
//! Mappings are never unmapped: the process's threads and the kernel read them until the process ends.
#![allow(unsafe_code, reason = "mmap(2) and madvise(2)")]

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Alignment of file mappings: the largest page size of x86-64, and of arm64 with 4 KiB pages, so that a file in a hugetlbfs fits too.
const RESERVED_PAGE: usize = 1 << 30;

/// A word type that zeroed shared memory may be viewed as.
///
/// # Safety
/// Every bit pattern must be valid, and access through `&Self` must be atomic.
unsafe trait Word: 'static {}
// SAFETY: atomics have no invalid bit patterns.
unsafe impl Word for AtomicU32 {}
// SAFETY: as above.
unsafe impl Word for AtomicU64 {}

/// Zeroed private memory that stays mapped until the process ends.
///
/// # Errors
/// System errors: ENOMEM; EINVAL for zero words, or more than the address space holds.
pub fn anonymous(words: usize) -> io::Result<&'static [AtomicU64]> {
    private(words, MapFlags::empty())
}

/// Like [`anonymous`], on preallocated huge pages.
///
/// # Errors
/// As [`anonymous`]; ENOMEM if too few of them are free.
pub fn anonymous_huge(words: usize) -> io::Result<&'static [AtomicU64]> {
    private(words, MapFlags::HUGETLB)
}

/// Like [`anonymous`], in 32-bit words.
///
/// # Errors
/// As [`anonymous`].
pub fn anonymous32(words: usize) -> io::Result<&'static [AtomicU32]> {
    private(words, MapFlags::empty())
}

/// Maps a BPF array map with 64-bit values.
///
/// # Errors
/// System errors: EINVAL and EPERM if the descriptor is not such a map.
pub fn bpf_words64(map: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU64]> {
    Ok(Mapping::shared(map, byte_count::<AtomicU64>(words)?, None)?.words())
}

/// Maps a BPF array map whose value size is a multiple of 8 bytes, viewed as 32-bit words.
///
/// # Errors
/// As [`bpf_words64`].
pub fn bpf_words32(map: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU32]> {
    Ok(Mapping::shared(map, byte_count::<AtomicU32>(words)?, None)?.words())
}

/// Maps the start of a file that is at least this long and does not shrink. Every page is allocated when this returns: the file system had
/// room for it (a shortage later would raise SIGBUS), and no worker takes a page fault that allocates. In a tmpfs, Linux 6.1 or later
/// collapses the pages into huge ones where it finds them, regardless of the mount's settings. This takes some milliseconds per huge page,
/// once; later mappings of the file reuse them.
///
/// # Errors
/// System errors; `StorageFull` if the file system has no room.
pub fn file_words(file: BorrowedFd<'_>, words: usize) -> io::Result<&'static [AtomicU64]> {
    let bytes = byte_count::<AtomicU64>(words)?;
    let mapping = Mapping::shared(file, bytes, Some(Reserved::new(bytes)?))?;
    // Advice only; some tmpfs mounts follow it at once.
    let _ = mapping.advise(Advice::HugePages);
    if let Err(error) = mapping.advise(Advice::Populate) {
        mapping.unmap();
        // Linux 5.14 or later returns EFAULT where a write would raise SIGBUS.
        return Err(if Errno::from_io_error(&error) == Some(Errno::FAULT) { io::ErrorKind::StorageFull.into() } else { error });
    }
    let _ = mapping.advise(Advice::Collapse);
    Ok(mapping.words())
}

fn private<W: Word>(words: usize, flags: MapFlags) -> io::Result<&'static [W]> {
    let mapping = Mapping::private(byte_count::<W>(words)?, flags)?;
    let _ = mapping.advise(Advice::HugePages);
    Ok(mapping.words())
}

fn byte_count<W: Word>(words: usize) -> io::Result<usize> {
    words.checked_mul(size_of::<W>()).filter(|&b| b > 0 && b <= isize::MAX as usize).ok_or(io::ErrorKind::InvalidInput.into())
}

/// A reserved range of address space that starts at a huge-page boundary.
struct Reserved(*mut c_void);

impl Reserved {
    /// Reserves this many bytes.
    fn new(bytes: usize) -> io::Result<Reserved> {
        let whole = bytes.checked_next_multiple_of(RESERVED_PAGE).and_then(|b| b.checked_add(RESERVED_PAGE));
        let room = whole.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: no address is requested, so no existing mapping is touched. Every mmap() is unsafe in rustix.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE) }?;
        // The unused part of the reservation stays: it costs address space, not memory.
        Ok(Reserved(at.map_addr(|a| a.next_multiple_of(RESERVED_PAGE))))
    }
}

/// Hints about the pages of a mapping. None of them changes the contents.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Advice {
    HugePages = libc::MADV_HUGEPAGE,
    Populate = libc::MADV_POPULATE_WRITE,
    Collapse = libc::MADV_COLLAPSE,
}

/// A readable and writable mapping without references into it. `bytes` is at least one.
struct Mapping {
    at: *mut c_void,
    bytes: usize,
}

impl Mapping {
    fn private(bytes: usize, flags: MapFlags) -> io::Result<Mapping> {
        // SAFETY: no address is requested, so no existing mapping is touched. Every mmap() is unsafe in rustix.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | flags) }?;
        Ok(Mapping { at, bytes })
    }

    /// Maps the start of a file or of a BPF array, at an address the kernel chooses or in the reserved range.
    fn shared(fd: BorrowedFd<'_>, bytes: usize, reserved: Option<Reserved>) -> io::Result<Mapping> {
        let (at, fixed) = reserved.map_or((ptr::null_mut(), MapFlags::empty()), |Reserved(at)| (at, MapFlags::FIXED));
        // SAFETY: the only existing mapping this replaces is the reservation made for it. Every mmap() is unsafe in rustix.
        let at = unsafe { mmap(at, bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | fixed, fd, 0) }?;
        Ok(Mapping { at, bytes })
    }

    /// A refused hint changes nothing.
    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is mapped, and its contents do not change. rustix does not know MADV_COLLAPSE, and its madvise() is unsafe too.
        let done = unsafe { libc::madvise(self.at, self.bytes, advice as libc::c_int) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn unmap(self) {
        // SAFETY: the range is mapped, and there are no references into it. Every munmap() is unsafe in rustix.
        let _ = unsafe { munmap(self.at, self.bytes) };
    }

    /// The whole mapping; it is never unmapped.
    fn words<W: Word>(self) -> &'static [W] {
        // SAFETY: the range is mapped, page-aligned, zeroed or filled by the kernel, and never unmapped; `Word` allows any bit pattern.
        unsafe { std::slice::from_raw_parts(self.at.cast::<W>(), self.bytes / size_of::<W>()) }
    }
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
        anonymous(0).unwrap_err();
        anonymous(usize::MAX).unwrap_err();
    }

    #[test]
    fn two_mappings_of_a_file_share_their_contents() {
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
    fn missing_huge_pages_are_reported_as_enomem() {
        match anonymous_huge(1 << 18) {
            Ok(words) => {
                words[(1 << 18) - 1].store(7, Relaxed);
                assert_eq!((words[0].load(Relaxed), words[(1 << 18) - 1].load(Relaxed)), (0, 7));
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOMEM), "{e}"),
        }
    }
}
