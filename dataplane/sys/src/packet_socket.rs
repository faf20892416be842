//! Sockets that send and receive whole frames: for tests and tools.
#![allow(unsafe_code, reason = "an address and two options that rustix does not have")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with, sockopt};

/// What a capture holds until it is read, bytes.
const CAPTURE_BUFFER: usize = 64 << 20;

/// A socket that sends Ethernet frames by one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one in the calling thread's network namespace. It receives nothing.
    ///
    /// # Errors
    /// The system's: without CAP_NET_RAW, or when there is no such interface.
    pub fn open(ifindex: u32) -> io::Result<PacketSocket> {
        PacketSocket::bound(PacketSocket::unbound()?, ifindex, 0)
    }

    /// Opens one that also receives all frames that come in by the interface, and none that go out.
    ///
    /// # Errors
    /// The system's: without CAP_NET_RAW and CAP_NET_ADMIN, or when there is no such interface.
    pub fn open_capture(ifindex: u32) -> io::Result<PacketSocket> {
        let socket = PacketSocket::unbound()?;
        sockopt::set_socket_recv_buffer_size_force(&socket, CAPTURE_BUFFER)?;
        let (on, len): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
        let at = ptr::from_ref(&on).cast();
        // SAFETY: the value is valid for its length, and the descriptor is open. rustix has no options of this level.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, at, len) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        PacketSocket::bound(socket, ifindex, libc::ETH_P_ALL as u16)
    }

    fn unbound() -> io::Result<OwnedFd> {
        // Protocol 0: no frame is received before the socket is bound.
        Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
    }

    fn bound(socket: OwnedFd, ifindex: u32, protocol: u16) -> io::Result<PacketSocket> {
        let ifindex = i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: all zero is a valid value of this plain structure.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (addr.sll_family, addr.sll_ifindex, addr.sll_protocol) = (libc::AF_PACKET as u16, ifindex, protocol.to_be());
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

    /// The next frame that has come in: its length, also where the buffer is shorter. `None`: there is none yet.
    ///
    /// # Errors
    /// The system's: when the interface went down or disappeared.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, len)) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// How many frames a capture has lost since the last call, because nobody had read those before.
    ///
    /// # Errors
    /// The system's; none is known.
    pub fn lost(&self) -> io::Result<u32> {
        let mut counted = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let at = ptr::from_mut(&mut counted).cast();
        // SAFETY: the structure is valid for its length, and the descriptor is open. rustix has no options of this level.
        let done = unsafe { libc::getsockopt(self.0.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, at, &raw mut len) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(counted.tp_drops) }
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

    #[test]
    fn frames_are_captured_as_they_come_in_and_counted_when_they_are_lost() {
        let (sender, capture) = (PacketSocket::open(1).expect("needs root"), PacketSocket::open_capture(1).unwrap());
        let frame = |byte: u8| [&[0; 12][..], &[0x88, 0xb5], &[byte; 50]].concat();
        let mut buffer = [0; 4_096];
        // Other tests may use the interface as well.
        let mut next = |byte: u8| loop {
            match capture.receive(&mut buffer).unwrap() {
                Some(64) if buffer[..64] == frame(byte) => return true,
                Some(_) => {}
                None => return false,
            }
        };
        for byte in 0..5 {
            sender.send(&frame(byte)).unwrap();
            assert!(next(byte));
        }
        assert!(!next(4), "once, and not on its way out");
        assert_eq!(capture.lost().unwrap(), 0);
        let long = [&frame(9)[..], &[0; 60_000]].concat();
        (0..CAPTURE_BUFFER / 30_000).for_each(|_| sender.send(&long).unwrap());
        assert!(capture.lost().unwrap() > 0);
        assert_eq!(capture.lost().unwrap(), 0, "since the last call");
    }
}
