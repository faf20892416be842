//! The kinds of system calls: which are shown, and what tells two calls of a kind apart. Newer machines lack the older calls.

use libc::c_long;

/// Calls that go on without being shown: they only wait, end, or return something that the process has, or they belong to the heap, whose
/// failure ends any Rust program.
pub(super) const PASSED: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup3,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
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
    #[cfg(target_arch = "x86_64")]
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

/// Calls that are shown: number, name, shape.
const KINDS: &[(c_long, &str, Shape)] = &[
    (libc::SYS_accept4, "accept4", Shape::Fd(0)),
    (libc::SYS_bind, "bind", Shape::Fd(0)),
    (libc::SYS_bpf, "bpf", Shape::Bpf),
    (libc::SYS_capget, "capget", Shape::Plain),
    (libc::SYS_capset, "capset", Shape::Plain),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod", Shape::Path(0)),
    (libc::SYS_clone, "clone", Shape::Plain),
    (libc::SYS_clone3, "clone3", Shape::Plain),
    (libc::SYS_connect, "connect", Shape::Fd(0)),
    (libc::SYS_epoll_create1, "epoll_create1", Shape::Plain),
    (libc::SYS_epoll_ctl, "epoll_ctl", Shape::FdNumber(2, 1)),
    (libc::SYS_eventfd2, "eventfd2", Shape::Plain),
    (libc::SYS_fallocate, "fallocate", Shape::Fd(0)),
    (libc::SYS_fchmod, "fchmod", Shape::Fd(0)),
    (libc::SYS_fcntl, "fcntl", Shape::FdNumber(0, 1)),
    (libc::SYS_fdatasync, "fdatasync", Shape::Fd(0)),
    (libc::SYS_flock, "flock", Shape::FdNumber(0, 1)),
    (libc::SYS_fstat, "fstat", Shape::Fd(0)),
    (libc::SYS_fstatfs, "fstatfs", Shape::Fd(0)),
    (libc::SYS_fsync, "fsync", Shape::Fd(0)),
    (libc::SYS_ftruncate, "ftruncate", Shape::Fd(0)),
    (libc::SYS_getcwd, "getcwd", Shape::Plain),
    (libc::SYS_getdents64, "getdents64", Shape::Fd(0)),
    (libc::SYS_getpeername, "getpeername", Shape::Fd(0)),
    (libc::SYS_getsockname, "getsockname", Shape::Fd(0)),
    (libc::SYS_getsockopt, "getsockopt", Shape::FdNumbers(0, 1, 2)),
    (libc::SYS_ioctl, "ioctl", Shape::Ioctl),
    (libc::SYS_linkat, "linkat", Shape::Path(1)),
    (libc::SYS_listen, "listen", Shape::Fd(0)),
    (libc::SYS_madvise, "madvise", Shape::Number(2)),
    (libc::SYS_memfd_create, "memfd_create", Shape::Path(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir", Shape::Path(0)),
    (libc::SYS_mkdirat, "mkdirat", Shape::Path(1)),
    (libc::SYS_mlock, "mlock", Shape::Plain),
    (libc::SYS_mmap, "mmap", Shape::Mmap),
    (libc::SYS_mount, "mount", Shape::Path(1)),
    (libc::SYS_newfstatat, "newfstatat", Shape::At),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open", Shape::Path(0)),
    (libc::SYS_openat, "openat", Shape::Open),
    (libc::SYS_pipe2, "pipe2", Shape::Plain),
    (libc::SYS_ppoll, "ppoll", Shape::Plain),
    (libc::SYS_prctl, "prctl", Shape::Number(0)),
    (libc::SYS_pread64, "pread64", Shape::Fd(0)),
    (libc::SYS_prlimit64, "prlimit64", Shape::Limit),
    (libc::SYS_read, "read", Shape::Fd(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, "readlink", Shape::Path(0)),
    (libc::SYS_readlinkat, "readlinkat", Shape::Path(1)),
    (libc::SYS_recvfrom, "recvfrom", Shape::Fd(0)),
    (libc::SYS_recvmsg, "recvmsg", Shape::Fd(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename", Shape::Path(0)),
    (libc::SYS_renameat, "renameat", Shape::Path(1)),
    (libc::SYS_renameat2, "renameat2", Shape::Path(1)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir", Shape::Path(0)),
    (libc::SYS_sched_getaffinity, "sched_getaffinity", Shape::Plain),
    (libc::SYS_sched_setaffinity, "sched_setaffinity", Shape::Plain),
    (libc::SYS_sendmsg, "sendmsg", Shape::Message),
    (libc::SYS_sendto, "sendto", Shape::Buffer),
    (libc::SYS_setns, "setns", Shape::Fd(0)),
    (libc::SYS_setsockopt, "setsockopt", Shape::FdNumbers(0, 1, 2)),
    (libc::SYS_shutdown, "shutdown", Shape::Fd(0)),
    (libc::SYS_socket, "socket", Shape::Socket),
    (libc::SYS_socketpair, "socketpair", Shape::Socket),
    (libc::SYS_statfs, "statfs", Shape::Path(0)),
    (libc::SYS_statx, "statx", Shape::At),
    (libc::SYS_sysinfo, "sysinfo", Shape::Plain),
    (libc::SYS_timerfd_create, "timerfd_create", Shape::Plain),
    (libc::SYS_umount2, "umount2", Shape::Path(0)),
    (libc::SYS_uname, "uname", Shape::Plain),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink", Shape::Path(0)),
    (libc::SYS_unlinkat, "unlinkat", Shape::Path(1)),
    (libc::SYS_unshare, "unshare", Shape::Number(0)),
    (libc::SYS_write, "write", Shape::Buffer),
    (libc::SYS_writev, "writev", Shape::Fd(0)),
];

/// The name and the shape of a kind of call; `None`: not known.
pub(super) fn kind(number: c_long) -> Option<(&'static str, Shape)> {
    KINDS.iter().find(|(known, ..)| *known == number).map(|(_, name, shape)| (*name, *shape))
}
