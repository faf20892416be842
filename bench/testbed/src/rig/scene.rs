//! The standard scene: a client, a gateway, three pods.
//!
//! ```text
//!  client ns            gateway ns                    fabric ns          pod ns (3)
//!  eth0 ------------ cl0      pods0 ------------- gw0 [br0] p0..p2 ------ eth0
//!  10.0.0.2/24       10.0.0.1 192.168.0.1/16                              192.168.235.129/16 ...
//!  fd00:a::2/64      fd00:a::1 fd00:192::1/64                             fd00:192::1:1/64 ...
//! ```
//!
//! Clients and pods have their default routes through the gateway. All ends keep their default offloads (partial
//! checksums, TSO), like real pods. IPv6 runs without duplicate address detection, so addresses work at once.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::link::cable;
use super::netns::Netns;

pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 2);
/// The gateway's IPv4 address on the client's side.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The gateway's IPv6 address on the client's side.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 1);
/// The gateway's IPv4 address on the pods' side.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
/// The gateway's IPv6 address on the pods' side.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, 1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PodAddr {
    /// Its name in the server's answers.
    pub name: &'static str,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

pub const PODS: [PodAddr; 3] = [
    PodAddr { name: "nginx-1", v4: Ipv4Addr::new(192, 168, 235, 129), v6: Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 1, 1) },
    PodAddr { name: "nginx-2", v4: Ipv4Addr::new(192, 168, 189, 65), v6: Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 1, 2) },
    PodAddr { name: "nginx-3", v4: Ipv4Addr::new(192, 168, 219, 1), v6: Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 1, 3) },
];

/// The namespaces of the scene. Fields are dropped in order: peers first, the gateway last.
#[derive(Debug)]
pub struct Scene {
    /// The client, behind the gateway's `cl0`.
    pub client: Netns,
    /// The pods, in the order of [`PODS`]; usable as clients too.
    pub pods: Vec<Netns>,
    /// The bridge that connects the pods to the gateway's `pods0`.
    pub fabric: Netns,
    pub gw: Netns,
}

impl Scene {
    /// Creates the scene; `tag` becomes part of the namespaces' names.
    pub fn new(tag: &str) -> Result<Scene> {
        let client = Netns::new(&format!("{tag}-client"))?;
        let gw = Netns::new(&format!("{tag}-gw"))?;
        let fabric = Netns::new(&format!("{tag}-fabric"))?;
        let pods = PODS.iter().map(|p| Netns::new(&format!("{tag}-{}", p.name))).collect::<Result<Vec<_>>>()?;
        let scene = Scene { client, pods, fabric, gw };
        scene.gateway_settings()?;
        scene.client_side()?;
        scene.pods_side()?;
        Ok(scene)
    }

    /// Sets the MTU of all links.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let fabric = ["gw0", "p0", "p1", "p2", "br0"].map(|link| (&self.fabric, link));
        let ends = self.pods.iter().chain([&self.client]).map(|netns| (netns, "eth0"));
        for (netns, link) in ends.chain([(&self.gw, "cl0"), (&self.gw, "pods0")]).chain(fabric) {
            netns.ip(&format!("link set {link} mtu {mtu}"))?;
        }
        Ok(())
    }

    fn gateway_settings(&self) -> Result<()> {
        self.gw.sysctl("net.ipv4.ip_forward", "1")?;
        self.gw.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        self.gw.sysctl("net.ipv4.ip_local_reserved_ports", "61000-65535")
    }

    fn client_side(&self) -> Result<()> {
        cable(&self.client, "eth0", &self.gw, "cl0", 1)?;
        address(&self.gw, "cl0", GATEWAY_V4, 24, GATEWAY_V6)?;
        address(&self.client, "eth0", CLIENT_V4, 24, CLIENT_V6)?;
        defaults(&self.client, GATEWAY_V4, GATEWAY_V6)
    }

    fn pods_side(&self) -> Result<()> {
        // The fabric only switches. Without IPv6 its ports send no frames of their own.
        self.fabric.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        self.fabric.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        self.fabric.ip("link set br0 up")?;
        cable(&self.gw, "pods0", &self.fabric, "gw0", 1)?;
        self.fabric.ip("link set gw0 master br0")?;
        address(&self.gw, "pods0", POD_GATEWAY_V4, 16, POD_GATEWAY_V6)?;
        for (i, (netns, pod)) in self.pods.iter().zip(PODS).enumerate() {
            cable(netns, "eth0", &self.fabric, &format!("p{i}"), 1)?;
            self.fabric.ip(&format!("link set p{i} master br0"))?;
            address(netns, "eth0", pod.v4, 16, pod.v6)?;
            defaults(netns, POD_GATEWAY_V4, POD_GATEWAY_V6)?;
        }
        Ok(())
    }
}

fn address(netns: &Netns, interface: &str, v4: Ipv4Addr, v4_len: u8, v6: Ipv6Addr) -> Result<()> {
    netns.ip(&format!("addr add {v4}/{v4_len} dev {interface}"))?;
    netns.ip(&format!("addr add {v6}/64 dev {interface} nodad")).map(drop)
}

fn defaults(netns: &Netns, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    netns.ip(&format!("route add default via {v4}"))?;
    netns.ip(&format!("-6 route add default via {v6}")).map(drop)
}
