//! Giving up privileges once everything is set up.
//!
//! Capabilities belong to threads. Workers need none: sending on a socket that is bound asks for nothing. Control keeps what binding
//! an interface again takes.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION: u32 = 0x2008_0522;
/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF: routes, neighbours and XDP programs; AF_XDP sockets; locked memory;
/// what the verifier asks for; BPF maps.
const NEEDED_LATER: [u32; 5] = [12, 13, 14, 38, 39];

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`: the lower, then the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves the calling thread, and those that it starts from now on, what binding interfaces again takes, as far as it has it.
pub fn keep_what_is_needed() -> io::Result<()> {
    keep(&NEEDED_LATER)
}

/// Leaves the calling thread no capability at all.
pub fn keep_nothing() -> io::Result<()> {
    keep(&[])
}

fn keep(capabilities: &[u32]) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 writes two data structures.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    for (half, data) in data.iter_mut().enumerate() {
        let bits = capabilities.iter().filter(|&&c| c as usize / 32 == half).fold(0, |bits, c| bits | 1 << (c % 32));
        *data = Data { effective: data.permitted & bits, permitted: data.permitted & bits, inheritable: 0 };
    }
    // SAFETY: version 3 reads two data structures.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })?;
    // SAFETY: all arguments are numbers; programs that are executed later get no more than this thread has.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calling thread's effective and permitted capabilities.
    fn capabilities() -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (of("CapEff:"), of("CapPrm:"))
    }

    #[test]
    fn what_is_given_up_is_gone_for_this_thread() {
        let before = capabilities();
        let wanted = NEEDED_LATER.iter().fold(0, |bits, c| bits | 1u64 << c);
        let later = std::thread::spawn(move || {
            keep_what_is_needed().unwrap();
            let some = capabilities();
            let inherited = std::thread::spawn(capabilities).join().unwrap();
            keep_nothing().unwrap();
            (some, inherited, capabilities())
        });
        let (some, inherited, none) = later.join().unwrap();
        assert_eq!(some, (before.1 & wanted, before.1 & wanted));
        assert_eq!((inherited, none), (some, (0, 0)));
        assert_eq!(capabilities(), before, "other threads keep theirs");
    }
}
