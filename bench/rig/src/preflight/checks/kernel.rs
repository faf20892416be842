//! The kernel: what it can do and how it is set.

use crate::preflight::facts::{Machine, Role, Wanted};
use crate::preflight::finding::{Finding, State};

/// Bits of linux/capability.h.
const CAPABILITIES: [(&str, u64); 5] =
    [("CAP_NET_ADMIN", 1 << 12), ("CAP_NET_RAW", 1 << 13), ("CAP_IPC_LOCK", 1 << 14), ("CAP_PERFMON", 1 << 38), ("CAP_BPF", 1 << 39)];
const CAP_IPC_LOCK: u64 = 1 << 14;
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// BPF_F_TEST_XDP_LIVE_FRAMES.
const LIVE_FRAMES: (u32, u32) = (5, 18);
/// Packet memory for which a lock limit surely suffices, bytes: 64 queues with 4 x 2048 frames of 2048 bytes.
const MEMLOCK_BYTES: u64 = 64 * 4 * 2048 * 2048;

/// Root, or the capabilities that nomagic asks for.
pub fn privileges(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("privileges", "root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK");
    let Some(bits) = machine.capabilities else { return Finding::unknown(name, "/proc/self/status names none", wanted) };
    // CAP_SYS_ADMIN comes before the two that were split off from it.
    let implied = if bits & CAP_SYS_ADMIN != 0 { (1 << 38) | (1 << 39) } else { 0 };
    let lacking: Vec<&str> = CAPABILITIES.iter().filter(|(_, bit)| (bits | implied) & bit == 0).map(|(name, _)| *name).collect();
    let found = if lacking.is_empty() { "all that are needed".to_owned() } else { format!("without {}", lacking.join(", ")) };
    Finding::judged(name, lacking.is_empty(), State::Missing, found, wanted).remedy("run it with sudo")
}

/// The version of Linux.
pub fn version(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("kernel", "5.18 or later (live frames), better 6.6 or later");
    let release = machine.release.as_deref().unwrap_or("nothing");
    match machine.version() {
        None => Finding::unknown(name, format!("/proc/sys/kernel/osrelease says {release}"), wanted),
        Some(v) if v < LIVE_FRAMES => Finding::new(name, State::Missing, release, wanted).remedy("boot a newer kernel"),
        Some(v) if v < (6, 6) => Finding::new(name, State::Warning, release, wanted)
            .remedy("boot a newer kernel: from 6.3 on it tells what a driver can do, and 6.6 has AF_XDP with several buffers a packet"),
        Some(_) => Finding::new(name, State::Ok, release, wanted),
    }
}

/// The options that it was built with.
pub fn options(_: &Wanted, machine: &Machine) -> Finding {
    let (name, needed) = ("kernel options", ["BPF_SYSCALL", "BPF_JIT", "XDP_SOCKETS"]);
    let wanted = "CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_XDP_SOCKETS";
    if machine.config.is_none() {
        return Finding::unknown(name, "neither /proc/config.gz nor /boot/config-*", wanted).remedy("modprobe configs");
    }
    let lacking: Vec<&str> = needed.into_iter().filter(|o| machine.option(o) != Some("y")).collect();
    let found =
        if lacking.is_empty() { "BPF, its JIT, AF_XDP".to_owned() } else { format!("without CONFIG_{}", lacking.join(", CONFIG_")) };
    Finding::judged(name, lacking.is_empty(), State::Missing, found, wanted).remedy("boot a kernel that has them")
}

/// The limit on locked memory counts for UMEMs, unless CAP_IPC_LOCK is there.
pub fn memlock(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("locked memory", "CAP_IPC_LOCK, or a limit of 1 GiB or more");
    if machine.capabilities.is_some_and(|c| c & CAP_IPC_LOCK != 0) {
        return Finding::new(name, State::Ok, "CAP_IPC_LOCK: no limit", wanted);
    }
    let Some(bytes) = machine.memlock else { return Finding::unknown(name, "/proc/self/limits names no limit", wanted) };
    let found = if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", bytes / 1024) };
    Finding::judged(name, bytes >= MEMLOCK_BYTES, State::Missing, found, wanted).remedy("ulimit -l unlimited")
}

/// XDP programs run as machine code.
pub fn jit(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("BPF JIT", "net.core.bpf_jit_enable = 1");
    let finding = match (machine.jit, machine.option("BPF_JIT_ALWAYS_ON")) {
        (Some(1), _) => Finding::new(name, State::Ok, "on", wanted),
        // The file is missing in network namespaces other than the first.
        (None, Some("y")) => Finding::new(name, State::Ok, "always on (CONFIG_BPF_JIT_ALWAYS_ON)", wanted),
        (Some(0), _) => Finding::new(name, State::Missing, "off: XDP programs are interpreted", wanted),
        (Some(n), _) => Finding::new(name, State::Warning, format!("{n}: for debugging"), wanted),
        (None, _) => Finding::unknown(name, "no /proc/sys/net/core/bpf_jit_enable (a network namespace?)", wanted),
    };
    finding.remedy("sysctl -w net.core.bpf_jit_enable=1")
}

/// A clock that is read without a trap into the hypervisor or the chipset.
pub fn clocksource(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("clocksource", "tsc (Arm: arch_sys_counter)");
    let Some(clock) = machine.clocksource.as_deref() else { return Finding::unknown(name, "the kernel names none", wanted) };
    Finding::judged(name, ["tsc", "arch_sys_counter"].contains(&clock), State::Warning, clock, wanted)
        .remedy("echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource    # if available_clocksource names it")
}

/// An interrupt on each CPU every few seconds, and a counter less.
pub fn nmi_watchdog(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("NMI watchdog", "off");
    let Some(on) = machine.nmi_watchdog else { return Finding::unknown(name, "no /proc/sys/kernel/nmi_watchdog", wanted) };
    let found = if on == 0 { "off" } else { "on" };
    Finding::judged(name, on == 0, State::Warning, found, wanted).remedy("sysctl -w kernel.nmi_watchdog=0")
}

/// For the record only: they cost time, and their settings must be named beside a figure.
pub fn mitigations(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("CPU mitigations", "known: the same on both sides of a comparison");
    if machine.vulnerabilities.is_empty() {
        return Finding::unknown(name, "no /sys/devices/system/cpu/vulnerabilities", wanted);
    }
    let with = |word: &str| machine.vulnerabilities.values().filter(|v| v.contains(word)).count();
    let found =
        format!("{} at work, {} not needed, {} open (for the record)", with("Mitigation"), with("Not affected"), with("Vulnerable"));
    Finding::new(name, State::Ok, found, wanted)
}

/// Asked for with `--huge-pages`.
pub fn huge_pages(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, need) = ("huge pages", wanted.huge_pages);
    let text = format!("{need} of 2 MiB free");
    match machine.huge_pages_free {
        _ if need == 0 => Finding::new(name, State::Ok, "none asked for (--huge-pages)", text),
        None => Finding::unknown(name, "the kernel does not count pages of 2 MiB", text),
        Some(free) => Finding::judged(name, free >= need, State::Missing, format!("{free} of 2 MiB free"), text)
            .remedy(format!("sysctl -w vm.nr_hugepages={need}    # beside those that others use: then more")),
    }
}

/// nomagic's packets never meet the kernel's connection tracking; those of a kernel proxy do.
pub fn conntrack(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("kernel conntrack", "known: it slows the kernel's own forwarding, not nomagic's");
    match (machine.nf_conntrack, wanted.role) {
        (None, _) => Finding::unknown(name, "no /sys/module", text),
        (Some(false), _) => Finding::new(name, State::Ok, "not loaded", text),
        (Some(true), Role::Gateway) => {
            Finding::new(name, State::Ok, "loaded: say so beside the figures of kernel peers (for the record)", text)
        }
        (Some(true), Role::Generator) => Finding::new(name, State::Warning, "loaded on the generator", text)
            .remedy("put the generator's ports into a namespace of their own, without firewall rules"),
    }
}
