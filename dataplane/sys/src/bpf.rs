//! The bpf(2) commands that aya does not offer.
#![allow(unsafe_code, reason = "bpf(2), which rustix does not have")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// Commands of linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The part of `union bpf_attr` that BPF_OBJ_GET and BPF_LINK_DETACH read.
#[repr(C)]
#[derive(Default)]
struct Attr {
    /// BPF_OBJ_GET: the address of the path. BPF_LINK_DETACH: the link's descriptor, then zero.
    first: [u32; 2],
    rest: [u32; 4],
}

/// Detaches a pinned link's program from its interface. The program is detached when this returns, even if another process holds the link
/// open. Removing only the pin would leave the detachment to a kernel worker, a few milliseconds later.
///
/// # Errors
/// System errors: ENOENT if nothing is pinned at the path, EINVAL if the object is not a link.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let link = open_pinned(path)?;
    bpf(BPF_LINK_DETACH, Attr { first: [link.as_raw_fd().cast_unsigned(), 0], ..Attr::default() })?;
    Ok(())
}

/// A pinned object, as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedObject {
    /// `map`, `prog` or `link`.
    pub kind: String,
    /// The fields of its `/proc/self/fdinfo`, such as `max_entries`.
    pub facts: BTreeMap<String, String>,
}

/// Describes a pinned object. Its contents are not read.
///
/// # Errors
/// System errors: ENOENT if nothing is pinned at the path.
pub fn pinned_object(path: &Path) -> io::Result<PinnedObject> {
    let object = open_pinned(path)?;
    let target = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    let target = target.to_string_lossy().into_owned();
    // `anon_inode:bpf-map`; links: `anon_inode:bpf_link`.
    let kind = target.rsplit(['-', '_']).next().unwrap_or_default().to_owned();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let facts = text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    Ok(PinnedObject { kind, facts: facts.collect() })
}

fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = bpf(BPF_OBJ_GET, Attr { first: words(path.as_ptr().expose_provenance() as u64), ..Attr::default() })?;
    // SAFETY: the kernel has just created the descriptor, and nothing else owns it. rustix has no bpf(2), so the number is raw.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: libc::c_int, attr: Attr) -> io::Result<libc::c_int> {
    // SAFETY: the structure is valid for its length; a path in it is NUL-terminated and outlives the call. rustix has no bpf(2), and aya
    // cannot detach a link synchronously.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(&attr), size_of::<Attr>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

fn words(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_is_not_described() {
        assert_eq!(pinned_object(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
        pinned_object(Path::new("/proc/self/status")).unwrap_err();
    }

    #[test]
    fn only_a_pinned_link_can_be_detached() {
        assert_eq!(detach_pinned_link(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(detach_pinned_link(Path::new("/proc/self/status")).is_err());
        assert!(detach_pinned_link(Path::new("a\0b")).is_err());
    }
}
