//! Which errors a system call can give, and what an error message says about them.

/// The errors that a site's call can give; none if it is not failed.
pub fn of_site(site: &str) -> Vec<i32> {
    use libc::{EACCES, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOLCK, ENOMEM, ENOSPC, EPERM};
    let mut words = site.splitn(3, ' ').skip(1);
    let (name, detail) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let errors: &[i32] = match name {
        "openat" | "open" if detail.ends_with(" create") => &[EMFILE, ENOSPC, ENOMEM, EACCES, ENFILE],
        "openat" | "open" => &[EMFILE, ENFILE, ENOMEM, EACCES],
        "socket" if detail.starts_with("xdp") || detail.starts_with("packet") => &[EPERM, EMFILE, ENOMEM],
        "socket" | "socketpair" => &[EMFILE, ENFILE, ENOMEM],
        "epoll_create1" | "eventfd2" | "pipe2" | "timerfd_create" | "memfd_create" | "accept4" => &[EMFILE, ENOMEM],
        // F_DUPFD_CLOEXEC. The other commands read or set flags.
        "fcntl" if detail.ends_with(" 1030") => &[EMFILE],
        "mmap" if detail.starts_with("map ") || detail.starts_with("xdp") => &[ENOMEM, EPERM],
        "mmap" | "madvise" => &[ENOMEM],
        "bpf" if detail.starts_with("OBJ_PIN") => &[ENOSPC, ENOMEM, EPERM],
        "bpf" if detail.starts_with("MAP_UPDATE") => &[ENOMEM, EPERM],
        "bpf" if detail.starts_with("MAP_") && !detail.starts_with("MAP_CREATE") => &[EPERM, ENOMEM],
        "bpf" => &[EPERM, ENOMEM, EMFILE],
        "setsockopt" => &[ENOMEM, EPERM],
        "getsockopt" | "getsockname" | "getpeername" => &[EACCES],
        "bind" => &[ENOMEM, EPERM],
        "listen" | "connect" => &[ENOMEM],
        "sendto" | "sendmsg" => &[ENOBUFS, EPERM],
        "recvfrom" | "recvmsg" => &[ENOMEM, EAGAIN],
        "mount" | "umount2" | "setns" | "unshare" => &[EPERM, ENOMEM],
        "mkdir" | "mkdirat" | "rename" | "renameat" | "renameat2" | "linkat" => &[ENOSPC, EACCES, ENOMEM],
        "unlink" | "unlinkat" | "rmdir" | "chmod" | "fchmod" => &[EACCES, ENOMEM],
        "ftruncate" | "fallocate" => &[ENOSPC, ENOMEM],
        "fsync" | "fdatasync" => &[ENOSPC],
        // An eventfd, which only takes numbers.
        "write" if detail.starts_with("anon_inode") => &[],
        "write" | "writev" => &[ENOSPC, EAGAIN],
        "clone" | "clone3" => &[EAGAIN],
        "epoll_ctl" => &[ENOSPC, ENOMEM],
        "flock" => &[ENOLCK],
        "read" if detail.starts_with("anon_inode") || detail == "pipe" => &[],
        "read" | "pread64" | "getdents64" | "fstat" | "fstatfs" => &[ENOMEM],
        "statx" | "newfstatat" | "statfs" | "readlink" | "readlinkat" => &[ENOMEM, EACCES],
        "prlimit64" if !detail.ends_with(" set") => &[],
        // A thread's or a mapping's name.
        "prctl" if detail == "15" || detail == "1096112214" => &[],
        "capset" | "prctl" | "prlimit64" | "sched_setaffinity" => &[EPERM],
        "ioctl" => &[EPERM, ENOMEM],
        _ => &[],
    };
    errors.to_vec()
}

/// What an error message says, in one of these ways, if its cause is this error.
pub fn remedies(error: i32) -> &'static [&'static str] {
    match error {
        libc::EMFILE => &["ulimit -n"],
        libc::ENFILE => &["fs.file-max"],
        libc::ENOMEM | libc::ENOBUFS | libc::ENOLCK => &["free memory", "memory.max"],
        libc::ENOSPC => &["free room"],
        libc::EAGAIN => &["pids.max"],
        _ => &["run as", "seccomp", "security module", "CAP_", "beforehand"],
    }
}
