//! The lock of a state directory: whoever runs a gateway there, or cleans up, holds it. The kernel releases it when the process ends, and
//! keeps it while the process is stopped or hangs.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A locked state directory. Released when dropped.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "it is held, not used")] File);

impl StateLock {
    /// Locks a directory; `None` if it does not exist.
    ///
    /// # Errors
    /// If another process has it.
    pub fn take(state_dir: &Path) -> Result<Option<StateLock>> {
        let directory = match File::open(state_dir) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open the state directory {}", state_dir.display())),
        };
        match directory.try_lock() {
            Ok(()) => Ok(Some(StateLock(directory))),
            Err(TryLockError::WouldBlock) => bail!(
                "another nomagic runs with the state directory {}, or is stopped in it (`ps -e | grep nomagic`): stop it first (SIGTERM, then \
                 SIGKILL), or name another stateDir",
                state_dir.display()
            ),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock the state directory {}", state_dir.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateLock::take(&dir.path().join("nowhere")).unwrap().is_none());
        let first = StateLock::take(dir.path()).unwrap();
        assert!(first.is_some());
        let error = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another nomagic runs") && error.contains("stop it first"), "{error}");
        drop(first);
        assert!(StateLock::take(dir.path()).unwrap().is_some());
    }
}
