//! Datagrams that may be fragmented, over a smaller link behind the gateway, with real sockets: the kernels at the ends put them together. The
//! kernel's NAT in the gateway's place says what is right. Needs root.

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{Netns, PODS, Scene};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::kernel_nat::{SERVICE, kernel_rules, load_rules};
use crate::common::*;

const LIMIT: Duration = Duration::from_secs(3);
/// IPv4 and UDP.
const HEADERS: usize = 28;
/// More than what the pod's answer has besides: its name, and the client's address and port.
const MORE: usize = 40;

/// Where the small link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Endpoint,
    Client,
}

/// MTUs: of all links, and of the small one.
#[derive(Clone, Copy)]
struct Links {
    wide: usize,
    low: usize,
}

impl Links {
    /// Bytes of datagrams: just as many as fit, one more, the most that come in one packet with their answers, and such that come in fragments.
    fn payloads(self) -> [usize; 5] {
        [self.low - HEADERS, self.low - HEADERS + 1, self.wide - HEADERS - MORE, 2 * self.wide, 3 * self.wide + 1_000]
    }
}

/// Whoever translates.
struct Run {
    gateway: Result<Gateway, Scene>,
    _pod: Option<PodThread>,
    _cpus: CpuLock,
}

impl Run {
    fn start(tag: &str, side: Side, links: Links, snat: bool, config: Option<&str>) -> Run {
        let cpus = CpuLock::take();
        let scene = Scene::new(tag).expect("a scene (needs root)");
        scene.set_mtu(links.wide as u32).unwrap();
        let (port, host) = if side == Side::Endpoint { ("pods0", &scene.pods[0]) } else { ("cl0", &scene.client) };
        scene.gw.ip(&format!("link set {port} mtu {}", links.low)).unwrap();
        host.ip(&format!("link set eth0 mtu {}", links.low)).unwrap();
        for host in [&scene.client, &scene.pods[0]] {
            // Their sockets set no DF: IP_PMTUDISC_DONT.
            host.sysctl("net.ipv4.ip_no_pmtu_disc", "1").unwrap();
        }
        let Some(config) = config else {
            let pod = start_pod(&scene.pods[0], PodOptions::new(PODS[0].name)).unwrap();
            load_rules(&scene, &kernel_rules(&[PODS[0].v4.to_string(), PODS[0].v6.to_string()], snat));
            return Run { gateway: Err(scene), _pod: Some(pod), _cpus: cpus };
        };
        // The answers name the source port: five digits, as with the kernel's NAT.
        let config = format!("{config}\n{}", if snat { "masqueradeAll: true\nsnat: {ports: 20000-29999}" } else { "" });
        Run { gateway: Ok(Gateway::start_in(scene, &config, &nginx(&[0]))), _pod: None, _cpus: cpus }
    }

    fn scene(&self) -> &Scene {
        self.gateway.as_ref().map_or_else(|scene| scene, |gateway| &gateway.scene)
    }

    fn account(&self) -> String {
        self.gateway.as_ref().map_or_else(|_| "the kernel".into(), Gateway::account)
    }
}

/// Asks once, from a socket of its own. True if the answer has what was sent.
fn ask(payload: usize, limit: Duration) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(limit)).expect("a timeout");
    let (to, sent): (SocketAddr, Vec<u8>) =
        ((SERVICE[0].parse::<std::net::IpAddr>().unwrap(), 53).into(), (0..payload).map(|i| i as u8).collect());
    socket.connect(to).expect("an address");
    socket.send(&sent).expect("sent");
    let mut answer = vec![0; 65_536];
    socket.recv(&mut answer).is_ok_and(|n| answer[..n].ends_with(&sent))
}

/// What comes in by the interfaces of a namespace, without link-layer headers.
fn capture(ns: &Netns) -> Socket {
    ns.run(|| {
        let socket =
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(0x0800_u16.to_be())))).expect("a packet socket");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        socket
    })
    .expect("a thread in the namespace")
}

/// `(offset, bytes of payload, more)` of the UDP packets that have come, in their order.
fn pieces(mut socket: &Socket) -> Vec<(usize, usize, bool)> {
    let (mut pieces, mut packet) = (Vec::new(), [0; 10_000]);
    while let Ok(n) = socket.read(&mut packet) {
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        assert_eq!((n, packet[0]), (word(2), 0x45), "an IPv4 packet without options");
        if packet[9] == 17 {
            pieces.push(((word(6) & 0x1fff) * 8, n - 20, word(6) & 0x2000 != 0));
        }
    }
    pieces
}

/// How the datagrams of each size arrive behind the small link; all are answered.
fn carried(run: &Run, side: Side, links: Links) -> Vec<Vec<(usize, usize, bool)>> {
    let (client, behind) = (&run.scene().client, if side == Side::Endpoint { &run.scene().pods[0] } else { &run.scene().client });
    // Neighbours are found.
    assert!(client.run(|| ask(10, LIMIT)).unwrap(), "{}", run.account());
    let exchange = |payload: usize| {
        let socket = capture(behind);
        assert!(client.run(|| ask(payload, LIMIT)).unwrap(), "{side:?}, {payload} bytes: {}", run.account());
        pieces(&socket)
    };
    links.payloads().map(exchange).into()
}

/// Carries datagrams of all sizes by nomagic and by the kernel's NAT, and compares.
fn compare(tag: &str, side: Side, links: Links, snat: bool) {
    let kernel = carried(&Run::start(tag, side, links, snat, None), side, links);
    let run = Run::start(tag, side, links, snat, Some(""));
    let nomagic = carried(&run, side, links);
    println!("{tag}: {nomagic:?}, by the kernel's NAT {kernel:?}");
    let g = run.gateway.as_ref().unwrap_or_else(|_| panic!("nomagic"));
    g.assert_accounts_close();
    for (payload, (ours, kernels)) in links.payloads().into_iter().zip(nomagic.iter().zip(&kernel)) {
        assert!(ours.iter().chain(kernels).all(|(_, len, _)| 20 + len <= links.low));
        let ends: Vec<usize> = std::iter::once(0).chain(ours.iter().map(|(at, len, _)| at + len)).collect();
        assert!(ours.iter().zip(&ends).all(|((at, ..), end)| at == end), "in order, without gaps: {ours:?}");
        // The kernel's NAT puts together what comes in fragments, and cuts anew.
        if payload < links.wide {
            assert_eq!(ours, kernels, "{payload} bytes");
        }
    }
    // Two or three of those that come whole, and each full-sized fragment.
    let (packets, fragments) = (g.count(|c| c.path.fragmented), g.count(|c| c.path.fragments_made));
    let cut: u64 = nomagic.iter().map(|pieces| pieces.len() as u64).sum();
    assert!(
        (2 + 2 + 3..=3 + 3 + 4).contains(&packets) && (2 * packets..=cut).contains(&fragments),
        "{packets} {fragments}: {}",
        g.account()
    );
    assert_eq!((g.reason(Reason::TooBig), g.count(|c| c.io.made_failed)), (0, 0));
    g.print_frames();
}

#[test]
fn datagrams_pass_a_small_link_in_fragments_as_through_the_kernels_nat() {
    for (side, tag) in [(Side::Endpoint, "frag-e"), (Side::Client, "frag-c")] {
        for snat in [false, true] {
            compare(&format!("{tag}{}", u8::from(snat)), side, Links { wide: 1_500, low: 1_400 }, snat);
        }
    }
}

/// Packets of several frames become fragments of one frame each, and of several.
#[test]
fn jumbo_datagrams_pass_smaller_links_in_fragments() {
    for (side, tag) in [(Side::Endpoint, "fragj-e"), (Side::Client, "fragj-c")] {
        for low in [1_400, 1_500, 8_000] {
            compare(&format!("{tag}{low}"), side, Links { wide: 9_000, low }, low == 1_500);
        }
    }
}

#[test]
fn without_fragmenting_they_are_dropped_and_counted() {
    let run = Run::start("frag-off", Side::Endpoint, Links { wide: 1_500, low: 1_400 }, false, Some("fragment: false"));
    let client = &run.scene().client;
    assert!(client.run(|| ask(1_372, LIMIT)).unwrap(), "{}", run.account());
    assert!(!client.run(|| ask(1_373, Duration::from_millis(300))).unwrap());
    let g = run.gateway.as_ref().unwrap_or_else(|_| panic!("nomagic"));
    assert_eq!((g.reason(Reason::TooBig), g.count(|c| c.path.fragmented)), (1, 0), "{}", g.account());
    g.assert_accounts_close();
}
