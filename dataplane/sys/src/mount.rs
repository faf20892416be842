//! Mounting the bpffs of the pins where it outlives this process.
//!
//! `ip netns exec` and some service managers give a process mounts of its own; a bpffs mounted there would end with the process, and
//! the XDP programs pinned in it too, instead of failing safe. So it is mounted in the mount namespace around ours, if that one has
//! the same directory, and a clone of that mount is attached in ours.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, statfs};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
/// Ancestors that are looked at.
const ANCESTORS_MAX: usize = 16;

/// Whether a directory lies in a bpffs.
///
/// # Errors
/// The system's.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type as u32 == BPF_FS_MAGIC)
}

/// Mounts a bpffs on a directory: in the namespace around this one too, if there is one that has it. Only its owner may enter it.
///
/// # Errors
/// The system's.
pub fn mount_bpffs(root: &Path) -> io::Result<()> {
    if let Some(outer) = outer_namespace() {
        let (path, place) = (root.to_owned(), identity(root)?);
        let mounted = inside(outer, move || {
            if !is_same_place(&path, place)? {
                return Err(io::Error::other("it has another directory there"));
            }
            if !is_bpffs(&path)? {
                mount_here(&path)?;
            }
            clone_mount(&path)
        });
        // Where mounts propagate inwards it is here already.
        let attach = |mount| if is_bpffs(root)? { Ok(()) } else { attach_mount(&mount, root) };
        match mounted.and_then(attach) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::warn!(
                "this process has mounts of its own, and the namespace around it could not be used ({e}): what is pinned in {} will end with this process; to keep it, run `mount -t bpf bpffs {}` before",
                root.display(),
                root.display()
            ),
        }
    }
    mount_here(root)
}

/// Unmounts it here, and in the namespace around this one.
///
/// # Errors
/// The system's, for what is mounted here.
pub fn unmount(root: &Path) -> io::Result<()> {
    unmount_here(root)?;
    if let (Some(outer), Ok(place)) = (outer_namespace(), identity(root)) {
        let path = root.to_owned();
        let unmounted = inside(outer, move || {
            if is_bpffs(&path)? && is_same_place(&path, place)? {
                unmount_here(&path)?;
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
        enter_mounts(&namespace)?;
        work()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Moves the calling thread into another mount namespace, for the rest of its life.
fn enter_mounts(namespace: &File) -> io::Result<()> {
    // SAFETY: the calling thread no longer shares its working directory with the others; its file descriptors stay shared, which is what
    // makes other uses of this call unsafe in rustix.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

fn mount_here(path: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("bpffs", path, "bpf", flags, c"mode=0700")?)
}

fn unmount_here(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH)?)
}

/// A detached copy of the mount at a path.
fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// Attaches a detached mount to a directory of the calling thread's mount namespace.
fn attach_mount(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountPropagationFlags, mount_change};

    /// Gives the calling thread mounts of its own, as `ip netns exec` does.
    fn own_mounts() -> io::Result<()> {
        // SAFETY: as in `enter_mounts`.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
    }

    #[test]
    fn a_bpffs_is_told_from_other_file_systems() {
        assert!(is_bpffs(Path::new("/nowhere")).is_err());
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
    }

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
            own_mounts().expect("needs root");
            mount_bpffs(&path).unwrap();
            assert!(is_bpffs(&path).unwrap());
            fs::create_dir(path.join("kept")).unwrap();
        });
        private.join().unwrap();
        assert!(is_bpffs(&root).unwrap() && root.join("kept").is_dir(), "still there after the namespace has ended");
        let path = root.clone();
        let private = std::thread::spawn(move || {
            own_mounts().unwrap();
            fs::remove_dir(path.join("kept")).unwrap();
            unmount(&path).unwrap();
        });
        private.join().unwrap();
        assert!(!is_bpffs(&root).unwrap(), "unmounted outside too");
        fs::remove_dir_all(&state).unwrap();
    }
}
