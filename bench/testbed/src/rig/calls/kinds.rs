//! The kinds of system calls: which are shown, and what tells two calls of a kind apart.

use libc::c_long;

/// Calls that go on without being shown: they only wait, end, or return something that the process has, or they belong to the heap, whose
/// failure ends any Rust program.
pub(super) const PASSED: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// What tells calls of a kind apart, by the positions of arguments.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// The kind says all.
    Plain,
    /// A number.
    Number(usize),
    /// A path.
    Path(usize),
    /// A directory's descriptor and a path in it, or an empty path.
    At,
    /// The number of a limit, and whether it is set.
    Limit,
    /// What a descriptor is of.
    Fd(usize),
    /// What a descriptor is of, and a number.
    FdNumber(usize, usize),
    /// What a descriptor is of, and two numbers.
    FdNumbers(usize, usize, usize),
    /// Three numbers: domain, type, protocol.
    Socket,
    /// A path and flags.
    Open,
    Bpf,
    Mmap,
    Ioctl,
    /// A descriptor; a buffer and its length.
    Buffer,
    /// A descriptor; a `msghdr`.
    Message,
}

/// The name and the shape of a kind of call; `None`: not known.
pub(super) fn kind(number: c_long) -> Option<(&'static str, Shape)> {
    use Shape::{At, Bpf, Buffer, Fd, FdNumber, FdNumbers, Ioctl, Limit, Message, Mmap, Number, Open, Path, Plain, Socket};
    Some(match number {
        libc::SYS_accept4 => ("accept4", Fd(0)),
        libc::SYS_bind => ("bind", Fd(0)),
        libc::SYS_bpf => ("bpf", Bpf),
        libc::SYS_capget => ("capget", Plain),
        libc::SYS_capset => ("capset", Plain),
        libc::SYS_chmod => ("chmod", Path(0)),
        libc::SYS_clone => ("clone", Plain),
        libc::SYS_clone3 => ("clone3", Plain),
        libc::SYS_connect => ("connect", Fd(0)),
        libc::SYS_epoll_create1 => ("epoll_create1", Plain),
        libc::SYS_epoll_ctl => ("epoll_ctl", FdNumber(2, 1)),
        libc::SYS_eventfd2 => ("eventfd2", Plain),
        libc::SYS_fallocate => ("fallocate", Fd(0)),
        libc::SYS_fchmod => ("fchmod", Fd(0)),
        libc::SYS_fcntl => ("fcntl", FdNumber(0, 1)),
        libc::SYS_fdatasync => ("fdatasync", Fd(0)),
        libc::SYS_flock => ("flock", FdNumber(0, 1)),
        libc::SYS_fstat => ("fstat", Fd(0)),
        libc::SYS_fstatfs => ("fstatfs", Fd(0)),
        libc::SYS_fsync => ("fsync", Fd(0)),
        libc::SYS_ftruncate => ("ftruncate", Fd(0)),
        libc::SYS_getcwd => ("getcwd", Plain),
        libc::SYS_getdents64 => ("getdents64", Fd(0)),
        libc::SYS_getpeername => ("getpeername", Fd(0)),
        libc::SYS_getsockname => ("getsockname", Fd(0)),
        libc::SYS_getsockopt => ("getsockopt", FdNumbers(0, 1, 2)),
        libc::SYS_ioctl => ("ioctl", Ioctl),
        libc::SYS_linkat => ("linkat", Path(1)),
        libc::SYS_listen => ("listen", Fd(0)),
        libc::SYS_madvise => ("madvise", Number(2)),
        libc::SYS_memfd_create => ("memfd_create", Path(0)),
        libc::SYS_mkdir => ("mkdir", Path(0)),
        libc::SYS_mkdirat => ("mkdirat", Path(1)),
        libc::SYS_mlock => ("mlock", Plain),
        libc::SYS_mmap => ("mmap", Mmap),
        libc::SYS_mount => ("mount", Path(1)),
        libc::SYS_newfstatat => ("newfstatat", At),
        libc::SYS_open => ("open", Path(0)),
        libc::SYS_openat => ("openat", Open),
        libc::SYS_pipe2 => ("pipe2", Plain),
        libc::SYS_ppoll => ("ppoll", Plain),
        libc::SYS_prctl => ("prctl", Number(0)),
        libc::SYS_pread64 => ("pread64", Fd(0)),
        libc::SYS_prlimit64 => ("prlimit64", Limit),
        libc::SYS_read => ("read", Fd(0)),
        libc::SYS_readlink => ("readlink", Path(0)),
        libc::SYS_readlinkat => ("readlinkat", Path(1)),
        libc::SYS_recvfrom => ("recvfrom", Fd(0)),
        libc::SYS_recvmsg => ("recvmsg", Fd(0)),
        libc::SYS_rename => ("rename", Path(0)),
        libc::SYS_renameat => ("renameat", Path(1)),
        libc::SYS_renameat2 => ("renameat2", Path(1)),
        libc::SYS_rmdir => ("rmdir", Path(0)),
        libc::SYS_sched_getaffinity => ("sched_getaffinity", Plain),
        libc::SYS_sched_setaffinity => ("sched_setaffinity", Plain),
        libc::SYS_sendmsg => ("sendmsg", Message),
        libc::SYS_sendto => ("sendto", Buffer),
        libc::SYS_setns => ("setns", Fd(0)),
        libc::SYS_setsockopt => ("setsockopt", FdNumbers(0, 1, 2)),
        libc::SYS_shutdown => ("shutdown", Fd(0)),
        libc::SYS_socket => ("socket", Socket),
        libc::SYS_socketpair => ("socketpair", Socket),
        libc::SYS_statfs => ("statfs", Path(0)),
        libc::SYS_statx => ("statx", At),
        libc::SYS_sysinfo => ("sysinfo", Plain),
        libc::SYS_timerfd_create => ("timerfd_create", Plain),
        libc::SYS_umount2 => ("umount2", Path(0)),
        libc::SYS_uname => ("uname", Plain),
        libc::SYS_unlink => ("unlink", Path(0)),
        libc::SYS_unlinkat => ("unlinkat", Path(1)),
        libc::SYS_unshare => ("unshare", Number(0)),
        libc::SYS_write => ("write", Buffer),
        libc::SYS_writev => ("writev", Fd(0)),
        _ => return None,
    })
}
