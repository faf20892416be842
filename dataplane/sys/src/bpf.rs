//! bpf(2), as far as aya does not offer it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// Commands, linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` as far as BPF_OBJ_GET and BPF_LINK_DETACH read it.
#[repr(C)]
#[derive(Default)]
struct Attr {
    /// BPF_OBJ_GET: the address of the path. BPF_LINK_DETACH: the link's descriptor, then nothing.
    first: [u32; 2],
    rest: [u32; 4],
}

/// Takes a pinned link's program off its interface. It is gone when this returns, whoever else holds the link open; merely removing
/// the pin would leave that to the kernel's workers, some milliseconds later.
///
/// # Errors
/// The system's: ENOENT when nothing is pinned there, EINVAL when it is no link.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = bpf(BPF_OBJ_GET, Attr { first: words(path.as_ptr().expose_provenance() as u64), ..Attr::default() })?;
    // SAFETY: the kernel has just made the descriptor, and it belongs to nobody else. A number from bpf(2), which rustix does not have.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    bpf(BPF_LINK_DETACH, Attr { first: [link.as_raw_fd() as u32, 0], ..Attr::default() })?;
    Ok(())
}

fn bpf(command: libc::c_int, attr: Attr) -> io::Result<libc::c_int> {
    // SAFETY: the structure is valid for its length, and a path in it is terminated and lives across the call. rustix has no bpf(2), and aya
    // neither detaches a link nor says that it has been.
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
    fn what_is_not_pinned_cannot_be_detached() {
        assert_eq!(detach_pinned_link(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(detach_pinned_link(Path::new("/proc/self/status")).is_err());
        assert!(detach_pinned_link(Path::new("a\0b")).is_err());
    }
}
