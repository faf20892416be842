//! Draining: the gateway says that it is not ready, so that load balancers and routers leave, and carries on. A file in the state directory
//! keeps it over a restart of the process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RunningGateway;

/// Whether the gateway drains.
#[derive(Debug)]
pub(super) struct Drain {
    file: PathBuf,
    on: bool,
}

impl Drain {
    /// As an earlier process of this boot left it.
    pub fn open(state_dir: &Path) -> Drain {
        let file = path(state_dir);
        let on = file.try_exists().unwrap_or_else(|e| {
            tracing::warn!("whether this gateway drained before is not known ({}: {e}): it does not drain now", file.display());
            false
        });
        if on {
            tracing::warn!("this gateway drains, as before: `nomagic drain --undo` ends it");
        }
        Drain { file, on }
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    fn set(&mut self, on: bool) -> io::Result<()> {
        if on {
            fs::write(&self.file, "")?;
        } else {
            remove(&self.file)?;
        }
        self.on = on;
        Ok(())
    }
}

/// The file that exists while the gateway drains.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("draining")
}

/// Removes a file. False if there was none.
pub fn remove(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl RunningGateway {
    /// Starts or ends draining, and tells it at once.
    pub(super) fn set_draining(&mut self, on: bool) -> Result<(), String> {
        let file = self.drain.file.display().to_string();
        self.drain.set(on).map_err(|e| format!("cannot {} {file}: {e}", if on { "write" } else { "remove" }))?;
        self.http.set_draining(on);
        self.follow_readiness();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_outlives_the_process_until_it_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let mut drain = Drain::open(dir.path());
        assert!(!drain.is_on());
        drain.set(true).unwrap();
        drain.set(true).unwrap();
        assert!(drain.is_on() && Drain::open(dir.path()).is_on());
        drain.set(false).unwrap();
        drain.set(false).unwrap();
        assert!(!drain.is_on() && !Drain::open(dir.path()).is_on());
    }
}
