//! The connection table's memory: private to this process, or a file that the next process continues with.
//!
//! A process locks the file while using it, so two processes never share one. A file that is not the expected table (other version,
//! capacity or boot, or torn) is renamed with a message; it is never overwritten. A shortage of memory or descriptors ends the start and
//! leaves the file: the next start continues with it.

mod aside;
mod file;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;

use nomagic_core::conntrack::{Conntrack, Expected, Flow, Recovered, recover};
use nomagic_core::services::Services;
use nomagic_sys::cut::{CutGuard, guard};
use nomagic_sys::memory;
use nomagic_sys::mount::is_in_memory;
use nomagic_sys::time::monotonic_ns;
use rustix::io::Errno;

use crate::config::EdgeConfig;
use crate::error::EdgeError;
pub use file::RegionFile;
use file::Unusable;

const HUGE_PAGE: usize = 2 << 20;

/// A process's connection table.
pub struct ConntrackMemory {
    pub conntrack: Conntrack<'static>,
    /// The flows recovered from an earlier process; `None`: the table started empty.
    pub taken_over: Option<Recovered>,
    /// Its file; locked until it is dropped.
    pub file: Option<TableFile>,
}

/// The file of the table in use.
pub struct TableFile {
    file: RegionFile,
    guard: &'static CutGuard,
    /// Its file system writes it to a disk.
    on_disk: bool,
}

impl TableFile {
    /// What is wrong with the file, for people.
    pub fn problem(&self) -> Option<String> {
        let path = self.file.path().display();
        if self.guard.is_cut() {
            return Some(format!(
                "conntrack.file: {path} was cut while it was in use: the connections in it are lost, and those since then are kept in memory \
                 only. Restart nomagic to keep connections again, and leave the file alone while nomagic runs"
            ));
        }
        self.on_disk.then(|| {
            format!(
                "conntrack.file: {path} is on a disk: the kernel writes the table back to it, and workers may have to wait for that. Use a \
                 directory in a tmpfs or hugetlbfs, such as /run/nomagic (`stat -f -c %T DIRECTORY` shows the file system)"
            )
        })
    }
}

impl ConntrackMemory {
    /// Opens the configured table. Keeps an earlier process's flows that these Services still have.
    pub(crate) fn open(config: &EdgeConfig, services: &Services) -> Result<ConntrackMemory, EdgeError> {
        let capacity = config.conntrack_capacity;
        let seed = if config.hash_seed == 0 { RandomState::new().hash_one(std::process::id()) } else { config.hash_seed };
        if let Some(path) = &config.conntrack_file {
            return ConntrackMemory::in_file(path, capacity, seed, |flow| services.takes_over(flow));
        }
        let words = Conntrack::words_needed(capacity);
        let bytes = words * size_of::<u64>();
        let memory = if config.conntrack_huge_pages { memory::anonymous_huge(words) } else { memory::anonymous(words) };
        let memory = memory.map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::NOMEM) if config.conntrack_huge_pages => EdgeError::HugePages { pages: bytes.div_ceil(HUGE_PAGE) as u64 },
            _ => EdgeError::io(format!("memory for {capacity} connections"), e),
        })?;
        let conntrack = Conntrack::format(memory, capacity, seed, boot_id()?)
            .map_err(|e| EdgeError::Config(format!("conntrack capacity {capacity}: {e}")))?;
        Ok(ConntrackMemory { conntrack, taken_over: None, file: None })
    }

    /// Opens the table in a file: an existing one, if it is from this boot and has this capacity, or a new one with this seed. `judge`
    /// decides about each flow, see [`recover`].
    pub fn in_file(path: &Path, capacity: u32, seed: u64, judge: impl FnMut(&Flow) -> Option<u32>) -> Result<ConntrackMemory, EdgeError> {
        let words = Conntrack::words_needed(capacity);
        let mut file = RegionFile::open(path)?;
        // First: without it, every file would seem to be from another boot.
        let boot_id = boot_id()?;
        let (bytes, mut taken) = (file.bytes(words)?, None);
        if file.len()? > 0 {
            match take_over(&file, capacity, words, boot_id, judge)? {
                Ok(found) => taken = Some(found),
                Err(why) => file = file.set_aside(&why)?,
            }
        }
        let (memory, conntrack, taken_over) = match taken {
            Some((memory, table, recovered)) => (memory, table, Some(recovered)),
            None => {
                let memory = file.fill(words)?;
                let table = Conntrack::format_zeroed(memory, capacity, seed, boot_id).map_err(|e| file.error(e))?;
                tracing::info!("created a new connection table in {}", path.display());
                (memory, table, None)
            }
        };
        let guard = guard(memory, bytes as usize).map_err(|e| file.io("guarding", e))?;
        let on_disk = !is_in_memory(path).map_err(|e| file.io("looking at the file system of", e))?;
        let file = TableFile { file, guard, on_disk };
        file.problem().iter().for_each(|problem| tracing::warn!("{problem}"));
        Ok(ConntrackMemory { conntrack, taken_over, file: Some(file) })
    }
}

/// A table taken over: its words, itself, and what was found.
type Taken = (&'static [std::sync::atomic::AtomicU64], Conntrack<'static>, Recovered);

/// Takes over the table in a file, or says why this file is none.
///
/// # Errors
/// A shortage: the file may be in order.
fn take_over(
    file: &RegionFile,
    capacity: u32,
    words: usize,
    boot_id: [u64; 2],
    judge: impl FnMut(&Flow) -> Option<u32>,
) -> Result<Result<Taken, Unusable>, EdgeError> {
    let start_ns = monotonic_ns();
    let (len, expected) = (file.len()?, file.bytes(words)?);
    if len != expected {
        return Ok(Err(Unusable::Length { len, expected, capacity }));
    }
    let memory = file.map(words)?;
    let (table, recovered) = match recover(memory, Expected { capacity, boot_id }, start_ns / 1_000_000, judge) {
        Ok(found) => found,
        Err(why) => return Ok(Err(why.into())),
    };
    tracing::info!(
        "took over {} connections from the previous process, which {}; {} were incomplete, {} do not fit this configuration ({} ms)",
        recovered.connections,
        if recovered.detached { "shut down cleanly" } else { "did not shut down cleanly" },
        recovered.not_whole,
        recovered.unwanted,
        (monotonic_ns() - start_ns) / 1_000_000,
    );
    Ok(Ok((memory, table, recovered)))
}

/// Locks the file of a table that no process uses, so that none starts to. `None`: there is no such file.
///
/// # Errors
/// If a process uses it, or [`RegionFile::open`] refuses it.
pub fn lock(path: &Path) -> Result<Option<RegionFile>, EdgeError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(EdgeError::io(format!("looking at {}", path.display()), e)),
        Ok(_) => RegionFile::open(path).map(Some),
    }
}

/// Removes a table's file and those set aside. False if there was none.
///
/// # Errors
/// As [`lock`].
pub fn remove(path: &Path) -> Result<bool, EdgeError> {
    let locked = lock(path)?;
    remove_locked(path, locked)
}

/// [`remove`], with the lock of [`lock`].
///
/// # Errors
/// System errors.
pub fn remove_locked(path: &Path, locked: Option<RegionFile>) -> Result<bool, EdgeError> {
    let mut removed = gone(path)?;
    drop(locked);
    for (_, aside) in aside::existing(path)? {
        removed |= gone(&aside)?;
    }
    Ok(removed)
}

/// Removes a file. False if there was none.
fn gone(path: &Path) -> Result<bool, EdgeError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(EdgeError::io(format!("removing {}", path.display()), e)),
    }
}

/// Identifies this boot of the machine.
fn boot_id() -> Result<[u64; 2], EdgeError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(|e| EdgeError::io(format!("reading {PATH}"), e))?;
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16);
    let id = id.map_err(|e| EdgeError::io(format!("reading {PATH}"), io::Error::other(e)))?;
    Ok([(id >> 64) as u64, id as u64])
}
