//! The kernel's `rp_filter` of the ports: nomagic takes their packets before the kernel compares sources.

use nomagic_core::routes::ReversePath;

use super::Mirror;

impl Mirror {
    /// How the kernel would compare the sources of packets that come in by each port; the last port is the internal one. The kernel does not ask
    /// interfaces that belong to a bridge, a bond or a VRF: it asks that. An interface without the file is gone.
    pub fn reverse_paths(&self, ports: &[String]) -> Vec<ReversePath> {
        let Some((_, ports)) = ports.split_last() else { return Vec::new() };
        let all = rp_filter("all");
        let own = |name: &String| if self.has_master(name) { 0 } else { all.max(rp_filter(name)) };
        ports.iter().map(|name| reverse_path(own(name))).collect()
    }
}

fn rp_filter(interface: &str) -> u8 {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The kernel takes any other number than 1 for 2.
fn reverse_path(value: u8) -> ReversePath {
    match value {
        0 => ReversePath::Off,
        1 => ReversePath::Strict,
        _ => ReversePath::Loose,
    }
}
