//! The connection table's file with a kube-proxy's configuration.
//!
//! That configuration has no field for it, and its users are used to connections that survive a restart of kube-proxy: the kernel has them. So
//! the table is kept in the state directory, if that is in memory. On a disk, every packet of a connection could wait for it.

use std::path::Path;

use nomagic_core::conntrack::Conntrack;

use crate::config::Config;

/// Selects a file for the connection table, unless one is configured. Logs why there is none.
pub fn choose(config: &mut Config) {
    if config.conntrack.file.is_some() {
        return;
    }
    let path = config.state_dir.join("conntrack");
    let bytes = Conntrack::words_needed(config.conntrack.capacity) as u64 * size_of::<u64>() as u64;
    // The file of an earlier process has its room already.
    let bytes = bytes.saturating_sub(std::fs::metadata(&path).map_or(0, |m| m.len()));
    match place(&config.state_dir, bytes) {
        Ok(()) => {
            tracing::info!("connections survive a restart: their table is kept in {}", path.display());
            config.conntrack.file = Some(path);
        }
        Err(why) => tracing::warn!(
            "connections with SNAT, and some without, end when nomagic restarts: {why}. Name a directory in a tmpfs, such as /run/nomagic on \
             most systems, with --state-dir"
        ),
    }
}

/// Whether the state directory, which may not exist yet, takes a file of this size. `Err`: why not.
fn place(state_dir: &Path, bytes: u64) -> Result<(), String> {
    let existing = state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(state_dir);
    let dir = state_dir.display();
    match nomagic_sys::mount::room_in_memory(existing) {
        Ok(Some(room)) if room >= bytes => Ok(()),
        Ok(Some(room)) => Err(format!("the connection table needs {bytes} bytes, and {room} are free in the state directory {dir}")),
        Ok(None) => {
            Err(format!("the state directory {dir} is not in memory (a tmpfs or hugetlbfs), so the connection table is not kept there"))
        }
        Err(e) => Err(format!("the file system of the state directory {dir} is not known: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(state_dir: &Path, capacity: u32) -> Option<std::path::PathBuf> {
        let mut config = Config { state_dir: state_dir.to_owned(), ..Config::default() };
        config.conntrack.capacity = capacity;
        choose(&mut config);
        config.conntrack.file
    }

    #[test]
    fn a_file_in_memory_with_enough_room_or_none() {
        let in_memory = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs");
        let dir = in_memory.path().join("new/state");
        assert_eq!(chosen(&dir, 1_024), Some(dir.join("conntrack")));
        assert!(place(&dir, u64::MAX).unwrap_err().contains("bytes, and"), "more than any memory");
        let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert_eq!(chosen(on_disk.path(), 1_024), None);
        assert!(place(on_disk.path(), 1).unwrap_err().contains("is not in memory"));
    }

    #[test]
    fn a_configured_file_stays() {
        let mut config = Config::default();
        config.conntrack.file = Some("/x".into());
        choose(&mut config);
        assert_eq!(config.conntrack.file, Some("/x".into()));
    }
}
