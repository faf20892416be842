//! The internal port: one veth pair by which frames go back to the kernel.
//!
//! The kernel's side (`nm0`) takes what the dataplane sends out of the edge's side (`nm1`). Neither side sends anything of its
//! own: no address that anybody uses, no IPv6 autoconfiguration, no ARP on the edge's side.

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
use super::decode::{self, Link};
use super::socket::Requests;
use super::sysctl;

/// The kernel's side needs an address; nothing is ever sent to this one. Link-local (RFC 3927), /32, scope link.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 78, 77);

/// The pair's names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The kernel's side.
    pub kernel: InterfaceName,
    /// The dataplane's side.
    pub edge: InterfaceName,
}

impl Default for Names {
    fn default() -> Names {
        const { Names { kernel: InterfaceName::from_static("nm0"), edge: InterfaceName::from_static("nm1") } }
    }
}

/// One side, ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
}

/// Both sides, ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The kernel's side.
    pub kernel: Side,
    /// The dataplane's side.
    pub edge: Side,
}

/// Makes the pair if it is missing, sets it up and brings it up. `mtu` (bytes of an IP packet): the largest of the ports'.
///
/// # Errors
/// When one of the names belongs to something else, or the kernel refuses (no privileges).
pub fn ensure(names: &Names, mtu: u32) -> Result<Pair, NetError> {
    let mut requests = Requests::open()?;
    if find_pair(&mut requests, names)?.is_none() {
        let what = || format!("create the veth pair {}/{}", names.kernel, names.edge);
        requests.request(what, Message::NewLink(pair_message(names, mtu)), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    let Some((kernel, edge)) = find_pair(&mut requests, names)? else { return Err(taken(names, &names.kernel)) };
    set_up_kernel_side(&names.kernel)?;
    set_up_edge_side(&names.edge)?;
    bring_up(&mut requests, &edge, mtu, LinkFlags::Up | LinkFlags::Noarp)?;
    // Without ARP the kernel addresses what it sends into the pair to its own end, and asks for nobody.
    bring_up(&mut requests, &kernel, mtu, LinkFlags::Up | LinkFlags::Noarp)?;
    add_address(&mut requests, &kernel)?;
    let side = |link: Link| Side { name: link.name, ifindex: link.index, mac: link.mac };
    Ok(Pair { kernel: side(kernel), edge: side(edge) })
}

/// Makes the kernel send an address into the pair. Servers on this node that answer to it do so from `own`, where they leave that open.
pub fn route(kernel: &Side, addr: IpAddr, own: Option<IpAddr>) -> Result<(), NetError> {
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

/// Removes the pair. Nothing there is no error.
pub fn remove(names: &Names) -> Result<(), NetError> {
    let mut requests = Requests::open()?;
    let Some((kernel, _)) = find_pair(&mut requests, names)? else { return Ok(()) };
    let mut message = LinkMessage::default();
    message.header.index = kernel.index;
    requests.request(|| format!("remove interface {}", names.kernel), Message::DelLink(message), 0)
}

fn taken(names: &Names, name: &str) -> NetError {
    NetError::InternalTaken { name: name.to_owned(), kernel: names.kernel.to_string(), edge: names.edge.to_string() }
}

/// Both ends; `None` when neither exists.
fn find_pair(requests: &mut Requests, names: &Names) -> Result<Option<(Link, Link)>, NetError> {
    let dump = requests.dump("read the interfaces", Message::GetLink(LinkMessage::default()))?;
    let links: Vec<Link> = dump.messages.iter().filter_map(|m| if let Message::NewLink(l) = m { decode::link(l) } else { None }).collect();
    let find = |name: &str| links.iter().find(|l| l.name == name).cloned();
    match (find(&names.kernel), find(&names.edge)) {
        (None, None) => Ok(None),
        (Some(kernel), Some(edge)) if kernel.peer == Some(edge.index) && edge.peer == Some(kernel.index) => Ok(Some((kernel, edge))),
        (Some(_), _) => Err(taken(names, &names.kernel)),
        (None, Some(_)) => Err(taken(names, &names.edge)),
    }
}

/// `ip link add NM0 mtu M numtxqueues 1 numrxqueues 1 type veth peer name NM1 ...`
fn pair_message(names: &Names, mtu: u32) -> LinkMessage {
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

fn bring_up(requests: &mut Requests, link: &Link, mtu: u32, flags: LinkFlags) -> Result<(), NetError> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = flags;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    if link.mtu != mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    requests.request(|| format!("bring up interface {} with MTU {mtu}", link.name), Message::SetLink(message), 0)
}

/// An interface without any IPv4 address fails even the loose reverse path check: the kernel would drop all that comes out of it.
fn add_address(requests: &mut Requests, link: &Link) -> Result<(), NetError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Link;
    message.header.index = link.index;
    message.attributes = vec![AddressAttribute::Local(ADDRESS.into()), AddressAttribute::Address(ADDRESS.into())];
    let what = || format!("give interface {} the address {ADDRESS}", link.name);
    requests.request(what, Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Frames of any source come out of it, also ones with addresses of this node: local sources are accepted, and the reverse path is not
/// looked at, or where the node's setting for all interfaces forbids that, loosely.
fn set_up_kernel_side(name: &str) -> Result<(), NetError> {
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    let rp_filter = if all.trim() == "0" { "0" } else { "2" };
    for (key, value) in [("rp_filter", rp_filter), ("accept_local", "1")] {
        sysctl::write(&format!("net/ipv4/conf/{name}/{key}"), value)?;
    }
    if !has_ipv6(name) {
        return Ok(());
    }
    // No link-local address and no router solicitations: it only receives.
    let quiet = [("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")];
    quiet.iter().try_for_each(|(key, value)| sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), value))
}

fn set_up_edge_side(name: &str) -> Result<(), NetError> {
    if has_ipv6(name) { sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1") } else { Ok(()) }
}

/// Whether the kernel has IPv6 at all.
fn has_ipv6(name: &str) -> bool {
    std::path::Path::new(&format!("/proc/sys/net/ipv6/conf/{name}")).exists()
}
