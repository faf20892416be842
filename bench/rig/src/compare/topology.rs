//! A topology: one gateway namespace between the generator's and the sink's.
//!
//! ```text
//!  generator ns          gateway ns of a subject           sink ns
//!  genN --------------- cl0           pods0 ------------- sinkN
//!  10.1.0.2 (a router)  10.1.0.1/24   10.2.0.1/24          10.2.0.2 (a router)
//! ```
//!
//! All topologies have the same addresses. Clients lie behind the router at 10.1.0.2, endpoints behind the one at
//! 10.2.0.2; both are fixed neighbours.

use anyhow::{Context, Result};
use nomagic_testbed::rig::{Guard, Netns, Setting, cable};

use super::workload::{CLIENTS, ENDPOINTS, QUEUE_FRAMES};

/// Addresses of the gateway on the clients' and on the pods' side.
pub const GATEWAY: [&str; 2] = ["10.1.0.1", "10.2.0.1"];
/// Addresses of the routers of the clients and of the pods.
pub const ROUTERS: [&str; 2] = ["10.1.0.2", "10.2.0.2"];

/// The ends that all topologies share.
pub struct Ends {
    pub generator: Netns,
    pub sink: Netns,
}

impl Ends {
    pub fn new() -> Result<Ends> {
        let ends = Ends { generator: Netns::new("cmp-gen")?, sink: Netns::new("cmp-sink")? };
        // Only raw frames are wanted here; IPv6 would send its own.
        for netns in [&ends.generator, &ends.sink] {
            netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        Ok(ends)
    }
}

/// Makes the kernel's backlogs as long as the other subjects' queues until the guard is dropped. The setting is global to the machine.
pub fn long_backlog() -> Result<Guard> {
    Setting::change("/proc/sys/net/core/netdev_max_backlog", &QUEUE_FRAMES.to_string())
        .context("the kernel's queues have to be as long as those of the other subjects")
}

/// Gives the kernel's connection tables the capacity of nomagic's until the guard is dropped. The setting is global to the machine; it is there
/// once a rule set uses conntrack.
pub fn conntrack_max(capacity: u32) -> Result<Guard> {
    Setting::change("/proc/sys/net/netfilter/nf_conntrack_max", &capacity.to_string())
        .context("the kernel's connection table has to hold as many connections as nomagic's")
}

/// A subject's gateway with its cables.
pub struct Topology {
    pub gateway: Netns,
    pub generator: String,
    pub sink: String,
    /// The gateway's MAC address on the clients' side.
    pub gateway_mac: [u8; 6],
    /// The generator's MAC address, which is that of the clients' router.
    pub generator_mac: [u8; 6],
}

impl Topology {
    /// Lays the cables of topology `n` and gives the gateway its addresses, routes and neighbours.
    pub fn new(ends: &Ends, n: usize) -> Result<Topology> {
        let (generator, sink) = (format!("gen{n}"), format!("sink{n}"));
        let gateway = Netns::new("cmp-gw")?;
        gateway.sysctl("net.ipv4.ip_forward", "1")?;
        gateway.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        gateway.sysctl("net.ipv4.ip_local_reserved_ports", "61000-65535")?;
        gateway.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        cable(&ends.generator, &generator, &gateway, "cl0", 1)?;
        cable(&ends.sink, &sink, &gateway, "pods0", 1)?;
        let peers = [ends.generator.link_mac(&generator)?, ends.sink.link_mac(&sink)?];
        for (i, (interface, range)) in [("cl0", CLIENTS), ("pods0", ENDPOINTS)].into_iter().enumerate() {
            gateway.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
            gateway.ip(&format!("addr add {}/24 dev {interface}", GATEWAY[i]))?;
            let mac = peers[i].map(|b| format!("{b:02x}")).join(":");
            gateway.ip(&format!("neigh replace {} lladdr {mac} dev {interface} nud permanent", ROUTERS[i]))?;
            gateway.ip(&format!("route add {range} via {} dev {interface}", ROUTERS[i]))?;
        }
        let gateway_mac = gateway.link_mac("cl0")?;
        Ok(Topology { gateway, generator, sink, gateway_mac, generator_mac: peers[0] })
    }

    /// Moves this gateway's kernel work to `cpu`: GRO turns on NAPI on `cl0`, and receive packet steering hands packets to that CPU.
    pub fn steer_kernel(&self, cpu: u32) -> Result<()> {
        self.gateway.exec("ethtool", &["-K", "cl0", "gro", "on"])?;
        // sysfs shows the interfaces of the namespace that it was mounted in: `ip netns exec` mounts one of its own.
        let mask = format!("{:x}", 1u64 << cpu);
        let write = format!("echo {mask} > /sys/class/net/cl0/queues/rx-0/rps_cpus");
        nomagic_testbed::rig::run("ip", &["netns", "exec", self.gateway.name(), "sh", "-c", &write])
            .map(drop)
            .context("receive packet steering")
    }
}
