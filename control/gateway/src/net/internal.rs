//! The internal port: a veth pair that returns frames to the kernel.
//!
//! The dataplane transmits on the edge's end (`nm1`), and the kernel receives on its own end (`nm0`). Neither end sends packets by
//! itself: it has no address in use, no IPv6 autoconfiguration, and no ARP on the edge's end.

use std::net::{IpAddr, Ipv4Addr};

use nomagic_core::routes::Mac;
use nomagic_xsk::InterfaceName;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::NetError;
use super::decode::{self, KernelLink};
use super::socket::Requests;
use super::sysctl;

/// The address of the kernel's end, which needs one; never used as a destination. Link-local (RFC 3927), /32, scope link.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 78, 77);

/// The interface names of the pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PairNames {
    /// The kernel's end.
    pub kernel: InterfaceName,
    /// The dataplane's end.
    pub edge: InterfaceName,
}

impl Default for PairNames {
    fn default() -> PairNames {
        const { PairNames { kernel: InterfaceName::from_static("nm0"), edge: InterfaceName::from_static("nm1") } }
    }
}

/// One end of the pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethEnd {
    pub name: String,
    pub ifindex: u32,
    pub mac: Mac,
}

/// Both ends of the pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethPair {
    pub kernel: VethEnd,
    pub edge: VethEnd,
}

/// Creates the pair if it is missing, configures it and brings it up. `mtu`: the largest of the ports', bytes.
///
/// # Errors
/// When another interface has one of the names, or the kernel refuses (no privileges).
pub fn ensure(names: &PairNames, mtu: u32) -> Result<VethPair, NetError> {
    let mut requests = Requests::open()?;
    if find_pair(&mut requests, names)?.is_none() {
        let what = || format!("create the veth pair {}/{}", names.kernel, names.edge);
        requests.request(what, Message::NewLink(pair_message(names, mtu)), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    let Some((kernel, edge)) = find_pair(&mut requests, names)? else { return Err(taken(names, &names.kernel)) };
    set_up_kernel_side(&names.kernel)?;
    set_up_edge_side(&names.edge)?;
    bring_up(&mut requests, &edge, mtu, LinkFlags::Up | LinkFlags::Noarp)?;
    // Without ARP the kernel does not resolve neighbours behind the pair; it sends frames to its own MAC address.
    bring_up(&mut requests, &kernel, mtu, LinkFlags::Up | LinkFlags::Noarp)?;
    add_address(&mut requests, &kernel)?;
    let side = |link: KernelLink| VethEnd { name: link.name, ifindex: link.index, mac: link.mac };
    Ok(VethPair { kernel: side(kernel), edge: side(edge) })
}

/// Routes an address into the pair. `own`: the preferred source for sockets on this node that reply to it.
pub fn route(kernel: &VethEnd, addr: IpAddr, own: Option<IpAddr>) -> Result<(), NetError> {
    let mut message = RouteMessage::default();
    message.header.address_family = if addr.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.destination_prefix_length = if addr.is_ipv6() { 128 } else { 32 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if addr.is_ipv6() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(decode::route_address(addr)), RouteAttribute::Oif(kernel.ifindex)];
    message.attributes.extend(own.map(|own| RouteAttribute::PrefSource(decode::route_address(own))));
    let what = || format!("route {addr} to interface {}", kernel.name);
    Requests::open()?.request(what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Sets the MTU of both ends.
pub fn set_mtu(names: &PairNames, mtu: u32) -> Result<(), NetError> {
    let mut requests = Requests::open()?;
    let Some((kernel, edge)) = find_pair(&mut requests, names)? else { return Ok(()) };
    for link in [edge, kernel] {
        bring_up(&mut requests, &link, mtu, LinkFlags::Up | LinkFlags::Noarp)?;
    }
    Ok(())
}

/// Deletes the pair, if it exists.
pub fn remove(names: &PairNames) -> Result<(), NetError> {
    let mut requests = Requests::open()?;
    let Some((kernel, _)) = find_pair(&mut requests, names)? else { return Ok(()) };
    let mut message = LinkMessage::default();
    message.header.index = kernel.index;
    requests.request(|| format!("delete interface {}", names.kernel), Message::DelLink(message), 0)
}

fn taken(names: &PairNames, name: &str) -> NetError {
    NetError::InternalTaken { name: name.to_owned(), kernel: names.kernel.to_string(), edge: names.edge.to_string() }
}

/// Both ends; `None` when neither exists.
fn find_pair(requests: &mut Requests, names: &PairNames) -> Result<Option<(KernelLink, KernelLink)>, NetError> {
    let dump = requests.dump("read the interfaces", Message::GetLink(LinkMessage::default()))?;
    let links: Vec<KernelLink> =
        dump.messages.iter().filter_map(|m| if let Message::NewLink(l) = m { decode::link(l) } else { None }).collect();
    let find = |name: &str| links.iter().find(|l| l.name == name).cloned();
    match (find(&names.kernel), find(&names.edge)) {
        (None, None) => Ok(None),
        (Some(kernel), Some(edge)) if kernel.peer == Some(edge.index) && edge.peer == Some(kernel.index) => Ok(Some((kernel, edge))),
        (Some(_), _) => Err(taken(names, &names.kernel)),
        (None, Some(_)) => Err(taken(names, &names.edge)),
    }
}

/// `ip link add NM0 mtu M numtxqueues 1 numrxqueues 1 type veth peer name NM1 ...`
fn pair_message(names: &PairNames, mtu: u32) -> LinkMessage {
    let end = |name: &str| {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::NumTxQueues(1));
        message.attributes.push(LinkAttribute::NumRxQueues(1));
        message
    };
    let mut message = end(&names.kernel);
    let peer = InfoData::Veth(InfoVeth::Peer(end(&names.edge)));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
    message
}

fn bring_up(requests: &mut Requests, link: &KernelLink, mtu: u32, flags: LinkFlags) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = flags;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    if link.mtu != mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    requests.request(|| format!("bring up interface {} with MTU {mtu}", link.name), Message::SetLink(message), 0)
}

/// Adds the address. Without one, even the loose reverse path check fails and the kernel drops all frames from the pair.
fn add_address(requests: &mut Requests, link: &KernelLink) -> Result<(), NetError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Link;
    message.header.index = link.index;
    message.attributes = vec![AddressAttribute::Local(ADDRESS.into()), AddressAttribute::Address(ADDRESS.into())];
    let what = || format!("add address {ADDRESS} to interface {}", link.name);
    requests.request(what, Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Frames from the pair have any source, including addresses of this node: accepts local sources, and turns the reverse path check off,
/// or to loose where the node's setting for all interfaces keeps it on. Source routes came in by another interface, whose setting is not known here:
/// they are refused.
fn set_up_kernel_side(name: &str) -> Result<(), NetError> {
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    let rp_filter = if all.trim() == "0" { "0" } else { "2" };
    for (key, value) in [("rp_filter", rp_filter), ("accept_local", "1"), ("accept_source_route", "0")] {
        sysctl::write(&format!("net/ipv4/conf/{name}/{key}"), value)?;
    }
    if !has_ipv6(name)? {
        return Ok(());
    }
    // No link-local address and no router solicitations: this end only receives.
    let quiet = [("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")];
    quiet.iter().try_for_each(|(key, value)| sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), value))
}

fn set_up_edge_side(name: &str) -> Result<(), NetError> {
    if has_ipv6(name)? { sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1") } else { Ok(()) }
}

/// Whether the kernel supports IPv6.
fn has_ipv6(name: &str) -> Result<bool, NetError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}");
    std::path::Path::new(&path).try_exists().map_err(|source| NetError::Proc { what: "look at".into(), path, source })
}
