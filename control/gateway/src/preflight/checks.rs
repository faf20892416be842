//! The checks, as a table. A new check is one more entry.

use super::finding::{Finding, State};
use super::host::Host;

/// The interface that a check is about (empty for the machine), and what runs on it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    pub interface: &'t str,
    pub workers: u32,
}

/// Where a fact is found. `{interface}` stands for the interface's name.
pub enum Fact {
    /// A file of one line, without the leading slash.
    File(&'static str),
    /// The value after `name:` in what ethtool writes with this option.
    Ethtool(&'static str, &'static str),
    /// A question that takes more than one file.
    Ask(fn(&dyn Host, &Target<'_>) -> Result<String, String>),
}

/// One check: a fact, the test it must pass, and what to do when it does not.
pub struct Check {
    pub name: &'static str,
    pub fact: Fact,
    pub passes: fn(&str, &Target<'_>) -> bool,
    /// The state when the test fails.
    pub otherwise: State,
    pub wanted: &'static str,
    /// `{interface}` and `{workers}` are replaced.
    pub remedy: &'static str,
}

/// Checks of the machine and of its network namespace.
pub const MACHINE: &[Check] = &[
    Check {
        name: "privileges",
        fact: Fact::Ask(lacking_capabilities),
        passes: |found, _| found == "all",
        otherwise: State::Missing,
        wanted: "root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK",
        remedy: "run it with sudo",
    },
    Check {
        name: "kernel",
        fact: Fact::File("proc/sys/kernel/osrelease"),
        passes: |found, _| version(found).is_some_and(|v| v >= (5, 9)),
        otherwise: State::Missing,
        wanted: "5.9 or later (XDP links); tested with 6.18",
        remedy: "boot a newer kernel",
    },
    Check {
        name: "kernel options",
        fact: Fact::Ask(lacking_options),
        passes: |found, _| found == "all",
        otherwise: State::Missing,
        wanted: "CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_XDP_SOCKETS",
        remedy: "boot a kernel that has them",
    },
    Check {
        name: "BPF JIT",
        fact: Fact::File("proc/sys/net/core/bpf_jit_enable"),
        passes: |found, _| found == "1",
        otherwise: State::Missing,
        wanted: "net.core.bpf_jit_enable = 1",
        remedy: "sysctl -w net.core.bpf_jit_enable=1",
    },
    Check {
        name: "locked memory",
        fact: Fact::Ask(locked_memory),
        passes: |found, _| found.parse::<u64>().map_or(found != "0", |kib| kib >= MEMLOCK_KIB),
        otherwise: State::Missing,
        wanted: "CAP_IPC_LOCK, or a limit of 1 GiB or more",
        remedy: "ulimit -l unlimited",
    },
    Check {
        name: "CPU governor",
        fact: Fact::Ask(governors),
        passes: |found, _| found == "performance",
        otherwise: State::Warning,
        wanted: "performance",
        remedy: "cpupower frequency-set -g performance",
    },
    Check {
        name: "IP forwarding",
        fact: Fact::File("proc/sys/net/ipv4/ip_forward"),
        passes: |found, _| found == "1",
        otherwise: State::Missing,
        wanted: "net.ipv4.ip_forward = 1",
        remedy: "sysctl -w net.ipv4.ip_forward=1",
    },
    Check {
        name: "SNAT ports",
        fact: Fact::Ask(shared_ports),
        passes: |found, _| found == "none shared with the kernel",
        otherwise: State::Missing,
        wanted: "61000-65535 (`snat.ports`) outside of ip_local_port_range, or reserved",
        remedy: "sysctl -w net.ipv4.ip_local_reserved_ports=61000-65535    # and those reserved already",
    },
];

pub const INTERFACE: &[Check] = &[
    Check {
        name: "link",
        fact: Fact::Ask(link),
        passes: |found, _| found == "up",
        otherwise: State::Missing,
        wanted: "up, with carrier",
        remedy: "ip link set {interface} up",
    },
    Check {
        name: "MTU",
        fact: Fact::File("sys/class/net/{interface}/mtu"),
        passes: |found, _| found.parse::<u32>().is_ok_and(|mtu| mtu <= MTU_MAX),
        otherwise: State::Warning,
        wanted: "at most 1774: a packet buffer of 2048 bytes less XDP's headroom and Ethernet",
        remedy: "ip link set {interface} mtu 1500, or for up to 3498 in nomagic.yaml: packets: {frameSize: 4096}",
    },
    Check {
        name: "native XDP",
        fact: Fact::Ask(|host, target| xdp_feature(host, target, ACT_REDIRECT)),
        passes: |found, _| found == "yes",
        otherwise: State::Missing,
        wanted: "yes",
        remedy: "use a NIC and a kernel whose driver supports it; generic XDP is slow",
    },
    Check {
        name: "AF_XDP zero-copy",
        fact: Fact::Ask(|host, target| xdp_feature(host, target, ACT_ZERO_COPY)),
        passes: |found, _| found == "yes",
        otherwise: State::Warning,
        wanted: "yes",
        remedy: "use a NIC and a kernel whose driver supports it; copy mode works, but slower",
    },
    Check {
        name: "XDP program",
        fact: Fact::Ask(attached_program),
        passes: |found, _| found == "none" || found.contains("nomagic"),
        otherwise: State::Missing,
        wanted: "none, or nomagic's own",
        remedy: "ip link set {interface} xdp off    # once it is known whose it is",
    },
    Check {
        name: "queues",
        fact: Fact::Ask(queues),
        passes: |found, target| found.parse::<u32>().is_ok_and(|n| n > 0 && n.is_multiple_of(target.workers)),
        otherwise: State::Missing,
        wanted: "one for each worker, or a multiple",
        remedy: "ethtool -L {interface} combined {workers}, or fewer workers",
    },
    Check {
        name: "RSS of UDP",
        fact: Fact::Ask(udp_hash),
        passes: |found, _| found != "addresses only",
        otherwise: State::Missing,
        wanted: "by addresses and ports, IPv4 and IPv6",
        remedy: "ethtool -N {interface} rx-flow-hash udp4 sdfn; ethtool -N {interface} rx-flow-hash udp6 sdfn",
    },
    Check {
        name: "LRO",
        fact: Fact::Ethtool("-k", "large-receive-offload"),
        passes: |found, _| found.starts_with("off"),
        otherwise: State::Missing,
        wanted: "off: XDP and forwarding need frames as they came",
        remedy: "ethtool -K {interface} lro off",
    },
    Check {
        name: "flow control",
        fact: Fact::Ethtool("-a", "RX"),
        passes: |found, _| found == "off",
        otherwise: State::Warning,
        wanted: "off: it hides loss and stops senders of other traffic",
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
/// The default `snat.ports`.
const SNAT_PORTS: (u16, u16) = (61_000, 65_535);
/// 2048 bytes less XDP_PACKET_HEADROOM and an Ethernet header with a VLAN tag.
const MTU_MAX: u32 = 2048 - 256 - 18;
/// Bits of `enum netdev_xdp_act` (linux/netdev.h).
const ACT_REDIRECT: u64 = 1 << 1;
const ACT_ZERO_COPY: u64 = 1 << 3;

impl Check {
    pub fn run(&self, host: &dyn Host, target: &Target<'_>) -> Finding {
        let fill = |text: &str| text.replace("{interface}", target.interface).replace("{workers}", &target.workers.to_string());
        let fact = match &self.fact {
            Fact::File(path) => host.line(&fill(path)).ok_or_else(|| format!("cannot read /{}", fill(path))),
            Fact::Ethtool(option, name) => host
                .run("ethtool", &[option, target.interface])
                .and_then(|text| value(&text, name).map(str::to_owned).ok_or_else(|| format!("ethtool {option} names no {name}"))),
            Fact::Ask(ask) => ask(host, target),
        };
        let (state, found) = match fact {
            Ok(found) if (self.passes)(&found, target) => (State::Ok, found),
            Ok(found) => (self.otherwise, found),
            Err(why) => (State::Unknown, why),
        };
        Finding {
            interface: (!target.interface.is_empty()).then(|| target.interface.to_owned()),
            name: self.name,
            state,
            found,
            wanted: self.wanted.to_owned(),
            remedy: (state != State::Ok).then(|| fill(self.remedy)),
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

/// "all", or what is not there.
fn lacking(names: Vec<&str>) -> String {
    if names.is_empty() { "all".into() } else { format!("without {}", names.join(", ")) }
}

fn lacking_capabilities(host: &dyn Host, _: &Target<'_>) -> Result<String, String> {
    let bits = capabilities(host).ok_or("/proc/self/status names none")?;
    // CAP_SYS_ADMIN includes the two that were split off from it.
    let implied = if bits & CAP_SYS_ADMIN != 0 { 1 << 38 | 1 << 39 } else { 0 };
    let lack = CAPABILITIES.iter().filter(|(_, bit)| (bits | implied) >> bit & 1 == 0);
    Ok(lacking(lack.map(|(name, _)| *name).collect()))
}

fn lacking_options(host: &dyn Host, _: &Target<'_>) -> Result<String, String> {
    let release = host.line("proc/sys/kernel/osrelease").unwrap_or_default();
    let packed = host.root().join("proc/config.gz");
    let text = match host.read(&format!("boot/config-{release}")) {
        Some(text) => text,
        None => host.run("zcat", &[&packed.to_string_lossy()]).map_err(|_| "neither /boot/config-* nor /proc/config.gz can be read")?,
    };
    let lack = ["CONFIG_BPF_SYSCALL", "CONFIG_BPF_JIT", "CONFIG_XDP_SOCKETS"].into_iter();
    Ok(lacking(lack.filter(|o| !text.lines().any(|l| l.strip_prefix(o) == Some("=y"))).collect()))
}

/// The limit in KiB, or why there is none.
fn locked_memory(host: &dyn Host, _: &Target<'_>) -> Result<String, String> {
    if capabilities(host).is_some_and(|c| c & CAP_IPC_LOCK != 0) {
        return Ok("CAP_IPC_LOCK: no limit".into());
    }
    let text = host.read("proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Max locked memory")).ok_or("/proc/self/limits names no limit")?;
    let limit = line.split_whitespace().next().unwrap_or_default();
    Ok(limit.parse::<u64>().map_or(limit.to_owned(), |bytes| (bytes / 1024).to_string()))
}

/// The governors of all CPUs, each once.
fn governors(host: &dyn Host, _: &Target<'_>) -> Result<String, String> {
    let cpus = host.list("sys/devices/system/cpu");
    let mut all: Vec<String> =
        cpus.iter().filter_map(|cpu| host.line(&format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"))).collect();
    all.sort();
    all.dedup();
    if all.is_empty() { Err("no cpufreq: firmware or hypervisor decide".into()) } else { Ok(all.join(", ")) }
}

/// SNAT ports that the kernel may also give to its own sockets.
fn shared_ports(host: &dyn Host, _: &Target<'_>) -> Result<String, String> {
    let line = host.line("proc/sys/net/ipv4/ip_local_port_range").ok_or("cannot read ip_local_port_range")?;
    let mut ends = line.split_whitespace().map_while(|w| w.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return Err(format!("ip_local_port_range is `{line}`")) };
    let reserved = host.line("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_reserved = |port: u16| {
        reserved.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().is_ok_and(|f: u16| f <= port) && last.parse().is_ok_and(|l: u16| port <= l)
        })
    };
    match (SNAT_PORTS.0.max(low)..=SNAT_PORTS.1.min(high)).filter(|port| !is_reserved(*port)).count() {
        0 => Ok("none shared with the kernel".into()),
        n => Ok(format!("{n} shared with the kernel, which uses {low}-{high}")),
    }
}

fn link(host: &dyn Host, target: &Target<'_>) -> Result<String, String> {
    let file = |name: &str| host.line(&format!("sys/class/net/{}/{name}", target.interface));
    Ok(match (file("carrier").as_deref(), file("operstate")) {
        (Some("1"), _) => "up".into(),
        (Some(_), _) => "no carrier".into(),
        // The carrier of an interface that is down cannot be read.
        (None, Some(_)) => "down".into(),
        (None, None) => "there is no such interface".into(),
    })
}

fn xdp_feature(host: &dyn Host, target: &Target<'_>, bit: u64) -> Result<String, String> {
    match host.xdp_features(target.interface) {
        Some(bits) if bits & bit != 0 => Ok("yes".into()),
        // Before 6.3 the kernel does not tell; the bits are 0 then too.
        _ if host.line("proc/sys/kernel/osrelease").and_then(|r| version(&r)).is_none_or(|v| v < (6, 3)) => {
            Err("the kernel tells only from 6.3 on".into())
        }
        Some(_) => Ok("no".into()),
        None => Err("the kernel does not tell".into()),
    }
}

fn attached_program(host: &dyn Host, target: &Target<'_>) -> Result<String, String> {
    let text = host.run("ip", &["-d", "link", "show", "dev", target.interface])?;
    let program = text.lines().find_map(|l| l.trim_start().strip_prefix("prog/xdp "));
    Ok(program.map_or("none".into(), |p| p.trim().to_owned()))
}

fn queues(host: &dyn Host, target: &Target<'_>) -> Result<String, String> {
    let text = host.run("ethtool", &["-l", target.interface])?;
    let now = text.split_once("Current hardware settings").map_or(text.as_str(), |(_, now)| now);
    let number = |name| value(now, name).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    match number("Combined") + number("RX") {
        0 => Err("ethtool -l names no queues".into()),
        n => Ok(n.to_string()),
    }
}

fn udp_hash(host: &dyn Host, target: &Target<'_>) -> Result<String, String> {
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
