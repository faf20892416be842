//! SCTP, fragmented datagrams and session affinity. Needs root.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nomagic_core::reason::Reason;
use nomagic_testbed::peers::udp_echo;
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, Netns, PODS};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::*;

const SCTP: i32 = 132;
const PORT: u16 = 3868;
const CLIENT_PORT: u16 = 40_000;

/// A datagram larger than the MTU is forwarded as fragments, in both directions.
#[test]
fn udp_requests_and_replies_of_2_kb() {
    for (tag, extra) in [("frag-d", ""), ("frag-s", "masqueradeAll: true")] {
        let g = Gateway::start(tag, extra, &nginx(&[0, 1, 2]));
        // The first frame to a pod waits for its MAC address, and the other fragments wait for the first one.
        for to in ["10.109.35.24:53", "[fd00:10:109::24]:53"] {
            let to: SocketAddr = to.parse().unwrap();
            let echoes = g.scene.client.block_on(move || async move {
                let mut pods = Vec::new();
                for size in [1_472, 1_473, 2_000, 4_000] {
                    for _ in 0..5 {
                        pods.push(udp_echo(to, &vec![0x5a; size], Duration::from_secs(3)).await.map(|(pod, _)| pod));
                    }
                }
                pods
            });
            let failed: Vec<_> = echoes.unwrap().into_iter().filter_map(Result::err).collect();
            assert!(failed.is_empty(), "{tag} {to}: {failed:?}");
        }
        assert_eq!(g.reason(Reason::Fragment), 0);
        g.assert_accounts_close();
    }
}

/// An SCTP packet of one chunk (RFC 9260, 3.1 and 3.3): common header with CRC32c, chunk.
fn sctp(sport: u16, dport: u16, tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &tag.to_be_bytes(), &[0; 4], chunk].concat();
    let crc = crc32c::crc32c(&packet);
    // The CRC goes out least significant byte first (RFC 9260, appendix A).
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// `(source port, destination port, first chunk's type)` of a packet whose CRC32c is right.
fn read_sctp(packet: &[u8]) -> Option<(u16, u16, u8)> {
    let mut zeroed = packet.to_vec();
    zeroed.get_mut(8..12)?.fill(0);
    let right = crc32c::crc32c(&zeroed).to_le_bytes() == packet[8..12];
    right.then(|| (u16::from_be_bytes([packet[0], packet[1]]), u16::from_be_bytes([packet[2], packet[3]]), packet[12]))
}

/// A raw socket for SCTP, so that the kernel needs no SCTP support.
fn raw(ns: &Netns, own: IpAddr) -> Socket {
    ns.run(|| {
        let domain = if own.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).expect("a raw socket");
        socket.bind(&SocketAddr::new(own, 0).into()).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    })
    .expect("a thread in the namespace")
}

/// The next packet, without its IPv4 header, and its sender.
fn receive(socket: &Socket, v6: bool) -> (Vec<u8>, IpAddr) {
    let from = socket.peek_sender().expect("a packet within the time");
    let mut packet = [0; 2048];
    let mut reader = socket;
    let n = reader.read(&mut packet).expect("the same packet");
    let header = if v6 { 0 } else { usize::from(packet[0] & 15) * 4 };
    (packet[header..n].to_vec(), from.as_socket().expect("an IP address").ip())
}

#[test]
fn sctp_packets_keep_a_correct_crc32c() {
    let manifests = manifests(&[Svc {
        name: "diameter",
        spec: "clusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("diameter", "SCTP", PORT, 0)],
        pods: &[0],
    }]);
    for (tag, extra, snat) in [("sctp-d", "", false), ("sctp-s", "masqueradeAll: true", true)] {
        let g = Gateway::start(tag, extra, &manifests);
        for (service, client, gateway, pod) in [
            ("10.109.35.24", IpAddr::from(CLIENT_V4), IpAddr::from(GATEWAY_V4), IpAddr::from(PODS[0].v4)),
            ("fd00:10:109::24", CLIENT_V6.into(), GATEWAY_V6.into(), PODS[0].v6.into()),
        ] {
            let service: IpAddr = service.parse().expect("an address");
            let (near, far) = (raw(&g.scene.client, client), raw(&g.scene.pods[0], pod));
            // INIT (type 1): tag, window, streams, initial TSN.
            let init = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
            near.send_to(&sctp(CLIENT_PORT, PORT, 0, &init), &SocketAddr::new(service, 0).into()).expect("sent");
            let (packet, from) = receive(&far, service.is_ipv6());
            let (sport, dport, kind) = read_sctp(&packet).expect("the CRC32c is right");
            assert_eq!((from, dport, kind), (if snat { gateway } else { client }, PORT, 1));
            assert_eq!(sport == CLIENT_PORT, !snat, "source port {sport}");
            // INIT ACK (type 2) back.
            let ack = [2, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 5];
            far.send_to(&sctp(dport, sport, 7, &ack), &SocketAddr::new(from, 0).into()).expect("sent");
            let (packet, from) = receive(&near, service.is_ipv6());
            assert_eq!(read_sctp(&packet), Some((PORT, CLIENT_PORT, 2)), "back from {from}");
            assert_eq!(from, service);
        }
        assert_eq!(g.count(|c| c.conntrack.created), 2);
        g.print_frames();
    }
}

/// The Service with `sessionAffinity: ClientIP`, or without.
fn sticky(sticks: bool) -> String {
    let affinity = "sessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}";
    let spec = "clusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]\n";
    manifests(&[Svc {
        name: "nginx",
        spec: &format!("{spec}{}", if sticks { affinity } else { "" }),
        status: "",
        ports: &[("http", "TCP", 80, 0), ("echo", "UDP", 53, 0)],
        pods: &[0, 1, 2],
    }])
}

#[test]
fn session_affinity_is_switched_at_run_time() {
    let mut g = Gateway::start("stick", "", &sticky(true));
    let pods = |g: &Gateway, to: &str| {
        let report = g.http(&g.scene.client, to, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "{report:?}");
        report.per_pod.into_keys().collect::<Vec<_>>()
    };
    for to in ["10.109.35.24:80", "[fd00:10:109::24]:80"] {
        let first = pods(&g, to);
        assert_eq!(first.len(), 1, "{to}: {first:?}");
        assert_eq!(pods(&g, to), first, "{to}");
    }
    let udp = g.udp(&g.scene.client, "10.109.35.24:53", 20);
    assert_eq!((udp.per_pod.len(), udp.failed()), (1, 0), "{udp:?}");
    g.apply(&sticky(false));
    assert!(pods(&g, "10.109.35.24:80").len() > 1, "off: connections spread");
    g.apply(&sticky(true));
    assert_eq!(pods(&g, "10.109.35.24:80").len(), 1, "on again");
    g.print_frames();
}
