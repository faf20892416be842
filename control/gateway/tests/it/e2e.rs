//! End-to-end tests with real sockets through real AF_XDP, in network namespaces.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{download, upload};
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, POD_GATEWAY_V4, POD_GATEWAY_V6};

use crate::common::*;

const V4: &str = "10.109.35.24:80";
const V6: &str = "[fd00:10:109::24]:80";

#[test]
fn dnat_keeps_the_clients_address_and_uses_every_pod() {
    let g = Gateway::start("dnat", "", &nginx(&[0, 1, 2]));
    for (to, client) in [(V4, IpAddr::from(CLIENT_V4)), (V6, CLIENT_V6.into())] {
        let report = g.http(&g.scene.client, to, 60);
        assert_eq!((report.answered(), report.failed()), (60, 0), "{report:?}");
        assert_eq!(report.per_pod.len(), 3, "{report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&client], "DNAT only");
    }
    assert!(g.count(|c| c.conntrack.created) >= 120);
    let c = g.status().totals.counts.conntrack;
    assert_eq!((c.mid_stream, c.busy, c.revived, c.syn_repeated, c.evicted.total()), (0, 0, 0, 0, 0), "{c:?}");
    g.assert_accounts_close();
}

#[test]
fn snat_shows_the_gateways_address() {
    let g = Gateway::start("snat", "masqueradeAll: true", &nginx(&[0, 1, 2]));
    for (to, gateway) in [(V4, IpAddr::from(GATEWAY_V4)), (V6, GATEWAY_V6.into())] {
        let report = g.http(&g.scene.client, to, 30);
        assert_eq!((report.answered(), report.failed()), (30, 0), "{report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&gateway]);
    }
    g.assert_accounts_close();
}

#[test]
fn udp_in_both_families_dnat_and_snat() {
    for (tag, extra, own) in [("udp-d", "", false), ("udp-s", "masqueradeAll: true", true)] {
        let g = Gateway::start(tag, extra, &nginx(&[0, 1, 2]));
        for (to, client, gateway) in
            [("10.109.35.24:53", CLIENT_V4.into(), GATEWAY_V4.into()), ("[fd00:10:109::24]:53", CLIENT_V6.into(), IpAddr::from(GATEWAY_V6))]
        {
            let report = g.udp(&g.scene.client, to, 40);
            assert_eq!((report.answered(), report.failed()), (40, 0), "{report:?}");
            assert_eq!(report.per_pod.len(), 3);
            assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [if own { &gateway } else { &client }]);
        }
    }
}

#[test]
fn bodies_of_3_mb_pass_byte_for_byte_in_both_directions() {
    for (tag, extra) in [("body-d", ""), ("body-s", "masqueradeAll: true")] {
        let g = Gateway::start(tag, extra, &nginx(&[0, 1, 2]));
        for to in [V4, V6] {
            let to: SocketAddr = to.parse().unwrap();
            let limit = Duration::from_secs(30);
            let both = move || async move { (upload(to, 3_000_000, limit).await, download(to, 3_000_000, limit).await) };
            let (up, down) = g.scene.client.block_on(both).unwrap();
            up.unwrap();
            down.unwrap();
        }
        // 3 MB each way are more than 2,000 full frames each way.
        assert!(g.count(|c| c.frames.forwarded.packets) > 8_000);
        g.assert_accounts_close();
    }
}

#[test]
fn pods_are_clients_too_and_reach_themselves() {
    let own = [(V4, IpAddr::from(GATEWAY_V4)), (V6, GATEWAY_V6.into())];
    let g = Gateway::start("hairpin", "", &nginx(&[0]));
    for (to, gateway) in own {
        let report = g.http(&g.scene.pods[0], to, 10);
        assert_eq!((report.answered(), report.failed()), (10, 0), "the backend itself: {report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&gateway], "hairpin: SNAT");
    }
    drop(g);
    // A client on the backends' link would get replies that bypass the gateway, so it needs SNAT.
    let g = Gateway::start("podclient", "masqueradeAll: true", &nginx(&[0]));
    for (to, gateway) in own {
        let report = g.http(&g.scene.pods[1], to, 10);
        assert_eq!((report.answered(), report.failed()), (10, 0), "another pod: {report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&gateway]);
    }
}

#[test]
fn node_ports_external_and_load_balancer_addresses() {
    let g = Gateway::start(
        "kinds",
        "nodePortAddresses: []",
        &manifests(&[Svc {
            name: "web",
            spec: "type: LoadBalancer\nclusterIP: 10.109.35.30\nclusterIPs: [10.109.35.30, 'fd00:10:109::30']\nipFamilies: [IPv4, IPv6]\nexternalIPs: [203.0.113.7]",
            status: "status: {loadBalancer: {ingress: [{ip: 198.51.100.9}]}}",
            ports: &[("http", "TCP", 80, 30080)],
            pods: &[0, 1],
        }]),
    );
    for to in ["10.109.35.30:80", "10.0.0.1:30080", "192.168.0.1:30080", "[fd00:a::1]:30080", "203.0.113.7:80", "198.51.100.9:80"] {
        let report = g.http(&g.scene.client, to, 10);
        assert_eq!((report.answered(), report.failed()), (10, 0), "{to}: {report:?}");
        let cluster_ip = to.starts_with("10.109");
        assert_eq!(report.clients_seen.contains_key(&CLIENT_V4.into()), cluster_ip, "{to}: from outside, traffic policy Cluster: SNAT");
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    for (tag, extra, by_icmp) in [("reject-i", "", true), ("reject-r", "reject: tcpReset", false)] {
        let g = Gateway::start(tag, extra, &nginx(&[]));
        for to in [V4, V6] {
            let to: SocketAddr = to.parse().unwrap();
            let (error, took) = g
                .scene
                .client
                .run(move || {
                    let start = Instant::now();
                    (TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err(), start.elapsed())
                })
                .unwrap();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{extra} {to}");
            assert!(took < Duration::from_secs(1), "{extra} {took:?}");
        }
        assert_eq!(unreachables(&g), if by_icmp { [1, 1] } else { [0, 0] }, "{extra}");
        assert!(g.reason(Reason::NoEndpoints) >= 2 && g.count(|c| c.frames.made.packets) >= 2);
    }
}

/// "Destination unreachable" messages received by the client's kernel, ICMP and ICMPv6.
fn unreachables(g: &Gateway) -> [u64; 2] {
    let text = |file: &str| g.scene.client.exec("cat", &[file]).unwrap();
    let v4 = text("/proc/net/snmp");
    let mut icmp = v4.lines().filter(|l| l.starts_with("Icmp:")).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let (names, values) = (icmp.next().unwrap(), icmp.next().unwrap());
    let place = names.iter().position(|n| *n == "InDestUnreachs").unwrap();
    let v6 = text("/proc/net/snmp6");
    let v6 = v6.lines().find(|l| l.starts_with("Icmp6InDestUnreachs")).unwrap().split_whitespace().nth(1).unwrap();
    [values[place], v6].map(|n| n.parse().unwrap())
}

/// 50 connections stay with their pods when one pod is removed from the manifests; new ones go to the others.
#[test]
fn a_pod_removed_while_50_connections_run() {
    let mut g = Gateway::start("remove", "", &nginx(&[0, 1, 2]));
    let to: SocketAddr = V4.parse().unwrap();
    let mut open: Vec<(TcpStream, String)> = g.scene.client.run(move || (0..50).map(|_| keep_alive(to)).collect()).unwrap();
    let mut pods: Vec<String> = open.iter().map(|(_, pod)| pod.clone()).collect();
    pods.sort();
    pods.dedup();
    assert_eq!(pods.len(), 3, "{pods:?}");
    g.apply(&nginx(&[0, 2]));
    for round in 0..3 {
        for (stream, pod) in &mut open {
            assert_eq!(&ask(stream), pod, "round {round}");
        }
    }
    let report = g.http(&g.scene.client, V4, 40);
    assert_eq!((report.answered(), report.failed()), (40, 0), "{report:?}");
    assert!(!report.per_pod.contains_key("nginx-2"), "{report:?}");
    g.assert_accounts_close();
}

#[test]
fn traffic_of_the_gateway_and_between_pods_is_not_touched() {
    let g = Gateway::start("own", "", &nginx(&[0, 1, 2]));
    // First a connection to the Service, so that the reply filter is not empty.
    g.http(&g.scene.client, V4, 5);
    let before = g.count(|c| c.frames.received.packets);
    let listener = g.scene.gw.run(|| std::net::TcpListener::bind("[::]:8022").unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"the gateway itself").unwrap();
        }
    });
    for to in [(GATEWAY_V4.into(), 8022), (GATEWAY_V6.into(), 8022), (POD_GATEWAY_V4.into(), 8022), (IpAddr::from(POD_GATEWAY_V6), 8022)] {
        let text = g.scene.client.run(move || {
            let mut text = String::new();
            TcpStream::connect_timeout(&to.into(), Duration::from_secs(3)).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(text.unwrap(), "the gateway itself");
    }
    server.join().unwrap();
    g.scene.client.exec("ping", &["-c", "3", "-i", "0.2", "-W", "2", "10.0.0.1"]).unwrap();
    g.scene.client.exec("ping", &["-c", "3", "-i", "0.2", "-W", "2", "fd00:a::1"]).unwrap();
    // The same client connects directly to the same backend, without the Service.
    let report = g.http(&g.scene.client, "192.168.235.129:80", 20);
    assert_eq!((report.answered(), report.failed()), (20, 0), "{report:?}");
    assert_eq!(g.count(|c| c.frames.received.packets), before, "nomagic received no frame");
}

#[test]
fn the_nodes_own_connections_on_snat_ports_are_left_alone() {
    let g = Gateway::start("back", "masqueradeAll: true", &nginx(&[0]));
    // A socket of the node in the SNAT port range.
    let socket = g.scene.gw.run(|| UdpSocket::bind("10.0.0.1:61500").unwrap()).unwrap();
    let echo = std::thread::spawn(move || {
        let mut buf = [0; 2000];
        for _ in 0..10 {
            let (n, from) = socket.recv_from(&mut buf).unwrap();
            socket.send_to(&buf[..n], from).unwrap();
        }
    });
    let echoed = g
        .scene
        .client
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.0.0.1:61500").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut buf = [0; 2000];
            (0..10)
                .filter(|i| {
                    let payload = vec![*i as u8; 100 + 100 * i];
                    socket.send(&payload).unwrap();
                    socket.recv(&mut buf).is_ok_and(|n| buf[..n] == payload)
                })
                .count()
        })
        .unwrap();
    assert_eq!(echoed, 10);
    echo.join().unwrap();
    assert_eq!(g.count(|c| c.frames.received.packets), 0, "the XDP program leaves them alone");
    g.assert_accounts_close();
}

/// Sends one datagram every 10 ms for `length` and records the time and content of each answer.
fn udp_timeline(g: &Gateway, to: &str, length: Duration) -> std::thread::JoinHandle<Vec<(Duration, String)>> {
    let to: SocketAddr = to.parse().unwrap();
    let thread = g.scene.client.thread(move || {
        let start = Instant::now();
        let mut seen = Vec::new();
        while start.elapsed() < length {
            // A new socket, and so a new connection, each time.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            socket.send(b"x").unwrap();
            let mut buf = [0; 200];
            if let Ok(n) = socket.recv(&mut buf) {
                let text = String::from_utf8_lossy(&buf[..n]).into_owned();
                seen.push((start.elapsed(), text.split('|').next().unwrap_or_default().to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        seen
    });
    let thread = thread.unwrap();
    std::thread::spawn(move || thread.join().unwrap().unwrap())
}

/// Makes the gateway's kernel answer on the Service's address, so that packets that bypass nomagic become visible.
fn kernel_answers(g: &Gateway) {
    g.scene.gw.ip("addr add 10.109.35.24/32 dev lo").unwrap();
    let socket = g.scene.gw.run(|| UdpSocket::bind("10.109.35.24:53").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 200];
        while let Ok((_, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(b"kernel|", from);
        }
    });
}

#[test]
fn after_kill_9_frames_are_dropped_for_the_grace_period_and_then_passed() {
    let mut g = Gateway::start("kill", "graceMs: 2000", &nginx(&[0, 1, 2]));
    kernel_answers(&g);
    let start = Instant::now();
    let timeline = udp_timeline(&g, "10.109.35.24:53", Duration::from_secs(6));
    std::thread::sleep(Duration::from_secs(1));
    g.kill();
    let killed = start.elapsed();
    let seen = timeline.join().unwrap();
    let last_pod = seen.iter().filter(|(_, who)| who.starts_with("nginx")).map(|(t, _)| *t).max().expect("pods answered");
    let first_kernel = seen.iter().filter(|(_, who)| who == "kernel").map(|(t, _)| *t).min().expect("the kernel answers in the end");
    let silence = first_kernel - killed;
    println!("killed at {killed:?}, last answer of a pod at {last_pod:?}, first of the kernel at {first_kernel:?}: {silence:?} of silence");
    assert!(last_pod < killed + Duration::from_millis(50), "a dead process forwards nothing");
    assert!((Duration::from_millis(1_700)..Duration::from_millis(2_600)).contains(&silence), "{silence:?}");
    assert!(seen.iter().filter(|(_, who)| who == "kernel").count() > 50, "then it is passed");
}

#[test]
fn a_new_process_takes_over_the_pinned_program_within_the_grace_period() {
    let mut g = Gateway::start("takeover", "graceMs: 10000", &nginx(&[0, 1, 2]));
    kernel_answers(&g);
    let link = |g: &Gateway| std::fs::metadata(g.state_dir().join("bpf")).map(|_| g.scene.gw.ip("-d link show dev cl0").unwrap()).unwrap();
    assert!(link(&g).contains("prog/xdp"));
    let timeline = udp_timeline(&g, "10.109.35.24:53", Duration::from_secs(5));
    std::thread::sleep(Duration::from_secs(1));
    g.kill();
    assert!(link(&g).contains("prog/xdp"), "the program outlives the process");
    g.restart();
    let seen = timeline.join().unwrap();
    assert!(seen.iter().all(|(_, who)| who.starts_with("nginx")), "the kernel never saw a frame of the Service");
    assert!(seen.iter().any(|(t, _)| *t > Duration::from_millis(4_000)), "answers continue");
    let report = g.http(&g.scene.client, V4, 20);
    assert_eq!((report.answered(), report.failed()), (20, 0), "{report:?}");
}

#[test]
fn dnat_connections_continue_in_the_new_process() {
    let mut g = Gateway::start("resume", "graceMs: 10000", &nginx(&[0, 1, 2]));
    let to: SocketAddr = V4.parse().unwrap();
    let mut open: Vec<(TcpStream, String)> = g.scene.client.run(move || (0..10).map(|_| keep_alive(to)).collect()).unwrap();
    // All data is acknowledged, so the client sends first afterwards; only its packet can be picked up.
    std::thread::sleep(Duration::from_millis(300));
    g.kill();
    g.restart();
    for (stream, pod) in &mut open {
        assert_eq!(&ask(stream), pod, "picked up: the same table, the same pod");
    }
}

#[test]
fn sigterm_leaves_the_program_or_detaches_it_as_configured() {
    for (tag, extra, stays) in [("term-a", "detachOnExit: false", true), ("term-b", "detachOnExit: true", false)] {
        let mut g = Gateway::start(tag, extra, &nginx(&[0]));
        g.http(&g.scene.client, V4, 3);
        assert!(g.process.terminate(Duration::from_secs(5)).unwrap().success(), "{}", g.process.output());
        assert_eq!(g.scene.gw.ip("-d link show dev cl0").unwrap().contains("prog/xdp"), stays, "{extra}");
        g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
        assert!(!g.scene.gw.ip("-d link show dev cl0").unwrap().contains("prog/xdp"), "cleanup removes it");
        assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&*g.state_dir().to_string_lossy()), "and the mount");
        assert!(g.scene.gw.ip("link show nm0").is_err(), "and the internal port");
    }
}

#[test]
fn a_spinning_worker_forwards_like_a_sleeping_one() {
    let g = Gateway::start("spin", "workers: {count: 1, idle: spin}", &nginx(&[0, 1, 2]));
    let report = g.http(&g.scene.client, V4, 50);
    assert_eq!((report.answered(), report.failed()), (50, 0), "{report:?}");
}

#[test]
fn next_hops_follow_the_kernel() {
    let mut g = Gateway::start("follow", "", &nginx(&[0]));
    assert_eq!(g.http(&g.scene.client, V4, 5).failed(), 0);
    // The pod's MAC address changes; the kernel learns it, and so must nomagic.
    g.scene.pods[0].ip("link set eth0 address 02:00:00:00:77:01").unwrap();
    g.scene.gw.ip("neigh flush dev pods0").unwrap();
    g.scene.fabric.exec("bridge", &["fdb", "flush", "dev", "br0"]).ok();
    let report = g.http(&g.scene.client, V4, 10);
    assert_eq!((report.answered(), report.failed()), (10, 0), "{report:?}");
    // The pod's network moves behind another gateway: a route that did not exist before.
    g.scene.pods[1].ip("addr add 172.20.0.1/32 dev lo").unwrap();
    g.scene.gw.ip("route add 172.20.0.1/32 via 192.168.189.65").unwrap();
    let moved = nginx(&[0]).replace("192.168.235.129", "172.20.0.1");
    g.apply(&moved);
    let report = g.http(&g.scene.client, V4, 10);
    assert_eq!((report.answered(), report.per_pod.get("nginx-2").copied()), (10, Some(10)), "{report:?}");
    g.assert_accounts_close();
}

#[test]
fn bad_objects_are_reported_and_the_others_are_served() {
    let bad =
        "---\nkind: Service\n  broken: [\n---\napiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec: {clusterIP: 10.109.35.40}\n";
    let mut g = Gateway::start("bad", "", &nginx(&[0]));
    g.apply_and_tell(&format!("{}{bad}", nginx(&[1])));
    let report = g.http(&g.scene.client, V4, 10);
    assert_eq!((report.answered(), report.per_pod.get("nginx-2").copied()), (10, Some(10)), "{report:?}");
    let said = g.process.output();
    assert!(said.contains("manifests.yaml"), "{said}");
    assert!(said.contains("default/empty"), "{said}");
}
