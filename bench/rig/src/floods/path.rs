//! The way of honest clients through one subject's topology, and of their answers back.

use std::net::Ipv4Addr;

use anyhow::Result;
use nomagic_testbed::rig::Netns;

use super::kind::FORGED_INSIDE;
use crate::compare::topology::{Ends, GATEWAY, ROUTERS, Topology};
use crate::compare::workload::cluster_ip;

/// The honest clients: inside of the cluster's range, and outside.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(172, 20, 250, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 19, 250, 1);
/// The range of [`OUTSIDE`], and of forged sources outside.
const OUTSIDE_RANGE: &str = "198.18.0.0/15";

/// Sends what the clients ask through this topology.
pub fn open(ends: &Ends, topology: &Topology) -> Result<()> {
    let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
    topology.gateway.ip(&format!("route replace {OUTSIDE_RANGE} via {} dev cl0", ROUTERS[0]))?;
    let (clients, pods) = (text(topology.gateway_mac), text(topology.gateway.link_mac("pods0")?));
    for client in [INSIDE, OUTSIDE] {
        ends.generator.ip(&format!("addr replace {client}/32 dev {}", topology.generator))?;
    }
    via(&ends.generator, &topology.generator, GATEWAY[0], &clients, &format!("{}/32", cluster_ip(0)))?;
    // Answers to clients inside, and to the addresses that replace those of clients outside.
    via(&ends.sink, &topology.sink, GATEWAY[1], &pods, "172.20.0.0/16")?;
    via(&ends.sink, &topology.sink, GATEWAY[1], &pods, &format!("{}/32", GATEWAY[0]))
}

/// Drops forged frames where the endpoints' machine receives them. Its TCP stack runs on the subject's CPU here: without this, what it spends on
/// SYN cookies would be measured. Forged sources that the gateway has replaced look like honest ones there, and stay.
pub fn spare_endpoints(ends: &Ends, topology: &Topology) -> Result<()> {
    let sink = &topology.sink;
    let chain = format!("chain {sink} {{ type filter hook ingress device {sink} priority 0; ip saddr {FORGED_INSIDE} drop\n}}\n");
    ends.sink.exec("nft", &[&format!("table netdev floods {{\n{chain}}}\n")]).map(drop)
}

fn via(netns: &Netns, interface: &str, router: &str, mac: &str, to: &str) -> Result<()> {
    netns.ip(&format!("neigh replace {router} lladdr {mac} dev {interface} nud permanent"))?;
    netns.ip(&format!("route replace {router}/32 dev {interface}"))?;
    netns.ip(&format!("route replace {to} via {router} dev {interface} onlink")).map(drop)
}
