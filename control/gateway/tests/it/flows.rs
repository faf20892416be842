//! Connections during changes of their endpoints, with real sockets through real AF_XDP.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::common::*;

/// Both ends of a connection that was idle for too long get a reset which they take.
#[test]
fn an_idle_connection_is_reset_if_the_configuration_says_so() {
    for (tag, extra) in [("idle-d", ""), ("idle-s", "masqueradeAll: true\n")] {
        let extra = format!("{extra}conntrack: {{tcpResetOnIdle: true, timeouts: {{tcpEstablished: 1s}}}}");
        let g = Gateway::start(tag, &extra, &nginx(&[0]));
        let tcp: [SocketAddr; 2] = ["10.109.35.24:80".parse().unwrap(), "[fd00:10:109::24]:80".parse().unwrap()];
        let mut open: Vec<(TcpStream, String)> = g.scene.client.run(move || tcp.map(keep_alive).into()).unwrap();
        let began = Instant::now();
        for (stream, _) in &mut open {
            // The table is swept once in ten seconds.
            stream.set_read_timeout(Some(Duration::from_secs(13))).unwrap();
            let end = std::io::Read::read(stream, &mut [0; 16]).map_err(|e| e.kind());
            println!("{tag}: {end:?} after {:?}; {}", began.elapsed(), g.account());
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{tag}");
        }
        assert_eq!(g.number(|s| s.conntrack.live), 0);
        let pods = g.scene.pods[0].exec("ss", &["-Htn", "state", "established"]).unwrap();
        assert_eq!(pods.trim(), "", "the endpoint's connections are closed, too");
        g.assert_accounts_close();
    }
}

/// Sends a datagram every 10 ms from one socket and records the time and the pod of each answer.
fn keep_asking(socket: UdpSocket, length: Duration) -> std::thread::JoinHandle<Vec<(Instant, String)>> {
    std::thread::spawn(move || {
        let (end, mut seen) = (Instant::now() + length, Vec::new());
        while Instant::now() < end {
            // ECONNREFUSED is not a failure here.
            let _ = socket.send(b"x");
            let mut buf = [0; 200];
            if let Ok(n) = socket.recv(&mut buf) {
                seen.push((Instant::now(), String::from_utf8_lossy(&buf[..n]).split('|').next().unwrap().to_owned()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        seen
    })
}

/// kube-proxy's e2e test "should be able to preserve UDP traffic when server pod cycles": one 5-tuple keeps sending while its only pod is
/// replaced by another one.
#[test]
fn a_udp_client_follows_its_replaced_pod_and_tcp_stays() {
    for (tag, extra, snat) in [("flows-d", "", false), ("flows-s", "masqueradeAll: true", true)] {
        let mut g = Gateway::start(tag, extra, &nginx(&[0]));
        let client = |to: &'static str| {
            let socket = g.scene.client.run(move || {
                let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:31001" } else { "0.0.0.0:31000" }).unwrap();
                socket.connect(to).unwrap();
                socket
            });
            let socket = socket.unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            keep_asking(socket, Duration::from_secs(4))
        };
        let clients = ["10.109.35.24:53", "[fd00:10:109::24]:53"].map(client);
        let tcp: [SocketAddr; 2] = ["10.109.35.24:80".parse().unwrap(), "[fd00:10:109::24]:80".parse().unwrap()];
        let mut open: Vec<(TcpStream, String)> = g.scene.client.run(move || tcp.map(keep_alive).into()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let changed = Instant::now();
        g.apply(&nginx(&[1]));
        for client in clients {
            let seen = client.join().unwrap();
            let first = |pod: &str| seen.iter().find(|(_, who)| who == pod).map_or_else(|| panic!("{pod}: {seen:?}"), |(at, _)| *at);
            let last = seen.iter().filter(|(_, who)| who == "nginx-1").map(|(at, _)| *at).max().unwrap();
            println!("{tag}: the other pod {:?} after the change", first("nginx-2") - changed);
            assert!(last < first("nginx-2"), "no way back");
            // The file is polled twice a second.
            assert!(first("nginx-2") - changed < Duration::from_millis(1_500), "{:?}", first("nginx-2") - changed);
            assert!(seen.iter().filter(|(at, _)| *at > first("nginx-2")).count() > 50, "the client continues: {}", seen.len());
        }
        for (stream, pod) in &mut open {
            assert_eq!((pod.as_str(), ask(stream).as_str()), ("nginx-1", "nginx-1"), "TCP stays");
        }
        assert_eq!(g.number(|s| s.conntrack.endpoint_gone), 2);
        // Two UDP and two TCP connections are left; the two ended ones have no entries.
        let live = g.number(|s| s.conntrack.live);
        assert_eq!(live, 4);
        let (announced, source_ports) = g.number(|s| (s.replies.announced, s.snat.connections));
        assert_eq!((announced, source_ports), (live, if snat { live } else { 0 }));
        // With the last endpoint the other UDP connections end, and TCP stays.
        g.apply(&nginx(&[]));
        wait_for("the UDP connections to end", Duration::from_secs(5), || g.number(|s| s.conntrack.endpoint_gone) == 4);
        assert_eq!(g.number(|s| s.conntrack.live), 2);
        g.assert_accounts_close();
    }
}
