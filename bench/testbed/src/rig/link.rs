//! Cables between namespaces, and interface counters.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::netns::Netns;
use super::run;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkCounters {
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

impl LinkCounters {
    /// The difference to an earlier reading.
    pub fn since(&self, earlier: &LinkCounters) -> LinkCounters {
        LinkCounters {
            rx_packets: self.rx_packets.wrapping_sub(earlier.rx_packets),
            rx_bytes: self.rx_bytes.wrapping_sub(earlier.rx_bytes),
            rx_dropped: self.rx_dropped.wrapping_sub(earlier.rx_dropped),
            tx_packets: self.tx_packets.wrapping_sub(earlier.tx_packets),
            tx_bytes: self.tx_bytes.wrapping_sub(earlier.tx_bytes),
            tx_dropped: self.tx_dropped.wrapping_sub(earlier.tx_dropped),
        }
    }
}

/// Creates a veth pair between two namespaces (`a_name` in `a`, `b_name` in `b`) with `queues` queues at each end, and sets both ends up.
pub fn cable(a: &Netns, a_name: &str, b: &Netns, b_name: &str, queues: u32) -> Result<()> {
    let queues = queues.to_string();
    let mut words = vec!["link", "add", a_name, "netns", a.name(), "numrxqueues", &queues, "numtxqueues", &queues];
    words.extend(["type", "veth", "peer", "name", b_name, "netns", b.name(), "numrxqueues", &queues, "numtxqueues", &queues]);
    run("ip", &words)?;
    a.ip(&format!("link set {a_name} up"))?;
    b.ip(&format!("link set {b_name} up"))?;
    Ok(())
}

/// What `ip -s -j link show dev NAME` writes: a list of one.
#[derive(Deserialize)]
struct LinkJson {
    address: Option<String>,
    stats64: Option<StatsJson>,
}

#[derive(Deserialize)]
struct StatsJson {
    rx: DirectionJson,
    tx: DirectionJson,
}

#[derive(Deserialize)]
struct DirectionJson {
    packets: u64,
    bytes: u64,
    dropped: u64,
}

impl Netns {
    fn link(&self, interface: &str) -> Result<LinkJson> {
        let words = format!("-s -j link show dev {interface}");
        let links: Vec<LinkJson> =
            serde_json::from_str(&self.ip(&words)?).with_context(|| format!("`ip {words}` wrote unexpected output"))?;
        links.into_iter().next().with_context(|| format!("`ip {words}` wrote nothing"))
    }

    pub fn link_counters(&self, interface: &str) -> Result<LinkCounters> {
        let StatsJson { rx, tx } = self.link(interface)?.stats64.with_context(|| format!("`ip` names no statistics of {interface}"))?;
        Ok(LinkCounters {
            rx_packets: rx.packets,
            rx_bytes: rx.bytes,
            rx_dropped: rx.dropped,
            tx_packets: tx.packets,
            tx_bytes: tx.bytes,
            tx_dropped: tx.dropped,
        })
    }

    /// The MAC address of an interface.
    pub fn link_mac(&self, interface: &str) -> Result<[u8; 6]> {
        let mac = self.link(interface)?.address.with_context(|| format!("{interface} has no MAC address"))?;
        let bytes: Option<Vec<u8>> = mac.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
        bytes.and_then(|b| b.try_into().ok()).with_context(|| format!("{interface}: `{mac}` is not a MAC address"))
    }
}
