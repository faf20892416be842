//! What the kernel says about an interface: one netlink question, one answer.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::EdgeError;

/// Nested attributes of `IFLA_XDP` (linux/if_link.h).
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
/// Values of `IFLA_XDP_ATTACHED`.
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_HW: u8 = 3;
/// The low bits of an attribute's type; the others are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Room for the answer; interfaces with many statistics and virtual functions need a few kilobytes.
const ANSWER_MAX: usize = 65_536;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index in this network namespace.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The XDP program on it.
    pub xdp: Option<Attached>,
}

/// An attached XDP program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The program's id.
    pub program_id: u32,
    /// In the driver (true) or generic (false).
    pub native: bool,
}

impl Link {
    /// Asks for an interface of the calling thread's network namespace.
    pub fn query(name: &str) -> Result<Link, EdgeError> {
        match ask(name) {
            Ok(answer) => {
                parse(&answer).ok_or_else(|| EdgeError::io(format!("netlink answer about {name}"), io::ErrorKind::InvalidData.into()))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Err(EdgeError::NoInterface { interface: name.into() }),
            Err(e) => Err(EdgeError::io(format!("asking netlink about {name}"), e)),
        }
    }
}

/// Sends RTM_GETLINK and returns the payload of RTM_NEWLINK.
fn ask(name: &str) -> io::Result<Vec<u8>> {
    // SAFETY: creates a new descriptor.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was created above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = request(name);
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; ANSWER_MAX];
    // SAFETY: the buffer is valid for its length. The kernel answers while send() runs, so this does not wait.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    answer.truncate(got as usize);
    let kind = u16_at(&answer, 4).ok_or(io::ErrorKind::InvalidData)?;
    if kind == libc::NLMSG_ERROR as u16 {
        let code = i32_at(&answer, 16).ok_or(io::ErrorKind::InvalidData)?;
        return Err(io::Error::from_raw_os_error(-code));
    }
    answer.drain(..16);
    Ok(answer)
}

/// nlmsghdr, ifinfomsg, IFLA_IFNAME.
fn request(name: &str) -> Vec<u8> {
    let attribute_len = 4 + name.len() + 1;
    let len = 16 + mem::size_of::<libc::ifinfomsg>() + attribute_len.next_multiple_of(4);
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(&(len as u32).to_ne_bytes());
    message.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; mem::size_of::<libc::ifinfomsg>()]);
    message.extend_from_slice(&(attribute_len as u16).to_ne_bytes());
    message.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(len, 0);
    message
}

/// ifinfomsg and its attributes.
fn parse(payload: &[u8]) -> Option<Link> {
    let header_len = mem::size_of::<libc::ifinfomsg>();
    let mut link = Link {
        name: String::new(),
        ifindex: u32::try_from(i32_at(payload, 4)?).ok()?,
        mac: [0; 6],
        mtu: 0,
        up: i32_at(payload, 8)? & libc::IFF_UP != 0,
        xdp: None,
    };
    for (kind, value) in attributes(payload.get(header_len..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            libc::IFLA_ADDRESS => link.mac = value.first_chunk().copied().unwrap_or_default(),
            libc::IFLA_MTU => link.mtu = u32::from_ne_bytes(*value.first_chunk()?),
            libc::IFLA_XDP => link.xdp = parse_xdp(value),
            _ => {}
        }
    }
    Some(link)
}

fn parse_xdp(nested: &[u8]) -> Option<Attached> {
    let (mut mode, mut program_id) = (0, 0);
    for (kind, value) in attributes(nested) {
        match kind {
            IFLA_XDP_ATTACHED => mode = *value.first()?,
            // One of them, or with programs in several modes the driver's.
            IFLA_XDP_PROG_ID | IFLA_XDP_DRV_PROG_ID => program_id = u32::from_ne_bytes(*value.first_chunk()?),
            IFLA_XDP_SKB_PROG_ID if program_id == 0 => program_id = u32::from_ne_bytes(*value.first_chunk()?),
            _ => {}
        }
    }
    (mode != 0).then_some(Attached { program_id, native: mode == XDP_ATTACHED_DRV || mode == XDP_ATTACHED_HW })
}

/// Type-length-value triples, 4-byte aligned; stops at the first that contradicts the buffer.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

/// Name and id of a loaded program, as far as they can be found out.
pub fn describe_program(id: u32) -> String {
    let found = aya::programs::loaded_programs().filter_map(Result::ok).find(|p| p.id() == id);
    match found.as_ref().and_then(|p| p.name_as_str()) {
        Some(name) if !name.is_empty() => format!("id {id}, name {name}"),
        _ => format!("id {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_nonsense_is_not() {
        let lo = Link::query("lo").unwrap();
        assert_eq!((lo.name.as_str(), lo.mac), ("lo", [0; 6]));
        assert!(lo.ifindex > 0 && lo.mtu >= 1280 && lo.xdp.is_none());
        assert!(matches!(Link::query("no-such-if"), Err(EdgeError::NoInterface { .. })));
    }

    #[test]
    fn garbage_is_refused_without_reading_beyond_it() {
        for len in 0..64 {
            let _ = parse(&vec![0xff; len]);
            let _ = attributes(&vec![0x04; len]).count();
        }
        assert_eq!(parse(&[0; 15]), None);
        assert_eq!(parse_xdp(&[5, 0, 2, 0, 1]), Some(Attached { program_id: 0, native: true }));
        assert_eq!(parse_xdp(&[5, 0, 2, 0, 0]), None);
    }
}
