//! A gateway with two workers during changes of routes, links and interfaces. Needs root.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{ClientOptions, http_load, udp_load, upload};
use nomagic_testbed::rig::{Netns, Scene, cable};

use crate::common::*;

const V4: &str = "10.109.35.24:80";
const V6: &str = "[fd00:10:109::24]:80";
const UDP: &str = "10.109.35.24:53";
const LONG: Duration = Duration::from_secs(60);

/// The scene with two queues towards the client, so that both workers receive.
fn two_queues(tag: &str) -> Scene {
    queues(tag, 2)
}

fn queues(tag: &str, count: u32) -> Scene {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    scene.gw.ip("link delete cl0").unwrap();
    cable(&scene.client, "eth0", &scene.gw, "cl0", count).unwrap();
    for (ns, name, v4, v6) in [(&scene.gw, "cl0", "10.0.0.1/24", "fd00:a::1/64"), (&scene.client, "eth0", "10.0.0.2/24", "fd00:a::2/64")] {
        ns.ip(&format!("addr add {v4} dev {name}")).unwrap();
        ns.ip(&format!("addr add {v6} dev {name} nodad")).unwrap();
    }
    scene.client.ip("route add default via 10.0.0.1").unwrap();
    scene.client.ip("-6 route add default via fd00:a::1").unwrap();
    scene
}

fn gateway(tag: &str, extra: &str) -> Gateway {
    Gateway::start_in(two_queues(tag), &format!("workers: 2\npackets: {{ringSize: 256}}\n{extra}"), &nginx(&[0, 1, 2]))
}

fn serves(g: &Gateway) {
    for to in [V4, V6] {
        let report = g.http(&g.scene.client, to, 30);
        assert_eq!((report.answered(), report.failed()), (30, 0), "{report:?}");
    }
}

fn condition(g: &Gateway, port: usize) -> String {
    g.status().ports[port].condition.clone()
}

#[test]
fn control_does_not_run_on_the_workers_cpus() {
    // The CPUs that this process may use.
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = allowed.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let cpu = allowed.split([',', '-']).next().unwrap();
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    let g = Gateway::start("cpus", &format!("workers: {{count: 1, cpus: [{cpu}]}}"), &nginx(&[0]));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", g.process.pid())).unwrap();
    let (mut workers, mut others) = (0, 0);
    for task in tasks.flatten() {
        // The thread may have ended.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default().to_owned();
        let (name, allowed) = (line("Name"), line("Cpus_allowed_list"));
        if name == "nm-worker-0" {
            workers += 1;
            assert_eq!(allowed, cpu, "{status}");
        } else if several {
            others += 1;
            assert!(!allowed.split([',', '-']).any(|first| first == cpu), "{name} may use {allowed}");
        }
    }
    assert!(workers == 1 && (others > 0 || !several));
    assert_eq!(g.http(&g.scene.client, V4, 10).answered(), 10);
}

#[test]
fn two_workers_share_the_load() {
    let g = gateway("p1", "masqueradeAll: true");
    serves(&g);
    assert_eq!(g.udp(&g.scene.client, UDP, 200).failed(), 0);
    let status = g.status();
    assert_eq!(status.ports[0].owners, [0, 1]);
    assert!(status.workers.len() == 2 && status.workers.iter().all(|w| w.counts.frames.received.packets > 50), "{:#?}", status.workers);
    assert!(g.count(|c| c.io.handed_over.packets) > 50);
    assert_eq!(g.count(|c| c.io.handed_over.packets), g.count(|c| c.io.handed_in.packets));
    assert_eq!((status.ready, g.count(|c| c.io.handed_failed.packets)), (true, 0));
    g.print_frames();
}

#[test]
fn routes_change_under_load() {
    let g = gateway("p5", "");
    serves(&g);
    let (stop, asked, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (stop, asked, lost) = (stop.clone(), asked.clone(), lost.clone());
        g.scene
            .client
            .thread(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (udp, http): (SocketAddr, SocketAddr) = (UDP.parse().unwrap(), V4.parse().unwrap());
                while !stop.load(Relaxed) {
                    for report in [
                        runtime.block_on(udp_load(udp, 20, ClientOptions::default())),
                        runtime.block_on(http_load(http, 10, ClientOptions::default())),
                    ] {
                        asked.fetch_add(report.answered() + report.failed(), Relaxed);
                        lost.fetch_add(report.failed(), Relaxed);
                    }
                }
            })
            .unwrap()
    };
    let ip = |words: &str| g.scene.gw.ip(words).unwrap();
    let generation = || g.number(|s| s.routes.generation);
    // Equivalent routes (longer prefixes, better metrics, two legs) lose no packets.
    for round in 0..10 {
        let before = generation();
        ip("route add 192.168.235.129/32 dev pods0");
        ip("route add 192.168.189.0/24 dev pods0 metric 5");
        ip("route add 192.168.219.0/24 nexthop dev pods0 weight 1 nexthop via 192.168.219.1 dev pods0 onlink weight 1");
        wait_for("the new routes", LONG, || generation() > before);
        std::thread::sleep(Duration::from_millis(50));
        let before = generation();
        ip("route del 192.168.235.129/32");
        ip("route del 192.168.189.0/24");
        ip("route del 192.168.219.0/24");
        wait_for("the old routes", LONG, || generation() > before);
        assert_eq!(lost.load(Relaxed), 0, "round {round}");
    }
    // A route that ends: established flows are dropped at once, with a reason, and continue when the route is back.
    let before = g.reason(Reason::RouteBlackhole);
    ip("route add blackhole 192.168.235.129/32");
    wait_for("established flows meet the blackhole", LONG, || g.reason(Reason::RouteBlackhole) > before);
    ip("route del blackhole 192.168.235.129/32");
    stop.store(true, Relaxed);
    load.join().unwrap().unwrap();
    serves(&g);
    println!(
        "{} requests over 20 changes of routes, none lost; then a blackhole: {} frames",
        asked.load(Relaxed),
        g.reason(Reason::RouteBlackhole)
    );
    g.print_frames();
}

#[test]
fn links_flap_and_interfaces_are_recreated() {
    let g = gateway("p6", "");
    serves(&g);
    let to: SocketAddr = V4.parse().unwrap();
    let done = Arc::new(AtomicU32::new(0));
    // A connection that is opened while the link is down is told so (network unreachable), and fails at once.
    let before = g.number(|s| s.conntrack.live);
    let transfers: Vec<_> = (0..50)
        .map(|_| {
            let done = done.clone();
            g.scene
                .client
                .thread(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    let outcome = runtime.block_on(upload(to, 4_000_000, LONG));
                    done.fetch_add(1, Relaxed);
                    outcome
                })
                .unwrap()
        })
        .collect();
    wait_for("fifty connections", LONG, || g.number(|s| s.conntrack.live) >= before + 50);
    for flap in 0..2 {
        assert!(done.load(Relaxed) < 50, "flap {flap} comes while they run");
        g.scene.gw.ip("link set pods0 down").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        g.scene.gw.ip("link set pods0 up").unwrap();
        // The kernel removes IPv6 addresses when the link goes down.
        g.scene.gw.ip("addr replace fd00:192::1/64 dev pods0 nodad").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    for transfer in transfers {
        transfer.join().unwrap().unwrap().expect("not one transfer is lost, byte for byte");
    }
    serves(&g);
    g.print_frames();
    // A deleted port is reported; a recreated one is bound again without a restart.
    let mac = g.scene.gw.link_mac("pods0").unwrap().map(|byte| format!("{byte:02x}")).join(":");
    g.scene.gw.ip("link delete pods0").unwrap();
    wait_for("the loss to be noticed", LONG, || condition(&g, 1) == "missing");
    assert_eq!((condition(&g, 0).as_str(), g.status().ready), ("bound", false));
    assert!(g.process.output().contains("the port is missing"));
    cable(&g.scene.gw, "pods0", &g.scene.fabric, "gw0", 2).unwrap();
    // With the address that the pods remember, as a NIC has it.
    g.scene.gw.ip(&format!("link set pods0 address {mac}")).unwrap();
    g.scene.fabric.ip("link set gw0 master br0").unwrap();
    g.scene.gw.ip("addr add 192.168.0.1/16 dev pods0").unwrap();
    g.scene.gw.ip("addr add fd00:192::1/64 dev pods0 nodad").unwrap();
    wait_for("the port to be bound again", LONG, || condition(&g, 1) == "bound");
    wait_for("readiness", LONG, || g.status().ready);
    assert_eq!(g.status().ports[1].owners, [0, 1], "with both of its new queues");
    serves(&g);
    g.print_frames();
}

#[test]
fn capabilities_are_dropped_after_the_start() {
    let scene = queues("p7", 4);
    let set = |ns: &Netns, interface: &str, what: &str, count: &str| ns.exec("ethtool", &["-L", interface, what, count]);
    set(&scene.client, "eth0", "tx", "2").unwrap();
    set(&scene.gw, "cl0", "rx", "2").unwrap();
    let g = Gateway::start_in(scene, "workers: 2\npackets: {ringSize: 256}", &nginx(&[0, 1, 2]));
    serves(&g);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", g.process.pid())).unwrap();
    let mut workers = 0;
    for task in tasks.map(|t| t.unwrap().path()) {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let of = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        let (name, permitted) = (of("Name:"), u64::from_str_radix(&of("CapPrm:"), 16).unwrap());
        // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF.
        assert_eq!(permitted & !(1 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39), 0, "{name} keeps {permitted:#x}");
        if name.starts_with("nm-worker") {
            workers += 1;
            assert_eq!(permitted, 0, "{name}");
        }
    }
    assert_eq!(workers, 2);
    set(&g.scene.gw, "cl0", "rx", "1").expect_err("the kernel keeps queues that are bound");
    // The kept capabilities suffice to load a program and bind sockets for new queues.
    set(&g.scene.gw, "cl0", "rx", "4").unwrap();
    set(&g.scene.client, "eth0", "tx", "4").unwrap();
    wait_for("the new queues to be bound", LONG, || g.number(|s| s.ports[0].queues) == 4);
    serves(&g);
    assert_eq!((condition(&g, 0).as_str(), g.status().ready), ("bound", true));
    g.print_frames();
}
