//! seccomp(2)'s user notification.
#![allow(unsafe_code, reason = "seccomp(2) and its ioctls, which rustix does not have, and a hook between fork and exec")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The listener's descriptor in the watched process. It must outlive exec(2), and no program uses a number this high at its start.
const LISTENER: RawFd = 200;

/// Makes the command's process, and its threads and children, stop at each system call that is not among these.
pub(super) fn install(command: &mut Command, passed: &'static [libc::c_long]) {
    let mut filter = program(passed);
    // SAFETY: between fork and exec the closure makes two system calls, which are async-signal-safe, and allocates nothing. `pre_exec` is
    // unsafe for any closure.
    unsafe { command.pre_exec(move || listen(&mut filter)) };
}

/// A program of classic BPF: these calls go on, the others notify.
fn program(passed: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let code = |bits: u32| u16::try_from(bits).unwrap_or(u16::MAX);
    let (load, equal, give) =
        (code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), code(libc::BPF_RET));
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    // The number of the call is the first field of seccomp_data.
    let mut steps = vec![step(load, 0, 0)];
    for (i, number) in passed.iter().enumerate() {
        let past = u8::try_from(passed.len() - i).expect("at most 255 calls");
        steps.push(step(equal, past, u32::try_from(*number).expect("numbers of calls are small")));
    }
    steps.push(step(give, 0, libc::SECCOMP_RET_USER_NOTIF));
    steps.push(step(give, 0, libc::SECCOMP_RET_ALLOW));
    steps
}

fn listen(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program and its instructions live until the call returns; the kernel checks and copies them.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call touches no memory, and nothing else has the number in a process that has just been forked for exec(2).
    let kept = unsafe { libc::dup3(fd as RawFd, LISTENER, 0) };
    if kept < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A call that has stopped.
pub(super) struct Stopped(libc::seccomp_notif);

impl Stopped {
    /// The thread.
    pub fn tid(&self) -> u32 {
        self.0.pid
    }

    pub fn number(&self) -> libc::c_long {
        libc::c_long::from(self.0.data.nr)
    }

    pub fn args(&self) -> [u64; 6] {
        self.0.data.args
    }

    /// The address after the instruction that made the call.
    pub fn from(&self) -> u64 {
        self.0.data.instruction_pointer
    }
}

pub(super) struct Listener(OwnedFd);

impl Listener {
    /// The listener of a command's process that has been started with [`install`].
    pub fn of(pid: u32) -> Result<Listener> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Listener(pidfd_getfd(process, LISTENER, PidfdGetfdFlags::empty())?))
    }

    /// Waits for the next call. `None`: all processes have ended.
    pub fn next(&self) -> Option<Stopped> {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            let polled = poll(&mut fds, None);
            let events = fds[0].revents();
            match polled {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) if events.contains(PollFlags::IN) => {}
                _ => return None,
            }
            // SAFETY: all fields are integers, for which zero is valid; the kernel wants the structure zeroed.
            let mut stopped: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one structure of this type.
            let received = unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut stopped) };
            // It fails if the thread has been killed meanwhile.
            if received == 0 {
                return Some(Stopped(stopped));
            }
        }
    }

    /// Lets a call go on, or fails it. The thread may have been killed meanwhile.
    pub fn answer(&self, stopped: &Stopped, error: Option<i32>) {
        let flags = if error.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
        let mut answer = libc::seccomp_notif_resp { id: stopped.0.id, val: 0, error: -error.unwrap_or(0), flags };
        // SAFETY: the kernel reads one structure of this type.
        unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}
