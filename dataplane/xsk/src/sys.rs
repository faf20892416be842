//! System calls that the standard library does not offer, each behind a safe function.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h: frames that one sendto() may send in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Commands of bpf(2), linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Flags of linux/mount.h.
const OPEN_TREE_CLONE: libc::c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 4;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of the heartbeats, and of BPF's `bpf_ktime_get_ns()`.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Tells the kernel to send what is in an AF_XDP socket's transmit ring.
///
/// # Errors
/// The system's: EAGAIN when there is more to send, or no room for completions; EBUSY and ENOBUFS when the driver cannot take it now; others
/// when the port is down or gone.
#[inline]
pub fn kick_tx(socket: RawFd) -> io::Result<()> {
    // SAFETY: no buffer is passed; a bad descriptor is an error, not undefined behaviour.
    let sent = unsafe { libc::sendto(socket, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells the kernel that the fill ring has frames again.
pub fn kick_rx(socket: RawFd) -> io::Result<()> {
    // SAFETY: as in `kick_tx`.
    let got = unsafe { libc::recvfrom(socket, ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for one of the descriptors. The number that is ready; interruptions count as none.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    // SAFETY: the slice is valid for its length.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) }) {
        Ok(n) => Ok(n as usize),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(e) => Err(e),
    }
}

/// A descriptor that wakes a sleeping worker.
pub struct Waker(OwnedFd);

impl Waker {
    /// A new one.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: creates a new descriptor.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor was created above and belongs to nobody else.
        Ok(Waker(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the worker.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is valid for its length. A full counter (EAGAIN) means that the worker is being woken anyway.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes back all wake-ups so far.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is valid for its length. EAGAIN means that there was none.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    /// For poll().
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A second descriptor for a socket that the worker owns, for reading statistics.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller holds the descriptor open during the call.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// `struct xdp_statistics` of linux/if_xdp.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct RawStatistics {
    pub rx_dropped: u64,
    pub rx_invalid_descs: u64,
    pub tx_invalid_descs: u64,
    pub rx_ring_full: u64,
    pub rx_fill_ring_empty_descs: u64,
    pub tx_ring_empty_descs: u64,
}

/// An AF_XDP socket's statistics.
pub fn xdp_statistics(socket: BorrowedFd<'_>) -> io::Result<RawStatistics> {
    let mut statistics = RawStatistics::default();
    let mut len = mem::size_of::<RawStatistics>() as libc::socklen_t;
    let at = ptr::from_mut(&mut statistics).cast();
    // SAFETY: `at` is valid for `len` bytes, and any bytes make a valid value.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, at, &mut len) })?;
    Ok(statistics)
}

/// Asks for up to `frames` sent by one [`kick_tx`] of an AF_XDP socket in copy mode.
///
/// # Errors
/// The system's: ENOPROTOOPT of kernels that do not know the option (before Linux 6.17). They send 32.
pub fn set_tx_budget(socket: RawFd, frames: u32) -> io::Result<()> {
    let len = mem::size_of::<u32>() as libc::socklen_t;
    // SAFETY: the value is valid for its length.
    check(unsafe { libc::setsockopt(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, ptr::from_ref(&frames).cast(), len) })?;
    Ok(())
}

/// Keeps a descriptor from child processes: one that has an AF_XDP socket too keeps its queue bound for as long as it lives.
///
/// # Errors
/// The system's: EBADF when the descriptor is not open.
pub fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed; a bad descriptor is an error, not undefined behaviour. There are no other descriptor flags to keep.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(())
}

/// Keeps the calling thread on one CPU.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for its size; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) })?;
    Ok(())
}

/// Keeps the calling thread, and threads that it starts, off these CPUs, unless there are no others.
///
/// # Errors
/// The system's.
pub fn leave_cpus(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all-zero is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set is valid for its size; 0 is the calling thread.
    check(unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) })?;
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: `cpu` is below CPU_SETSIZE.
        unsafe { libc::CPU_CLR(*cpu, &mut set) };
    }
    // SAFETY: the set is valid.
    if unsafe { libc::CPU_COUNT(&set) } > 0 {
        // SAFETY: the set is valid for its size; 0 is the calling thread.
        check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) })?;
    }
    Ok(())
}

/// The user that this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: always succeeds, and touches no memory.
    unsafe { libc::geteuid() }
}

/// Raises the limit of locked memory as far as possible and returns what is in force, in bytes.
pub fn raise_memory_lock() -> u64 {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both structures are valid; failures leave the old limit, which is read back.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) < 0 && libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
        }
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit);
    }
    limit.rlim_cur
}

/// Whether a directory lies in a bpffs.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: all-zero is a valid statfs.
    let mut info: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the path is terminated and `info` is valid.
    check(unsafe { libc::statfs(path.as_ptr(), &mut info) })?;
    Ok(info.f_type == libc::BPF_FS_MAGIC as libc::__fsword_t)
}

/// Mounts a bpffs that only its owner may enter.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all strings are terminated and live across the call.
    check(unsafe { libc::mount(c"bpffs".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast()) })?;
    Ok(())
}

/// Unmounts what is mounted on a directory.
pub fn unmount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is terminated.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })?;
    Ok(())
}

/// `union bpf_attr` as far as BPF_OBJ_GET and BPF_LINK_DETACH read it.
#[repr(C)]
#[derive(Default)]
struct BpfAttr {
    /// BPF_OBJ_GET: the address of the path. BPF_LINK_DETACH: the link's descriptor, then nothing.
    first: [u32; 2],
    rest: [u32; 4],
}

fn bpf(command: libc::c_int, attr: &mut BpfAttr) -> io::Result<RawFd> {
    // SAFETY: the structure is valid for its length; a path in it is terminated and lives across the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), mem::size_of::<BpfAttr>()) };
    check(done as libc::c_int)
}

/// Takes a pinned link's program off its interface. It is gone when this returns, whoever else holds the link open; merely removing
/// the pin would leave that to the kernel's workers, some milliseconds later.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = BpfAttr { first: u64_words(path.as_ptr().expose_provenance() as u64), ..BpfAttr::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the descriptor was created above and belongs to nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    bpf(BPF_LINK_DETACH, &mut BpfAttr { first: [link.as_raw_fd() as u32, 0], ..BpfAttr::default() })?;
    Ok(())
}

fn u64_words(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// Moves the calling thread into another mount namespace, for the rest of its life.
pub fn enter_mounts(namespace: &File) -> io::Result<()> {
    // SAFETY: affects the calling thread only, which no longer shares its working directory with the others.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) })?;
    Ok(())
}

/// A detached copy of the mount at a path.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path is terminated; the call makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), OPEN_TREE_CLONE | libc::O_CLOEXEC) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the descriptor was created above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a detached mount to a directory of the calling thread's mount namespace.
pub fn attach_mount(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let (from, to) = (mount.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: both paths are terminated, and the descriptor is open.
    let done = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH) };
    check(done as libc::c_int)?;
    Ok(())
}

/// Gives the calling thread mounts of its own, as `ip netns exec` does.
#[cfg(test)]
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: affects the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let none = c"none".as_ptr();
    // SAFETY: all strings are terminated and live across the call.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_SLAVE | libc::MS_REC, ptr::null()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_wakes_once_and_is_cleared() {
        let waker = Waker::new().unwrap();
        let mut fds = [libc::pollfd { fd: waker.fd(), events: libc::POLLIN, revents: 0 }];
        assert_eq!(poll(&mut fds, 0).unwrap(), 0);
        waker.wake();
        waker.wake();
        assert_eq!(poll(&mut fds, 1000).unwrap(), 1);
        waker.clear();
        assert_eq!(poll(&mut fds, 0).unwrap(), 0);
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        assert!(pin_to_cpu(1023).is_err());
        assert!(is_bpffs(Path::new("/nowhere")).is_err());
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
        assert!(kick_tx(-1).is_err() && set_tx_budget(-1, 64).is_err() && close_on_exec(-1).is_err());
        assert!(detach_pinned_link(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before && before > 0);
    }
}
