//! Whose frame it is, between real interfaces: what is another's is not carried. Needs root.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use nomagic_core::counters::XdpCounts;
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::{spec, with_ipv4_options};
use nomagic_sys::packet_socket::PacketSocket;
use nomagic_xsk::{Edge, EdgeConfig, VlanId};

use crate::common::*;

const VRRP: [u8; 6] = [0, 0, 0x5e, 0, 1, 0xa];
const PATIENCE: Duration = Duration::from_millis(150);

/// A client that sends whole frames, and a pod that receives what is carried.
struct Wire {
    scene: Scene,
    client: PacketSocket,
    pod: UdpSocket,
    sent: u16,
}

impl Wire {
    fn new() -> (Wire, Edge) {
        let scene = Scene::new();
        let config = EdgeConfig {
            mac_addresses: vec!["00:00:5e:00:01:0a".parse().unwrap()],
            vlans: vec![VlanId::from_static(100)],
            ..scene.config()
        };
        let mut edge = scene.start(config, true);
        scene.serve(&mut edge);
        let index = scene.client.link("c0").ifindex;
        let client = scene.client.run(move || PacketSocket::open(index).unwrap());
        let pod = scene.pod.run(|| UdpSocket::bind((POD, 8080)).unwrap());
        pod.set_read_timeout(Some(PATIENCE)).unwrap();
        (Wire { scene, client, pod, sent: 0 }, edge)
    }

    fn port_mac(&self) -> [u8; 6] {
        self.scene.gateway.link("gc").mac
    }

    /// Sends a datagram for the Service of a length of its own, changed by `edit`. Whether it reaches the pod.
    fn carries(&mut self, edit: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.sent += 1;
        let payload = usize::from(self.sent);
        let from = format!("{CLIENT}:{}", 40_000 + self.sent);
        let mut frame = nomagic_core_fixtures::Spec { payload, ..spec("udp", &from, &format!("{SERVICE}:80"), 0) }.frame();
        frame[..6].copy_from_slice(&self.port_mac());
        frame[6..12].copy_from_slice(&self.scene.client.link("c0").mac);
        edit(&mut frame);
        self.client.send(&frame).unwrap();
        self.pod.recv(&mut [0; 2048]).is_ok_and(|len| len == payload)
    }

    fn carries_to(&mut self, mac: [u8; 6]) -> bool {
        self.carries(|frame| frame[..6].copy_from_slice(&mac))
    }

    fn carries_tagged(&mut self, tags: &[u8]) -> bool {
        self.carries(|frame| drop(frame.splice(12..12, tags.iter().copied())))
    }
}

fn counts(edge: &Edge) -> XdpCounts {
    settled(edge).ports[0].xdp
}

#[test]
fn frames_of_others_are_not_carried() {
    let (mut wire, edge) = Wire::new();
    let own = wire.port_mac();
    let before = counts(&edge);
    assert!(wire.carries_to(own) && wire.carries_to(VRRP));
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 0x12], [0x33, 0x33, 0, 0, 0, 1], [2, 0xde, 0xad, 0xbe, 0xef, 1]] {
        assert!(!wire.carries_to(mac), "{mac:x?}");
    }
    let after = counts(&edge);
    assert!(after.pass_other_mac - before.pass_other_mac >= 4, "{after:?}");
    for tags in [&[0x81, 0, 0, 0][..], &[0x81, 0, 0xa0, 0], &[0x81, 0, 0, 100]] {
        assert!(wire.carries_tagged(tags), "{tags:x?}");
    }
    for tags in [&[0x81, 0, 0, 5][..], &[0x88, 0xa8, 0, 100], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9], &[0x81, 0, 0, 0, 0x81, 0, 0, 5]] {
        assert!(!wire.carries_tagged(tags), "{tags:x?}");
    }
    assert_eq!(counts(&edge).pass_vlan - before.pass_vlan, 4);
    assert_eq!(counts(&edge).taken - before.taken, 5);
    edge.stop(true).unwrap();
}

#[test]
fn a_changed_mac_address_is_followed_without_a_restart() {
    let (mut wire, mut edge) = Wire::new();
    let old = wire.port_mac();
    assert!(wire.carries_to(old));
    wire.scene.gateway.ip("link set gc address 02:00:00:00:00:99");
    wire.scene.gateway.run(|| edge.tend());
    assert_eq!((wire.carries_to(old), wire.carries_to(wire.port_mac())), (false, true));
    // A bridge accepts what is addressed to itself at each of its ports; it passes the rest on unless nomagic takes it.
    wire.scene.gateway.ip("link add br9 address 02:00:00:00:00:b9 type bridge");
    wire.scene.gateway.ip("link set gc master br9");
    wire.scene.gateway.run(|| edge.tend());
    let bridge = wire.scene.gateway.link("br9").mac;
    assert_eq!((wire.carries_to(bridge), wire.carries_to(old), wire.carries_to(wire.port_mac())), (true, false, true));
    edge.stop(true).unwrap();
}

#[test]
fn the_kernel_gets_wrong_checksums_and_source_routes() {
    let (mut wire, edge) = Wire::new();
    let before = counts(&edge);
    let errors = |wire: &Wire| wire.scene.gateway.run(|| ip_ext("InCsumErrors"));
    let counted = errors(&wire);
    assert!(!wire.carries(|frame| frame[25] ^= 1));
    assert_eq!(errors(&wire), counted + 1, "the kernel drops and counts it");
    for options in [&[131, 7, 4, 10, 1, 0, 1, 0][..], &[137, 7, 4, 10, 1, 0, 1, 0], &[148, 9, 0, 0]] {
        assert!(!wire.carries(|frame| *frame = with_ipv4_options(frame, options)), "{options:?}");
    }
    for options in [&[1; 4][..], &[148, 4, 0, 0], &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(wire.carries(|frame| *frame = with_ipv4_options(frame, options)), "{options:?}");
    }
    let after = counts(&edge);
    assert_eq!((after.pass_ipv4_checksum - before.pass_ipv4_checksum, after.taken - before.taken), (1, 6));
    assert_eq!(settled(&edge).workers[0].counts.reasons.kernel[Reason::Ipv4Options], 3);
    edge.stop(true).unwrap();
}

#[test]
fn a_redirect_port_takes_what_is_addressed_to_it() {
    let (mut wire, mut edge) = Wire::new();
    wire.scene.gateway.ip("link add cali1 type veth peer name q0");
    wire.scene.gateway.ip("link set cali1 up");
    wire.scene.gateway.ip("link set q0 up");
    let index = wire.scene.gateway.link("q0").ifindex;
    wire.client = wire.scene.gateway.run(move || PacketSocket::open(index).unwrap());
    let redirect = |wire: &Wire, edge: &mut Edge, names: &[&str]| {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        wire.scene.gateway.run(|| edge.redirect(&names))
    };
    let mac = |wire: &Wire| wire.scene.gateway.link("cali1").mac;
    let stranger = [2, 0xde, 0xad, 0xbe, 0xef, 1];
    assert!(redirect(&wire, &mut edge, &["cali1"]));
    let own = mac(&wire);
    assert_eq!((wire.carries_to(own), wire.carries_to(stranger), wire.carries_to([0xff; 6])), (true, false, false));
    wire.scene.gateway.ip("link set cali1 address ee:ee:ee:ee:ee:ee");
    redirect(&wire, &mut edge, &["cali1"]);
    assert_eq!((wire.carries_to(own), wire.carries_to([0xee; 6])), (false, true));
    // On a port of a bridge a pod's answer to its neighbour is addressed to that one.
    wire.scene.gateway.ip("link add br9 type bridge");
    wire.scene.gateway.ip("link set cali1 master br9");
    redirect(&wire, &mut edge, &["cali1"]);
    assert_eq!((wire.carries_to(stranger), wire.carries_to([0xff; 6])), (true, false));
    assert!(edge.status().unwrap().redirects_xdp.pass_other_mac >= 3);
    redirect(&wire, &mut edge, &[]);
    edge.stop(true).unwrap();
}

/// A count of the calling thread's network namespace.
fn ip_ext(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|n| n == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}
