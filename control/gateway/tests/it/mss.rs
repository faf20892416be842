//! The maximum segment size that clients and endpoints announce, with real sockets. Needs root.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nomagic_testbed::peers::download;
use socket2::SockRef;

use crate::common::*;

const LIMIT: Duration = Duration::from_secs(20);
const BODY: usize = 1_000_000;

/// The largest segment that the client sends on a connection through the gateway.
fn segment(g: &Gateway, to: &str) -> u32 {
    let to: SocketAddr = to.parse().unwrap();
    g.scene.client.run(move || SockRef::from(&TcpStream::connect_timeout(&to, LIMIT).unwrap()).tcp_mss().unwrap()).unwrap()
}

#[test]
fn mss_is_lowered_to_a_number_or_to_the_mtu() {
    // With the timestamps, which are in each segment.
    const TIMESTAMPS: u32 = 12;
    for (tag, config, mtu, sizes) in
        [("mss-k", "", 1_500, [1_460, 1_440]), ("mss-n", "mss: 1000", 1_500, [1_000; 2]), ("mss-c", "mss: clamp", 1_300, [1_260, 1_240])]
    {
        let scene = nomagic_testbed::rig::Scene::new(tag).expect("a scene (needs root)");
        // Smaller than what the pods know of.
        scene.gw.ip(&format!("link set pods0 mtu {mtu}")).unwrap();
        let g = Gateway::start_in(scene, config, &nginx(&[0]));
        for (to, size) in ["10.109.35.24:80", "[fd00:10:109::24]:80"].into_iter().zip(sizes) {
            assert_eq!(segment(&g, to), size - TIMESTAMPS, "{config:?} {to}: {}", g.account());
            let at: SocketAddr = to.parse().unwrap();
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let loaded = g.scene.client.run(move || runtime().block_on(download(at, BODY, LIMIT))).unwrap();
            loaded.unwrap_or_else(|e| panic!("{config:?} {to}: {e:#}; {}", g.account()));
        }
        assert_eq!(g.count(|c| c.path.mss_lowered) > 0, !config.is_empty());
    }
}
