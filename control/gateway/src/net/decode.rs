//! Decodes netlink messages into the fields that the mirror uses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::local::{OWN_TABLE, SERVICES_TABLE};
use nomagic_core::routes::Mac;
use nomagic_core::tuple::Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
};

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    /// In bytes, without the link-layer header.
    pub(super) mtu: u32,
    /// IFF_UP.
    pub(super) admin_up: bool,
    pub(super) carrier: bool,
    /// IFLA_LINK: a veth's peer, or a VLAN's lower device.
    pub(super) peer: Option<u32>,
    /// IFLA_MASTER: the bridge, bond or VRF that it belongs to.
    pub(super) master: Option<u32>,
    /// The table of a VRF device.
    pub(super) vrf_table: Option<u32>,
}

/// Decodes an interface. `None` for messages about bridge ports, which are link messages of another family.
pub(super) fn link(message: &LinkMessage) -> Option<KernelLink> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = KernelLink {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        admin_up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        peer: None,
        master: None,
        vrf_table: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|index| *index > 0),
            LinkAttribute::LinkInfo(info) => link.vrf_table = vrf_table(info),
            _ => {}
        }
    }
    Some(link)
}

fn vrf_table(info: &[LinkInfo]) -> Option<u32> {
    let data = info.iter().find_map(|i| if let LinkInfo::Data(InfoData::Vrf(data)) = i { Some(data) } else { None })?;
    data.iter().find_map(|i| if let InfoVrf::TableId(table) = i { Some(*table) } else { None })
}

/// An address of this node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OwnAddress {
    pub(super) link: u32,
    pub(super) addr: IpAddr,
    pub(super) scope: OwnScope,
}

/// From where an address of this node is reachable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum OwnScope {
    /// From other nodes.
    Node,
    /// From other nodes, but not preferred: secondary, temporary or deprecated.
    Secondary,
    /// On one link or in the node only, or not usable yet (tentative).
    Restricted,
}

pub(super) fn own_address(message: &AddressMessage) -> Option<OwnAddress> {
    // The header's flags are the low 8 bits of the attribute's.
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Flags(f) => flags |= *f,
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the peer's and `Local` is this node's.
    let addr = local.or(address)?;
    let restricted = matches!(message.header.scope, AddressScope::Link | AddressScope::Host | AddressScope::Nowhere)
        || flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    let scope = match restricted {
        true => OwnScope::Restricted,
        false if flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated) => OwnScope::Secondary,
        false => OwnScope::Node,
    };
    Some(OwnAddress { link: message.header.index, addr, scope })
}

/// The mirrored tables. Without other rules the kernel looks up `Local` first, then `Main`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum KernelTable {
    Local,
    Main,
    Other(u32),
}

impl KernelTable {
    pub(super) fn from_id(id: u32) -> KernelTable {
        match id {
            LOCAL => KernelTable::Local,
            MAIN => KernelTable::Main,
            other => KernelTable::Other(other),
        }
    }
}

const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

/// The fields that identify a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RouteKey {
    pub(super) table: KernelTable,
    pub(super) prefix: Prefix,
    pub(super) metric: u32,
}

/// The action of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RouteAction {
    Unicast(Vec<KernelLeg>),
    Local,
    Unreachable,
    Prohibit,
    Blackhole,
    Throw,
    /// Depends on more than the destination, or on what cannot be read here: only the kernel can tell.
    Kernel,
}

/// A next hop of a unicast route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelLeg {
    pub(super) link: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) weight: u16,
    /// RTNH_F_DEAD: the interface is down.
    pub(super) dead: bool,
    /// Uses a lightweight tunnel (MPLS, SRv6 ...), which only the kernel can do.
    pub(super) tunnel: bool,
    /// The route's own MTU, in bytes.
    pub(super) mtu: Option<u16>,
}

/// Why a route message is skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Skipped {
    /// Of nomagic's tables or another family, or a cached clone.
    Foreign,
    /// Of an unknown type.
    Unsupported,
}

/// Decodes a route.
pub(super) fn route(message: &RouteMessage) -> Result<(RouteKey, RouteAction), Skipped> {
    let header = &message.header;
    let mut dst = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Err(Skipped::Foreign),
    };
    let mut table = u32::from(header.table);
    let (mut metric, mut multipath) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Priority(m) => metric = *m,
            RouteAttribute::Destination(a) => dst = ip(a).ok_or(Skipped::Unsupported)?,
            RouteAttribute::MultiPath(legs) => multipath = Some(legs),
            _ => {}
        }
    }
    if header.flags.contains(RouteFlags::Cloned) || [SERVICES_TABLE, OWN_TABLE].contains(&table) {
        return Err(Skipped::Foreign);
    }
    let prefix = Prefix::new(dst, header.destination_prefix_length).ok_or(Skipped::Unsupported)?;
    let action = match header.kind {
        _ if header.tos != 0 || header.source_prefix_length != 0 => RouteAction::Kernel,
        RouteType::Unicast => unicast(message, multipath),
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => RouteAction::Local,
        RouteType::Unreachable => RouteAction::Unreachable,
        RouteType::Prohibit => RouteAction::Prohibit,
        RouteType::BlackHole => RouteAction::Blackhole,
        RouteType::Throw => RouteAction::Throw,
        _ => return Err(Skipped::Unsupported),
    };
    Ok((RouteKey { table: KernelTable::from_id(table), prefix, metric }, action))
}

fn unicast(message: &RouteMessage, multipath: Option<&Vec<RouteNextHop>>) -> RouteAction {
    let metrics = message.attributes.iter().find_map(|a| if let RouteAttribute::Metrics(m) = a { Some(m) } else { None });
    let mtu = metrics.into_iter().flatten().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
    let mut legs: Vec<KernelLeg> = match multipath {
        Some(legs) => legs.iter().map(next_hop).collect(),
        None => vec![only_leg(message)],
    };
    // 0: not set. What is longer than any packet does not matter.
    let mtu = mtu.filter(|mtu| *mtu > 0).and_then(|mtu| u16::try_from(mtu).ok());
    legs.iter_mut().for_each(|leg| leg.mtu = mtu);
    // Without an interface: of a next hop object, and `net.ipv4.nexthop_compat_mode` is off.
    if legs.iter().any(|leg| leg.link == 0) { RouteAction::Kernel } else { RouteAction::Unicast(legs) }
}

fn only_leg(message: &RouteMessage) -> KernelLeg {
    leg(0, &message.attributes, 1, message.header.flags.contains(RouteFlags::Dead))
}

fn next_hop(hop: &RouteNextHop) -> KernelLeg {
    // `hops` is the weight minus one.
    leg(hop.interface_index, &hop.attributes, u16::from(hop.hops) + 1, hop.flags.contains(RouteNextHopFlags::Dead))
}

fn leg(link: u32, attributes: &[RouteAttribute], weight: u16, dead: bool) -> KernelLeg {
    let mut leg = KernelLeg { link, gateway: None, weight, dead, tunnel: false, mtu: None };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => leg.link = *index,
            RouteAttribute::Gateway(a) => leg.gateway = ip(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => leg.gateway = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => leg.gateway = Some((*a).into()),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => leg.tunnel = true,
            _ => {}
        }
    }
    leg
}

/// An address as a route attribute.
pub(super) fn route_address(addr: IpAddr) -> RouteAddress {
    match addr {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

/// A neighbour message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelNeighbour {
    pub(super) link: u32,
    pub(super) addr: IpAddr,
    /// The MAC address, if the neighbour is usable.
    pub(super) mac: Option<Mac>,
    /// NUD_STALE.
    pub(super) stale: bool,
    /// NUD_FAILED.
    pub(super) failed: bool,
}

/// Decodes a neighbour. `None` for proxy entries and entries of a bridge's forwarding table.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<KernelNeighbour> {
    use NeighbourState as State;
    let header = &message.header;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => addr = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => addr = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let usable = matches!(header.state, State::Reachable | State::Stale | State::Delay | State::Probe | State::Permanent | State::Noarp);
    let mac = mac.filter(|_| usable);
    Some(KernelNeighbour {
        link: header.ifindex,
        addr: addr?,
        mac,
        stale: header.state == State::Stale,
        failed: header.state == State::Failed,
    })
}
