//! The XDP program: loading, pinning, attaching, replacing.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use aya::maps::{Array, HashMap, MapData, MapError, MapInfo, XskMap};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nomagic_core::counters::XdpCounts;
use nomagic_core::filter::ReplyKey;
use nomagic_core::tuple::addr_words;
use rustix::io::Errno;

use crate::addressed::{Configured, PortMacs};
use crate::config::{EdgeConfig, OnFailure};
use crate::error::{EdgeError, chain, explained, is_shortage, os_error};
use crate::filter::SERVICES_MAX;
use crate::link::{Attached, Link, describe_program};
use crate::pins::Pins;
use crate::reply_key;

/// Version of the pinned maps' keys, values and meaning. Raise it with each incompatible change of bpf/filter.c.
pub(crate) const LAYOUT: u32 = 1;
/// Maps shared by all interfaces.
const SHARED_MAPS: [&str; 12] = [
    "services",
    "service_protocols",
    "addresses",
    "service_cidrs",
    "kernel_addresses",
    "denied",
    "denied_count",
    "replies",
    "reply_sources",
    "fragments",
    "heartbeats",
    "settings",
];
/// Maps of a single interface.
const OWN_MAPS: [&str; 3] = ["xsks", "owners", "stats"];
/// Bytes of `struct settings`.
const SETTINGS_LEN: usize = 24;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.o"));
/// The same for packets of several frames.
static OBJECT_SEGMENTS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter_segments.o"));

/// Constants compiled into the program for one interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constants {
    pub reply_buckets: u32,
    pub reply_key: ReplyKey,
    /// Capture all unicast frames: the internal port.
    pub take_everything: bool,
    /// Capture what the kernel would send back of packets for addresses that only Services have.
    pub refuse_unused: bool,
    /// Capture ICMP to these addresses.
    pub answer_ping: bool,
    /// Accept packets of several frames: the driver takes a larger MTU.
    pub segments: bool,
    /// Interface index that captured frames are redirected to; 0: the sockets.
    pub redirect_to: u32,
    /// Addresses that the kernel always routes to the internal port, by family.
    pub internal: [Option<IpAddr>; 2],
    /// MAC addresses and VLANs beside the port's own.
    pub configured: Configured,
}

/// Loads the program. With `pins` and the directory of its own maps, maps are opened from there or pinned there.
pub(crate) fn load(interface: &str, constants: Constants, pins: Option<(&Pins, &Path)>) -> Result<Ebpf, EdgeError> {
    let (mask, key, all) = (constants.reply_buckets - 1, constants.reply_key.0, u32::from(constants.take_everything));
    let (refuse_unused, answer_ping) = (u32::from(constants.refuse_unused), u32::from(constants.answer_ping));
    let mut loader = EbpfLoader::new();
    // The program has no relocations against kernel types, so the kernel's BTF is not needed.
    loader.btf(None);
    loader.override_global("reply_mask", &mask, true);
    loader.override_global("reply_key", &key, true);
    loader.override_global("take_everything", &all, true);
    loader.override_global("refuse_unused", &refuse_unused, true);
    loader.override_global("answer_ping", &answer_ping, true);
    loader.override_global("redirect_to", &constants.redirect_to, true);
    let [v4, v6] = constants.internal.map(|addr| addr.map_or([0; 2], |addr| addr_words(addr).0));
    let (v4, v6) = (v4[1] as u32, [(v6[0] >> 32) as u32, v6[0] as u32, (v6[1] >> 32) as u32, v6[1] as u32]);
    loader.override_global("internal_v4", &v4, true);
    loader.override_global("internal_v6", &v6, true);
    loader.override_global("more_macs", &constants.configured.macs, true);
    loader.override_global("vlans", &constants.configured.vlans, true);
    loader.map_max_entries("replies", reply_key::entries(constants.reply_buckets));
    if let Some((pins, own)) = pins {
        pins.create(own)?;
        for map in SHARED_MAPS {
            loader.map_pin_path(map, pins.shared(map));
        }
        // The rules of a version with another limit: they are added again.
        replace_resized(pins, &pins.shared("services"), SERVICES_MAX as u32)?;
        // The counters of a version that counts other outcomes.
        replace_resized(pins, &own.join("stats"), XdpCounts::OUTCOMES.len() as u32)?;
        for map in OWN_MAPS {
            loader.map_pin_path(map, own.join(map));
        }
    }
    let mut ebpf = loader.load(if constants.segments { OBJECT_SEGMENTS } else { OBJECT }).map_err(|e| load_error(interface, &e))?;
    let program = program(&mut ebpf)?;
    program.load().map_err(|e| load_error(interface, &EbpfError::ProgramError(e)))?;
    Ok(ebpf)
}

/// The object's only program.
pub(crate) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, EdgeError> {
    let missing = || EdgeError::Program { interface: "all".into(), detail: "the embedded object has no program nomagic_filter".into() };
    ebpf.program_mut("nomagic_filter").ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn load_error(interface: &str, error: &EbpfError) -> EdgeError {
    match os_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges(format!("loading the XDP program for {interface}")),
        code => EdgeError::Program { interface: interface.into(), detail: explained(error) + &lost_cause(code) },
    }
}

/// What to do about an error whose cause aya drops: it makes a map anew that it cannot open, and goes on without what it cannot try out.
fn lost_cause(code: Option<Errno>) -> String {
    let what = match code {
        Some(Errno::EXIST) => "that map is pinned, but could not be opened",
        None | Some(Errno::INVAL) => "if the kernel lacks nothing that it needs, something could not be tried out",
        Some(_) => return String::new(),
    };
    format!(
        "; {what}: raise the limit of open files (`ulimit -n`), free memory, or permit bpf(2), which a seccomp profile or a security module may \
         forbid, and start again"
    )
}

/// Checks an earlier process's pins.
pub(crate) fn check_layout(pins: &Pins) -> Result<(), EdgeError> {
    let path = pins.shared("settings");
    // Without an answer, a version that does not fit would write to these maps.
    if let Some(map) = existing(MapData::from_pin(&path), "settings")? {
        let misfit = |detail: String| EdgeError::Layout { path: path.clone(), detail };
        let len = map.info().map_err(|e| EdgeError::map("settings", &e))?.value_size();
        if len as usize != SETTINGS_LEN {
            return Err(misfit(format!("settings of {len} bytes instead of {SETTINGS_LEN}")));
        }
        let settings = Array::<_, [u8; SETTINGS_LEN]>::try_from(aya::maps::Map::Array(map)).map_err(|e| EdgeError::map("settings", &e))?;
        let value = settings.get(&0, 0).map_err(|e| EdgeError::map("settings", &e))?;
        let layout = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
        if layout != LAYOUT && layout != 0 {
            return Err(misfit(format!("layout {layout}, expected {LAYOUT}")));
        }
    }
    Ok(())
}

/// A pinned map; `None`: there is none.
///
/// # Errors
/// A shortage, which says nothing about the map.
fn existing<T>(opened: Result<T, MapError>, map: &str) -> Result<Option<T>, EdgeError> {
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(e) if os_error(&e).is_some_and(is_shortage) => Err(EdgeError::map(map, &e)),
        Err(_) => Ok(None),
    }
}

/// Removes a pinned map of another size; loading makes a new one. A program that is attached keeps the old one until it is replaced.
fn replace_resized(pins: &Pins, path: &Path, entries: u32) -> Result<(), EdgeError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match existing(MapInfo::from_pin(path), &name)? {
        Some(info) if info.max_entries() != entries => pins.remove(path),
        _ => Ok(()),
    }
}

/// Writes the heartbeat limits and the failure policy for the programs.
pub(crate) fn write_settings(ebpf: &mut Ebpf, config: &EdgeConfig) -> Result<(), EdgeError> {
    let mut value = [0u8; SETTINGS_LEN];
    let action: u32 = match config.on_failure {
        OnFailure::Drop => 1,
        OnFailure::Pass => 2,
    };
    value[0..4].copy_from_slice(&LAYOUT.to_ne_bytes());
    value[4..8].copy_from_slice(&action.to_ne_bytes());
    value[8..16].copy_from_slice(&(config.fresh.as_nanos() as u64).to_ne_bytes());
    value[16..24].copy_from_slice(&(config.grace.as_nanos() as u64).to_ne_bytes());
    let mut settings = Array::<_, [u8; SETTINGS_LEN]>::try_from(map_mut(ebpf, "settings")?).map_err(|e| EdgeError::map("settings", &e))?;
    settings.set(0, value, 0).map_err(|e| EdgeError::map("settings", &e))
}

/// Sets the MAC addresses of a port. Until then its program captures nothing.
pub(crate) fn set_macs(ebpf: &mut Ebpf, macs: PortMacs) -> Result<(), EdgeError> {
    let mut map = Array::<_, [u64; 2]>::try_from(map_mut(ebpf, "macs")?).map_err(|e| EdgeError::map("macs", &e))?;
    map.set(0, macs.value(), 0).map_err(|e| EdgeError::map("macs", &e))
}

/// The same for a redirect port, by interface index; `None`: it is no longer one.
pub(crate) fn set_redirect_macs(ebpf: &mut Ebpf, ifindex: u32, macs: Option<PortMacs>) -> Result<(), EdgeError> {
    const MAP: &str = "redirect_macs";
    let mut map = HashMap::<_, u32, [u64; 2]>::try_from(map_mut(ebpf, MAP)?).map_err(|e| EdgeError::map(MAP, &e))?;
    let done = match macs {
        Some(macs) => map.insert(ifindex, macs.value(), 0),
        None => map.remove(&ifindex),
    };
    done.map_err(|e| EdgeError::map(MAP, &e))
}

/// Sets the worker that owns a queue.
pub(crate) fn set_owner(ebpf: &mut Ebpf, queue: u32, worker: u32) -> Result<(), EdgeError> {
    let mut owners = Array::<_, u32>::try_from(map_mut(ebpf, "owners")?).map_err(|e| EdgeError::map("owners", &e))?;
    owners.set(queue, worker, 0).map_err(|e| EdgeError::map("owners", &e))
}

/// Connects a queue to its socket and sets the worker that owns it.
pub(crate) fn connect_queue(ebpf: &mut Ebpf, queue: u32, socket: BorrowedFd<'_>, worker: u32) -> Result<(), EdgeError> {
    set_owner(ebpf, queue, worker)?;
    let mut xsks = XskMap::try_from(map_mut(ebpf, "xsks")?).map_err(|e| EdgeError::map("xsks", &e))?;
    xsks.set(queue, socket, 0).map_err(|e| EdgeError::map("xsks", &e))
}

fn map_mut<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut aya::maps::Map, EdgeError> {
    ebpf.map_mut(name).ok_or_else(|| EdgeError::Map { map: name.into(), detail: "missing in the embedded object".into() })
}

/// Takes a map out of the object.
pub(crate) fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, EdgeError> {
    ebpf.take_map(name).ok_or_else(|| EdgeError::Map { map: name.into(), detail: "missing in the embedded object".into() })
}

/// The loaded program's id.
pub(crate) fn id(ebpf: &mut Ebpf) -> Result<u32, EdgeError> {
    Ok(program(ebpf)?.info().map_err(|e| load_error("all", &EbpfError::ProgramError(e)))?.id())
}

/// How a program was attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attachment {
    /// In the driver (true) or generic.
    pub native: bool,
    /// Whether the link is new, or was pinned before.
    pub created: bool,
}

/// Refuses an interface with another XDP program, before anything is changed.
pub(crate) fn check_free(link: &Link, pins: Option<&Pins>) -> Result<(), EdgeError> {
    let Some(attached) = link.xdp else { return Ok(()) };
    match pins.map(|p| PinnedLink::from_pin(p.link(&link.name))) {
        Some(Ok(_)) => Ok(()),
        // A shortage does not make the program another's.
        Some(Err(e)) if os_error(&e).is_some_and(is_shortage) => Err(refused_by(link, &e)),
        _ => Err(busy(&link.name, Some(attached))),
    }
}

fn busy(interface: &str, attached: Option<Attached>) -> EdgeError {
    let program = attached.map_or_else(|| "unknown".into(), |a| describe_program(a.program_id));
    EdgeError::XdpBusy { interface: interface.into(), program }
}

/// Attaches the program: through the pinned link if there is one (atomically, so every frame meets a program), else with a new link. `pin`
/// is the link's path.
pub(crate) fn attach(ebpf: &mut Ebpf, link: &Link, pins: &Pins, pin: &Path) -> Result<Attachment, EdgeError> {
    let path = pin.to_path_buf();
    let program = program(ebpf)?;
    let replaced = replace_pinned(program, &path, link)?;
    if !replaced {
        pins.remove(&path)?;
        attach_new(program, &path, link)?;
    }
    let id = program.info().map_err(|e| refused_by(link, &e))?.id();
    match Link::query(&link.name)?.xdp {
        Some(now) if now.program_id == id => Ok(Attachment { native: now.native, created: !replaced }),
        // The pinned link is on an interface of this name in another namespace, or on a renamed interface.
        _ if replaced => Err(EdgeError::Layout { path, detail: format!("the pinned link is not attached to this {}", link.name) }),
        other => Err(busy(&link.name, other)),
    }
}

/// Replaces the pinned link's program. False if there is no link, or its interface is gone.
fn replace_pinned(program: &mut Xdp, path: &Path, link: &Link) -> Result<bool, EdgeError> {
    let pinned = match PinnedLink::from_pin(path) {
        Ok(pinned) => pinned,
        Err(LinkError::SyscallError(e)) if Errno::from_io_error(&e.io_error) == Some(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(refused_by(link, &e)),
    };
    let xdp = XdpLink::try_from(FdLink::from(pinned)).map_err(|e| refused_by(link, &e))?;
    match program.attach_to_link(xdp) {
        Ok(_) => Ok(true),
        // The interface was deleted (and perhaps created again under the same name): the link is detached for good.
        Err(e) if os_error(&e) == Some(Errno::NOLINK) => Ok(false),
        Err(e) => Err(refused_by(link, &e)),
    }
}

/// Attaches in the driver if possible. Generic XDP works everywhere, but is slow and loses GSO super-frames.
fn attach_new(program: &mut Xdp, path: &Path, link: &Link) -> Result<(), EdgeError> {
    let id = match program.attach_to_if_index(link.ifindex, XdpMode::Driver) {
        Ok(id) => id,
        Err(native) => {
            fatal_for_any_mode(link, &native)?;
            tracing::warn!(
                interface = link.name,
                "no native XDP here ({}); falling back to generic (SKB) XDP: slower, and segmentation offload of local senders must be off",
                hint(link, &native)
            );
            program
                .attach_to_if_index(link.ifindex, XdpMode::Skb)
                .map_err(|generic| refused(link, &format!("native: {}; generic: {}", hint(link, &native), hint(link, &generic))))?
        }
    };
    let xdp = program.take_link(id).map_err(|e| refused_by(link, &e))?;
    let fd = FdLink::try_from(xdp)
        .map_err(|e| refused(link, &format!("the kernel has no XDP links (they need Linux 5.9 or later): {}", chain(&e))))?;
    fd.pin(path).map_err(|e| {
        EdgeError::io(format!("pinning {}", path.display()), os_error(&e).map_or(std::io::ErrorKind::Other.into(), Into::into))
    })?;
    Ok(())
}

/// Errors that generic mode would not avoid.
fn fatal_for_any_mode(link: &Link, error: &ProgramError) -> Result<(), EdgeError> {
    match os_error(error) {
        Some(Errno::BUSY | Errno::EXIST) => Err(busy(&link.name, Link::query(&link.name)?.xdp)),
        Some(Errno::PERM | Errno::ACCESS) => Err(EdgeError::privileges(format!("attaching the XDP program to {}", link.name))),
        // The link's descriptor.
        Some(Errno::MFILE | Errno::NFILE) => Err(refused_by(link, error)),
        Some(Errno::NODEV) => Err(EdgeError::NoInterface { interface: link.name.clone() }),
        _ => Ok(()),
    }
}

/// Explains drivers' error numbers.
fn hint(link: &Link, error: &ProgramError) -> String {
    let text = explained(error);
    match os_error(error) {
        Some(Errno::RANGE) => format!("{text}; MTU {} is too large for XDP on this interface or its veth peer", link.mtu),
        Some(Errno::NOSPC) => {
            format!("{}; the veth peer has more transmit queues than {} has receive queues: `ethtool -L`", chain(error), link.name)
        }
        Some(Errno::NOTCONN) => format!("{text}; the veth peer is missing"),
        _ => text,
    }
}

/// The error of an operation on the program or the link of an interface.
fn refused_by(link: &Link, error: &(dyn std::error::Error + 'static)) -> EdgeError {
    match os_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges(format!("attaching the XDP program to {}", link.name)),
        _ => refused(link, &explained(error)),
    }
}

fn refused(link: &Link, detail: &str) -> EdgeError {
    EdgeError::XdpRefused { interface: link.name.clone(), detail: detail.into() }
}

#[cfg(test)]
mod tests;
