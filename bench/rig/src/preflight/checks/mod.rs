//! The checks: each a function of what is known to one finding.

pub mod cpu;
pub mod kernel;
pub mod link;
pub mod namespace;
pub mod queues;
pub mod xdp;

use super::facts::{Machine, Wanted};
use super::finding::Finding;
use super::nic::Nic;

/// A check of the machine.
pub type MachineCheck = fn(&Wanted, &Machine) -> Finding;
/// A check of an interface.
pub type NicCheck = fn(&Wanted, &Machine, &Nic) -> Finding;

const MACHINE: [MachineCheck; 20] = [
    kernel::privileges,
    kernel::version,
    kernel::options,
    kernel::memlock,
    kernel::jit,
    kernel::clocksource,
    kernel::nmi_watchdog,
    kernel::mitigations,
    kernel::huge_pages,
    kernel::conntrack,
    cpu::hypervisor,
    cpu::steal,
    cpu::present,
    cpu::foreign_load,
    cpu::isolation,
    cpu::governor,
    cpu::turbo,
    cpu::idle_states,
    cpu::siblings,
    cpu::irqbalance,
];

const NIC: [NicCheck; 17] = [
    link::up,
    link::speed,
    link::mtu,
    link::pause,
    link::offloads,
    link::pcie,
    link::numa,
    xdp::native,
    xdp::zero_copy,
    xdp::attached,
    queues::count,
    queues::spread,
    queues::udp_hash,
    queues::rings,
    queues::coalescing,
    queues::interrupts,
    queues::ntuple,
];

/// Of the interface's namespace, by role.
const GATEWAY: [NicCheck; 2] = [namespace::forwarding, namespace::ports];
const GENERATOR: [NicCheck; 2] = [namespace::kernel_pktgen, namespace::live_frames];

/// Everything about the machine.
pub fn machine(wanted: &Wanted, machine: &Machine) -> Vec<Finding> {
    MACHINE.iter().map(|check| check(wanted, machine)).collect()
}

/// Everything about an interface. Of one that is not there, only that.
pub fn nic(wanted: &Wanted, machine: &Machine, nic: &Nic) -> Vec<Finding> {
    let by_role = match wanted.role {
        super::facts::Role::Gateway => GATEWAY,
        super::facts::Role::Generator => GENERATOR,
    };
    let mut findings = vec![link::exists(wanted, machine, nic)];
    if nic.link.is_ok() {
        findings.extend(NIC.iter().chain(&by_role).map(|check| check(wanted, machine, nic)));
    }
    let name = nic.netns.as_ref().map_or(nic.name.clone(), |netns| format!("{}@{netns}", nic.name));
    let remedy = |text: String| nic.netns.as_ref().map_or(text.clone(), |netns| inside(netns, &text));
    findings.into_iter().map(|f| Finding { interface: Some(name.clone()), remedy: f.remedy.map(remedy), ..f }).collect()
}

/// Commands about an interface are run where it is.
fn inside(netns: &str, remedy: &str) -> String {
    let here = |part: &str| ["ethtool ", "ip link ", "sysctl ", "bench/rigs/"].iter().any(|c| part.starts_with(c));
    let parts = remedy.split("; ").map(|part| if here(part) { format!("ip netns exec {netns} {part}") } else { part.to_owned() });
    parts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
