//! Mounting the bpffs of the pins where it outlives this process.
//!
//! `ip netns exec` and some service managers give a process mounts of its own; a bpffs mounted there would end with the process, and
//! the XDP programs pinned in it too, instead of failing safe. So it is mounted in the mount namespace around ours, if that one has
//! the same directory, and a clone of that mount is attached in ours.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// Ancestors that are looked at.
const ANCESTORS_MAX: usize = 16;

/// Mounts a bpffs on a directory: in the namespace around this one too, if there is one that has it.
pub fn mount_bpffs(root: &Path) -> io::Result<()> {
    if let Some(outer) = outer_namespace() {
        let (path, place) = (root.to_owned(), identity(root)?);
        let mounted = inside(outer, move || {
            if !is_same_place(&path, place)? {
                return Err(io::Error::other("it has another directory there"));
            }
            if !sys::is_bpffs(&path)? {
                sys::mount_bpffs(&path)?;
            }
            sys::clone_mount(&path)
        });
        // Where mounts propagate inwards it is here already.
        let attach = |mount| if sys::is_bpffs(root)? { Ok(()) } else { sys::attach_mount(&mount, root) };
        match mounted.and_then(attach) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::warn!(
                "this process has mounts of its own, and the namespace around it could not be used ({e}): what is pinned in {} will end with this process; to keep it, run `mount -t bpf bpffs {}` before",
                root.display(),
                root.display()
            ),
        }
    }
    sys::mount_bpffs(root)
}

/// Unmounts it here, and in the namespace around this one.
pub fn unmount(root: &Path) -> io::Result<()> {
    sys::unmount(root)?;
    if let (Some(outer), Ok(place)) = (outer_namespace(), identity(root)) {
        let path = root.to_owned();
        let unmounted = inside(outer, move || {
            if sys::is_bpffs(&path)? && is_same_place(&path, place)? {
                sys::unmount(&path)?;
            }
            Ok(())
        });
        if let Err(e) = unmounted {
            tracing::warn!("the mount of {} outside of this mount namespace is left: {e}", root.display());
        }
    }
    Ok(())
}

/// The nearest other mount namespace among our own process's and its ancestors'.
fn outer_namespace() -> Option<File> {
    let ours = fs::read_link("/proc/thread-self/ns/mnt").ok()?;
    let mut pid = std::process::id();
    for _ in 0..ANCESTORS_MAX {
        let path = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
        if fs::read_link(&path).ok()? != ours {
            return File::open(path).ok();
        }
        pid = parent_of(pid)?;
    }
    None
}

/// Field 4 of /proc/PID/stat, behind the name in brackets, which may contain anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    (parent > 0).then_some(parent)
}

/// Device and inode of the directory around a mount point: the same wherever it is the same directory.
fn identity(root: &Path) -> io::Result<(u64, u64)> {
    let around = fs::metadata(root.parent().unwrap_or(root))?;
    Ok((around.dev(), around.ino()))
}

fn is_same_place(root: &Path, place: (u64, u64)) -> io::Result<bool> {
    Ok(identity(root)? == place)
}

/// Runs a closure on a thread of its own inside of a mount namespace.
fn inside<T: Send + 'static>(namespace: File, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("nm-mount".into()).spawn(move || {
        sys::enter_mounts(&namespace)?;
        work()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_found() {
        assert_eq!(parent_of(std::process::id()), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent_of(u32::MAX), None);
    }

    #[test]
    fn a_bpffs_mounted_in_private_mounts_outlives_them() {
        let state = std::env::temp_dir().join(format!("nmx-mounts-{}", std::process::id()));
        let root = state.join("bpf");
        fs::create_dir_all(&root).unwrap();
        let path = root.clone();
        let private = std::thread::spawn(move || {
            sys::own_mounts().expect("needs root");
            mount_bpffs(&path).unwrap();
            assert!(sys::is_bpffs(&path).unwrap());
            fs::create_dir(path.join("kept")).unwrap();
        });
        private.join().unwrap();
        assert!(sys::is_bpffs(&root).unwrap() && root.join("kept").is_dir(), "still there after the namespace has ended");
        let path = root.clone();
        let private = std::thread::spawn(move || {
            sys::own_mounts().unwrap();
            fs::remove_dir(path.join("kept")).unwrap();
            unmount(&path).unwrap();
        });
        private.join().unwrap();
        assert!(!sys::is_bpffs(&root).unwrap(), "unmounted outside too");
        fs::remove_dir_all(&state).unwrap();
    }
}
