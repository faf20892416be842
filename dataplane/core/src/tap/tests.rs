//! Which packets a filter selects.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::conntrack::{Flow, Phase};
use crate::reason::Reason;
use crate::services::{Action, AddressKind, Frontend, Limits, ServicePort};
use crate::tuple::{HashSeed, Prefix, Proto};
use crate::wire::tcp;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(src: &str, sport: u16, dst: &str, dport: u16) -> Tuple {
    Tuple::new(Proto::Tcp, ip(src), sport, ip(dst), dport).unwrap()
}

/// Two Services, `n/web` at 10.96.0.1:80 and `n/other` at 10.96.0.2:80.
fn services() -> Services {
    let mut services = Services::empty(HashSeed::new(1));
    for (name, addr) in [("web", "10.96.0.1"), ("other", "10.96.0.2")] {
        let port = ServicePort {
            namespace: "n".into(),
            name: name.into(),
            port_name: String::new(),
            port: 80,
            proto: Proto::Tcp,
            affinity: None,
            limits: Limits::default(),
            refused: Arc::default(),
        };
        let action = || Action::Reject(Reason::NoEndpoints);
        let (pod, node, external) = (action(), action(), action());
        let frontend = Frontend { port: Arc::new(port), kind: AddressKind::ClusterIp, pod, node, external, source_ranges: None };
        services.add_frontend(ip(addr), 80, Proto::Tcp, frontend).unwrap();
    }
    services
}

#[test]
fn a_filter_selects_the_packets_of_a_flow_both_ways() {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(16)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format_zeroed(&words, 16, 1, [0, 0]).unwrap();
    let services = services();
    // 192.0.2.9:4000 -> n/web is sent to 172.16.0.5:8080 from 10.0.0.1:61000.
    let (original, onward) = (tuple("192.0.2.9", 4000, "10.96.0.1", 80), tuple("10.0.0.1", 61_000, "172.16.0.5", 8080));
    let mut flow = Flow {
        proto: Proto::Tcp,
        v6: false,
        announced: false,
        client: original.src,
        client_port: 4000,
        service: original.dst,
        service_port: 80,
        backend: onward.dst,
        backend_port: 8080,
        source: onward.src,
        source_port: 61_000,
        stats: 0,
        counted: None,
    };
    let hash = table.hash(&original);
    let Ok(pending) = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, tcp::SYN), 0, std::iter::once(61_000)) else {
        panic!("there is room")
    };
    table.commit(pending).expect("nobody else");

    let unknown = tuple("192.0.2.8", 5, "10.96.0.1", 80);
    let packets = [original, onward.reversed(), unknown, tuple("192.0.2.9", 6, "10.96.0.2", 80), tuple("192.0.2.9", 7, "198.51.100.1", 80)];
    let service = |name: &str| PacketFilter { service: Some(("n".into(), name.into())), ..PacketFilter::default() };
    let host = |addr: &str| Prefix::host(ip(addr));
    for (filter, expected) in [
        (PacketFilter::default(), [true, true, true, true, true]),
        (service("web"), [true, true, true, false, false]),
        (service("other"), [false, false, false, true, false]),
        (service("none"), [false; 5]),
        (PacketFilter { client: Some(host("192.0.2.9")), ..PacketFilter::default() }, [true, true, false, true, true]),
        (PacketFilter { port: Some(80), ..PacketFilter::default() }, [true; 5]),
        (PacketFilter { port: Some(8080), ..PacketFilter::default() }, [false; 5]),
        (PacketFilter { proto: Some(Proto::Udp), ..PacketFilter::default() }, [false; 5]),
        // For a flow that does not exist yet the endpoint is not known.
        (PacketFilter { backend: Some((host("172.16.0.5"), None)), ..PacketFilter::default() }, [true; 5]),
        (PacketFilter { backend: Some((host("172.16.0.5"), Some(80))), ..PacketFilter::default() }, [false, false, true, true, true]),
        (PacketFilter { client: Some(host("192.0.2.9")), ..service("web") }, [true, true, false, false, false]),
    ] {
        let seen = packets.map(|packet| {
            let view = FlowView { services: &services, table: &table, packet: Some(packet), hash: None };
            filter.fits(&view)
        });
        assert_eq!(seen, expected, "{filter:?}");
    }
    let unread = FlowView { services: &services, table: &table, packet: None, hash: None };
    assert!(PacketFilter::default().fits(&unread) && !service("web").fits(&unread));
}
