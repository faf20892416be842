//! Addresses that are the kernel's: only Service ports are taken there, and nothing of a connection of the node's own.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use nomagic_core::hash::WordSet;

use super::*;

const TAKEN: (u32, &str) = (REDIRECT, "taken");
const PASSED: (u32, &str) = (PASS, "pass_not_ours");

fn addresses(texts: &[&str]) -> WordSet<std::net::IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn outcome(bench: &mut Bench, proto: Proto, src: &str, dst: &str) -> (u32, &'static str) {
    bench.outcome(&frame(&tuple(proto, src, dst), Dress::default()))
}

#[test]
fn only_service_ports_are_taken_on_the_nodes_addresses() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    // A ServiceCIDR's, a cluster IP, a Service's, by both families.
    let inside = ["10.110.0.9:22", "10.109.35.25:22", "10.109.35.24:80", "[fd00:11::9]:22", "[fd00:10::25]:22"];
    let fates = |bench: &mut Bench| {
        inside.map(|dst| outcome(bench, Proto::Tcp, if dst.starts_with('[') { "[fd00::5]:1" } else { "192.168.0.5:1" }, dst))
    };
    assert_eq!(fates(&mut bench), [TAKEN; 5]);
    let own = addresses(&["10.110.0.9", "10.109.35.25", "10.109.35.24", "fd00:11::9", "fd00:10::25"]);
    bench.maps.set_kernel_addresses(&own).unwrap();
    assert_eq!(fates(&mut bench), [PASSED, PASSED, TAKEN, PASSED, PASSED]);
    assert_eq!(outcome(&mut bench, Proto::Tcp, "192.168.0.5:1", "10.110.0.8:22"), TAKEN, "the neighbour is nobody's");
    // Answers that nomagic has announced do not depend on it.
    let reply = tuple(Proto::Tcp, "192.168.7.7:80", "10.110.0.9:40000");
    assert!(bench.replies.insert(&reply, 0));
    assert_eq!(bench.outcome(&frame(&reply, Dress::default())), TAKEN);
    // The addresses go again.
    bench.maps.set_kernel_addresses(&addresses(&["10.109.35.24"])).unwrap();
    assert_eq!(fates(&mut bench), [TAKEN; 5]);
}

/// On loopback, since the kernel runs the program in this network namespace.
#[test]
fn a_connection_of_the_nodes_own_passes_and_a_listener_does_not_matter() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (asked, _) = listener.accept().unwrap();
    let (own, far): (SocketAddr, SocketAddr) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect("127.0.0.1:9").unwrap();
    let open = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [udp, other] = [&connected, &open].map(|socket| socket.local_addr().unwrap());

    let mut bench = Bench::new(false);
    let services = [(own, Proto::Tcp), (far, Proto::Tcp), (udp, Proto::Udp), (other, Proto::Udp)];
    let services = services.into_iter().map(|(at, proto)| (at.ip(), at.port(), proto)).collect();
    bench.maps.add(&FilterRules { services, ..FilterRules::default() }).unwrap();
    let cases = [
        (Proto::Tcp, far.to_string(), own, PASSED),
        (Proto::Tcp, own.to_string(), far, PASSED),
        (Proto::Tcp, "192.0.2.1:1000".into(), far, TAKEN), // the listener's port
        (Proto::Tcp, "192.0.2.1:1000".into(), own, TAKEN),
        (Proto::Udp, "127.0.0.1:9".into(), udp, PASSED),
        (Proto::Udp, "127.0.0.1:10".into(), udp, TAKEN),
        (Proto::Udp, "127.0.0.1:9".into(), other, TAKEN),
    ];
    for on_node in [false, true] {
        if on_node {
            bench.maps.set_kernel_addresses(&addresses(&["127.0.0.1"])).unwrap();
        }
        for (proto, src, dst, expected) in &cases {
            let expected = if on_node { *expected } else { TAKEN };
            assert_eq!(outcome(&mut bench, *proto, src, &dst.to_string()), expected, "{proto} {src} -> {dst}, on the node: {on_node}");
        }
    }
    drop(asked);
}

/// Rules beyond the limit do not keep the others out.
#[test]
fn as_many_rules_are_added_as_fit() {
    let mut bench = Bench::new(false);
    let service = |n: u32| (std::net::IpAddr::from((n + (1 << 24)).to_be_bytes()), 80, Proto::Tcp);
    let many = |range: std::ops::Range<u32>| FilterRules { services: range.map(service).collect(), ..FilterRules::default() };
    bench.maps.add(&many(0..SERVICES_MAX as u32 - 1)).unwrap();
    let error = bench.maps.add(&many(SERVICES_MAX as u32 - 1..SERVICES_MAX as u32 + 2)).unwrap_err();
    assert!(error.to_string().contains(&SERVICES_MAX.to_string()), "{error}");
    assert_eq!(bench.maps.rules().services.len(), SERVICES_MAX);
    bench.maps.remove(&many(0..2)).unwrap();
    bench.maps.add(&many(SERVICES_MAX as u32 - 1..SERVICES_MAX as u32 + 2)).unwrap();
}
