//! Cables between namespaces, and interface counters.

use anyhow::{Context, Result};

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

impl Netns {
    pub fn link_counters(&self, interface: &str) -> Result<LinkCounters> {
        let text = self.ip(&format!("-s -j link show dev {interface}"))?;
        let value: serde_json::Value = serde_json::from_str(&text).context("`ip -j` did not write JSON")?;
        let number = |path: &str| {
            let found = value.pointer(&format!("/0/stats64/{path}")).and_then(serde_json::Value::as_u64);
            found.with_context(|| format!("`ip -s -j link show dev {interface}` names no {path}"))
        };
        Ok(LinkCounters {
            rx_packets: number("rx/packets")?,
            rx_bytes: number("rx/bytes")?,
            rx_dropped: number("rx/dropped")?,
            tx_packets: number("tx/packets")?,
            tx_bytes: number("tx/bytes")?,
            tx_dropped: number("tx/dropped")?,
        })
    }

    /// The MAC address of an interface.
    pub fn link_mac(&self, interface: &str) -> Result<[u8; 6]> {
        let text = self.ip(&format!("-j link show dev {interface}"))?;
        let value: serde_json::Value = serde_json::from_str(&text).context("`ip -j` did not write JSON")?;
        let mac =
            value.pointer("/0/address").and_then(serde_json::Value::as_str).with_context(|| format!("{interface} has no MAC address"))?;
        let bytes: Option<Vec<u8>> = mac.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
        bytes.and_then(|b| b.try_into().ok()).with_context(|| format!("{interface}: `{mac}` is not a MAC address"))
    }
}
