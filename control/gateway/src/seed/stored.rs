//! The random seed in the state directory: the next process continues with it, so that connections that are picked up in the middle keep
//! their endpoint.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use ring::rand::{SecureRandom, SystemRandom};

/// Only the owner may read the file.
const MODE: u32 = 0o600;
/// The content: 16 hexadecimal digits and a line end.
const DIGITS: usize = 16;

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("hash-seed")
}

/// The seed of an earlier process, or a new one. A file whose content cannot be used, or that cannot be written, gives a warning.
///
/// # Errors
/// If the file cannot be read now, or the kernel gives no random numbers.
pub(super) fn read_or_create(state_dir: &Path) -> Result<u64> {
    let path = path(state_dir);
    match read(&path) {
        Ok(seed) => return Ok(seed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // A shortage says nothing about the file: it stays, and the next start uses it.
        Err(e) if !is_unusable(&e) => {
            return Err(anyhow!(
                "cannot read the hash seed in {}: {e}; the file is left as it is. Mend that and start again: with another seed, connections \
                 that are picked up would go to other endpoints",
                path.display()
            ));
        }
        Err(e) => {
            tracing::warn!("{}: {e}: a new hash seed is chosen, so new connections may go to other endpoints than before", path.display());
        }
    }
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the kernel gives no random numbers for the hash seed"))?;
    let seed = u64::from_le_bytes(bytes);
    if let Err(e) = write(&path, seed) {
        tracing::warn!("{}: the hash seed cannot be kept, so the next process chooses another one: {e}", path.display());
    }
    Ok(seed)
}

/// Whether the file will never give a seed: its content, its mode or its kind is wrong.
fn is_unusable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), None | Some(libc::ELOOP | libc::ENXIO | libc::ENOTDIR))
}

/// Removes the file. Returns whether there was one.
pub fn remove(state_dir: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path(state_dir)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn read(path: &Path) -> io::Result<u64> {
    // A link could lead to a file that others know; opening a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("others may have read it: its mode is not 0600"));
    }
    let mut text = Vec::new();
    file.take(DIGITS as u64 + 2).read_to_end(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::other("damaged: not 16 hexadecimal digits"))
}

fn parse(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text.strip_suffix(b"\n")?).ok()?;
    let valid = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Writes a new file and renames it, so that no process reads a part of it.
fn write(path: &Path, seed: u64) -> io::Result<()> {
    let aside = path.with_extension("new");
    // Left by a process that was killed.
    match std::fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&aside)?;
    // The umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(MODE))?;
    writeln!(file, "{seed:016x}")?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(dir: &Path) -> String {
        std::fs::read_to_string(path(dir)).unwrap()
    }

    #[test]
    fn the_seed_is_kept_in_a_file_for_its_owner() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let seed = read_or_create(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(path(dir.path())).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!((read_or_create(dir.path()).unwrap(), content(dir.path())), (seed, format!("{seed:016x}\n")));
        assert_ne!(read_or_create(other.path()).unwrap(), seed);
        let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names, ["hash-seed"], "nothing is left beside it");
        assert!(remove(dir.path()).unwrap() && !remove(dir.path()).unwrap());
        assert_ne!(read_or_create(dir.path()).unwrap(), seed);
    }

    #[test]
    fn damaged_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        for damaged in
            ["", "\n", "0123456789abcdef", "0123456789abcde\n", "0123456789abcdef0\n", "+123456789abcdef\n", "0123456789abcdeg\n", "é\n"]
        {
            std::fs::write(&path, damaged).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(MODE)).unwrap();
            let seed = read_or_create(dir.path()).unwrap();
            assert_eq!((content(dir.path()), read_or_create(dir.path()).unwrap()), (format!("{seed:016x}\n"), seed), "{damaged:?}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let known = content(dir.path());
        read_or_create(dir.path()).unwrap();
        assert_ne!(content(dir.path()), known, "others may have read it");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
    }

    #[test]
    fn links_and_leftovers_are_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        for name in [path(dir.path()), path(dir.path()).with_extension("new")] {
            std::fs::write(&elsewhere, "0000000000000007\n").unwrap();
            std::fs::set_permissions(&elsewhere, Permissions::from_mode(MODE)).unwrap();
            let _ = std::fs::remove_file(path(dir.path()));
            std::os::unix::fs::symlink(&elsewhere, &name).unwrap();
            assert_ne!(read_or_create(dir.path()).unwrap(), 7);
            assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "0000000000000007\n");
            assert!(std::fs::symlink_metadata(path(dir.path())).unwrap().is_file());
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_does_not_stop_the_gateway() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(path(dir.path())).unwrap();
        assert!(read_or_create(dir.path()).is_ok() && read_or_create(&dir.path().join("nowhere")).is_ok());
    }
}
