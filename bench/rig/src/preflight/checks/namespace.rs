//! What depends on the role: the gateway's namespace, and the generator's means.

use super::xdp::ACT_NDO_XMIT;
use crate::preflight::facts::{Machine, Wanted};
use crate::preflight::finding::{Finding, State};
use crate::preflight::nic::Nic;

/// `snat.ports` by default.
const SNAT_PORTS: (u16, u16) = (61_000, 65_535);
/// BPF_F_TEST_XDP_LIVE_FRAMES.
const LIVE_FRAMES: (u32, u32) = (5, 18);

/// The kernel's part of forwarding: what is not nomagic's, and a kernel peer's all.
pub fn forwarding(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("IP forwarding", "net.ipv4.ip_forward = 1");
    let Some(on) = nic.namespace.ip_forward else { return Finding::unknown(name, "no /proc/sys/net/ipv4/ip_forward", wanted) };
    Finding::judged(name, on == 1, State::Missing, if on == 1 { "on" } else { "off" }, wanted).remedy("sysctl -w net.ipv4.ip_forward=1")
}

/// Source ports of nomagic's that the kernel must not give to anybody.
pub fn ports(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (first, last) = SNAT_PORTS;
    let (name, wanted) = ("SNAT ports", format!("{first}-{last} outside of ip_local_port_range, or reserved"));
    let Some((low, high)) = nic.namespace.local_ports else {
        return Finding::unknown(name, "no /proc/sys/net/ipv4/ip_local_port_range", wanted);
    };
    let reserved = nic.namespace.reserved_ports.as_deref().unwrap_or_default();
    let free = (first.max(low)..=last.min(high)).all(|port| reserved.iter().any(|(a, b)| (*a..=*b).contains(&port)));
    let list = reserved.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    let list: Vec<String> = list.chain([format!("{first}-{last}")]).collect();
    Finding::judged(name, free, State::Missing, format!("the kernel gives {low}-{high}"), wanted)
        .remedy(format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", list.join(",")))
}

/// Only `--backend kernel` and `pktgen-kernel.sh` want it.
pub fn kernel_pktgen(_: &Wanted, machine: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("kernel pktgen", "the module pktgen, for --backend kernel");
    let (found, remedy) = match (nic.namespace.pktgen, machine.option("NET_PKTGEN")) {
        (true, _) => ("there", ""),
        (false, Some("n")) => ("this kernel is built without CONFIG_NET_PKTGEN", "take --backend af-xdp or live, or a kernel that has it"),
        (false, _) => ("not loaded", "modprobe pktgen"),
    };
    Finding::judged(name, nic.namespace.pktgen, State::Warning, found, wanted).remedy(remedy)
}

/// `--backend live`.
pub fn live_frames(_: &Wanted, machine: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("BPF live frames", "Linux 5.18 or later, and a driver that takes redirected frames");
    match (machine.version(), nic.xdp_features) {
        (None, _) => Finding::unknown(name, "the kernel's version is not known", wanted),
        (Some(v), _) if v < LIVE_FRAMES => {
            Finding::new(name, State::Missing, "kernel too old", wanted).remedy("--backend af-xdp, or a newer kernel")
        }
        (_, Some(bits)) if bits & ACT_NDO_XMIT != 0 => Finding::new(name, State::Ok, "yes, says the kernel", wanted),
        // Many drivers say so only while an XDP program is on the interface.
        _ => Finding::unknown(name, "the driver does not say that it takes redirected frames", wanted)
            .remedy("many drivers do only while they have an XDP program of their own; try: nomagic-bench pktgen --backend live"),
    }
}
