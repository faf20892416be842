//! Ports that change while the edge runs: flaps, MTU, queues, deletion, other programs. Needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::common::*;
use nomagic_core::reason::Reason;
use nomagic_sys::bpf::detach_pinned_link;
use nomagic_xsk::{Condition, Edge, RingSize, WorkerCount};

const SOON: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

/// Calls [`Edge::tend`] like control: in the gateway's namespace.
fn tend(scene: &Scene, edge: Edge) -> Edge {
    scene.gateway.run(move || {
        let mut edge = edge;
        edge.tend();
        edge
    })
}

fn tend_until(what: &str, scene: &Scene, mut edge: Edge, so: impl Fn(&Edge) -> bool) -> Edge {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        edge = tend(scene, edge);
        if so(&edge) {
            return edge;
        }
        assert!(std::time::Instant::now() < deadline, "{what}: not within {SOON:?}: {:?}", edge.ports());
        std::thread::sleep(SHORT);
    }
}

/// Another program on an interface, until dropped.
fn foreign_program(interface: &str) -> aya::Ebpf {
    static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filter.o"));
    let mut ebpf = aya::EbpfLoader::new().btf(None).load(OBJECT).unwrap();
    let program: &mut aya::programs::Xdp = ebpf.program_mut("nomagic_filter").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(interface, aya::programs::XdpMode::Driver).unwrap();
    ebpf
}

/// Fifty connections that send a little every few milliseconds until stopped; each compares the echo.
fn transfers(scene: &Scene, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<anyhow::Result<std::io::Result<usize>>>> {
    let to = SocketAddr::new(ip(SERVICE), 80);
    let transfer = |stop: Arc<AtomicBool>| {
        scene.client.spawn(move || {
            let mut stream = TcpStream::connect_timeout(&to, SOON)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let (mut echoed, mut back) = (0, [0u8; 1000]);
            while !stop.load(Relaxed) {
                let body: Vec<u8> = (0..1000).map(|i| (i + echoed) as u8).collect();
                stream.write_all(&body)?;
                stream.read_exact(&mut back)?;
                if back[..] != body[..] {
                    return Err(std::io::Error::other("something else came back"));
                }
                echoed += 1000;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(echoed)
        })
    };
    (0..50).map(|_| transfer(stop.clone())).collect()
}

#[test]
fn fifty_transfers_survive_link_flaps() {
    let (scene, mut config) = Scene::two_workers();
    config.ring_size = RingSize::from_static(512);
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    let stop = Arc::new(AtomicBool::new(false));
    let running = transfers(&scene, &stop);
    until("all connections are open", SOON, || edge.status().unwrap().flows_live >= 50);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        scene.gateway.ip("link set gp down");
        edge = tend(&scene, edge);
        std::thread::sleep(Duration::from_millis(300));
        scene.gateway.ip("link set gp up");
        edge = tend(&scene, edge);
    }
    // The MTU changes too, on both ends, and is restored.
    for mtu in [1400, 1500] {
        scene.gateway.ip(&format!("link set gp mtu {mtu}"));
        edge = tend(&scene, edge);
        assert_eq!((edge.ports()[1].mtu, edge.ports()[1].rebinds), (mtu, 0));
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Relaxed);
    let echoed: Vec<usize> = running.into_iter().map(|t| t.join().unwrap().unwrap().expect("no connection is lost")).collect();
    assert!(echoed.iter().all(|&bytes| bytes > 10_000), "each continued: {echoed:?}");
    let status = settled(&edge);
    let down = total(&status, |w| w.reasons.drop[Reason::PortDown] + w.reasons.handed[Reason::PortDown]);
    assert!(down > 0, "frames for the port that was down are counted by name");
    println!(
        "50 connections echoed {} bytes in all over three flaps; {down} frames met a port that was down",
        echoed.iter().sum::<usize>()
    );
    print_frames("after three flaps", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn an_interface_deleted_and_created_again_is_bound_again() {
    let (scene, config) = Scene::two_workers();
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    for round in 1..=3 {
        assert_eq!(scene.ping_pong(4, 50), 200);
        // The first interface: had it been the UMEM's owner, the owner socket would be gone.
        scene.gateway.ip("link delete gc");
        edge = tend(&scene, edge);
        assert_eq!((&edge.ports()[0].condition, edge.ports()[0].queues), (&Condition::Missing, 0));
        assert_eq!(edge.ports()[1].condition, Condition::Bound, "other ports are not affected");
        print_frames("the interface is gone", &edge);
        // It reappears with a different number of queues.
        scene.cable_client(if round == 2 { 1 } else { 2 });
        edge = tend_until("bound again", &scene, edge, |edge| edge.ports()[0].condition == Condition::Bound);
        assert_eq!((edge.ports()[0].rebinds, edge.ports()[0].queues), (round, if round == 2 { 1 } else { 2 }));
        edge.publish_routes(Arc::new(scene.routes(&edge, 1 + round, true)));
        assert!(edge.wait_applied(SOON).is_some());
    }
    assert_eq!(scene.ping_pong(4, 50), 200);
    scene.transfer(SERVICE, 1_000_000);
    print_frames("deleted and created again three times", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn new_queues_are_bound() {
    let scene = Scene::new();
    scene.client_queues(4);
    sh(&format!("ip netns exec {} ethtool -L gc rx 1 tx 4", scene.gateway.name()));
    sh(&format!("ip netns exec {} ethtool -L c0 rx 4 tx 1", scene.client.name()));
    scene.echo();
    let mut config = scene.config();
    config.workers = WorkerCount::from_static(2);
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    assert_eq!((edge.ports()[0].queues, scene.ping_pong(4, 20)), (1, 80));
    sh(&format!("ip netns exec {} ethtool -L gc rx 4", scene.gateway.name()));
    sh(&format!("ip netns exec {} ethtool -L c0 tx 4", scene.client.name()));
    edge = tend_until("all queues are bound", &scene, edge, |edge| edge.ports()[0].queues == 4);
    assert_eq!((edge.ports()[0].rebinds, edge.ports()[0].owners.len()), (0, 4));
    assert_eq!(scene.ping_pong(16, 20), 320, "none is lost on whichever queue: {:?}", edge.status());
    assert_eq!(settled(&edge).ports[0].sockets.len(), 4);
    print_frames("four queues instead of one", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn a_replaced_program_is_reported_and_attached_again() {
    let scene = Scene::new();
    scene.echo();
    let mut edge = scene.start(scene.config(), true);
    scene.serve(&mut edge);
    let ours = scene.gateway.link("gc").xdp.unwrap();
    // Another program is attached by force.
    for port in ["gc", "gp"] {
        detach_pinned_link(&scene.state.join("bpf/if").join(port).join("link")).unwrap();
        assert!(scene.gateway.link(port).xdp.is_none());
    }
    let foreign = scene.gateway.run(|| foreign_program("gc"));
    edge = tend(&scene, edge);
    let Condition::Held { program } = &edge.ports()[0].condition else { panic!("{:?}", edge.ports()[0]) };
    assert!(program.contains("id "), "{program}");
    assert_eq!(edge.ports()[1].condition, Condition::Bound, "other ports were repaired at once");
    drop(foreign);
    edge = tend_until("ours is back", &scene, edge, |edge| edge.ports()[0].condition == Condition::Bound);
    assert_eq!(scene.gateway.link("gc").xdp.unwrap(), ours);
    assert!((0..10).all(|_| scene.ask(SERVICE, 80, SOON)));
    print_frames("taken off and put back", &edge);
    edge.stop(true).unwrap();
}
