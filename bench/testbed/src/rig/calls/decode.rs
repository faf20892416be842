//! Arguments of system calls in words.

use std::fmt::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::net::sockopt::{socket_domain, socket_protocol};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::call::Watched;
use super::kinds::Shape;

const PATH_MAX: usize = 4_096;
const TEXT_MAX: u64 = 4_096;
/// Threads' stacks are larger, alternative ones for signal handlers are smaller.
const SIGNAL_STACK_MAX: u64 = 64 << 10;
const SIOCETHTOOL: u64 = 0x8946;

/// What distinguishes a call from others of its kind.
pub(super) fn detail(watched: &Watched, shape: Shape, args: [u64; 6]) -> String {
    let fd = |i: usize| descriptor(watched, args[i]);
    match shape {
        Shape::Plain => String::new(),
        Shape::Number(i) => args[i].to_string(),
        Shape::Path(i) => path(watched, args[i]),
        Shape::At => match path(watched, args[1]) {
            // AT_EMPTY_PATH: the descriptor's own.
            empty if empty.is_empty() => fd(0),
            path => path,
        },
        Shape::Limit => format!("{}{}", args[1], if args[2] == 0 { "" } else { " set" }),
        Shape::Fd(i) => fd(i),
        Shape::FdNumber(i, n) => format!("{} {}", fd(i), args[n]),
        Shape::FdNumbers(i, n, m) => format!("{} {} {}", fd(i), args[n], args[m]),
        // Without SOCK_CLOEXEC and SOCK_NONBLOCK.
        Shape::Socket => format!("{} {} {}", family(args[0]), args[1] & 0xf, args[2]),
        Shape::Open => {
            let create = if args[2] & libc::O_CREAT as u64 == 0 { "" } else { " create" };
            format!("{}{create}", path(watched, args[1]))
        }
        Shape::Bpf => bpf(watched, args),
        Shape::Mmap => mmap(watched, args),
        Shape::Ioctl if args[1] == SIOCETHTOOL => ethtool(watched, args[2]),
        Shape::Ioctl => format!("{} {:#x}", fd(0), args[1]),
        Shape::Buffer => format!("{}{}", fd(0), netlink(watched, args[0], args[1])),
        Shape::Message => {
            let buffer = pointer(watched, args[1] + 16).and_then(|iov| pointer(watched, iov)).unwrap_or(0);
            format!("{}{}", fd(0), netlink(watched, args[0], buffer))
        }
    }
}

fn bytes<const N: usize>(watched: &Watched, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    watched.memory.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn pointer(watched: &Watched, at: u64) -> Option<u64> {
    bytes(watched, at).map(u64::from_ne_bytes)
}

fn word(watched: &Watched, at: u64) -> Option<u32> {
    bytes(watched, at).map(u32::from_ne_bytes)
}

/// A text that ends with NUL.
fn path(watched: &Watched, at: u64) -> String {
    let mut text = Vec::new();
    // Byte by page, because the next page may not be mapped.
    while text.len() < PATH_MAX {
        let from = at + text.len() as u64;
        let mut part = vec![0; (PATH_MAX as u64 - from % PATH_MAX as u64) as usize];
        let Ok(n @ 1..) = watched.memory.read_at(&mut part, from) else { break };
        if let Some(end) = part[..n].iter().position(|b| *b == 0) {
            text.extend(&part[..end]);
            break;
        }
        text.extend(&part[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The beginning of a buffer.
pub(super) fn text(watched: &Watched, at: u64, len: u64) -> String {
    let mut text = vec![0; len.min(TEXT_MAX) as usize];
    let n = watched.memory.read_at(&mut text, at).unwrap_or(0);
    String::from_utf8_lossy(&text[..n]).into_owned()
}

fn family(number: u64) -> String {
    match i32::try_from(number) {
        Ok(libc::AF_UNIX) => "unix".into(),
        Ok(libc::AF_INET) => "inet".into(),
        Ok(libc::AF_INET6) => "inet6".into(),
        Ok(libc::AF_NETLINK) => "netlink".into(),
        Ok(libc::AF_PACKET) => "packet".into(),
        Ok(libc::AF_XDP) => "xdp".into(),
        _ => number.to_string(),
    }
}

/// The family of a descriptor's socket, if it is one.
fn socket_family(watched: &Watched, fd: u64) -> Option<String> {
    let copy = pidfd_getfd(&watched.pidfd, i32::try_from(fd).ok()?, PidfdGetfdFlags::empty()).ok()?;
    let domain = family(socket_domain(&copy).ok()?.as_raw().into());
    let protocol = socket_protocol(&copy).ok().flatten().map_or(0, |p| p.as_raw().get());
    Some(if protocol == 0 { domain } else { format!("{domain}/{protocol}") })
}

/// What a descriptor is of: a path, a kind of socket, a BPF map with its type and sizes.
fn descriptor(watched: &Watched, fd: u64) -> String {
    let fd = fd & u64::from(u32::MAX);
    let Ok(link) = std::fs::read_link(format!("/proc/{}/fd/{fd}", watched.pid)) else { return "-".into() };
    let link = link.to_string_lossy().into_owned();
    if link.starts_with("socket:") {
        return socket_family(watched, fd).unwrap_or_else(|| "socket".into());
    }
    if link == "anon_inode:bpf-map" {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", watched.pid)).unwrap_or_default();
        let of = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        return format!("map type {} {}/{} x{}", of("map_type:"), of("key_size:"), of("value_size:"), of("max_entries:"));
    }
    // Numbers of inodes differ from run to run.
    link.split(":[").next().unwrap_or_default().to_owned()
}

/// The type of a netlink message.
fn netlink(watched: &Watched, fd: u64, at: u64) -> String {
    if socket_family(watched, fd).is_none_or(|family| !family.starts_with("netlink")) {
        return String::new();
    }
    bytes::<8>(watched, at).map(|head| format!(" message {}", u16::from_ne_bytes([head[4], head[5]]))).unwrap_or_default()
}

/// The command, and the object's name or path or the map.
fn bpf(watched: &Watched, args: [u64; 6]) -> String {
    let (command, attr) = (args[0], args[1]);
    // Places of a name within union bpf_attr.
    let name = |at: u64| {
        let name = bytes::<16>(watched, attr + at).filter(|_| args[2] >= at + 16).unwrap_or_default();
        String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
    };
    let object = |at: u64| descriptor(watched, word(watched, attr + at).unwrap_or(u32::MAX).into());
    match command {
        0 => format!("MAP_CREATE {}", name(28)),
        1 => format!("MAP_LOOKUP {}", object(0)),
        2 => format!("MAP_UPDATE {}", object(0)),
        3 => format!("MAP_DELETE {}", object(0)),
        4 => format!("MAP_GET_NEXT_KEY {}", object(0)),
        5 => format!("PROG_LOAD {}", name(48)),
        6 => format!("OBJ_PIN {}", path(watched, pointer(watched, attr).unwrap_or(0))),
        7 => format!("OBJ_GET {}", path(watched, pointer(watched, attr).unwrap_or(0))),
        15 => format!("GET_INFO {}", object(0)),
        18 => "BTF_LOAD".into(),
        22 => format!("MAP_FREEZE {}", object(0)),
        28 => "LINK_CREATE".into(),
        29 => "LINK_UPDATE".into(),
        other => other.to_string(),
    }
}

fn mmap(watched: &Watched, args: [u64; 6]) -> String {
    let [_, len, _, flags, fd, offset] = args;
    let mut out = String::new();
    if flags & libc::MAP_ANONYMOUS as u64 == 0 {
        out += &descriptor(watched, fd);
        // A socket's rings differ by it.
        let _ = write!(out, " at {offset:#x}");
    } else {
        let _ = write!(out, "anonymous {}", if flags & libc::MAP_STACK as u64 == 0 { len.to_string() } else { "stack".into() });
    }
    out
}

/// Whether the arguments are those with which malloc(3) asks for memory.
pub(super) fn is_of_heap(args: [u64; 6]) -> bool {
    args[3] & !(libc::MAP_NORESERVE as u64) == (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64
}

/// Whether the arguments are those with which Rust's library asks for a stack for signal handlers.
pub(super) fn is_signal_stack(args: [u64; 6]) -> bool {
    args[3] & libc::MAP_STACK as u64 != 0 && args[1] < SIGNAL_STACK_MAX
}

/// The interface and the command of an ethtool request.
fn ethtool(watched: &Watched, request: u64) -> String {
    let name = bytes::<16>(watched, request).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).split('\0').next().unwrap_or_default().to_owned();
    let command = pointer(watched, request + 16).and_then(|at| word(watched, at)).unwrap_or(0);
    format!("ethtool {name} {command:#x}")
}

/// Where libc's code is mapped.
pub(super) fn libc_ranges(pid: u32) -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let of_libc = maps.lines().filter(|line| line.contains("/libc.so") || line.contains("/libc-"));
    let range = |line: &str| {
        let (first, last) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(first, 16).ok()?..u64::from_str_radix(last, 16).ok()?)
    };
    of_libc.filter_map(range).collect()
}
