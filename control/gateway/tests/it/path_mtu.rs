//! ICMP errors from beyond the gateway, with real sockets: path MTU discovery, closed ports, `traceroute`. The kernel's NAT in the gateway's
//! place says what is right. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nomagic_testbed::peers::{PodOptions, download, start_pod, upload};
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, Netns, POD_GATEWAY_V4, POD_GATEWAY_V6, PODS, Scene, cable};
use socket2::SockRef;

use crate::common::kernel_nat::*;
use crate::common::*;

/// The MTU of the link between two routers.
const LOW: u32 = 1_400;
const BODY: usize = 3_000_000;
const LIMIT: Duration = Duration::from_secs(30);
/// How late.
const DELAY: Duration = Duration::from_millis(300);
/// The host beyond the routers, and the router next to the gateway on the endpoints' side.
const HOST: [&str; 2] = ["172.20.0.2", "fd00:20::2"];
const ROUTER: [&str; 2] = ["192.168.0.9", "fd00:192::9"];

/// Where the small link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Endpoint,
    Client,
}

fn ip_all(netns: &Netns, lines: &[&str]) {
    lines.iter().for_each(|line| drop(netns.ip(line).unwrap()));
}

/// Two routers with a small link between them, and a host behind. On the clients' side the scene's client becomes the first router. Returns the routers
/// that were added, and the host.
fn beyond(tag: &str, scene: &Scene, side: Side) -> (Vec<Netns>, Netns) {
    let netns = |name: &str| Netns::new(&format!("{tag}-{name}")).unwrap();
    let (added, far, host) = ((side == Side::Endpoint).then(|| netns("near")), netns("far"), netns("host"));
    if let Some(near) = &added {
        cable(near, "eth0", &scene.fabric, "router", 1).unwrap();
        scene.fabric.ip("link set router master br0").unwrap();
        ip_all(near, &["addr add 192.168.0.9/16 dev eth0", "addr add fd00:192::9/64 dev eth0 nodad"]);
        ip_all(near, &[&format!("route add default via {POD_GATEWAY_V4}"), &format!("-6 route add default via {POD_GATEWAY_V6}")]);
    }
    let near = added.as_ref().unwrap_or(&scene.client);
    cable(near, "low", &far, "low", 1).unwrap();
    cable(&far, "eth1", &host, "eth0", 1).unwrap();
    for router in [near, &far] {
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            // All errors, as fast as they come.
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
        ] {
            router.sysctl(key, value).unwrap();
        }
        router.ip(&format!("link set low mtu {LOW}")).unwrap();
    }
    ip_all(near, &["addr add 172.21.0.1/24 dev low", "addr add fd00:21::1/64 dev low nodad"]);
    ip_all(near, &["route add 172.20.0.0/24 via 172.21.0.2", "-6 route add fd00:20::/64 via fd00:21::2"]);
    ip_all(&far, &["addr add 172.21.0.2/24 dev low", "addr add fd00:21::2/64 dev low nodad"]);
    ip_all(&far, &["addr add 172.20.0.1/24 dev eth1", "addr add fd00:20::1/64 dev eth1 nodad"]);
    ip_all(&far, &["route add default via 172.21.0.1", "-6 route add default via fd00:21::1"]);
    ip_all(&host, &["addr add 172.20.0.2/24 dev eth0", "addr add fd00:20::2/64 dev eth0 nodad"]);
    ip_all(&host, &["route add default via 172.20.0.1", "-6 route add default via fd00:20::1"]);
    let [v4, v6] = match side {
        Side::Endpoint => ROUTER.map(str::to_owned),
        Side::Client => [CLIENT_V4.to_string(), CLIENT_V6.to_string()],
    };
    ip_all(&scene.gw, &[&format!("route add 172.20.0.0/15 via {v4}"), &format!("-6 route add fd00:20::/31 via {v6}")]);
    (added.into_iter().chain([far]).collect(), host)
}

/// Whoever translates, in a scene with a small link.
struct Run {
    gateway: Result<Gateway, Scene>,
    /// What has servers, or clients, beyond the small link.
    host: Netns,
    _routers: Vec<Netns>,
    _servers: Vec<nomagic_testbed::peers::PodThread>,
    _cpus: CpuLock,
}

impl Run {
    fn start(tag: &str, side: Side, snat: bool, nomagic: bool) -> Run {
        let cpus = CpuLock::take();
        let scene = Scene::new(tag).expect("a scene (needs root)");
        let (routers, host) = beyond(tag, &scene, side);
        let endpoint = match side {
            Side::Endpoint => HOST.map(str::to_owned),
            Side::Client => [PODS[0].v4.to_string(), PODS[0].v6.to_string()],
        };
        let mut servers = Vec::new();
        if side == Side::Endpoint {
            servers.push(start_pod(&host, PodOptions::new("host")).unwrap());
        }
        let gateway = if nomagic {
            Ok(Gateway::start_in(scene, if snat { "masqueradeAll: true" } else { "" }, &service(endpoint)))
        } else {
            load_rules(&scene, &kernel_rules(&endpoint, snat));
            if side == Side::Client {
                servers.push(start_pod(&scene.pods[0], PodOptions::new("pod")).unwrap());
            }
            Err(scene)
        };
        Run { gateway, host, _routers: routers, _servers: servers, _cpus: cpus }
    }

    fn scene(&self) -> &Scene {
        self.gateway.as_ref().map_or_else(|scene| scene, |gateway| &gateway.scene)
    }
}

/// A datagram from its own socket; the answer, or the error that the socket reports.
fn ask(to: SocketAddr, payload: usize, hops: u32) -> std::io::Result<usize> {
    let any: SocketAddr = if to.is_ipv6() { "[::]:0".parse().unwrap() } else { "0.0.0.0:0".parse().unwrap() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let options = SockRef::from(&socket);
    if to.is_ipv6() {
        options.set_unicast_hops_v6(hops)?;
    } else {
        options.set_ttl_v4(hops)?;
    }
    socket.connect(to)?;
    socket.send(&vec![7; payload])?;
    socket.recv(&mut [0; 2048])
}

/// The path MTU that a host has learned.
fn path_mtu(ns: &Netns, to: &str) -> Option<u32> {
    let family = if to.contains(':') { "-6" } else { "-4" };
    let said = ns.ip(&format!("{family} route get {to}")).unwrap();
    said.split_whitespace().skip_while(|word| *word != "mtu").nth(1).and_then(|mtu| mtu.parse().ok())
}

/// What a client hears of endpoints beyond a small link: by its sockets, and as ICMP.
fn as_client(run: &Run, v6: bool) -> (Vec<String>, BTreeSet<String>) {
    let client = &run.scene().client;
    let icmp = raw_icmp(client, v6);
    let service: IpAddr = SERVICE[usize::from(v6)].parse().unwrap();
    let told = client.run(|| {
        // Neighbours are found.
        ask((service, 53).into(), 10, 64).unwrap();
        let mut told = vec![format!("closed: {}", ask((service, CLOSED).into(), 10, 64).unwrap_err().kind())];
        told.push(format!("1,450 bytes: {:?}", ask((service, 53).into(), 1_450, 64).unwrap_err().raw_os_error()));
        let _ = ask((service, 53).into(), 10, 2);
        told
    });
    let mut told = told.unwrap();
    told.push(format!("path MTU: {:?}", path_mtu(client, SERVICE[usize::from(v6)])));
    // Now in pieces. The endpoint's first answer tells that one about the small link.
    let answered = client.run(|| (0..5).any(|_| ask((service, 53).into(), 1_450, 64).is_ok_and(|n| n > 1_450)));
    told.push(format!("1,450 bytes in pieces: {}", answered.unwrap()));
    (told, errors(&icmp, v6))
}

#[test]
fn clients_hear_of_closed_ports_small_links_and_hop_limits_beyond_the_gateway() {
    for snat in [false, true] {
        let tag = if snat { "icmp-s" } else { "icmp-d" };
        let [kernel, nomagic] = [false, true].map(|nomagic| {
            let run = Run::start(tag, Side::Endpoint, snat, nomagic);
            let heard = [false, true].map(|v6| as_client(&run, v6));
            if let Ok(g) = &run.gateway {
                assert!(g.count(|c| c.path.icmp_errors.total()) >= 6, "{}", g.account());
                g.assert_accounts_close();
            }
            heard
        });
        for (v6, ((kernel_told, kernel_icmp), (told, icmp))) in [false, true].into_iter().zip(kernel.into_iter().zip(nomagic)) {
            println!("{tag}: {told:?} {icmp:#?}; by the kernel's NAT {kernel_icmp:#?}");
            assert_eq!(told, kernel_told);
            assert_eq!(
                told,
                ["closed: connection refused", "1,450 bytes: Some(90)", "path MTU: Some(1400)", "1,450 bytes in pieces: true"]
            );
            // Time exceeded: the kernel's NAT lets it come from the Service; nomagic says which router it was.
            let (service, router, exceeded) = if v6 { (SERVICE[1], ROUTER[1], "3/0") } else { (SERVICE[0], ROUTER[0], "11/0") };
            let by_router = |line: String| line.replace(&format!("{exceeded} from {service}"), &format!("{exceeded} from {router}"));
            assert!(icmp.iter().any(|line| line.starts_with(&format!("{exceeded} from {router}"))), "{icmp:?}");
            assert_eq!(icmp, kernel_icmp.into_iter().map(by_router).collect());
            assert_eq!(icmp.len(), 3);
        }
    }
}

/// What an endpoint hears of clients beyond a small link, as ICMP.
fn as_endpoint(run: &Run, v6: bool) -> BTreeSet<String> {
    let pod = &run.scene().pods[0];
    let icmp = raw_icmp(pod, v6);
    let to: SocketAddr = (SERVICE[usize::from(v6)].parse::<IpAddr>().unwrap(), 80).into();
    run.host.block_on(move || download(to, BODY, LIMIT)).unwrap().unwrap();
    // The client does not wait for the answer to its datagram.
    let late = pod.run(|| UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, LATE))).unwrap()).unwrap();
    late.set_read_timeout(Some(LIMIT)).unwrap();
    let asked = move || UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap().send_to(b"?", (to.ip(), LATE)).unwrap();
    run.host.run(asked).unwrap();
    let (n, client) = late.recv_from(&mut [0; 16]).unwrap();
    std::thread::sleep(DELAY);
    late.send_to(&vec![0; n], client).unwrap();
    errors(&icmp, v6)
}

#[test]
fn endpoints_hear_of_small_links_and_closed_ports_on_the_clients_side() {
    for snat in [false, true] {
        let tag = if snat { "icmpe-s" } else { "icmpe-d" };
        let [kernel, nomagic] = [false, true].map(|nomagic| {
            let run = Run::start(tag, Side::Client, snat, nomagic);
            let heard = [false, true].map(|v6| as_endpoint(&run, v6));
            if let Ok(g) = &run.gateway {
                g.assert_accounts_close();
            }
            heard
        });
        println!("{tag}: {nomagic:#?}");
        assert_eq!(nomagic, kernel);
        assert!(nomagic.iter().all(|heard| heard.len() == 2), "too big, and port unreachable");
    }
}

/// The node's own kernel reports for an endpoint on its network: that is captured on its way to the client.
#[test]
fn clients_hear_of_closed_ports_on_the_nodes_own_network() {
    let g = Gateway::start("icmp-n", "redirectInterfaces: ['cali*']", &service(["10.0.0.1".into(), "fd00:a::1".into()]));
    for (v6, service) in [false, true].into_iter().zip(SERVICE) {
        let icmp = raw_icmp(&g.scene.client, v6);
        let to: SocketAddr = (service.parse::<IpAddr>().unwrap(), CLOSED).into();
        let error = g.scene.client.run(move || ask(to, 10, 64).unwrap_err()).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let heard = errors(&icmp, v6);
        let (kind, client) = if v6 { ("1/4", IpAddr::from(CLIENT_V6)) } else { ("3/3", CLIENT_V4.into()) };
        assert_eq!(heard.into_iter().collect::<Vec<_>>(), [format!("{kind} from {service} about {client} client -> {service} {CLOSED}")]);
    }
    g.print_frames();
}

/// TCP sets DF: a body passes a smaller link only if its sender hears of that.
#[test]
fn bodies_of_3_mb_pass_a_link_of_1400_bytes_in_both_directions() {
    for (side, tag) in [(Side::Endpoint, "pmtu-e"), (Side::Client, "pmtu-c")] {
        for snat in [false, true] {
            let run = Run::start(&format!("{tag}{}", u8::from(snat)), side, snat, true);
            let Ok(g) = &run.gateway else { panic!("nomagic") };
            let client = if side == Side::Endpoint { &g.scene.client } else { &run.host };
            for service in SERVICE {
                let to: SocketAddr = (service.parse::<IpAddr>().unwrap(), 80).into();
                // First the body that the gateway's side of the small link must hear of: a host announces what it has learned to its next peers.
                let up = move || async move { upload(to, BODY, LIMIT).await.map(drop) };
                let down = move || async move { download(to, BODY, LIMIT).await };
                if side == Side::Endpoint {
                    client.block_on(up).unwrap().unwrap();
                    client.block_on(down).unwrap().unwrap();
                } else {
                    client.block_on(down).unwrap().unwrap();
                    client.block_on(up).unwrap().unwrap();
                }
            }
            let learned = match side {
                Side::Endpoint => SERVICE.map(|service| path_mtu(client, service)),
                // With SNAT, of the gateway's address.
                Side::Client if snat => ["10.0.0.1", "fd00:a::1"].map(|source| path_mtu(&g.scene.pods[0], source)),
                Side::Client => HOST.map(|host| path_mtu(&g.scene.pods[0], host)),
            };
            assert_eq!(learned, [Some(LOW); 2], "{side:?}, SNAT {snat}: {}", g.account());
            assert!(g.count(|c| c.path.icmp_errors.total()) >= 2);
            g.print_frames();
        }
    }
}
