//! Packets of several frames (multi-buffer): jumbo frames in the driver, from port to port and through every other way. Needs root.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use nomagic_core::capture::FilterRules;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::Proto;
use nomagic_xsk::Edge;

const SOON: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(100);
const MTU: u32 = 9_000;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
/// Bytes of a frame.
const FRAME: usize = 1_792;

/// A scene whose links have this MTU, with echo servers.
fn scene(mtu: u32) -> Scene {
    let scene = Scene::new();
    for (ns, links) in [(&scene.client, &["c0"][..]), (&scene.gateway, &["gc", "gp", "nm0", "nm1"]), (&scene.pod, &["p0"])] {
        links.iter().for_each(|link| ns.ip(&format!("link set {link} mtu {mtu}")));
    }
    scene.echo();
    scene
}

/// Sends a datagram of so many bytes. Returns whether it comes back as it was.
fn echoed(scene: &Scene, to: &str, port: u16, bytes: usize, patience: Duration) -> bool {
    let to = SocketAddr::new(ip(to), port);
    scene.client.run(move || {
        let any: SocketAddr = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        let body: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut answer = vec![0; 65_536];
        socket.send_to(&body, to).unwrap();
        matches!(socket.recv_from(&mut answer), Ok((n, from)) if from == to && answer[..n] == body)
    })
}

fn all_native(edge: &Edge) -> bool {
    edge.ports().iter().all(|port| port.native)
}

#[test]
fn jumbo_frames_are_carried_in_the_driver() {
    let scene = scene(MTU);
    let mut edge = scene.start(scene.config(), true);
    assert!(all_native(&edge));
    scene.serve(&mut edge);
    let edges = (1..=5).flat_map(|frames| [frames * FRAME - 1, frames * FRAME, frames * FRAME + 1]).chain([MTU as usize + 14]);
    for bytes in edges.map(|bytes| bytes - HEADERS) {
        assert!(echoed(&scene, SERVICE, 80, bytes, SOON), "{bytes} bytes: {:?}", edge.status());
        assert!(bytes + 62 > MTU as usize || echoed(&scene, SERVICE6, 80, bytes, SOON), "{bytes} bytes over IPv6");
    }
    for service in [SERVICE, SERVICE6] {
        scene.transfer(service, 10_000_000);
    }
    let status = settled(&edge);
    let frames = &status.workers[0].counts.frames;
    assert!(frames.forwarded.bytes / frames.forwarded.packets > 4_000, "{frames:?}");
    assert_eq!((frames.dropped.packets, status.workers[0].counts.io.copied.packets), (0, 0));
    print_frames("jumbo frames", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn jumbo_frames_go_to_other_workers_to_the_kernel_and_wait_for_neighbours() {
    let scene = scene(MTU);
    scene.client_queues(2);
    [(&scene.client, "c0"), (&scene.gateway, "gc")].iter().for_each(|(ns, link)| ns.ip(&format!("link set {link} mtu {MTU}")));
    let mut config = scene.config();
    config.workers = nomagic_xsk::WorkerCount::from_static(2);
    let mut edge = scene.start(config, false);
    assert!(all_native(&edge));
    scene.serve(&mut edge);
    assert!(!echoed(&scene, SERVICE, 80, 8_000, SHORT), "the pod's neighbour entry is unknown");
    assert_eq!(settled(&edge).workers.iter().map(|worker| worker.held_now).sum::<u64>(), 1);
    edge.publish_routes(Arc::new(scene.routes(&edge, 2, true)));
    for _ in 0..20 {
        assert!(echoed(&scene, SERVICE, 80, 8_000, SOON), "{:?}", edge.status());
    }
    until("frames for the other worker's queues", Duration::from_secs(30), || {
        scene.transfer(SERVICE, 1_000_000);
        total(&edge.status().unwrap(), |w| w.io.handed_over.packets) > 100
    });
    // The kernel's own: through another pool.
    let mut rules = FilterRules::default();
    rules.services.insert((ip(GATEWAY), 7777, Proto::Udp));
    widen(&mut edge, &rules);
    let socket = scene.gateway.run(|| UdpSocket::bind("10.1.0.1:7777").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 9_000];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    assert!((0..20).all(|_| echoed(&scene, GATEWAY, 7777, 8_972, SOON)), "{:?}", edge.status());
    let status = settled(&edge);
    assert_eq!((total(&status, |w| w.frames.kernel.packets), total(&status, |w| w.io.copied.packets)), (20, 20));
    print_frames("jumbo frames, two workers", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn packets_of_too_many_frames_are_dropped_with_a_reason() {
    let scene = scene(60_000);
    let mut edge = scene.start(scene.config(), true);
    assert!(all_native(&edge));
    scene.serve(&mut edge);
    let longest = 17 * FRAME - HEADERS;
    assert!(echoed(&scene, SERVICE, 80, longest, SOON), "{:?}", edge.status());
    for bytes in [longest + 1, 40_000, 59_000] {
        assert!(!echoed(&scene, SERVICE, 80, bytes, SHORT));
    }
    assert!(echoed(&scene, SERVICE, 80, longest, SOON) && echoed(&scene, SERVICE, 80, 10, SOON));
    let status = settled(&edge);
    assert_eq!(status.workers[0].counts.reasons.drop[Reason::FrameTooLong], 3);
    print_frames("too long", &edge);
    edge.stop(true).unwrap();
}
