//! The edge on real interfaces: veth pairs between network namespaces, real sockets at the ends. Needs root.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use nomagic_core::capture::FilterRules;
use nomagic_core::counters::SendError;
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::tuple::Proto;
use nomagic_sys::capabilities::keep_nothing;
use nomagic_xsk::{Edge, EdgeConfig, EdgeError, Idle, InterfaceName, Link, OnFailure, RingSize};

const SOON: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn a_service_is_carried_both_ways_and_every_frame_is_accounted_for() {
    let scene = Scene::new();
    scene.echo();
    for idle in [Idle::Sleep { after_us: 100 }, Idle::Spin] {
        let mut config = scene.config();
        config.idle = idle;
        config.cpus = vec![0];
        let mut edge = scene.start(config, true);
        let (base, before) = seen_and_received(&scene, &edge);
        scene.serve(&mut edge);
        for service in [SERVICE, SERVICE6] {
            assert!(scene.ask_by_flows(service, 80, 20, SOON), "UDP to {service}");
            scene.transfer(service, 3_000_000);
        }
        let status = settled(&edge);
        let worker = &status.workers[0];
        assert!(worker.counts.frames.forwarded.packets > 4_000 && worker.counts.frames.kernel.packets == 0, "{worker:?}");
        assert_eq!(worker.counts.io.copied.packets, 0, "from port to port without a copy");
        assert_eq!(status.flows_live, 42);
        assert!(status.ports[..2].iter().all(|p| p.info.native && p.xdp.taken > 1_000));
        let (seen, received) = seen_and_received(&scene, &edge);
        assert_eq!(seen - base, received - before, "the program's counters are the interface's");
        edge.stop(true).unwrap();
        assert!(scene.gateway.link("gc").xdp.is_none());
    }
}

/// Frames seen by the program on gc, and frames received by the interface, at a moment when neither changed.
fn seen_and_received(scene: &Scene, edge: &Edge) -> (u64, u64) {
    let seen = || edge.status().unwrap().ports[0].xdp.received();
    loop {
        let (first, received, second) = (seen(), scene.gateway.packets("gc").0, seen());
        if first == second {
            return (first, received);
        }
    }
}

#[test]
fn other_frames_are_not_affected_and_wrongly_captured_ones_are_returned() {
    let scene = Scene::new();
    scene.echo();
    let mut edge = scene.start(scene.config(), true);
    let socket = scene.gateway.run(|| UdpSocket::bind("10.1.0.1:7777").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    assert!((0..10).all(|_| scene.ask(GATEWAY, 7777, SOON)), "the gateway's own address");
    assert!(scene.ask(POD, 8080, SOON), "routed by the kernel");
    assert_eq!(settled(&edge).workers[0].counts.frames.received.packets, 0);
    // The filter now captures it although the service table does not know it: it goes to the worker, and back through nm1 into nm0.
    let mut rules = FilterRules::default();
    rules.services.insert((ip(GATEWAY), 7777, Proto::Udp));
    widen(&mut edge, &rules);
    let nm0 = scene.gateway.packets("nm0").0;
    let back = (0..10).all(|_| scene.ask(GATEWAY, 7777, SOON));
    assert!(back, "through the internal port: {:?}", edge.status());
    let worker = &settled(&edge).workers[0];
    assert_eq!((worker.counts.frames.received.packets, worker.counts.frames.kernel.packets, worker.counts.io.copied.packets), (10, 10, 10));
    assert_eq!((worker.counts.reasons.kernel[Reason::NotOurs], worker.counts.reasons.drop.total()), (10, 0));
    assert!(scene.gateway.packets("nm0").0 - nm0 >= 10);
    edge.stop(true).unwrap();
}

#[test]
fn frames_are_held_for_their_neighbour_within_limits() {
    let scene = Scene::new();
    scene.echo();
    let mut config = scene.config();
    config.hold_frames_max = 8;
    config.hold_max = Duration::from_secs(1);
    let mut edge = scene.start(config, false);
    scene.serve(&mut edge);
    assert!(!scene.ask(SERVICE, 80, SHORT), "the pod's neighbour entry is unknown");
    let wanted = edge.wanted().recv_timeout(SOON).unwrap();
    assert_eq!((wanted.port, wanted.addr), (PortId(1), ip(POD)));
    assert_eq!(settled(&edge).workers[0].held_now, 1);
    // The neighbour resolves while a frame is held: the sender sees a delay, no loss.
    let client = scene.client.spawn(|| {
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.send_to(b"wait for it", (SERVICE, 80)).unwrap();
        socket.recv_from(&mut [0; 64]).is_ok()
    });
    std::thread::sleep(SHORT);
    edge.publish_routes(Arc::new(scene.routes(&edge, 2, true)));
    assert!(client.join().unwrap().unwrap());
    assert_eq!(settled(&edge).workers[0].held_now, 0);
    // It becomes unresolved again: eight frames are held, the others are dropped with a reason, and after a second the eight as well.
    edge.publish_routes(Arc::new(scene.routes(&edge, 3, false)));
    assert!(edge.wait_applied(SOON).is_some());
    scene.client.run(|| {
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        for _ in 0..20 {
            socket.send_to(b"x", (SERVICE, 80)).unwrap();
        }
    });
    std::thread::sleep(SHORT);
    let worker = &settled(&edge).workers[0];
    assert_eq!((worker.held_now, worker.counts.reasons.drop[Reason::HoldFull]), (8, 12));
    let gone = until("held frames time out", SOON, || settled(&edge).workers[0].held_now == 0);
    assert!(gone < Duration::from_millis(1_900), "{gone:?}");
    assert_eq!(settled(&edge).workers[0].counts.reasons.drop[Reason::NeighbourTimeout], 8);
    assert!(edge.wanted().len() < 10, "requests are rate-limited");
    edge.stop(true).unwrap();
}

#[test]
fn a_dead_worker_fails_safe_and_a_new_one_takes_over() {
    let scene = Scene::new();
    scene.echo();
    let mut edge = scene.start(scene.config(), true);
    scene.serve(&mut edge);
    assert!(scene.ask(SERVICE, 80, SOON));
    let (old, taken) = (scene.gateway.link("gc").xdp.unwrap(), settled(&edge).ports[0].xdp.taken);
    // The Service's address on the gateway itself, in place of another Service proxy, shows when frames reach the kernel.
    scene.gateway.ip(&format!("addr add {SERVICE}/32 dev lo"));
    let socket = scene.gateway.run(|| UdpSocket::bind((SERVICE, 80)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let sender = scene.client.spawn(|| {
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        for _ in 0..150 {
            let _ = socket.send_to(b"hello?", (SERVICE, 80));
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let stopped = Instant::now();
    edge.stop(false).unwrap();
    assert_eq!(scene.gateway.link("gc").xdp, Some(old), "the program stays");
    socket.recv_from(&mut [0; 64]).expect("frames are passed after the grace period");
    let passed = stopped.elapsed();
    assert!(
        passed > Duration::from_millis(1_800) && passed < Duration::from_millis(3_000),
        "dropped for the grace period, then passed: {passed:?}"
    );
    sender.join().unwrap().unwrap();
    drop(socket);
    // A new process takes over the links. The filter's rules still exist.
    let mut edge = scene.start(scene.config(), true);
    let new = scene.gateway.link("gc").xdp.unwrap();
    assert!(new.native && new.program_id != old.program_id, "the program was replaced");
    assert_eq!(edge.filter_rules().services.len(), 4);
    scene.serve(&mut edge);
    assert!(scene.ask(SERVICE, 80, SOON) && scene.ask(SERVICE6, 80, SOON));
    let xdp = settled(&edge).ports[0].xdp;
    assert!(xdp.taken > taken, "counters continue");
    assert!(xdp.dropped_no_socket > 10 && xdp.dropped_stale > 50 && xdp.failed_open > 10, "{xdp:?}");
    edge.stop(false).unwrap();
    assert!(nomagic_xsk::cleanup(&scene.state).unwrap().removed);
    assert!(scene.gateway.link("gc").xdp.is_none() && scene.gateway.link("nm1").xdp.is_none());
    assert!(!nomagic_xsk::cleanup(&scene.state).unwrap().removed, "nothing is left");
}

#[test]
fn refusals_name_their_cause() {
    let scene = Scene::new();
    let try_start = |config: EdgeConfig| {
        let start = move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())).map(drop);
        scene.gateway.run(start)
    };
    let mut config = scene.config();
    config.interfaces.push(InterfaceName::from_static("gx"));
    assert!(matches!(try_start(config), Err(EdgeError::NoInterface { interface }) if interface == "gx"));
    let mut config = scene.config();
    config.cpus = vec![1023];
    assert!(matches!(try_start(config), Err(EdgeError::Cpu { cpu: 1023, .. })));
    assert!(scene.gateway.link("gc").xdp.is_none(), "nothing was attached");

    let edge = scene.start(scene.config(), true);
    let mut config = scene.config();
    config.state_dir.push("other");
    let other = config.state_dir.clone();
    let error = try_start(config).unwrap_err();
    let id = scene.gateway.link("gc").xdp.unwrap().program_id;
    assert!(matches!(&error, EdgeError::XdpBusy { program, .. } if *program == format!("id {id}, name nomagic_filter")), "{error}");
    assert!(error.to_string().contains("ip link show dev gc"), "{error}");
    assert!(!other.exists(), "nothing was left behind");
    // A live process's queues are busy.
    let error = try_start(scene.config()).unwrap_err();
    assert!(matches!(&error, EdgeError::Bind { queue: 0, .. }) && error.to_string().contains("another process"), "{error}");
    edge.stop(true).unwrap();
}

#[test]
fn without_privileges_the_missing_capabilities_are_named() {
    let scene = Scene::new();
    let config = scene.config();
    let error = scene.gateway.run(move || {
        keep_nothing().unwrap();
        Edge::start(config, services(0, &[]), Arc::new(Routes::default())).map(drop).unwrap_err()
    });
    assert!(matches!(error, EdgeError::Privileges { .. }), "{error}");
    assert!(error.to_string().contains("CAP_NET_ADMIN") && error.to_string().contains("CAP_BPF"), "{error}");
}

#[test]
fn pins_of_another_layout_are_refused_and_another_filter_size_is_not() {
    let scene = Scene::new();
    scene.echo();
    scene.start(scene.config(), true).stop(false).unwrap();
    let mut config = scene.config();
    config.reply_buckets *= 2;
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    assert!(scene.ask(SERVICE, 80, SOON), "replies are announced in the new filter");
    assert_eq!(edge.status().unwrap().replies_capacity, 2048 * 16);
    edge.stop(false).unwrap();
    let map = aya::maps::Map::Array(aya::maps::MapData::from_pin(scene.state.join("bpf/settings")).unwrap());
    let mut settings = aya::maps::Array::<_, [u8; 24]>::try_from(map).unwrap();
    let mut value = settings.get(&0, 0).unwrap();
    value[0] = 99;
    settings.set(0, value, 0).unwrap();
    let config = scene.config();
    let error = scene.gateway.run(move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())).map(drop).unwrap_err());
    assert!(matches!(error, EdgeError::Layout { .. }) && error.to_string().contains("`nomagic cleanup`"), "{error}");
}

#[test]
fn answers_that_the_kernel_sends_are_captured_by_one_program_a_port() {
    let scene = Scene::new();
    scene.echo();
    let attached = |interface: &'static str| {
        let query = move || aya::programs::SchedClassifier::query_tcx(interface, aya::programs::TcAttachType::Egress).unwrap().1;
        scene.gateway.run(query).into_iter().map(|program| program.id()).collect::<Vec<u32>>()
    };
    assert!(attached("gc").is_empty());
    let edge = scene.start(scene.config(), true);
    assert_eq!(edge.answers_seen(), [true; 3], "both ports, and the redirect ports, of which there are none");
    let first = attached("gc");
    assert_eq!((first.len(), attached("gp"), attached("nm1").len()), (1, first.clone(), 0));
    edge.stop(false).unwrap();
    assert_eq!(attached("gc"), first, "it outlives the process");
    let edge = scene.start(scene.config(), true);
    let second = attached("gc");
    assert!(second.len() == 1 && second != first, "replaced, not added: {first:?}, {second:?}");
    edge.stop(true).unwrap();
    assert!(attached("gc").is_empty() && attached("gp").is_empty());
}

#[test]
fn the_reply_filter_has_a_secret_of_its_own_as_long_as_its_array_lives() {
    let scene = Scene::new();
    scene.echo();
    let restart = |detach| scene.start(scene.config(), true).stop(detach).unwrap();
    let array = || {
        let map = aya::maps::Map::Array(aya::maps::MapData::from_pin(scene.state.join("bpf/replies")).unwrap());
        aya::maps::Array::<_, [u8; 64]>::try_from(map).unwrap()
    };
    // Behind the buckets.
    let key = || array().get(&1024, 0).unwrap()[..16].to_vec();
    restart(false);
    let first = key();
    assert_ne!(first, [0; 16]);
    restart(false);
    assert_eq!(key(), first, "what was announced by the process before stays readable");
    // As after an end between creating the array and writing its key: its announcements cannot be read.
    array().set(1024, [0; 64], 0).unwrap();
    let mut edge = scene.start(scene.config(), true);
    scene.serve(&mut edge);
    assert!(scene.ask(SERVICE, 80, SOON) && scene.ask(SERVICE6, 80, SOON));
    let second = key();
    assert!(second != first && second != [0; 16]);
    edge.stop(true).unwrap();
    restart(false);
    assert!(![first, second, vec![0; 16]].contains(&key()), "a new array, a new key");
}

#[test]
fn a_flood_through_small_rings_loses_frames_only_with_a_reason() {
    let scene = Scene::new();
    scene.echo();
    let mut config = scene.config();
    config.ring_size = RingSize::from_static(64);
    config.hold_frames_max = 16;
    let mut edge = scene.start(config, true);
    scene.serve(&mut edge);
    let frames: u32 = settled(&edge).pools.iter().map(|f| f.total).sum();
    let flood = || {
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        // Errors are the sender's own full queue.
        (0..20_000).filter(|_| socket.send_to(&[7; 30], (SERVICE, 80)).is_ok()).count()
    };
    until("many times the pool's frames", Duration::from_secs(60), || {
        let senders = [scene.client.spawn(flood), scene.client.spawn(flood)];
        senders.into_iter().for_each(|s| assert!(s.join().unwrap().unwrap() > 0));
        edge.status().unwrap().workers[0].counts.frames.received.packets > 10 * u64::from(frames)
    });
    let status = settled(&edge);
    let worker = &status.workers[0];
    let taken: u64 = status.ports.iter().map(|p| p.xdp.taken).sum();
    let lost: u64 = status.ports.iter().flat_map(|p| &p.sockets).map(|s| s.rx_dropped + s.rx_ring_full).sum();
    assert_eq!(taken, worker.counts.frames.received.packets + lost, "captured frames were received or counted as lost");
    println!("frames: {:?}", worker.pools);
    assert!(scene.ask(SERVICE, 80, SOON), "and it still works");
    edge.stop(true).unwrap();
}

#[test]
fn all_queues_are_bound_and_frames_cross_to_ports_with_fewer() {
    let scene = Scene::new();
    scene.gateway.ip("link delete gc");
    let queues = "numrxqueues 4 numtxqueues 4";
    scene.gateway.ip(&format!("link add gc {queues} type veth peer name c0 netns {} {queues}", scene.client.name()));
    for (ns, name, addr) in [(&scene.gateway, "gc", "10.1.0.1/24"), (&scene.client, "c0", "10.1.0.2/24")] {
        ns.ip(&format!("addr add {addr} dev {name}"));
        ns.ip(&format!("link set {name} up"));
    }
    scene.client.ip("route add default via 10.1.0.1");
    scene.echo();
    let mut edge = scene.start(scene.config(), true);
    assert_eq!(edge.ports().iter().map(|p| p.queues).collect::<Vec<_>>(), [4, 1, 1]);
    scene.serve(&mut edge);
    assert!((0..40).all(|_| scene.ask(SERVICE, 80, SOON)));
    scene.transfer(SERVICE, 300_000);
    settled(&edge);
    edge.stop(true).unwrap();
}

#[test]
fn generic_xdp_is_the_fallback_for_drivers_without_native_xdp() {
    let scene = Scene::new();
    scene.echo();
    scene.gateway.ip("link set gc mtu 9000");
    scene.client.ip("link set c0 mtu 9000");
    // As on a kernel without packets of several frames.
    let mut edge = scene.start(EdgeConfig { segments: false, ..scene.config() }, true);
    assert_eq!(edge.ports().iter().map(|p| p.native).collect::<Vec<_>>(), [false, true, true]);
    scene.serve(&mut edge);
    assert!((0..10).all(|_| scene.ask(SERVICE, 80, SOON)));
    assert!(settled(&edge).ports[0].xdp.taken >= 10);
    edge.stop(true).unwrap();
}

#[test]
fn an_interface_that_goes_down_or_away_is_counted_and_survived() {
    let scene = Scene::new();
    scene.echo();
    let mut edge = scene.start(scene.config(), true);
    scene.serve(&mut edge);
    assert!(scene.ask(SERVICE, 80, SOON));
    scene.gateway.ip("link set gp down");
    assert!(!scene.ask(SERVICE, 80, SHORT));
    assert!(!scene.ask(SERVICE, 80, SHORT));
    let worker = settled(&edge).workers[0].clone();
    assert!(worker.counts.sends.errors[SendError::Down] > 0 && worker.counts.reasons.drop[Reason::PortDown] > 0, "{worker:?}");
    scene.gateway.ip("link set gp up");
    until("the port comes back by itself", Duration::from_secs(5), || scene.ask(SERVICE, 80, SHORT));
    // Removed for good.
    scene.gateway.ip("link delete gp");
    assert!(!scene.ask(SERVICE, 80, SHORT));
    let before = settled(&edge).workers[0].clone();
    std::thread::sleep(Duration::from_secs(1));
    let after = settled(&edge).workers[0].clone();
    assert!(after.alive && after.heartbeat_age_ns < 500_000_000);
    assert!(
        after.counts.io.rounds - before.counts.io.rounds < 1_000,
        "does not spin: {} rounds",
        after.counts.io.rounds - before.counts.io.rounds
    );
    edge.stop(true).unwrap();
}

#[test]
fn an_interface_created_again_gets_a_new_link() {
    let scene = Scene::new();
    let edge = scene.start(scene.config(), true);
    edge.stop(false).unwrap();
    scene.gateway.ip("link delete gp");
    scene.gateway.ip(&format!("link add gp type veth peer name p0 netns {}", scene.pod.name()));
    scene.gateway.ip("link set gp up");
    scene.pod.ip("link set p0 up");
    let mut config = scene.config();
    // gc is no longer configured: it is returned to the kernel.
    config.interfaces = vec![InterfaceName::from_static("gp")];
    config.internal = None;
    config.on_failure = OnFailure::Drop;
    let edge = scene.gateway.run(move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())).unwrap());
    let xdp = |name: &'static str| scene.gateway.run(move || Link::query(name).unwrap().xdp);
    assert!(xdp("gp").is_some() && xdp("gc").is_none() && xdp("nm1").is_none());
    edge.stop(true).unwrap();
    assert!(xdp("gp").is_none());
}
