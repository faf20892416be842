//! A pod on the gateway node itself.

use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{Netns, Scene, cable};

/// A pod on the gateway node, behind a veth.
pub struct LocalPod {
    pub ns: Netns,
    pub v4: String,
    pub v6: String,
    pub host_side: String,
    _server: PodThread,
}

impl LocalPod {
    /// `number` is 1 to 250. The host's end of the veth is called `<prefix><number>`.
    pub fn new(scene: &Scene, prefix: &str, number: u8) -> LocalPod {
        let ns = Netns::new(&format!("lp{number}")).unwrap();
        let host_side = format!("{prefix}{number}");
        let (v4, v6) = (format!("172.31.0.{number}"), format!("fd00:31::{number}"));
        LocalPod::cable(scene, &ns, &host_side, &v4, &v6);
        let server = start_pod(&ns, PodOptions::new(&format!("local-{number}"))).unwrap();
        LocalPod { ns, v4, v6, host_side, _server: server }
    }

    pub fn cable(scene: &Scene, ns: &Netns, host_side: &str, v4: &str, v6: &str) {
        cable(ns, "eth0", &scene.gw, host_side, 1).unwrap();
        let pod = |words: String| ns.ip(&words).unwrap();
        pod(format!("addr add {v4}/32 dev eth0"));
        pod(format!("addr add {v6}/128 dev eth0 nodad"));
        pod("route add 169.254.1.1 dev eth0 scope link".into());
        pod("route add default via 169.254.1.1 dev eth0".into());
        pod("-6 route add fd00:31::ffff dev eth0".into());
        pod("-6 route add default via fd00:31::ffff dev eth0".into());
        let host = |words: String| scene.gw.ip(&words).unwrap();
        host(format!("route add {v4} dev {host_side}"));
        host(format!("-6 route add {v6} dev {host_side}"));
        // The host answers ARP and ND for the pods' gateway.
        let mac: Vec<String> = scene.gw.link_mac(host_side).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        for gateway in ["169.254.1.1", "fd00:31::ffff"] {
            pod(format!("neigh replace {gateway} lladdr {} dev eth0 nud permanent", mac.join(":")));
        }
    }
}
