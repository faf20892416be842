//! The table of checks.

use std::net::IpAddr;

use nomagic_xsk::{FrameSize, SEGMENTS_MAX};

use super::finding::{CheckState, Finding};
use super::host::Host;
use crate::config::Config;
use crate::net::node::{ephemeral_ports, snat_ports_remedy};

/// The checked interface (empty for the machine), and what the gateway will be configured to do.
#[derive(Clone, Copy, Debug)]
pub struct CheckTarget<'t> {
    pub interface: &'t str,
    pub workers: u32,
    pub config: &'t Config,
}

/// The source of a fact. `{interface}` is replaced by the interface's name.
pub enum Fact {
    /// A one-line file, without the leading slash.
    File(&'static str),
    /// The value after `name:` in ethtool's output with this option.
    Ethtool(&'static str, &'static str),
    /// A function, for facts that need more than one file.
    Probe(fn(&dyn Host, &CheckTarget<'_>) -> Result<String, String>),
}

/// A check: a fact, its condition, and a remedy.
pub struct Check {
    pub name: &'static str,
    pub fact: Fact,
    pub passes: fn(&str, &CheckTarget<'_>) -> bool,
    /// The state if the condition is false.
    pub otherwise: CheckState,
    pub wanted: &'static str,
    /// Placeholders here and in `wanted`: see [`CheckTarget::fill`].
    pub remedy: &'static str,
}

/// Checks of the machine and of its network namespace.
pub const MACHINE: &[Check] = &[
    Check {
        name: "privileges",
        fact: Fact::Probe(missing_capabilities),
        passes: |found, _| found == "all",
        otherwise: CheckState::Missing,
        wanted: "root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK",
        remedy: "run it with sudo",
    },
    Check {
        name: "kernel",
        fact: Fact::File("proc/sys/kernel/osrelease"),
        passes: |found, _| version(found).is_some_and(|v| v >= (5, 9)),
        otherwise: CheckState::Missing,
        wanted: "5.9 or later (XDP links); tested with 6.18",
        remedy: "boot a newer kernel",
    },
    Check {
        name: "kernel options",
        fact: Fact::Probe(missing_options),
        passes: |found, _| found == "all",
        otherwise: CheckState::Missing,
        wanted: "CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_XDP_SOCKETS",
        remedy: "boot a kernel that has them",
    },
    Check {
        name: "BPF JIT",
        fact: Fact::File("proc/sys/net/core/bpf_jit_enable"),
        passes: |found, _| found == "1",
        otherwise: CheckState::Missing,
        wanted: "net.core.bpf_jit_enable = 1",
        remedy: "sysctl -w net.core.bpf_jit_enable=1",
    },
    Check {
        name: "locked memory",
        fact: Fact::Probe(locked_memory),
        passes: |found, _| found.parse::<u64>().map_or(found != "0", |kib| kib >= MEMLOCK_KIB),
        otherwise: CheckState::Missing,
        wanted: "CAP_IPC_LOCK, or a limit of 1 GiB or more",
        remedy: "ulimit -l unlimited",
    },
    Check {
        name: "CPU governor",
        fact: Fact::Probe(governors),
        passes: |found, _| found == "performance",
        otherwise: CheckState::Warning,
        wanted: "performance",
        remedy: "cpupower frequency-set -g performance",
    },
    Check {
        name: "IP forwarding",
        fact: Fact::File("proc/sys/net/ipv4/ip_forward"),
        passes: |found, _| found == "1",
        otherwise: CheckState::Missing,
        wanted: "net.ipv4.ip_forward = 1",
        remedy: "sysctl -w net.ipv4.ip_forward=1",
    },
    Check {
        name: "SNAT ports",
        fact: Fact::Probe(snat_ports),
        passes: |found, _| !found.starts_with("none"),
        otherwise: CheckState::Missing,
        wanted: "some of {snat.ports} (`snat.ports`) outside ip_local_port_range, or reserved",
        remedy: "{snat.remedy}; ports that are reserved already stay in the list",
    },
];

pub const INTERFACE: &[Check] = &[
    Check {
        name: "link",
        fact: Fact::Probe(link_state),
        passes: |found, _| found == "up",
        otherwise: CheckState::Missing,
        wanted: "up, with carrier",
        remedy: "ip link set {interface} up",
    },
    Check {
        name: "MTU",
        fact: Fact::Probe(mtu),
        passes: |found, target| match found.strip_suffix(SEVERAL_BUFFERS) {
            Some(mtu) => mtu.parse::<u32>().is_ok_and(|mtu| mtu <= target.mtu_max_segmented()),
            None => found.parse::<u32>().is_ok_and(|mtu| mtu <= target.mtu_max(target.config.packets.frame_size)),
        },
        otherwise: CheckState::Warning,
        wanted: "at most {mtu.max}: a packet buffer of {frameSize} bytes minus headroom and Ethernet header; {mtu.segmented} where kernel (Linux 6.6) and driver can use several",
        remedy: "ip link set {interface} mtu {mtu}{larger.frames}",
    },
    Check {
        name: "native XDP",
        fact: Fact::Probe(|host, target| xdp_feature(host, target, ACT_REDIRECT)),
        passes: |found, _| found == "yes",
        otherwise: CheckState::Missing,
        wanted: "yes",
        remedy: "use a NIC whose driver supports it, with a recent kernel; generic XDP is slow",
    },
    Check {
        name: "AF_XDP zero-copy",
        fact: Fact::Probe(|host, target| xdp_feature(host, target, ACT_ZERO_COPY)),
        passes: |found, _| found == "yes",
        otherwise: CheckState::Warning,
        wanted: "yes",
        remedy: "use a NIC whose driver supports it, with a recent kernel; copy mode works, but is slower",
    },
    Check {
        name: "XDP program",
        fact: Fact::Probe(attached_program),
        passes: |found, _| found == "none" || found.contains("nomagic"),
        otherwise: CheckState::Missing,
        wanted: "none, or nomagic's own",
        remedy: "ip link set {interface} xdp off    # check first which program it is",
    },
    Check {
        name: "queues",
        fact: Fact::Probe(queues),
        passes: |found, target| found.parse::<u32>().is_ok_and(|n| n > 0 && n.is_multiple_of(target.workers)),
        otherwise: CheckState::Missing,
        wanted: "a multiple of the number of workers",
        remedy: "ethtool -L {interface} combined {workers}, or fewer workers",
    },
    Check {
        name: "RSS of UDP",
        fact: Fact::Probe(udp_hash),
        passes: |found, _| found != "addresses only",
        otherwise: CheckState::Missing,
        wanted: "by addresses and ports, IPv4 and IPv6",
        remedy: "ethtool -N {interface} rx-flow-hash udp4 sdfn; ethtool -N {interface} rx-flow-hash udp6 sdfn",
    },
    Check {
        name: "LRO",
        fact: Fact::Ethtool("-k", "large-receive-offload"),
        passes: |found, _| found.starts_with("off"),
        otherwise: CheckState::Missing,
        wanted: "off: XDP and forwarding need unmerged frames",
        remedy: "ethtool -K {interface} lro off",
    },
    Check {
        name: "VLAN offload",
        fact: Fact::Ethtool("-k", "rx-vlan-offload"),
        passes: |found, _| found.starts_with("off"),
        otherwise: CheckState::Warning,
        wanted: "off where frames with VLAN tags arrive: XDP does not see a tag that the NIC takes off",
        remedy: "ethtool -K {interface} rxvlan off",
    },
    Check {
        name: "flow control",
        fact: Fact::Ethtool("-a", "RX"),
        passes: |found, _| found == "off",
        otherwise: CheckState::Warning,
        wanted: "off: it hides loss and also pauses unrelated traffic",
        remedy: "ethtool -A {interface} autoneg off rx off tx off",
    },
];

/// Bits of linux/capability.h.
const CAPABILITIES: [(&str, u32); 5] =
    [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_IPC_LOCK", 14), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
const CAP_IPC_LOCK: u64 = 1 << 14;
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Enough for the packet memory of 64 queues.
const MEMLOCK_KIB: u64 = 1 << 20;
/// XDP_PACKET_HEADROOM of linux/bpf.h.
const XDP_HEADROOM: u32 = 256;
/// An Ethernet header with a VLAN tag.
const ETHERNET_HEADER: u32 = 18;
/// Packets that are longer than a packet buffer come in several.
const SEVERAL_BUFFERS: &str = ", in several packet buffers";
/// The largest MTU with which drivers accept a program that wants a packet in one page of 4 KiB.
const ONE_PAGE_MTU: u32 = 3_498;
/// The MTU of Ethernet without jumbo frames.
const ETHERNET_MTU: u32 = 1_500;
/// The kernel's default of net.ipv4.ip_local_port_range.
const EPHEMERAL_PORTS: (u16, u16) = (32_768, 60_999);
/// Bits of `enum netdev_xdp_act` (linux/netdev.h).
const ACT_REDIRECT: u64 = 1 << 1;
const ACT_ZERO_COPY: u64 = 1 << 3;
const ACT_RX_SEGMENTS: u64 = 1 << 5;

impl CheckTarget<'_> {
    /// The largest MTU whose packets fit into a packet buffer.
    fn mtu_max(&self, frame_size: FrameSize) -> u32 {
        (frame_size.get() - XDP_HEADROOM - self.config.packets.headroom.get() - ETHERNET_HEADER).min(ONE_PAGE_MTU)
    }

    /// The largest MTU whose packets fit into as many packet buffers as one packet may have.
    fn mtu_max_segmented(&self) -> u32 {
        let buffer = self.config.packets.frame_size.get() - XDP_HEADROOM - self.config.packets.headroom.get();
        buffer * SEGMENTS_MAX as u32 - ETHERNET_HEADER
    }

    /// Replaces placeholders by their values.
    fn fill(&self, text: &str) -> String {
        let (packets, ports) = (&self.config.packets, self.config.snat.ports);
        let (mtu_max, largest) = (self.mtu_max(packets.frame_size), FrameSize::from_static(FrameSize::MAX));
        let larger_frames = match packets.frame_size == largest {
            true => String::new(),
            false => format!(", or for up to {} in nomagic.yaml: packets: {{frameSize: {largest}}}", self.mtu_max(largest)),
        };
        text.replace("{interface}", self.interface)
            .replace("{workers}", &self.workers.to_string())
            .replace("{snat.remedy}", &snat_ports_remedy((ports.first, ports.last), EPHEMERAL_PORTS, "{snat.ports}"))
            .replace("{snat.ports}", &format!("{}-{}", ports.first, ports.last))
            .replace("{frameSize}", &packets.frame_size.to_string())
            .replace("{mtu.max}", &mtu_max.to_string())
            .replace("{mtu.segmented}", &self.mtu_max_segmented().to_string())
            .replace("{mtu}", &mtu_max.min(ETHERNET_MTU).to_string())
            .replace("{larger.frames}", &larger_frames)
    }
}

impl Check {
    pub fn run(&self, host: &dyn Host, target: &CheckTarget<'_>) -> Finding {
        let fill = |text: &str| target.fill(text);
        let fact = match &self.fact {
            Fact::File(path) => host.line(&fill(path)).ok_or_else(|| format!("cannot read /{}", fill(path))),
            Fact::Ethtool(option, name) => host.run("ethtool", &[option, target.interface]).and_then(|text| {
                value(&text, name).map(str::to_owned).ok_or_else(|| format!("no {name} in the output of ethtool {option}"))
            }),
            Fact::Probe(probe) => probe(host, target),
        };
        let (state, found) = match fact {
            Ok(found) if (self.passes)(&found, target) => (CheckState::Ok, found),
            Ok(found) => (self.otherwise, found),
            Err(why) => (CheckState::Unknown, why),
        };
        Finding {
            interface: (!target.interface.is_empty()).then(|| target.interface.to_owned()),
            name: self.name,
            state,
            found,
            wanted: fill(self.wanted),
            remedy: (state != CheckState::Ok).then(|| fill(self.remedy)),
        }
    }
}

/// The value behind `name:` at the start of a line.
fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|l| l.trim_start().strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn capabilities(host: &dyn Host) -> Option<u64> {
    u64::from_str_radix(value(&host.read("proc/self/status")?, "CapEff")?, 16).ok()
}

/// "all", or the missing items.
fn all_but(names: Vec<&str>) -> String {
    if names.is_empty() { "all".into() } else { format!("without {}", names.join(", ")) }
}

fn missing_capabilities(host: &dyn Host, _: &CheckTarget<'_>) -> Result<String, String> {
    let bits = capabilities(host).ok_or("no CapEff in /proc/self/status")?;
    // CAP_SYS_ADMIN includes CAP_PERFMON and CAP_BPF, which were split off from it.
    let implied = if bits & CAP_SYS_ADMIN != 0 { 1 << 38 | 1 << 39 } else { 0 };
    let missing = CAPABILITIES.iter().filter(|(_, bit)| (bits | implied) >> bit & 1 == 0);
    Ok(all_but(missing.map(|(name, _)| *name).collect()))
}

fn missing_options(host: &dyn Host, _: &CheckTarget<'_>) -> Result<String, String> {
    let release = host.line("proc/sys/kernel/osrelease").unwrap_or_default();
    let packed = host.root().join("proc/config.gz");
    let text = match host.read(&format!("boot/config-{release}")) {
        Some(text) => text,
        None => host.run("zcat", &[&packed.to_string_lossy()]).map_err(|_| "neither /boot/config-* nor /proc/config.gz can be read")?,
    };
    let missing = ["CONFIG_BPF_SYSCALL", "CONFIG_BPF_JIT", "CONFIG_XDP_SOCKETS"].into_iter();
    Ok(all_but(missing.filter(|o| !text.lines().any(|l| l.strip_prefix(o) == Some("=y"))).collect()))
}

/// The limit in KiB, or the reason why there is none.
fn locked_memory(host: &dyn Host, _: &CheckTarget<'_>) -> Result<String, String> {
    if capabilities(host).is_some_and(|c| c & CAP_IPC_LOCK != 0) {
        return Ok("CAP_IPC_LOCK: no limit".into());
    }
    let text = host.read("proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Max locked memory")).ok_or("no limit in /proc/self/limits")?;
    let limit = line.split_whitespace().next().unwrap_or_default();
    Ok(limit.parse::<u64>().map_or(limit.to_owned(), |bytes| (bytes / 1024).to_string()))
}

/// The distinct governors of all CPUs.
fn governors(host: &dyn Host, _: &CheckTarget<'_>) -> Result<String, String> {
    let cpus = host.list("sys/devices/system/cpu");
    let mut all: Vec<String> =
        cpus.iter().filter_map(|cpu| host.line(&format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"))).collect();
    all.sort();
    all.dedup();
    if all.is_empty() { Err("no cpufreq: controlled by firmware or hypervisor".into()) } else { Ok(all.join(", ")) }
}

/// How many SNAT ports `run` will use: on the node's own addresses not those that the kernel may assign to local sockets.
fn snat_ports(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    let (snat, all) = (&target.config.snat, u32::from(target.config.snat.ports.last - target.config.snat.ports.first) + 1);
    let addresses = host.run("ip", &["-o", "address"]).unwrap_or_default();
    let is_own = |ip: &IpAddr| addresses.contains(&format!(" {ip}/"));
    if !snat.addresses.is_empty() && !snat.addresses.iter().any(is_own) {
        return Ok(format!("{all}, on addresses that the node does not have"));
    }
    let range = host.line("proc/sys/net/ipv4/ip_local_port_range").ok_or("cannot read ip_local_port_range")?;
    let reserved = host.line("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    match ephemeral_ports((snat.ports.first, snat.ports.last), &range, &reserved) {
        Ok(None) => Ok(format!("{all}, none shared with the kernel")),
        Ok(Some(shared)) => {
            let (first, last) = shared.into_inner();
            Ok(format!("{} of {all}; {first}-{last} are left to the kernel", all - u32::from(last - first) - 1))
        }
        Err(e) => Ok(format!("none of {all}: the kernel uses {}-{}", e.ephemeral.0, e.ephemeral.1)),
    }
}

fn link_state(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    let file = |name: &str| host.line(&format!("sys/class/net/{}/{name}", target.interface));
    Ok(match (file("carrier").as_deref(), file("operstate")) {
        (Some("1"), _) => "up".into(),
        (Some(_), _) => "no carrier".into(),
        // `carrier` is unreadable while the interface is down.
        (None, Some(_)) => "down".into(),
        (None, None) => "there is no such interface".into(),
    })
}

/// The MTU, and whether longer packets than a packet buffer come in several.
fn mtu(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    let path = format!("sys/class/net/{}/mtu", target.interface);
    let mtu = host.line(&path).ok_or_else(|| format!("cannot read /{path}"))?;
    let is_long = mtu.parse::<u32>().is_ok_and(|mtu| mtu > target.mtu_max(target.config.packets.frame_size));
    let segmented = is_long && host.knows_segments() && xdp_feature(host, target, ACT_RX_SEGMENTS).is_ok_and(|answer| answer == "yes");
    Ok(if segmented { mtu + SEVERAL_BUFFERS } else { mtu })
}

fn xdp_feature(host: &dyn Host, target: &CheckTarget<'_>, bit: u64) -> Result<String, String> {
    match host.xdp_features(target.interface) {
        Some(bits) if bits & bit != 0 => Ok("yes".into()),
        // Before 6.3 the kernel does not report the features, or reports 0.
        _ if host.line("proc/sys/kernel/osrelease").and_then(|r| version(&r)).is_none_or(|v| v < (6, 3)) => {
            Err("reported by Linux 6.3 and later only".into())
        }
        Some(_) => Ok("no".into()),
        None => Err("not reported by the kernel".into()),
    }
}

fn attached_program(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    let text = host.run("ip", &["-d", "link", "show", "dev", target.interface])?;
    let program = text.lines().find_map(|l| l.trim_start().strip_prefix("prog/xdp "));
    Ok(program.map_or("none".into(), |p| p.trim().to_owned()))
}

fn queues(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    let text = host.run("ethtool", &["-l", target.interface])?;
    let now = text.split_once("Current hardware settings").map_or(text.as_str(), |(_, now)| now);
    let number = |name| value(now, name).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    match number("Combined") + number("RX") {
        0 => Err("no queues in the output of ethtool -l".into()),
        n => Ok(n.to_string()),
    }
}

fn udp_hash(host: &dyn Host, target: &CheckTarget<'_>) -> Result<String, String> {
    if queues(host, target).as_deref() == Ok("1") {
        return Ok("one queue".into());
    }
    for kind in ["udp4", "udp6"] {
        let text = host.run("ethtool", &["-n", target.interface, "rx-flow-hash", kind])?;
        if !["L4 bytes 0 & 1", "L4 bytes 2 & 3"].iter().all(|field| text.contains(field)) {
            return Ok("addresses only".into());
        }
    }
    Ok("addresses and ports".into())
}
