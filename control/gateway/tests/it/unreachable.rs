//! Ways on that are gone: no neighbour, no route, routes that refuse. Real sockets hear of them what the kernel's NAT in the gateway's place says, from
//! an address of the gateway. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, Netns, POD_GATEWAY_V4, POD_GATEWAY_V6, PODS, Scene};

use socket2::Socket;

use crate::common::kernel_nat::*;
use crate::common::*;

/// An endpoint without a host, and clients that have an address of their own.
const ENDPOINT: [&str; 2] = ["172.20.0.2", "fd00:20::2"];
const CLIENT: [&str; 2] = ["172.25.0.2", "fd00:25::2"];
/// A neighbour that does not answer; it is given up after 3 s.
const NOBODY: [&str; 2] = ["192.168.0.77", "fd00:192::77"];
const GIVEN_UP: Duration = Duration::from_secs(8);
/// In which nomagic follows a route.
const FOLLOWS: Duration = Duration::from_millis(300);

/// A way, and type and code of the errors about it, IPv4 and IPv6.
const WAYS: [(&str, [Option<&str>; 2]); 5] = [
    ("no route", [Some("3/0"), Some("1/0")]),
    ("unreachable", [Some("3/1"), Some("1/0")]),
    ("prohibit", [Some("3/13"), Some("1/1")]),
    ("blackhole", [None, None]),
    ("no neighbour", [Some("3/1"), Some("1/3")]),
];

/// Whoever translates.
type Run = Result<Gateway, Scene>;

/// The Service's endpoint is this one.
fn start(tag: &str, endpoint: [String; 2], snat: bool, nomagic: bool) -> Run {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    for (key, value) in [("net.ipv4.icmp_ratelimit", "0"), ("net.ipv6.icmp.ratelimit", "0")] {
        scene.gw.sysctl(key, value).unwrap();
    }
    if nomagic {
        return Ok(Gateway::start_in(scene, if snat { "masqueradeAll: true" } else { "" }, &service(endpoint)));
    }
    load_rules(&scene, &kernel_rules(&endpoint, snat));
    Err(scene)
}

fn scene(run: &Run) -> &Scene {
    run.as_ref().map_or_else(|scene| scene, |gateway| &gateway.scene)
}

/// Replaces a route by this one, or by none.
fn replace_route(gw: &Netns, prefix: &str, route: Option<&str>) {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    // IPv6 would have both.
    let _ = gw.ip(&format!("{family} route flush {prefix}"));
    route.iter().for_each(|route| drop(gw.ip(&format!("{family} route add {route}")).unwrap()));
}

/// Makes the way to these prefixes lead to nowhere.
fn lead(gw: &Netns, prefixes: [&str; 2], way: &str) {
    for (prefix, nobody) in prefixes.into_iter().zip(NOBODY) {
        match way {
            "no route" => replace_route(gw, prefix, None),
            "no neighbour" => replace_route(gw, prefix, Some(&format!("{prefix} via {nobody} dev pods0"))),
            // The kernel's own words.
            kind => replace_route(gw, prefix, Some(&format!("{kind} {prefix}"))),
        }
    }
}

/// The errors that come until there is one, or for a while if none is expected.
fn hear(socket: &Socket, v6: bool, expected: bool) -> BTreeSet<String> {
    let end = Instant::now() + if expected { GIVEN_UP } else { Duration::from_millis(500) };
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut heard = BTreeSet::new();
    while heard.is_empty() && Instant::now() < end {
        heard = errors(socket, v6);
    }
    heard
}

/// Sends a datagram from a new socket.
fn send(from: &Netns, own: IpAddr, to: SocketAddr) {
    from.run(move || UdpSocket::bind((own, 0)).unwrap().send_to(b"?", to).unwrap()).unwrap();
}

/// What hosts hear of each way, by world: the kernel's NAT, nomagic. `provoke` makes them send packets of both families, `host` is who hears. Of the
/// way `kernel_silent` nobody is told by the kernel.
fn hear_of_all(
    runs: &[Run; 2],
    prefixes: [&str; 2],
    host: fn(&Scene) -> &Netns,
    kernel_silent: &str,
    prepare: impl Fn(&Scene) -> [SocketAddr; 2],
    provoke: impl Fn(usize, [SocketAddr; 2]),
) -> [Vec<BTreeSet<String>>; 2] {
    let mut heard = [Vec::new(), Vec::new()];
    for (way, told) in WAYS {
        let peers = runs.each_ref().map(|run| prepare(scene(run)));
        runs.iter().for_each(|run| lead(&scene(run).gw, prefixes, way));
        // nomagic follows at once, but not in the same moment.
        std::thread::sleep(FOLLOWS);
        let sockets = runs.each_ref().map(|run| [false, true].map(|v6| raw_icmp(host(scene(run)), v6)));
        peers.into_iter().enumerate().for_each(|(i, peers)| provoke(i, peers));
        for world in [1, 0] {
            let expected = |i: usize| told[i].is_some() && (world == 1 || way != kernel_silent);
            heard[world].extend([0, 1].map(|i| hear(&sockets[world][i], i == 1, expected(i))));
        }
    }
    heard
}

/// The errors about each way that are expected from these addresses.
fn expected(from: [IpAddr; 2], about: impl Fn(usize) -> String) -> Vec<BTreeSet<String>> {
    let told = WAYS.iter().flat_map(|(_, told)| told.iter().enumerate());
    told.map(|(i, told)| told.iter().map(|told| format!("{told} from {} about {}", from[i], about(i))).collect()).collect()
}

fn addrs(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().unwrap())
}

#[test]
fn clients_hear_of_ways_to_endpoints_that_are_gone() {
    let _cpus = CpuLock::take();
    let (clients, services) = ([CLIENT_V4.into(), CLIENT_V6.into()] as [IpAddr; 2], addrs(SERVICE));
    for snat in [false, true] {
        let runs = [false, true].map(|nomagic| start("gone-c", ENDPOINT.map(str::to_owned), snat, nomagic));
        let ask = |i: usize, _| (0..2).for_each(|v6| send(&scene(&runs[i]).client, clients[v6], (services[v6], 53).into()));
        let to_services = |_: &Scene| services.map(|service| (service, 53).into());
        let [kernel, nomagic] = hear_of_all(&runs, ["172.20.0.0/24", "fd00:20::/64"], |scene| &scene.client, "", to_services, ask);
        let about = |i: usize| format!("{} client -> {} 53", clients[i], services[i]);
        // The kernel's NAT gives the Service's address to its own errors, too.
        assert_eq!(kernel, expected(services, about), "the kernel, SNAT {snat}");
        assert_eq!(nomagic, expected([GATEWAY_V4.into(), GATEWAY_V6.into()], about), "SNAT {snat}");
        runs.iter().flatten().for_each(Gateway::assert_accounts_close);
    }
}

#[test]
fn endpoints_hear_of_ways_to_clients_that_are_gone() {
    let _cpus = CpuLock::take();
    let prefixes = ["172.25.0.0/24", "fd00:25::/64"];
    for snat in [false, true] {
        let runs = [false, true].map(|nomagic| start("gone-e", [PODS[0].v4.to_string(), PODS[0].v6.to_string()], snat, nomagic));
        let answering = runs.each_ref().map(|run| {
            let Scene { client, pods, .. } = scene(run);
            client.ip(&format!("addr add {}/24 dev eth0", CLIENT[0])).unwrap();
            client.ip(&format!("addr add {}/64 dev eth0 nodad", CLIENT[1])).unwrap();
            let socket = pods[0].run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LATE)).unwrap()).unwrap();
            socket.set_read_timeout(Some(GIVEN_UP)).unwrap();
            socket
        });
        // The way is there until the endpoint has been asked.
        let asked = |scene: &Scene| {
            let own = if std::ptr::eq(scene, self::scene(&runs[0])) { 0 } else { 1 };
            [(prefixes[0], CLIENT_V4.to_string()), (prefixes[1], CLIENT_V6.to_string())].iter().for_each(|(prefix, via)| {
                replace_route(&scene.gw, prefix, Some(&format!("{prefix} via {via}")));
            });
            std::thread::sleep(FOLLOWS);
            [0, 1].map(|i| {
                send(&scene.client, CLIENT[i].parse().unwrap(), (SERVICE[i].parse::<IpAddr>().unwrap(), LATE).into());
                answering[own].recv_from(&mut [0; 16]).expect("a request").1
            })
        };
        let answer =
            |i: usize, peers: [SocketAddr; 2]| peers.iter().for_each(|peer| assert_eq!(answering[i].send_to(b"!", peer).unwrap(), 1));
        let [kernel, nomagic] = hear_of_all(&runs, prefixes, |scene| &scene.pods[0], "no neighbour", asked, answer);
        let own: [IpAddr; 2] = [GATEWAY_V4.into(), GATEWAY_V6.into()];
        let seen = if snat { own } else { addrs(CLIENT) };
        let pod: [IpAddr; 2] = [PODS[0].v4.into(), PODS[0].v6.into()];
        let about = |i: usize| format!("{} {LATE} -> {} client", pod[i], seen[i]);
        let mut by_kernel = expected(if snat { own } else { [POD_GATEWAY_V4.into(), POD_GATEWAY_V6.into()] }, about);
        // When it gives a neighbour up, the kernel's NAT has replaced the endpoint's address already: nobody hears of it.
        by_kernel.iter_mut().rev().take(2).for_each(BTreeSet::clear);
        assert_eq!(kernel, by_kernel, "the kernel, SNAT {snat}");
        assert_eq!(nomagic, expected(own, about), "SNAT {snat}");
        runs.iter().flatten().for_each(Gateway::assert_accounts_close);
    }
}
