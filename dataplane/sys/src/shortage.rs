//! What to do if the kernel has no more of something.

use std::io;

use rustix::io::Errno;

/// What lets a start succeed that failed with this error; `None`: it is no shortage. A sentence without its end.
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::MFILE => Some("raise the limit of open files (LimitNOFILE, `ulimit -n`) and start again"),
        Errno::NFILE => Some("raise `sysctl fs.file-max` and start again"),
        Errno::NOMEM | Errno::NOBUFS | Errno::NOLCK => {
            Some("free memory, or raise the limits (memory.max of the cgroup, `ulimit -v`), and start again")
        }
        Errno::NOSPC => Some("free room there and start again"),
        Errno::AGAIN => Some("raise the limits of threads and memory (pids.max and memory.max of the cgroup, `ulimit -u`) and start again"),
        _ => None,
    }
}

/// An error with its remedy, if it is a shortage.
pub fn explained(error: &io::Error) -> String {
    remedy(error).map_or_else(|| error.to_string(), |remedy| format!("{error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_have_a_remedy_and_others_have_none() {
        for (error, words) in [
            (Errno::MFILE, "ulimit -n"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::NOMEM, "memory.max"),
            (Errno::NOBUFS, "memory.max"),
            (Errno::NOLCK, "free memory"),
            (Errno::NOSPC, "free room"),
            (Errno::AGAIN, "pids.max"),
        ] {
            let text = explained(&error.into());
            assert!(text.contains(&format!("{error}")) && text.contains(words) && text.ends_with("start again"), "{text}");
        }
        for error in [Errno::INVAL.into(), io::Error::other("something")] {
            assert_eq!((remedy(&error), explained(&error)), (None, error.to_string()));
        }
    }
}
