//! Mounts the pins' bpffs where it outlives this process.
//!
//! `ip netns exec` and some service managers run a process in its own mount namespace. A bpffs mounted only there would disappear with the
//! process, and with it the pinned XDP programs, which could then not fail safe. So the bpffs is mounted in the enclosing mount namespace,
//! if that one has the same directory, and a clone of the mount is attached in this process's namespace.

#![allow(unsafe_code, reason = "unshare(2)")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FsWord, statfs};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;
/// Of linux/magic.h.
const TMPFS_MAGIC: FsWord = 0x0102_1994;
const RAMFS_MAGIC: FsWord = 0x8584_58f6_u32 as FsWord;
const HUGETLBFS_MAGIC: FsWord = 0x9584_58f6_u32 as FsWord;
/// Maximum number of ancestor processes examined.
const ANCESTORS_MAX: usize = 16;

/// Whether a path lies in a bpffs.
///
/// # Errors
/// System errors.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type == BPF_FS_MAGIC)
}

/// The free space of the file system of a path, bytes; `None` if its files are not in memory.
///
/// # Errors
/// System errors.
pub fn room_in_memory(path: &Path) -> io::Result<Option<u64>> {
    if !is_in_memory(path)? {
        return Ok(None);
    }
    let about = statfs(path)?;
    // Without a size limit, a tmpfs reports no blocks at all.
    let blocks = if about.f_blocks == 0 { u64::MAX } else { about.f_bavail };
    Ok(Some(blocks.saturating_mul(u64::try_from(about.f_bsize).unwrap_or(1))))
}

/// Whether a file is in memory, and never written to a disk (except to swap).
///
/// # Errors
/// System errors.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    Ok([TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC].contains(&statfs(path)?.f_type))
}

/// Mounts a bpffs on a directory, and in the enclosing mount namespace too if that one has the directory. Only its owner may enter it.
///
/// # Errors
/// System errors.
pub fn mount_bpffs(root: &Path) -> io::Result<()> {
    if let Some(outer) = outer_namespace() {
        let (path, place) = (root.to_owned(), identity(root)?);
        let mounted = inside(outer, move || {
            if !is_same_place(&path, place)? {
                return Err(io::Error::other("the directory is a different one there"));
            }
            if !is_bpffs(&path)? {
                mount_here(&path)?;
            }
            clone_mount(&path)
        });
        // With mount propagation from outside, it is already visible here.
        let attach = |mount| if is_bpffs(root)? { Ok(()) } else { attach_mount(&mount, root) };
        match mounted.and_then(attach) {
            Ok(()) => return Ok(()),
            Err(e) => tracing::warn!(
                "this process has its own mount namespace, and the enclosing one could not be used ({e}): the pins in {} will be lost when this process ends; to keep them, run `mount -t bpf bpffs {}` before",
                root.display(),
                root.display()
            ),
        }
    }
    mount_here(root)
}

/// Unmounts the bpffs here and in the enclosing mount namespace.
///
/// # Errors
/// System errors of the unmount in this namespace.
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
            tracing::warn!("the mount of {} in the enclosing mount namespace is not removed: {e}", root.display());
        }
    }
    Ok(())
}

/// The first mount namespace, going up through the ancestors, that differs from this process's.
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

/// Field 4 of /proc/PID/stat. It follows the command name in parentheses, which may contain any character.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    (parent > 0).then_some(parent)
}

/// Device and inode of the parent directory of a mount point: equal if two namespaces see the same directory.
fn identity(root: &Path) -> io::Result<(u64, u64)> {
    let around = fs::metadata(root.parent().unwrap_or(root))?;
    Ok((around.dev(), around.ino()))
}

fn is_same_place(root: &Path, place: (u64, u64)) -> io::Result<bool> {
    Ok(identity(root)? == place)
}

/// Runs a closure on a new thread in a mount namespace.
fn inside<T: Send + 'static>(namespace: File, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("nm-mount".into()).spawn(move || {
        enter_mounts(&namespace)?;
        work()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Moves the calling thread permanently into another mount namespace.
fn enter_mounts(namespace: &File) -> io::Result<()> {
    // SAFETY: the calling thread stops sharing its working directory with the other threads. Its file descriptors stay shared; unsharing
    // those is why rustix marks this call unsafe.
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

    /// Moves the calling thread into its own mount namespace, as `ip netns exec` does.
    fn own_mounts() -> io::Result<()> {
        // SAFETY: as in `enter_mounts`.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
    }

    #[test]
    fn a_bpffs_is_distinguished_from_other_file_systems() {
        is_bpffs(Path::new("/nowhere")).unwrap_err();
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
    }

    #[test]
    fn file_systems_in_memory_are_known() {
        assert!(is_in_memory(Path::new("/dev/shm")).unwrap() && !is_in_memory(Path::new("/proc")).unwrap());
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
