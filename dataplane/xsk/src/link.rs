//! Queries an interface over netlink: one request, one answer.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

use crate::error::EdgeError;
use crate::limits::InterfaceName;

/// Buffer for the answer; interfaces with many statistics and virtual functions need a few kilobytes.
const ANSWER_MAX: usize = 65_536;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub name: String,
    /// Its index in this network namespace.
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    pub state: LinkState,
    /// The XDP program attached to it.
    pub xdp: Option<Attached>,
    /// The MAC address of the bridge, bond or VRF that it belongs to.
    pub master_mac: Option<[u8; 6]>,
}

/// Whether an interface can send and receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Up, and its carrier is there.
    Up,
    /// Administratively down.
    Down,
    /// Up without a carrier: no cable, or the other end is down.
    NoCarrier,
}

impl LinkState {
    fn of(flags: LinkFlags) -> LinkState {
        match (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp)) {
            (false, _) => LinkState::Down,
            (true, false) => LinkState::NoCarrier,
            (true, true) => LinkState::Up,
        }
    }
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
    /// Queries an interface in the calling thread's network namespace.
    pub fn query(name: &str) -> Result<Link, EdgeError> {
        match ask(Question::Name(name)) {
            Ok(answer) => Ok(Link::with_master(Link::read(answer))),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => Err(EdgeError::NoInterface { interface: name.into() }),
            Err(e) => Err(EdgeError::io(format!("querying netlink for {name}"), e)),
        }
    }

    /// A master that is gone by now is none.
    fn with_master((mut link, master): (Link, Option<u32>)) -> Link {
        link.master_mac = master.and_then(|index| ask(Question::Index(index)).ok()).map(|answer| Link::read(answer).0.mac);
        link
    }

    /// An interface, and the index of its master.
    fn read(message: LinkMessage) -> (Link, Option<u32>) {
        let (state, mut master) = (LinkState::of(message.header.flags), None);
        let mut link = Link { name: String::new(), ifindex: message.header.index, mac: [0; 6], mtu: 0, state, xdp: None, master_mac: None };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.first_chunk().copied().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Xdp(xdp) => link.xdp = Attached::read(&xdp),
                LinkAttribute::Controller(index) => master = Some(index),
                _ => {}
            }
        }
        (link, master)
    }
}

impl Attached {
    fn read(attributes: &[LinkXdp]) -> Option<Attached> {
        let mode = attributes.iter().find_map(|a| if let LinkXdp::Attached(mode) = a { Some(*mode) } else { None })?;
        let (mut driver_or_only, mut generic) = (0, 0);
        for attribute in attributes {
            match attribute {
                LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) => driver_or_only = *id,
                LinkXdp::SkbProgId(id) => generic = *id,
                _ => {}
            }
        }
        // With programs in several modes, the driver's.
        let program_id = if driver_or_only != 0 { driver_or_only } else { generic };
        let native = matches!(mode, XdpAttached::Driver | XdpAttached::Hardware);
        (mode != XdpAttached::None).then_some(Attached { program_id, native })
    }
}

/// How an interface is named in a query.
enum Question<'q> {
    Name(&'q str),
    Index(u32),
}

/// Sends RTM_GETLINK and returns the answer.
fn ask(about: Question<'_>) -> io::Result<LinkMessage> {
    let mut question = LinkMessage::default();
    match about {
        Question::Name(name) if name.len() > InterfaceName::LEN_MAX => return Err(Errno::NAMETOOLONG.into()),
        Question::Name(name) => question.attributes.push(LinkAttribute::IfName(name.into())),
        Question::Index(index) => question.header.index = index,
    }
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(question)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    // The kernel answers during the send, so this does not block.
    socket.recv(&mut answer, 0)?;
    match NetlinkMessage::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Name and id of a loaded program, as far as known.
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
        assert!(lo.ifindex > 0 && lo.mtu >= 1280 && lo.xdp.is_none() && lo.master_mac.is_none());
        assert!(matches!(Link::query("no-such-if"), Err(EdgeError::NoInterface { .. })));
    }

    #[test]
    fn the_drivers_program_is_named_before_the_generic_one() {
        use XdpAttached::{Driver, Hardware, Multiple, None as Nothing, SocketBuffer};
        let read = |mode, ids: &[LinkXdp]| {
            let attributes: Vec<LinkXdp> = [LinkXdp::Attached(mode)].into_iter().chain(ids.iter().cloned()).collect();
            Attached::read(&attributes).map(|xdp| (xdp.program_id, xdp.native))
        };
        assert_eq!(Attached::read(&[]), None);
        assert_eq!(read(Nothing, &[]), None);
        assert_eq!(read(Driver, &[LinkXdp::ProgId(7), LinkXdp::DrvProgId(7)]), Some((7, true)));
        assert_eq!(read(Hardware, &[LinkXdp::ProgId(7), LinkXdp::HwProgId(7)]), Some((7, true)));
        assert_eq!(read(SocketBuffer, &[LinkXdp::ProgId(8), LinkXdp::SkbProgId(8)]), Some((8, false)));
        assert_eq!(read(Multiple, &[LinkXdp::SkbProgId(8), LinkXdp::DrvProgId(7)]), Some((7, false)));
        assert_eq!(read(Multiple, &[LinkXdp::SkbProgId(8), LinkXdp::HwProgId(9)]), Some((8, false)));
    }

    #[test]
    fn invalid_interface_names_are_errors() {
        for name in ["", "a-name-that-is-too-long-for-linux", "a\0b", &"x".repeat(70_000)] {
            assert!(Link::query(name).is_err(), "{name}");
        }
    }
}
