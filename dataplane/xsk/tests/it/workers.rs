//! Several workers on one table: queue ownership, hand-over of frames, port groups, a stuck worker. Needs root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use crate::common::*;
use nomagic_core::capture::FilterRules;
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::tuple::Proto;
use nomagic_xsk::{Edge, EdgeError, FrameSize, Headroom, RingSize, RssError};

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn queues_are_spread_over_workers() {
    let (scene, mut config) = Scene::two_workers();
    config.hold_frames_max = 16;
    let mut edge = scene.start(config, true);
    let owners: Vec<&[u16]> = edge.ports().iter().map(|p| &p.owners[..]).collect();
    assert_eq!(owners, [&[0, 1][..], &[1], &[0]], "two queues, one queue, the internal port");
    scene.serve(&mut edge);
    let frames: u32 = edge.status().unwrap().pools.iter().map(|f| f.total).sum();
    let rounds = 10 * frames as usize / 8 + 1;
    assert_eq!(scene.ping_pong(8, rounds), 8 * rounds, "ten times the pool's frames there and back, none lost");
    scene.transfer(SERVICE, 3_000_000);
    scene.transfer(SERVICE6, 300_000);
    let status = settled(&edge);
    let (over, taken) = (total(&status, |w| w.io.handed_over.packets), total(&status, |w| w.io.handed_in.packets));
    assert!(over > 1_000 && over == taken, "handed over {over}, taken over {taken}");
    assert!(status.workers.iter().all(|w| w.counts.frames.received.packets > 1_000), "both work");
    // Frames returned to the kernel leave through worker 0's queue of the internal port, regardless of the receiving worker.
    let mut rules = FilterRules::default();
    rules.services.insert((ip(GATEWAY), 7777, Proto::Udp));
    widen(&mut edge, &rules);
    let socket = scene.gateway.run(|| std::net::UdpSocket::bind("10.1.0.1:7777").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    assert!((0..20).all(|_| scene.ask(GATEWAY, 7777, SOON)), "to the kernel and back");
    let kernel = settled(&edge);
    assert_eq!((total(&kernel, |w| w.frames.kernel.packets), total(&kernel, |w| w.io.copied.packets)), (20, 20));
    assert_eq!(total(&kernel, |w| w.io.handed_failed.packets), 0);
    print_frames("two workers, two queues to one", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn a_slow_worker_loses_frames_only_with_a_reason() {
    let (scene, config) = Scene::two_workers();
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    let flood = || {
        let socket = std::net::UdpSocket::bind("10.1.0.2:0").unwrap();
        // Errors mean that the sender's own queue is full.
        (0..20_000).filter(|_| socket.send_to(&[7; 30], (SERVICE, 80)).is_ok()).count()
    };
    let senders: Vec<_> = (0..4).map(|_| scene.client.spawn(flood)).collect();
    senders.into_iter().for_each(|s| assert!(s.join().unwrap().unwrap() > 0));
    let status = settled(&edge);
    let sent = total(&status, |w| w.frames.forwarded.packets) - total(&status, |w| w.io.handed_failed.packets);
    let failed = total(&status, |w| w.frames.dropped.packets + w.io.handed_failed.packets);
    let received = total(&status, |w| w.frames.received.packets);
    assert_eq!(received, sent + failed, "every frame was sent or dropped with a reason");
    let reasons = |reason| total(&status, |w| w.reasons.drop[reason] + w.reasons.handed[reason]);
    let named: u64 = [Reason::HandoverFull, Reason::TxFull, Reason::PoolEmpty, Reason::WorkerGone].into_iter().map(reasons).sum();
    assert_eq!(failed, named, "{:?}", status.workers);
    print_frames("flooded", &edge);
    assert!(scene.ask(SERVICE, 80, SOON), "and it still works");
    edge.stop(true).unwrap();
}

#[test]
fn port_groups_and_frame_sizes() {
    let scene = Scene::new();
    scene.echo();
    let mut config = scene.config();
    config.ring_size = RingSize::from_static(128);
    (config.frame_size, config.headroom) = (FrameSize::from_static(4096), Headroom::from_static(256));
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    scene.transfer(SERVICE, 1_000_000);
    let status = settled(&edge);
    assert_eq!(status.pools.len(), 2, "the interfaces are one group, the internal port another");
    assert_eq!(total(&status, |w| w.io.copied.packets), 0, "no copy within a group");
    let mut rules = FilterRules::default();
    rules.services.insert((ip(GATEWAY), 7777, Proto::Udp));
    widen(&mut edge, &rules);
    assert!(!scene.ask(GATEWAY, 7777, SHORT), "nobody listens there");
    let status = settled(&edge);
    assert_eq!(
        (total(&status, |w| w.io.copied.packets), total(&status, |w| w.frames.kernel.packets)),
        (1, 1),
        "one copy into the other group"
    );
    assert!(status.ports.iter().all(|p| p.sockets.iter().all(|s| s.rx_invalid_descs == 0 && s.tx_invalid_descs == 0)));
    print_frames("frames of 4096 bytes, 512 of them headroom", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn huge_pages_are_used_or_reported_missing() {
    let free = || -> u64 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find(|l| l.starts_with("HugePages_Free:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let scene = Scene::new();
    scene.echo();
    let mut config = scene.config();
    config.ring_size = RingSize::from_static(64);
    config.huge_pages = true;
    let before = free();
    let started = scene.gateway.run(move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())));
    match started {
        Err(error) => {
            assert!(matches!(error, EdgeError::HugePages { pages: 1.. }), "{error}");
            assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
            assert!(before < 8, "{before} huge pages were free");
        }
        Ok(mut edge) => {
            edge.publish_routes(Arc::new(scene.routes(&edge, 1, true)));
            scene.serve(&mut edge);
            assert!(free() < before && scene.ask(SERVICE, 80, SOON));
            print_frames("on huge pages", &edge);
            edge.stop(true).unwrap();
        }
    }
    println!("{before} huge pages were free");
}

#[test]
fn an_unsupported_queue_count_is_refused_with_a_reason() {
    let scene = Scene::new();
    scene.client_queues(300);
    let config = scene.config();
    let error = scene.gateway.run(move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())).map(drop).unwrap_err());
    assert!(error.to_string().contains("gc has 300 queues: at most 256"), "{error}");
    assert!(scene.gateway.link("gc").xdp.is_none() && !scene.state.exists(), "nothing was left behind");
}

/// The count of a reason once no frame moves.
fn settled_reason(edge: &Edge, reason: Reason) -> u64 {
    let status = edge.status().unwrap();
    total(&status, |w| w.reasons.drop[reason])
}

/// Ids of the threads to be stuck; 0: none.
static STUCK: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// Runs in the stuck thread.
#[allow(unsafe_code, reason = "a signal handler")]
extern "C" fn be_stuck(_: libc::c_int) {
    // SAFETY: returns the calling thread's id.
    let tid = unsafe { libc::gettid() }.cast_unsigned();
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    while STUCK.iter().any(|s| s.load(SeqCst) == tid) {
        // SAFETY: the structure is valid; nanosleep may be called in a signal handler.
        unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
    }
}

/// Keeps a worker of this scene's edge in a signal handler until dropped.
struct Stuck(&'static AtomicU32);

impl Stuck {
    #[allow(unsafe_code, reason = "a signal handler")]
    fn worker(scene: &Scene, id: u32) -> Stuck {
        let inode = fs::metadata(format!("/run/netns/{}", scene.gateway.name())).unwrap().ino();
        let wanted = |task: &std::path::Path| {
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            name.trim() == format!("nm-worker-{id}") && fs::metadata(task.join("ns/net")).is_ok_and(|m| m.ino() == inode)
        };
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|t| t.unwrap().path());
        let tid: u32 = tasks.into_iter().find(|t| wanted(t)).unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        let slot = STUCK.iter().find(|s| s.compare_exchange(0, tid, SeqCst, SeqCst).is_ok()).unwrap();
        let handler: extern "C" fn(libc::c_int) = be_stuck;
        // SAFETY: the handler calls only async-signal-safe functions.
        unsafe { libc::signal(libc::SIGUSR2, handler as *const () as libc::sighandler_t) };
        // SAFETY: the signal has a handler now; the thread runs until its edge is stopped, later.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGUSR2) };
        assert_eq!(sent, 0);
        Stuck(slot)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.store(0, SeqCst);
    }
}

#[test]
fn only_a_stuck_workers_queues_fail_safe() {
    let (scene, config) = Scene::two_workers();
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    // The pod's port and the client's second queue belong to worker 1; the client's first queue and the internal port to worker 0.
    assert_eq!(scene.ping_pong(8, 50), 400);
    let before = settled(&edge);
    let stuck = Stuck::worker(&scene, 1);
    // Worker 0 is alive: it takes frames, and counts why it cannot send them. The kernel gets worker 1's frames after the grace period.
    scene.gateway.ip(&format!("addr add {SERVICE}/32 dev lo"));
    let socket = scene.gateway.run(|| std::net::UdpSocket::bind((SERVICE, 80)).unwrap());
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let ask_from_many_ports = || {
        scene.client.run(|| {
            for _ in 0..40 {
                let socket = std::net::UdpSocket::bind("10.1.0.2:0").unwrap();
                let _ = socket.send_to(b"hello?", (SERVICE, 80));
            }
        });
    };
    // At first worker 1 is only slow: the hand-over ring to it fills.
    (0..10).for_each(|_| ask_from_many_ports());
    let full = settled_reason(&edge, Reason::HandoverFull);
    assert!(full > 0, "400 datagrams, half of them worker 0's, and a ring of 64");
    let passed = until("worker 1's frames are passed", SOON, || {
        ask_from_many_ports();
        socket.recv_from(&mut [0; 64]).is_ok()
    });
    assert!(passed > Duration::from_millis(1_000), "dropped for the grace period first: {passed:?}");
    until("the edge notices", SOON, || edge.workers_alive() == (1, 2));
    let status = edge.status().unwrap();
    assert!(status.workers[0].heartbeat_age_ns < 500_000_000 && status.workers[1].heartbeat_age_ns > 1_000_000_000);
    assert!(status.workers[0].counts.frames.received.packets > before.workers[0].counts.frames.received.packets, "worker 0 continues");
    assert!(status.workers[0].counts.reasons.drop[Reason::WorkerGone] > 0, "{:?}", status.workers[0].counts.reasons);
    let xdp = status.ports[0].xdp;
    assert!(xdp.dropped_stale > 0 && xdp.failed_open > 0, "{xdp:?}");
    // New tables take effect although one worker does not switch to them.
    edge.publish_services(services(2, &[]));
    assert!(edge.wait_applied(SOON).is_some());
    scene.serve(&mut edge);
    // The worker was only asleep: everything works as before.
    drop((stuck, socket));
    scene.gateway.ip(&format!("addr del {SERVICE}/32 dev lo"));
    until("the worker is back", SOON, || edge.workers_alive() == (2, 2));
    assert_eq!(scene.ping_pong(8, 50), 400);
    print_frames("after a worker was stuck", &edge);
    edge.stop(true).unwrap();
}

#[test]
fn a_veth_without_receive_side_scaling_is_served() {
    let (scene, config) = Scene::two_workers();
    let mut edge = scene.start(config, true);
    assert_eq!(edge.rss(), [None, None, None]);
    for port in edge.ports() {
        assert_eq!(port.rss, Err(RssError::Unsupported), "{}", port.name);
    }
    edge.publish_routes(Arc::new(scene.routes(&edge, 2, true).with_rss(edge.rss())));
    scene.serve(&mut edge);
    assert!((0..20).all(|_| scene.ask(SERVICE, 80, SOON)));
    // A missing port is not queried; one that has reappeared is.
    scene.gateway.ip("link delete gc");
    let tend = |scene: &Scene, mut edge: Edge| {
        scene.gateway.run(move || {
            edge.tend();
            edge
        })
    };
    edge = tend(&scene, edge);
    assert_eq!(edge.ports()[0].rss, Err(RssError::NotBound));
    scene.cable_client(2);
    edge = tend(&scene, edge);
    assert_eq!(edge.ports()[0].rss, Err(RssError::Unsupported));
    edge.stop(true).unwrap();
}
