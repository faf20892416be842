//! The connection table's file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::RegionError;
use nomagic_sys::memory;
use nomagic_sys::process::effective_user;
use nomagic_sys::shortage::remedy;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::aside;
use crate::error::EdgeError;

/// Attempts at opening a file that is renamed or removed meanwhile.
const OPEN_TRIES: u32 = 8;

/// Why a file is not the table that this process wants.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("its {len} bytes are not the {expected} of a table for {capacity} connections")]
    Length { len: u64, expected: u64, capacity: u32 },
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// A connection table's file: exclusive to this process, and locked.
#[derive(Debug)]
pub struct RegionFile {
    path: PathBuf,
    file: File,
}

impl RegionFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens or creates the file. Write access to it would allow redirecting connections, so it must be a regular file of this user without
    /// access for others.
    pub fn open(path: &Path) -> Result<RegionFile, EdgeError> {
        let refused = |detail: &str| EdgeError::TableFile { path: path.into(), detail: detail.into() };
        for _ in 0..OPEN_TRIES {
            let mut options = OpenOptions::new();
            // Non-blocking: opening a FIFO, for example, must not wait.
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
            let file = options.open(path).map_err(|e| match Errno::from_io_error(&e) {
                Some(Errno::LOOP) => refused("it is a symbolic link; name the file itself"),
                Some(Errno::NXIO) => refused("it is not a regular file"),
                _ => EdgeError::io(format!("opening the connection table's file {}", path.display()), e),
            })?;
            let about = file.metadata().map_err(|e| EdgeError::io(format!("reading the metadata of {}", path.display()), e))?;
            if !about.is_file() {
                return Err(refused("it is not a regular file"));
            }
            if about.uid() != effective_user() {
                return Err(refused(&format!("it belongs to user {}, this process runs as {}", about.uid(), effective_user())));
            }
            if about.mode() & 0o177 != 0 {
                return Err(refused(&format!("others have access to it (mode {:04o}); `chmod 0600` it", about.mode() & 0o7777)));
            }
            if about.nlink() > 1 {
                return Err(refused("it has other hard links"));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(refused("another process uses it")),
                Err(TryLockError::Error(e)) => return Err(EdgeError::io(format!("locking {}", path.display()), e)),
            }
            // The file is locked, but may no longer be the one at that path.
            if fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (about.dev(), about.ino())) {
                return Ok(RegionFile { path: path.into(), file });
            }
        }
        Err(refused("it is being renamed or removed repeatedly"))
    }

    pub(super) fn error(&self, detail: impl std::fmt::Display) -> EdgeError {
        EdgeError::TableFile { path: self.path.clone(), detail: detail.to_string() }
    }

    pub(super) fn io(&self, what: &str, source: io::Error) -> EdgeError {
        EdgeError::io(format!("{what} {}", self.path.display()), source)
    }

    pub(super) fn len(&self) -> Result<u64, EdgeError> {
        self.file.metadata().map(|m| m.len()).map_err(|e| self.io("reading the metadata of", e))
    }

    /// Size of a table's file in bytes: whole pages, which are huge ones in a hugetlbfs.
    pub(super) fn bytes(&self, words: usize) -> Result<u64, EdgeError> {
        let page = self.file.metadata().map_err(|e| self.io("reading the metadata of", e))?.blksize().max(4_096);
        Ok((words as u64 * size_of::<u64>() as u64).next_multiple_of(page))
    }

    /// Maps the table.
    ///
    /// # Errors
    /// A shortage, which says nothing about the file: it stays as it is.
    pub(super) fn map(&self, words: usize) -> Result<&'static [AtomicU64], EdgeError> {
        memory::file_words(self.file.as_fd(), words).map_err(|e| {
            self.error(format!(
                "its {} MiB cannot be mapped: {e}; free memory, or raise the limits of memory, address space (`ulimit -v`) and the file's \
                 file system, then start again: the file and its connections are left as they are",
                (words * size_of::<u64>()).div_ceil(1 << 20)
            ))
        })
    }

    /// Renames the file, and opens a new one at its path.
    pub(super) fn set_aside(self, why: &Unusable) -> Result<RegionFile, EdgeError> {
        let aside = aside::next(&self.path)?;
        fs::rename(&self.path, &aside).map_err(|e| self.io(&format!("{why}; renaming to {}", aside.display()), e))?;
        tracing::warn!(
            "no connections are taken over from {}: {why}; it is set aside as {}, which may be removed",
            self.path.display(),
            aside.display()
        );
        aside::limit(&self.path);
        RegionFile::open(&self.path)
    }

    /// Grows the empty file to the size of the table, zeroed and fully allocated.
    pub(super) fn fill(&self, words: usize) -> Result<&'static [AtomicU64], EdgeError> {
        let bytes = self.bytes(words)?;
        let sized = self.file.set_len(bytes);
        let mapped = sized.and_then(|()| memory::file_words(self.file.as_fd(), words));
        mapped.map_err(|e| {
            // Releases a partial allocation.
            let _ = self.file.set_len(0);
            let remedy = remedy(&e).unwrap_or("free room there, or set a smaller conntrack.capacity, and start again");
            self.error(format!("no room for the table's {bytes} bytes in its file system: {e}; {remedy}"))
        })
    }
}

impl Drop for RegionFile {
    /// The mapping keeps the file open for the life of the process, and with it the lock, so unlocks explicitly.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}
