//! Sockets that send whole frames: for tests and tools.
#![allow(unsafe_code, reason = "an address that rustix does not have")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socket_with};

/// A socket that sends Ethernet frames by one interface, and receives nothing.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The system's: without CAP_NET_RAW, or when there is no such interface.
    pub fn open(ifindex: u32) -> io::Result<PacketSocket> {
        // Protocol 0: no frame is received.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let ifindex = i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: all zero is a valid value of this plain structure.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (addr.sll_family, addr.sll_ifindex) = (libc::AF_PACKET as u16, ifindex);
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is valid for its length, and the descriptor is open. rustix has no addresses of this family.
        let done = unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&addr).cast(), len) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(PacketSocket(socket)) }
    }

    /// Sends a frame as it is, from the destination's MAC address on.
    ///
    /// # Errors
    /// The system's: when it is longer than the MTU allows, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = rustix::net::send(&self.0, frame, SendFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_sent_by_the_loopback_interface_and_no_unknown_one() {
        let socket = PacketSocket::open(1).expect("needs root");
        socket.send(&[0; 60]).unwrap();
        assert!(socket.send(&vec![0; 70_000]).is_err(), "longer than the MTU");
        assert!(PacketSocket::open(u32::MAX).is_err() && PacketSocket::open(0x7fff_fff0).is_err());
    }
}
