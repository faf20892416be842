//! The system calls that std and xsk-rs have no safe words for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h: frames that one sendto() may send in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// CLOCK_MONOTONIC in nanoseconds, as `bpf_ktime_get_ns()` tells it.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Tells the kernel to send what is in an AF_XDP socket's transmit ring.
#[inline]
pub fn kick_tx(socket: RawFd) -> io::Result<()> {
    // SAFETY: no buffer is passed; a bad descriptor is an error.
    check(unsafe { libc::sendto(socket, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) } as libc::c_long).map(drop)
}

/// Raises the number of frames that one sendto() sends in copy mode (Linux 6.17 or later).
pub fn set_tx_budget(socket: RawFd, frames: u32) -> io::Result<()> {
    let len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the value is valid for its length.
    let done = unsafe { libc::setsockopt(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, std::ptr::from_ref(&frames).cast(), len) };
    check(done.into()).map(drop)
}

/// Keeps a descriptor from child processes: libxdp does not.
pub fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed; a bad descriptor is an error.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }.into()).map(drop)
}

/// An AF_PACKET socket that sends whole frames out of one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the interface of this index in the calling thread's namespace. It receives nothing.
    pub fn open(ifindex: u32) -> io::Result<PacketSocket> {
        // SAFETY: creates a new descriptor. Protocol 0: nothing is received.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }.into())?;
        // SAFETY: the descriptor was created above and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = ifindex as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is valid for its length.
        check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) }.into())?;
        Ok(PacketSocket(fd))
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        check(unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) } as libc::c_long).map(drop)
    }
}
