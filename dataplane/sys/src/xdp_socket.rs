//! AF_XDP socket calls other than ring access.
#![allow(unsafe_code, reason = "a socket option that rustix does not have")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, socket_with};

pub use rustix::net::xdp::XdpStatistics as Statistics;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h: maximum number of frames per sendto() in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Makes the kernel send the frames on an AF_XDP socket's tx ring.
///
/// # Errors
/// System errors: EAGAIN if more frames remain, or the completion ring is full; EBUSY and ENOBUFS if the driver cannot take frames now;
/// others if the interface is down or gone.
#[inline]
pub fn kick_tx(socket: impl AsFd) -> io::Result<()> {
    rustix::net::send(socket, &[], SendFlags::DONTWAIT)?;
    Ok(())
}

/// Notifies the kernel that the fill ring has frames again.
///
/// # Errors
/// System errors.
pub fn kick_rx(socket: impl AsFd) -> io::Result<()> {
    rustix::net::recv(socket, &mut [0u8; 0], RecvFlags::DONTWAIT)?;
    Ok(())
}

/// Reads the kernel's statistics of an AF_XDP socket.
///
/// # Errors
/// System errors.
pub fn statistics(socket: impl AsFd) -> io::Result<Statistics> {
    Ok(rustix::net::sockopt::xdp_statistics(socket)?)
}

/// Raises the number of frames that one [`kick_tx`] sends on an AF_XDP socket in copy mode.
///
/// # Errors
/// System errors: ENOPROTOOPT on kernels without the option (before Linux 6.17). These send 32.
pub fn set_tx_budget(socket: impl AsFd, frames: u32) -> io::Result<()> {
    let (fd, len) = (socket.as_fd().as_raw_fd(), size_of::<u32>() as libc::socklen_t);
    // SAFETY: the value is valid for its length, and the descriptor is open. rustix has no wrapper for this option.
    let done = unsafe { libc::setsockopt(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, ptr::from_ref(&frames).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel delivers packets of several frames to AF_XDP sockets (XDP_USE_SG, Linux 6.6): it looks at a socket's flags before it looks for the
/// interface, and no interface has the index 0.
///
/// # Errors
/// System errors: there may be no AF_XDP sockets, or none for this user.
pub fn knows_segments() -> io::Result<bool> {
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    match bind(socket, &SocketAddrXdp::new(SocketAddrXdpFlags::XDP_USE_SG, 0, 0)) {
        Ok(()) | Err(Errno::NODEV) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        // Says nothing about the kernel.
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_descriptors_are_refused() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(kick_tx(&reader).is_err() && kick_rx(&reader).is_err());
        assert!(statistics(&reader).is_err() && set_tx_budget(&reader, 64).is_err());
    }

    #[test]
    fn packets_of_several_frames_are_known_from_linux_6_6_on() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        // Distributions may have added it to an older kernel.
        assert!(knows_segments().expect("needs root") || version < (6, 6), "{release}");
    }

    #[test]
    fn a_socket_without_rings_has_sent_nothing() {
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).expect("needs root");
        let statistics = statistics(&socket).unwrap();
        assert_eq!((statistics.rx_dropped, statistics.rx_ring_full), (0, Some(0)));
        assert!(kick_tx(&socket).is_err(), "it is not bound");
        // Without a tx ring there is nothing to set; older kernels do not know the option.
        let refused = set_tx_budget(&socket, 64).unwrap_err();
        assert!(matches!(refused.raw_os_error(), Some(libc::EACCES | libc::ENOPROTOOPT)), "{refused}");
    }
}
