//! Fragments in any order, with real sockets at the ends: the kernels there put the datagrams together. Fragments are sent one by one through raw
//! sockets, the first one by another interface than the others, so that two workers have to find each other. The kernel's NAT in the gateway's
//! place says what is right. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nomagic_core::reason::Reason;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::{Spec, fragments, spec};
use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, Netns, PODS, Scene, cable};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::*;

/// Headers are the sender's.
const IPPROTO_RAW: i32 = 255;
const SCTP: i32 = 132;
const PAYLOAD: usize = 5_000;
const SERVICE: [&str; 2] = ["10.109.35.24", "fd00:10:109::24"];
/// UDP ports: the pods echo; a socket of the test answers; no Service has it.
const ECHO: u16 = 53;
const OWN: u16 = 54;
const NOBODYS: u16 = 777;
const LIMIT: Duration = Duration::from_secs(3);
/// Four fragments.
const SIZE: usize = 1_400;
const ORDERS: [[usize; 4]; 5] = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [2, 0, 3, 1], [1, 0, 3, 2]];

fn manifest() -> String {
    let node_port = "type: NodePort\n";
    manifests(&[Svc {
        name: "nginx",
        spec: &format!("{node_port}clusterIP: {0}\nclusterIPs: [{0}, '{1}']\nipFamilies: [IPv4, IPv6]", SERVICE[0], SERVICE[1]),
        status: "",
        ports: &[("echo", "UDP", ECHO, 30_053), ("own", "UDP", OWN, 30_054), ("sctp", "SCTP", 3_868, 30_068)],
        pods: &[0],
    }])
}

/// The scene with a second cable between client and gateway.
fn scene(tag: &str) -> Scene {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    cable(&scene.client, "eth1", &scene.gw, "cl1", 1).unwrap();
    for (ns, name, host) in [(&scene.gw, "cl1", 1), (&scene.client, "eth1", 2)] {
        ns.ip(&format!("addr add 10.0.9.{host}/24 dev {name}")).unwrap();
        ns.ip(&format!("addr add fd00:a9::{host}/64 dev {name} nodad")).unwrap();
    }
    // For who asks for this interface.
    scene.client.ip("route add default via 10.0.9.1 dev eth1 metric 500").unwrap();
    scene.client.ip("-6 route add default via fd00:a9::1 dev eth1 metric 5000").unwrap();
    for name in ["all", "cl0", "cl1", "pods0"] {
        scene.gw.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0").unwrap();
    }
    scene
}

fn gateway(tag: &str, extra: &str) -> Gateway {
    let (scene, dir) = (scene(tag), tempfile::tempdir().expect("a directory"));
    std::fs::write(dir.path().join("manifests.yaml"), manifest()).expect("manifests");
    let config = config(dir.path(), &format!("workers: 2\n{extra}")).replace("[cl0, pods0]", "[cl0, cl1, pods0]");
    let mut gateway = Gateway::begin(scene, dir, &config);
    gateway.wait_until_ready();
    let owners: Vec<_> = gateway.status().ports.iter().take(2).map(|port| port.owners[0]).collect();
    assert_ne!(owners[0], owners[1], "two workers");
    gateway
}

/// A gateway, or the kernel's NAT in its place.
struct Run {
    gateway: Result<Gateway, Scene>,
    _pods: Vec<PodThread>,
    _cpus: CpuLock,
}

impl Run {
    fn nomagic(tag: &str, snat: bool) -> Run {
        let cpus = CpuLock::take();
        let gateway = Ok(gateway(tag, if snat { "masqueradeAll: true" } else { "" }));
        Run { gateway, _pods: Vec::new(), _cpus: cpus }
    }

    fn kernel(tag: &str, snat: bool) -> Run {
        let (cpus, scene) = (CpuLock::take(), scene(tag));
        let mut rules = String::new();
        for (i, family) in ["ip", "ip6"].into_iter().enumerate() {
            let (pod, source) = if i == 0 { (PODS[0].v4.to_string(), "192.168.0.1") } else { (PODS[0].v6.to_string(), "fd00:192::1") };
            let snat = if snat { format!("ct status dnat snat to {source};") } else { String::new() };
            rules += &format!(
                "table {family} t {{\n chain pre {{ type nat hook prerouting priority -100; {family} daddr {} dnat to {pod}; }}\n \
                 chain post {{ type nat hook postrouting priority 100; {snat} }}\n}}\n",
                SERVICE[i]
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        scene.gw.exec("nft", &["-f", &file.path().to_string_lossy()]).unwrap();
        let pods = vec![start_pod(&scene.pods[0], PodOptions::new(PODS[0].name)).unwrap()];
        Run { gateway: Err(scene), _pods: pods, _cpus: cpus }
    }

    fn scene(&self) -> &Scene {
        self.gateway.as_ref().map_or_else(|scene| scene, |gateway| &gateway.scene)
    }
}

/// A raw socket that sends through this interface.
fn raw(ns: &Netns, v6: bool, interface: &str) -> Socket {
    let made = ns.run(|| {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        std::io::Result::Ok(socket)
    });
    made.expect("a thread in the namespace").expect("a raw socket")
}

/// Sends fragments in this order: the first one through the first socket, the others through the second.
fn send(sockets: [&Socket; 2], pieces: &[Vec<u8>], order: &[usize], to: IpAddr) {
    for &piece in order {
        let sent = sockets[usize::from(piece > 0)].send_to(&pieces[piece][14..], &SocketAddr::new(to, 0).into());
        assert_eq!(sent.expect("sent"), pieces[piece].len() - 14);
        // The other interface may be slower.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn udp(ns: &Netns, own: SocketAddr) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(own)).expect("a thread in the namespace").expect("a UDP socket");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    socket
}

fn datagram(from: SocketAddr, to: SocketAddr) -> Spec {
    Spec { payload: PAYLOAD, ..spec("udp", &from.to_string(), &to.to_string(), 0) }
}

/// What [`datagram`] carries.
fn payload() -> Vec<u8> {
    (0..PAYLOAD).map(|i| i as u8).collect()
}

fn families() -> [(bool, IpAddr, IpAddr); 2] {
    let service = SERVICE.map(|addr| addr.parse().expect("an address"));
    [(false, CLIENT_V4.into(), service[0]), (true, CLIENT_V6.into(), service[1])]
}

/// Datagrams of 5,000 bytes, and their echoes, which the pod's kernel cuts.
fn requests_in_any_order(run: &Run) {
    let scene = run.scene();
    let mut id = 0;
    for (v6, client, service) in families() {
        let (near, far) = (raw(&scene.client, v6, "eth0"), raw(&scene.client, v6, "eth1"));
        for (i, order) in ORDERS.iter().enumerate() {
            let from = SocketAddr::new(client, 40_000 + i as u16);
            let to = SocketAddr::new(service, ECHO);
            let socket = udp(&scene.client, from);
            socket.connect(to).expect("connected");
            for first in [0, 1] {
                id += 1;
                let pieces = fragments(&datagram(from, to).frame(), SIZE, id);
                let sockets = if first == 0 { [&near, &far] } else { [&far, &near] };
                send(sockets, &pieces, order, service);
                let mut echo = vec![0; 65_536];
                let len = socket.recv(&mut echo).unwrap_or_else(|e| panic!("{order:?} to {to}, first by eth{first}: {e}"));
                assert!(echo[..len].ends_with(&payload()) && echo.starts_with(PODS[0].name.as_bytes()));
            }
        }
    }
}

#[test]
fn requests_of_5000_bytes_in_any_order_by_two_workers() {
    for snat in [false, true] {
        requests_in_any_order(&Run::kernel("frag-k", snat));
        let run = Run::nomagic("frag-q", snat);
        requests_in_any_order(&run);
        let Ok(g) = &run.gateway else { unreachable!("nomagic's") };
        assert!(g.status().workers.iter().all(|worker| worker.counts.frames.held.packets > 10), "both workers held fragments");
        let given_up = [Reason::Fragment, Reason::FragmentTimeout, Reason::FragmentHoldFull, Reason::FragmentOverlap, Reason::NotOurs];
        assert_eq!(given_up.map(|reason| g.reason(reason)), [0; 5], "{}", g.account());
        g.print_frames();
    }
}

/// The endpoint answers in fragments, in any order.
#[test]
fn replies_of_5000_bytes_in_any_order() {
    for snat in [false, true] {
        let run = Run::nomagic("frag-r", snat);
        let scene = run.scene();
        let mut id = 0;
        for (v6, client, service) in families() {
            let pod: IpAddr = if v6 { PODS[0].v6.into() } else { PODS[0].v4.into() };
            let (from, own) = (SocketAddr::new(client, 40_000), SocketAddr::new(pod, OWN));
            let (asks, answers, out) = (udp(&scene.client, from), udp(&scene.pods[0], own), raw(&scene.pods[0], v6, "eth0"));
            asks.connect(SocketAddr::new(service, OWN)).expect("connected");
            for order in ORDERS {
                asks.send(b"?").expect("asked");
                let mut buf = vec![0; 65_536];
                let (_, peer) = answers.recv_from(&mut buf).expect("a request");
                assert_eq!(peer.ip() != client, snat);
                id += 1;
                send([&out, &out], &fragments(&datagram(own, peer).frame(), SIZE, id), &order, peer.ip());
                let len = asks.recv(&mut buf).unwrap_or_else(|e| panic!("{order:?} from {own}, SNAT {snat}: {e}"));
                assert_eq!(buf[..len], payload());
            }
        }
        let Ok(g) = &run.gateway else { unreachable!("nomagic's") };
        assert_eq!([Reason::FragmentTimeout, Reason::NotOurs, Reason::NoFlow].map(|reason| g.reason(reason)), [0; 3], "{}", g.account());
        g.print_frames();
    }
}

/// The node has a UDP socket on an address with node ports: its datagrams are not held for longer than until the first fragment is there.
#[test]
fn the_nodes_own_datagrams_arrive_whole_and_at_once() {
    let g = gateway("frag-n", "");
    let mut id = 0;
    for (v6, client, node) in [(false, IpAddr::from(CLIENT_V4), IpAddr::from(GATEWAY_V4)), (true, CLIENT_V6.into(), GATEWAY_V6.into())] {
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let (from, to) = (SocketAddr::new(client, 40_000), SocketAddr::new(node, NOBODYS));
        let (socket, near, far) =
            (udp(&g.scene.gw, SocketAddr::new(any, NOBODYS)), raw(&g.scene.client, v6, "eth0"), raw(&g.scene.client, v6, "eth1"));
        for order in ORDERS {
            id += 1;
            let begun = Instant::now();
            send([&near, &far], &fragments(&datagram(from, to).frame(), SIZE, id), &order, node);
            let mut buf = vec![0; 65_536];
            let (len, peer) = socket.recv_from(&mut buf).unwrap_or_else(|e| panic!("{order:?} to {to}: {e}\n{}", g.account()));
            assert_eq!((&buf[..len], peer), (&payload()[..], from));
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
    }
    // What comes in order passes in XDP.
    wait_for("the datagrams out of order to be counted", LIMIT, || g.reason(Reason::NotOurs) >= 32);
    assert_eq!(g.reason(Reason::NotOurs), 2 * 4 * 4, "{}", g.account());
    // Without its first fragment: to the kernel from here, dropped for a cluster IP.
    let near = raw(&g.scene.client, false, "eth0");
    for to in [SocketAddr::new(GATEWAY_V4.into(), NOBODYS), SocketAddr::new(SERVICE[0].parse().unwrap(), ECHO)] {
        let from = SocketAddr::new(CLIENT_V4.into(), 40_000);
        send([&near, &near], &fragments(&datagram(from, to).frame(), SIZE, 99), &[1, 2, 3], to.ip());
    }
    wait_for("fragments to be given up", Duration::from_secs(6), || g.reason(Reason::FragmentTimeout) == 6);
    let counts = g.status().totals.counts.reasons;
    assert_eq!((counts.kernel[Reason::FragmentTimeout], counts.drop[Reason::FragmentTimeout]), (3, 3));
    g.print_frames();
}

/// An SCTP packet of one chunk (RFC 9260, 3.1 and 3.3) in fragments: the CRC covers all of them.
#[test]
fn sctp_fragments_keep_a_correct_crc32c() {
    for snat in [false, true] {
        let run = Run::nomagic("frag-c", snat);
        let scene = run.scene();
        for (v6, client, service) in families() {
            let pod: IpAddr = if v6 { PODS[0].v6.into() } else { PODS[0].v4.into() };
            let far = scene.pods[0]
                .run(|| {
                    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
                    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).expect("a raw socket");
                    socket.bind(&SocketAddr::new(pod, 0).into()).expect("bound");
                    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
                    socket
                })
                .expect("a thread in the namespace");
            let (near, other) = (raw(&scene.client, v6, "eth0"), raw(&scene.client, v6, "eth1"));
            for (i, order) in ORDERS.iter().enumerate() {
                // An INIT of 4,012 bytes, most of them a parameter that nobody knows.
                let init = [&[1, 0, 0x0f, 0xa0][..], &[0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1], &vec![0x5a; 3_980]].concat();
                let (sport, dport) = (41_000 + i as u16, 3_868u16);
                let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &init].concat();
                let crc = crc32c::crc32c(&packet);
                packet[8..12].copy_from_slice(&crc.to_le_bytes());
                let frame = ip_frame(client, service, &packet);
                send([&near, &other], &fragments(&frame, 1_200, 500 + i as u16), order, service);
                let mut buf = [0; 8_192];
                let mut reader = &far;
                let len = std::io::Read::read(&mut reader, &mut buf).unwrap_or_else(|e| panic!("{order:?} to {service}, SNAT {snat}: {e}"));
                let mut got = buf[if v6 { 0 } else { 20 }..len].to_vec();
                let crc = u32::from_le_bytes(got[8..12].try_into().unwrap());
                got[8..12].fill(0);
                assert_eq!((crc, &got[12..]), (crc32c::crc32c(&got), &packet[12..]), "{order:?}");
                assert_eq!(got[..2] != sport.to_be_bytes(), snat);
            }
        }
        let Ok(g) = &run.gateway else { unreachable!("nomagic's") };
        g.print_frames();
    }
}

/// An SCTP packet in an IP packet in a frame.
fn ip_frame(from: IpAddr, to: IpAddr, packet: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2; 6]);
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("one family"),
    };
    let mut out = Vec::new();
    builder.write(&mut out, (Proto::Sctp as u8).into(), packet).expect("a packet");
    out
}
