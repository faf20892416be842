//! Writes sysctls, also from a container.
//!
//! An unprivileged container has `/proc/sys` read-only, and its runtime permits no mounts there. Its pod can mount the host's `/proc/sys/net`
//! at another path instead, as CNI plugins do; writes there need CAP_NET_ADMIN only.

use std::io;
use std::path::Path;

use super::NetError;

/// The usual path.
const PROC_SYS: &str = "/proc/sys";
/// The mount of the host's files in a pod; see `deploy/base/daemon-set.yaml`.
const HOST_PROC_SYS: &str = "/host/proc/sys";

/// Writes a sysctl such as `net/ipv4/conf/nm0/rp_filter`.
pub(super) fn write(key: &str, value: &str) -> Result<(), NetError> {
    write_in(Path::new(PROC_SYS), Path::new(HOST_PROC_SYS), key, value).map_err(|source| NetError::Proc {
        what: format!("write {value} to"),
        path: format!("{PROC_SYS}/{key}"),
        source,
    })
}

fn write_in(own: &Path, host: &Path, key: &str, value: &str) -> io::Result<()> {
    match std::fs::write(own.join(key), value) {
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        other => return other,
    }
    if std::fs::read_to_string(own.join(key)).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(host.join(key), value).map_err(|e| {
        let advice =
            format!("mounted read-only, and {} cannot be written either ({e}): mount the host's /proc/sys/net there", host.display());
        io::Error::new(io::ErrorKind::ReadOnlyFilesystem, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_mount_is_not_used_if_the_file_is_writable() {
        let dir = tempfile::tempdir().unwrap();
        let (own, host) = (dir.path().join("own"), dir.path().join("host"));
        std::fs::create_dir(&own).unwrap();
        write_in(&own, &host, "a", "2").unwrap();
        assert_eq!(std::fs::read_to_string(own.join("a")).unwrap(), "2");
        assert_eq!(write_in(&own, &host, "none/b", "2").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
