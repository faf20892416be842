//! The connection table's memory: this process's alone, or a file that the next process goes on with.
//!
//! A file is locked while a process uses it, so two never share one. Whatever lies at its path and is not the table that is wanted (of
//! another version, capacity or boot, or torn) is set aside under another name with a message; it is never overwritten.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nomagic_core::conntrack::{Conntrack, Expected, Flow, Recovered, recover};
use nomagic_core::services::Services;
use nomagic_sys::memory;
use nomagic_sys::process::effective_user;
use nomagic_sys::time::monotonic_ns;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::config::EdgeConfig;
use crate::error::EdgeError;

/// Attempts at opening a file that somebody renames or removes meanwhile.
const OPEN_TRIES: u32 = 8;
/// What is added to the name of a file that is set aside. There is one at the most: a newer one takes its place.
const ASIDE: &str = ".set-aside";
/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// A process's connection table.
pub struct Table {
    /// The table itself.
    pub conntrack: Conntrack<'static>,
    /// What an earlier process has left in it; `None`: it begins empty.
    pub taken_over: Option<Recovered>,
    /// Its file; locked until it is dropped.
    pub file: Option<RegionFile>,
}

impl Table {
    /// The table that the configuration asks for, with the earlier process's connections as far as they can go on under these Services.
    pub(crate) fn open(config: &EdgeConfig, services: &Services) -> Result<Table, EdgeError> {
        let capacity = config.conntrack_capacity;
        let seed = if config.hash_seed == 0 { RandomState::new().hash_one(std::process::id()) } else { config.hash_seed };
        if let Some(path) = &config.conntrack_file {
            return Table::in_file(path, capacity, seed, |flow| services.takes_over(flow));
        }
        let words = Conntrack::words_needed(capacity);
        let bytes = words * size_of::<u64>();
        let memory = if config.conntrack_huge_pages { memory::anonymous_huge(words) } else { memory::anonymous(words) };
        let memory = memory.map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::NOMEM) if config.conntrack_huge_pages => EdgeError::HugePages { pages: bytes.div_ceil(HUGE_PAGE) as u64 },
            _ => EdgeError::io(format!("memory for {capacity} connections"), e),
        })?;
        let conntrack = Conntrack::format(memory, capacity, seed, boot_id())
            .map_err(|e| EdgeError::Config(format!("conntrack capacity {capacity}: {e}")))?;
        Ok(Table { conntrack, taken_over: None, file: None })
    }

    /// The table in a file: the one that is there, if it is of this boot and for as many connections, or a new one with this seed. `judge` says what
    /// becomes of each connection, see [`recover`].
    pub fn in_file(path: &Path, capacity: u32, seed: u64, judge: impl FnMut(&Flow) -> Option<u32>) -> Result<Table, EdgeError> {
        let words = Conntrack::words_needed(capacity);
        let mut file = RegionFile::open(path)?;
        if file.len()? > 0 {
            match file.recover(capacity, words, judge) {
                Ok((conntrack, recovered)) => return Ok(Table { conntrack, taken_over: Some(recovered), file: Some(file) }),
                Err(why) => file = file.set_aside(&why)?,
            }
        }
        let memory = file.fill(words)?;
        let conntrack = Conntrack::format_zeroed(memory, capacity, seed, boot_id()).map_err(|e| file.error(e))?;
        tracing::info!("a new connection table begins in {}", path.display());
        Ok(Table { conntrack, taken_over: None, file: Some(file) })
    }
}

/// A file for a table: ours alone, and locked.
#[derive(Debug)]
pub struct RegionFile {
    path: PathBuf,
    file: File,
}

impl RegionFile {
    /// Opens the file, or makes an empty one. Whoever could write to it could lead connections elsewhere: so it must be a regular file
    /// of this user that nobody else may read or write.
    pub fn open(path: &Path) -> Result<RegionFile, EdgeError> {
        let refused = |detail: &str| EdgeError::TableFile { path: path.into(), detail: detail.into() };
        for _ in 0..OPEN_TRIES {
            let mut options = OpenOptions::new();
            // Not blocking: whatever lies there, opening it must not wait.
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
            let file = options.open(path).map_err(|e| match Errno::from_io_error(&e) {
                Some(Errno::LOOP) => refused("it is a symbolic link; name the file itself"),
                Some(Errno::NXIO) => refused("it is no regular file"),
                _ => EdgeError::io(format!("opening the connection table's file {}", path.display()), e),
            })?;
            let about = file.metadata().map_err(|e| EdgeError::io(format!("looking at {}", path.display()), e))?;
            if !about.is_file() {
                return Err(refused("it is no regular file"));
            }
            if about.uid() != effective_user() {
                return Err(refused(&format!("it belongs to user {}, this process runs as {}", about.uid(), effective_user())));
            }
            if about.mode() & 0o177 != 0 {
                return Err(refused(&format!("others may use it (mode {:04o}); `chmod 0600` it", about.mode() & 0o7777)));
            }
            if about.nlink() > 1 {
                return Err(refused("it has other names too (hard links)"));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(refused("another process uses it")),
                Err(TryLockError::Error(e)) => return Err(EdgeError::io(format!("locking {}", path.display()), e)),
            }
            // Locked, but perhaps no longer the one at that path.
            if fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (about.dev(), about.ino())) {
                return Ok(RegionFile { path: path.into(), file });
            }
        }
        Err(refused("somebody renames or removes it again and again"))
    }

    fn error(&self, detail: impl std::fmt::Display) -> EdgeError {
        EdgeError::TableFile { path: self.path.clone(), detail: detail.to_string() }
    }

    fn io(&self, what: &str, source: io::Error) -> EdgeError {
        EdgeError::io(format!("{what} {}", self.path.display()), source)
    }

    fn len(&self) -> Result<u64, EdgeError> {
        self.file.metadata().map(|m| m.len()).map_err(|e| self.io("looking at", e))
    }

    /// Bytes of a file for a table: whole pages, which are large ones in a hugetlbfs.
    fn bytes(&self, words: usize) -> Result<u64, EdgeError> {
        let page = self.file.metadata().map_err(|e| self.io("looking at", e))?.blksize().max(4_096);
        Ok((words as u64 * size_of::<u64>() as u64).next_multiple_of(page))
    }

    /// Takes over the table that is in it. `Err` says why not.
    fn recover(
        &self,
        capacity: u32,
        words: usize,
        judge: impl FnMut(&Flow) -> Option<u32>,
    ) -> Result<(Conntrack<'static>, Recovered), String> {
        let start_ns = monotonic_ns();
        let text = |e: EdgeError| e.to_string();
        let (len, wanted) = (self.len().map_err(text)?, self.bytes(words).map_err(text)?);
        if len != wanted {
            return Err(format!("its {len} bytes are not the {wanted} of a table for {capacity} connections"));
        }
        let memory = memory::file_words(self.file.as_fd(), words).map_err(|e| format!("it cannot be mapped: {e}"))?;
        let expected = Expected { capacity, boot_id: boot_id() };
        let (table, recovered) = recover(memory, expected, start_ns / 1_000_000, judge).map_err(|e| e.to_string())?;
        tracing::info!(
            "took over {} connections from the process before, which {}; {} were not whole, {} cannot go on with this configuration ({} ms)",
            recovered.connections,
            if recovered.detached { "ended in order" } else { "did not end in order" },
            recovered.not_whole,
            recovered.unwanted,
            (monotonic_ns() - start_ns) / 1_000_000,
        );
        Ok((table, recovered))
    }

    /// Gives the file another name, and begins a new one in its place.
    fn set_aside(self, why: &str) -> Result<RegionFile, EdgeError> {
        let aside = aside(&self.path);
        fs::rename(&self.path, &aside).map_err(|e| self.io(&format!("{why}; renaming to {}", aside.display()), e))?;
        tracing::warn!(
            "no connections are taken over from {}: {why}; it is set aside as {}, which may be removed",
            self.path.display(),
            aside.display()
        );
        RegionFile::open(&self.path)
    }

    /// Makes the empty file as large as the table: zeroed, and all of it there.
    fn fill(&self, words: usize) -> Result<&'static [std::sync::atomic::AtomicU64], EdgeError> {
        let bytes = self.bytes(words)?;
        let sized = self.file.set_len(bytes);
        let mapped = sized.and_then(|()| memory::file_words(self.file.as_fd(), words));
        mapped.map_err(|e| {
            // Gives back what there was of it.
            let _ = self.file.set_len(0);
            self.error(format!("no room for the table's {bytes} bytes in its file system: {e}"))
        })
    }
}

impl Drop for RegionFile {
    /// The mapping keeps the file open, and so the lock, for as long as the process lives: it is given back here.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Removes a table's file, and one that was set aside. False when there was none.
///
/// # Errors
/// When a process uses it, or it is none of ours.
pub fn remove(path: &Path) -> Result<bool, EdgeError> {
    let gone = |path: &Path| match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(EdgeError::io(format!("removing {}", path.display()), e)),
    };
    let _locked = match fs::symlink_metadata(path) {
        Ok(_) => Some(RegionFile::open(path)?),
        Err(_) => None,
    };
    Ok(gone(path)? | gone(&aside(path))?)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    name.into()
}

/// Identifies this boot of the machine. When the kernel does not tell, no two are alike.
fn boot_id() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match u128::from_str_radix(&text.trim().replace('-', ""), 16) {
        Ok(id) => [(id >> 64) as u64, id as u64],
        Err(_) => [0, 1].map(|i| RandomState::new().hash_one(i)),
    }
}
