//! The interface as a link, and its place in the machine.

use crate::preflight::facts::{Machine, Wanted};
use crate::preflight::finding::{Finding, State};
use crate::preflight::nic::Nic;

/// Bytes of a frame of `packets.frameSize` before the packet (XDP_PACKET_HEADROOM), and of Ethernet's header with a VLAN tag.
const XDP_HEADROOM: u64 = 256;
const ETHERNET: u64 = 18;
/// The largest MTU with frames of 2048 bytes.
pub const MTU_MAX: u64 = 2048 - XDP_HEADROOM - ETHERNET;
/// The largest with frames of 4096 bytes that drivers take an XDP program with, which wants room behind the packet too.
const MTU_MAX_4096: u64 = 3498;
/// Megabit a second below which the wire is likely to be the limit.
const SPEED_MIN: u64 = 10_000;

/// `ip link` knows it.
pub fn exists(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("interface", "there");
    match &nic.link {
        Ok(_) => Finding::new(name, State::Ok, nic.driver.as_deref().unwrap_or("there"), wanted),
        Err(why) if why.contains("cannot run") => Finding::unknown(name, why.clone(), wanted).remedy("apt-get install iproute2"),
        Err(why) => Finding::new(name, State::Missing, why.clone(), wanted)
            .remedy("ip -br link    # lists them; NAME@NETNS names one in a namespace"),
    }
}

/// Up, with a carrier.
pub fn up(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("link", "up, with carrier");
    let Ok(link) = &nic.link else { return Finding::unknown(name, "not known", wanted) };
    let found = match (link.up, link.carrier) {
        (true, true) => "up, with carrier",
        (true, false) => "up, without carrier: cable, transceiver, or the other end is down",
        (false, _) => "down",
    };
    Finding::judged(name, link.up && link.carrier, State::Missing, found, wanted).remedy(format!("ip link set {} up", nic.name))
}

/// Of the wire.
pub fn speed(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("speed", "10 Gbit/s or more, the same at both ends");
    match &nic.speed {
        Err(why) => Finding::unknown(name, why.clone(), wanted),
        Ok(mbit) => Finding::judged(name, *mbit >= SPEED_MIN, State::Warning, format!("{mbit} Mbit/s"), wanted).remedy(format!(
            "ethtool {}    # which link modes are advertised; say beside the figures that the wire is the limit",
            nic.name
        )),
    }
}

/// A packet must fit into a frame of packet memory.
pub fn mtu(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) =
        ("MTU", format!("at most {MTU_MAX}: frames of 2048 bytes less {XDP_HEADROOM} before the packet and {ETHERNET} of Ethernet"));
    let Ok(link) = &nic.link else { return Finding::unknown(name, "not known", wanted) };
    let state = if link.mtu <= MTU_MAX {
        State::Ok
    } else if link.mtu <= MTU_MAX_4096 {
        State::Warning
    } else {
        State::Missing
    };
    let remedy = match state {
        State::Warning => "nomagic.yaml: packets: {frameSize: 4096}".to_owned(),
        _ => format!("ip link set {} mtu 1500", nic.name),
    };
    Finding::new(name, state, link.mtu.to_string(), wanted).remedy(remedy)
}

/// With flow control a slow receiver stops the sender, and loss is not seen.
pub fn pause(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("flow control", "off in both directions");
    let (rx, tx) = match &nic.pause {
        Ok(pause) => *pause,
        Err(why) => return Finding::unknown(name, why.clone(), wanted),
    };
    let word = |on| if on { "on" } else { "off" };
    Finding::judged(name, !rx && !tx, State::Missing, format!("rx {}, tx {}", word(rx), word(tx)), wanted)
        .remedy(format!("ethtool -A {} autoneg off rx off tx off", nic.name))
}

/// LRO must be off: XDP and forwarding see frames as they came. GRO works behind XDP and does not matter.
pub fn offloads(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("LRO", "off");
    let features = match &nic.features {
        Ok(features) => features,
        Err(why) => return Finding::unknown(name, why.clone(), wanted),
    };
    match features.get("large-receive-offload") {
        None => Finding::unknown(name, "ethtool -k does not name it", wanted),
        Some(on) => {
            let gro =
                features.get("generic-receive-offload").map_or("", |on| if *on { " (GRO on: only what the kernel gets)" } else { "" });
            let found = format!("{}{gro}", if *on { "on" } else { "off" });
            Finding::judged(name, !on, State::Missing, found, wanted).remedy(format!("ethtool -K {} lro off", nic.name))
        }
    }
}

/// The slot gives the card all lanes at full speed.
pub fn pcie(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, wanted) = ("PCIe link", "the card's own maximum");
    let Some(pci) = &nic.pci else { return Finding::unknown(name, "on no PCI bus", wanted) };
    let (Some(speed), Some(width)) = (pci.speed, pci.width) else { return Finding::unknown(name, "the slot does not tell", wanted) };
    let found = format!("{} GT/s x{} of {} GT/s x{}", speed.0, width.0, speed.1, width.1);
    Finding::judged(name, speed.0 >= speed.1 && width.0 >= width.1, State::Warning, found, wanted)
        .remedy("put the card into a slot with more lanes; see `lspci -vv` (LnkCap, LnkSta)")
}

/// Packets and workers on one NUMA node.
pub fn numa(wanted: &Wanted, machine: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("NUMA node", "the workers' CPUs on the NIC's node");
    let node = match nic.pci.as_ref().map(|p| p.node) {
        None => return Finding::unknown(name, "on no PCI bus", text),
        Some(None) => return Finding::unknown(name, "the device does not tell", text),
        Some(Some(node)) => node,
    };
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, format!("NIC on node {node}; no CPUs named (--cpus)"), text);
    }
    if node < 0 {
        return Finding::unknown(name, "the firmware does not tell the NIC's", text);
    }
    let nodes: Option<Vec<(u32, u32)>> = machine.cpus.iter().map(|(n, cpu)| Some((*n, cpu.node?))).collect();
    let Some(nodes) = nodes.filter(|n| !n.is_empty()) else { return Finding::unknown(name, "the CPUs' is not known", text) };
    match nodes.iter().find(|(_, of)| i64::from(*of) != node) {
        None => Finding::new(name, State::Ok, format!("{node}, NIC and CPUs"), text),
        Some((cpu, of)) => Finding::new(name, State::Missing, format!("NIC on {node}, CPU {cpu} on {of}"), text)
            .remedy(format!("choose CPUs of node {node}: cat /sys/devices/system/node/node{node}/cpulist")),
    }
}
