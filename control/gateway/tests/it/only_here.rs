//! Addresses that only exist here: load balancer IPs that a router leads to the gateway, and that no host has. With real sockets, from a host behind
//! the router. What the kernel alone does with the same packets is tried beside it. Needs root.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nomagic_api::explain::Verdict;
use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{PodOptions, start_pod};
use nomagic_testbed::rig::{Netns, Scene, cable};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::common::*;

const LB: [&str; 2] = ["203.0.113.10", "2001:db8:1b::10"];
const CLUSTER_IPS: [&str; 2] = ["10.109.35.24", "fd00:10:109::24"];
/// The router's address on the gateway's link, which a Service names as an external IP.
const ROUTER: &str = "10.0.0.2";
const HOST: &str = "172.20.0.2";
/// Frames that the router sends towards the gateway for one packet that does not go round, and some of ARP and the like.
const FEW: u64 = 8;
/// A packet that goes round.
const MANY: u64 = 25;
const LONG: Duration = Duration::from_secs(20);

fn web() -> String {
    manifests(&[Svc {
        name: "web",
        spec: "type: LoadBalancer\nallocateLoadBalancerNodePorts: false\nclusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\n\
               ipFamilies: [IPv4, IPv6]\nexternalIPs: [10.0.0.2]",
        status: "status: {loadBalancer: {ingress: [{ip: 203.0.113.10}, {ip: '2001:db8:1b::10'}]}}",
        ports: &[("http", "TCP", 80, 0), ("echo", "UDP", 53, 0)],
        pods: &[0, 1, 2],
    }])
}

fn ip_all(netns: &Netns, lines: &[&str]) {
    lines.iter().for_each(|line| drop(netns.ip(line).unwrap()));
}

/// The scene's client becomes a router, to which the gateway's default route leads, with a host behind it.
fn scene(tag: &str) -> (Scene, Netns) {
    let (scene, host) = (Scene::new(tag).expect("a scene (needs root)"), Netns::new(&format!("{tag}-host")).unwrap());
    cable(&scene.client, "low", &host, "eth0", 1).unwrap();
    for router in [&scene.client, &scene.gw] {
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
        ] {
            router.sysctl(key, value).unwrap();
        }
    }
    for (router, interface) in [(&scene.client, "eth0"), (&scene.gw, "cl0")] {
        router.sysctl(&format!("net.ipv4.conf.{interface}.send_redirects"), "0").unwrap();
    }
    ip_all(&scene.client, &["addr add 172.20.0.1/24 dev low", "addr add fd00:20::1/64 dev low nodad"]);
    ip_all(&host, &["addr add 172.20.0.2/24 dev eth0", "addr add fd00:20::2/64 dev eth0 nodad"]);
    ip_all(&host, &["route add default via 172.20.0.1", "-6 route add default via fd00:20::1"]);
    ip_all(&scene.gw, &["route add default via 10.0.0.2", "-6 route add default via fd00:a::2"]);
    (scene, host)
}

fn start(tag: &str, extra: &str) -> (Gateway, Netns) {
    let (scene, host) = scene(tag);
    let g = Gateway::start_in(scene, extra, &web());
    for lb in LB {
        let at = SocketAddr::new(lb.parse().unwrap(), 80).to_string();
        assert_eq!(g.http(&host, &at, 1).answered(), 1, "the Service's port: {}", g.account());
    }
    (g, host)
}

/// How many frames the router sends towards the gateway meanwhile.
fn frames(router: &Netns, work: impl FnOnce()) -> u64 {
    let sent = || {
        let counters = router.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        let line = counters.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("eth0").to_owned();
        line.split_whitespace().nth(9).unwrap().parse::<u64>().unwrap()
    };
    let before = sent();
    work();
    std::thread::sleep(Duration::from_millis(200));
    sent() - before
}

/// The kind of error that a connection ends with, and whether it came at once.
fn connect(host: &Netns, to: &str, port: u16) -> Result<(), (ErrorKind, bool)> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let begin = Instant::now();
    let outcome = host.run(move || TcpStream::connect_timeout(&to, Duration::from_millis(1_500))).unwrap();
    outcome.map(drop).map_err(|e| (e.kind(), begin.elapsed() < Duration::from_secs(1)))
}

/// The error of a connected UDP socket after a datagram.
fn datagram(host: &Netns, to: &str, port: u16) -> Option<ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    host.run(move || {
        let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        socket.recv(&mut [0; 16]).err().map(|e| e.kind())
    })
    .unwrap()
}

/// Sends a packet of ESP.
fn esp(host: &Netns, to: &str) {
    let to = SocketAddr::new(to.parse().unwrap(), 0);
    host.run(move || {
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(50))).unwrap();
        socket.send_to(&[0; 32], &SockAddr::from(to)).unwrap();
    })
    .unwrap();
}

/// Sends pings of this size; how many were answered.
fn pings(from: &Netns, to: &str, size: u32) -> usize {
    let args = ["-c2", "-i0.2", "-W1", "-s", &size.to_string(), to];
    from.exec("ping", &args).map_or(0, |text| text.matches("bytes from").count())
}

#[test]
fn unused_ports_of_load_balancer_ips_are_refused_at_once() {
    let (g, host) = start("oa", "");
    let router = &g.scene.client;
    for lb in LB {
        let n = frames(router, || assert_eq!(connect(&host, lb, 81), Err((ErrorKind::ConnectionRefused, true)), "{lb}: {}", g.account()));
        assert!(n < FEW, "TCP to {lb}: {n} frames");
        let n = frames(router, || assert_eq!(datagram(&host, lb, 54), Some(ErrorKind::ConnectionRefused), "{lb}: {}", g.account()));
        assert!(n < FEW, "UDP to {lb}: {n} frames");
        let n = frames(router, || assert_eq!(pings(&host, lb, 56), 0));
        assert!(n < FEW, "pings to {lb}: {n} frames");
        let n = frames(router, || esp(&host, lb));
        assert!(n < FEW, "ESP to {lb}: {n} frames");
    }
    // Pings to cluster IPs that the router leads here.
    for cluster_ip in CLUSTER_IPS {
        let n = frames(router, || assert_eq!(pings(&host, cluster_ip, 56), 0));
        assert!(n < FEW, "pings to {cluster_ip}: {n} frames");
    }
    assert!(g.reason(Reason::UnusedExternalPort) >= 10 && g.reason(Reason::UnusedServicePort) >= 4, "{}", g.account());
    let said = g.explain(&format!("tcp {HOST}:4000 -> {}:81", LB[0]));
    assert_eq!((said.verdict, said.reason.as_deref()), (Verdict::Reject, Some("unused_external_port")), "{said:#?}");
    g.print_frames();
}

/// What the tests above are about: without nomagic, by the kernel's NAT alone.
#[test]
fn the_kernel_sends_them_back_until_their_ttl_ends() {
    let _cpus = CpuLock::take();
    let (scene, host) = scene("ob");
    let rules = "table inet t {\n chain pre {\n  type nat hook prerouting priority -100;\n  ip daddr 203.0.113.10 tcp dport 80 dnat ip to \
                 192.168.235.129\n }\n}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    scene.gw.exec("nft", &["-f", &file.path().to_string_lossy()]).unwrap();
    let _pod = start_pod(&scene.pods[0], PodOptions::new("pod")).unwrap();
    assert_eq!(connect(&host, LB[0], 80), Ok(()), "the Service's port");
    for lb in LB {
        let n = frames(&scene.client, || _ = connect(&host, lb, 81));
        assert!(n > MANY, "TCP to {lb}: {n} frames");
        let n = frames(&scene.client, || esp(&host, lb));
        assert!(n > MANY, "ESP to {lb}: {n} frames");
    }
}

#[test]
fn unused_ports_are_dropped_or_left_to_the_kernel_by_choice() {
    {
        let (g, host) = start("oc", "unusedPorts: drop");
        for lb in LB {
            let n = frames(&g.scene.client, || assert_eq!(connect(&host, lb, 81), Err((ErrorKind::TimedOut, false)), "{}", g.account()));
            assert!(n < FEW, "{n} frames");
        }
    }
    let (g, host) = start("od", "unusedPorts: kernel");
    for lb in LB {
        let n = frames(&g.scene.client, || _ = connect(&host, lb, 81));
        assert!(n > MANY, "{n} frames");
    }
    assert_eq!(g.reason(Reason::UnusedExternalPort), 0);
}

/// An external IP that is a host's, on the link of the gateway; and what the kernel's routes say otherwise.
#[test]
fn hosts_and_routes_of_the_kernel_are_respected() {
    let (g, host) = start("oe", "");
    let pod = &g.scene.pods[0];
    let listener = g.scene.client.run(|| TcpListener::bind((ROUTER, 2_222)).unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    assert_eq!(connect(pod, ROUTER, 2_222), Ok(()), "a host's own port: {}", g.account());
    assert!(pings(pod, ROUTER, 56) == 2, "and its pings");
    // A pod's packets leave by another interface than they come by: the router sends them back, and then they are refused.
    let n = frames(&g.scene.client, || assert_eq!(connect(pod, LB[0], 81), Err((ErrorKind::ConnectionRefused, true)), "{}", g.account()));
    assert!(n < FEW, "{n} frames");
    // The kernel refuses by a route of its own.
    let before = g.reason(Reason::UnusedExternalPort);
    g.scene.gw.ip("route add unreachable 203.0.113.0/24").unwrap();
    wait_for("the kernel's own refusal", LONG, || connect(&host, LB[0], 81) == Err((ErrorKind::HostUnreachable, true)));
    let settled = g.reason(Reason::UnusedExternalPort);
    assert_eq!(connect(&host, LB[0], 81), Err((ErrorKind::HostUnreachable, true)), "{}", g.account());
    assert_eq!(g.reason(Reason::UnusedExternalPort), settled, "{before} before");
    g.scene.gw.ip("route del unreachable 203.0.113.0/24").unwrap();
    wait_for("the default route again", LONG, || connect(&host, LB[0], 81) == Err((ErrorKind::ConnectionRefused, true)));
    // The node gets the address.
    g.scene.gw.ip("addr add 203.0.113.10/32 dev lo").unwrap();
    let node = g.scene.gw.run(|| TcpListener::bind((LB[0], 81)).unwrap()).unwrap();
    std::thread::spawn(move || node.incoming().for_each(drop));
    wait_for("the node's own port", LONG, || connect(&host, LB[0], 81).is_ok());
}

#[test]
fn addresses_follow_the_services() {
    let (mut g, host) = start("of", "");
    let other = web().replace("203.0.113.10", "203.0.113.20");
    let refused = Err((ErrorKind::ConnectionRefused, true));
    assert_eq!(connect(&host, "203.0.113.20", 81), connect(&host, "203.0.113.21", 81), "no Service's yet");
    g.apply(&other);
    wait_for("the new address", LONG, || connect(&host, "203.0.113.20", 81) == refused);
    wait_for("the old address to be the kernel's", LONG, || connect(&host, LB[0], 81) != refused);
    // After a restart, which finds the filter as it was.
    g.kill();
    g.restart();
    assert_eq!(connect(&host, "203.0.113.20", 81), refused, "{}", g.account());
}

#[test]
fn pings_are_answered_by_choice() {
    let (g, host) = start("og", "answerPing: true");
    let sources = [("host", &host), ("router", &g.scene.client), ("pod", &g.scene.pods[1]), ("node", &g.scene.gw)];
    for (name, from) in sources {
        for to in LB.into_iter().chain(CLUSTER_IPS) {
            for size in [56, 57, 1_400] {
                assert_eq!(pings(from, to, size), 2, "{name} to {to}, {size} bytes: {}", g.account());
            }
        }
    }
    assert!(g.count(|c| c.path.pings_answered) >= 2 * 4 * 4 * 3, "{}", g.account());
    // The kernel's own, and a host's.
    for to in ["10.0.0.1", "fd00:a::1", ROUTER] {
        assert_eq!(pings(&host, to, 56), 2, "{to}");
    }
    // A flood has a share.
    let flood = host.exec("ping", &["-c300", "-f", "-q", LB[0]]).unwrap_or_else(|e| e.to_string());
    assert!(g.reason(Reason::PingLimit) > 0, "{flood}: {}", g.account());
    g.print_frames();
}

/// Sends a datagram from any source to the load balancer IP, from the router.
fn forged(scene: &Scene, source: &str, (sport, dport): (u16, u16)) {
    let [source, lb] = [source, LB[0]].map(|addr| addr.parse::<Ipv4Addr>().unwrap());
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(source.octets(), lb.octets(), 64).udp(sport, dport).write(&mut packet, b"forged").unwrap();
    let send = move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        socket.send_to(&packet, &SockAddr::from(SocketAddr::new(lb.into(), 0))).unwrap();
    };
    scene.client.run(send).unwrap();
}

/// LAND: a datagram from the Service to itself, which an endpoint that answers would answer for ever.
#[test]
fn a_datagram_from_the_service_to_itself_is_dropped() {
    let (g, _host) = start("oh", "masqueradeAll: true");
    for ports in [(53, 53), (80, 53), (4_000, 53), (53, 54), (4_000, 54)] {
        let n = frames(&g.scene.client, || forged(&g.scene, LB[0], ports));
        assert!(n < FEW, "{ports:?}: {n} frames");
    }
    assert_eq!(g.reason(Reason::ServiceSource), 5, "{}", g.account());
}

/// Of each source: whether its datagram reaches a pod, with `rp_filter` 0, 1 and 2 of the interface, and with 1 and 2 of all.
fn reach_pods(scene: &Scene) -> Vec<(&'static str, &'static str, [bool; 3])> {
    let arrived = || -> u64 {
        let of_pod = |pod: &Netns| {
            let text = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
            let line = text.lines().filter(|line| line.starts_with("Udp:")).nth(1).expect("numbers").to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        scene.pods.iter().map(of_pod).sum()
    };
    let mut port = 10_000;
    [("0", "0"), ("1", "0"), ("2", "0"), ("0", "1"), ("1", "2")]
        .into_iter()
        .map(|(own, all)| {
            scene.gw.sysctl("net.ipv4.conf.cl0.rp_filter", own).unwrap();
            scene.gw.sysctl("net.ipv4.conf.all.rp_filter", all).unwrap();
            std::thread::sleep(Duration::from_millis(1_500));
            // On this link, behind the other interface, without a route.
            let reached = ["10.0.0.9", "192.168.50.9", "100.64.9.9"].map(|source| {
                port += 1;
                let before = arrived();
                forged(scene, source, (port, 53));
                std::thread::sleep(Duration::from_millis(300));
                arrived() > before
            });
            (own, all, reached)
        })
        .collect()
}

#[test]
fn sources_are_compared_with_routes_as_the_kernel_does() {
    let without_default = |scene: &Scene| drop(scene.gw.ip("route del default").unwrap());
    let by_kernel = {
        let _cpus = CpuLock::take();
        let (scene, _host) = scene("oi");
        without_default(&scene);
        let rules = "table ip t {\n chain pre {\n  type nat hook prerouting priority -100;\n  ip daddr 203.0.113.10 udp dport 53 dnat to \
                     192.168.235.129\n }\n chain post {\n  type nat hook postrouting priority 100;\n  ct status dnat masquerade\n }\n}\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        scene.gw.exec("nft", &["-f", &file.path().to_string_lossy()]).unwrap();
        let _pod = start_pod(&scene.pods[0], PodOptions::new("pod")).unwrap();
        reach_pods(&scene)
    };
    let reached: Vec<[bool; 3]> = by_kernel.iter().map(|(.., reached)| *reached).collect();
    let (off, strict, loose) = ([true; 3], [true, false, false], [true, true, false]);
    assert_eq!(reached, [off, strict, loose, strict, loose], "the kernel");
    let (g, _host) = start("oj", "");
    without_default(&g.scene);
    assert_eq!(reach_pods(&g.scene), by_kernel, "{}", g.account());
    assert_eq!(g.reason(Reason::ReversePath), 6, "{}", g.account());
}
