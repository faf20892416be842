//! ICMP errors: captured if they quote a packet that nomagic has sent on, to an endpoint or to a client.

use std::net::{IpAddr, TcpListener, TcpStream};

use nomagic_core_fixtures::{IcmpSpec, with_ipv4_options};

use super::*;

const TAKEN: (u32, &str) = (REDIRECT, "taken");
const PASSED: (u32, &str) = (PASS, "pass_icmp");

/// IPv4 options, and IPv6 extension headers, of quoted packets. The last ones are too many.
pub const DRESSES: [Dress; 6] = [
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 1, extensions: &[0], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 10, extensions: &[0, 60, 43, 44], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 5, extensions: &[60, 60, 60, 60, 60, 60, 60], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[44], fragment: 0x0010 },
    Dress { vlan_tags: 0, ipv4_options: 3, extensions: &[0, 0, 0, 0, 0, 0, 0, 0], fragment: 0 },
];

/// Addresses of a router, by family.
fn router(v6: bool) -> IpAddr {
    ip(if v6 { "fd00:ee::1" } else { "198.51.100.1" })
}

/// An error about a packet, from a router. `quoted`: bytes of its transport header.
fn error_of((kind, code): (u8, u8), t: &Tuple, dress: Dress, quoted: usize) -> Vec<u8> {
    let packet = frame(t, dress);
    let transport = if t.proto == Proto::Udp { 8 } else { 20 };
    let quote = &packet[14..packet.len() - transport + quoted.min(transport)];
    IcmpSpec { from: router(t.v6), to: t.src_addr(), kind, code, rest: [0; 4] }.frame(quote)
}

fn error(t: &Tuple, dress: Dress, quoted: usize) -> Vec<u8> {
    error_of(if t.v6 { (2, 0) } else { (3, 4) }, t, dress, quoted)
}

/// Errors about a packet in each of these dresses; with options, or an extension header, in front of the ICMP header as well.
pub fn errors_about(t: &Tuple, dresses: &[Dress]) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = dresses.iter().map(|dress| error(t, *dress, 8)).collect();
    let plain = frames[0].clone();
    frames.push(if t.v6 { with_extension(&plain) } else { with_ipv4_options(&plain, &[1; 8]) });
    frames
}

/// The same IPv6 frame with destination options.
fn with_extension(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(54..54, [frame[20], 0, 1, 4, 0, 0, 0, 0]);
    frame[20] = 60;
    let len = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame
}

/// A packet to an endpoint, whose reply is announced, and its forms that are not; both families, all protocols.
#[test]
fn errors_about_packets_to_endpoints_are_taken_if_the_reply_is_announced() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let mut taken = 0;
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        for [source, endpoint, other] in
            [["10.0.0.1:61000", "192.168.7.7:8080", "192.168.7.8:8080"], ["[fd00::1]:61000", "[fd00:1::7]:8080", "[fd00:1::8]:8080"]]
        {
            let (sent, to_other) = (tuple(proto, source, endpoint), tuple(proto, source, other));
            assert_eq!(bench.outcome(&error(&sent, Dress::default(), 8)), PASSED, "not announced");
            assert!(bench.replies.insert(&sent.reversed(), 0));
            for kind in if sent.v6 { [(1, 4), (2, 0), (3, 0), (4, 1)] } else { [(3, 3), (3, 13), (11, 0), (12, 0)] } {
                for quoted in [8, 12, 20] {
                    assert_eq!(bench.outcome(&error_of(kind, &sent, Dress::default(), quoted)), TAKEN, "{kind:?} about {sent}");
                    taken += 1;
                }
            }
            assert_eq!(bench.outcome(&error(&to_other, Dress::default(), 8)), PASSED, "{to_other}");
            let reply = sent.reversed();
            assert_eq!(bench.outcome(&error(&reply, Dress::default(), 8)), PASSED, "{reply}: the endpoint gets that itself");
            assert!(bench.replies.remove(&reply));
        }
    }
    assert_eq!(bench.counters().taken, taken);
}

#[test]
fn errors_about_packets_from_a_service_are_taken() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let cases = [
        // A Service port; a cluster IP; a Service range.
        ("10.109.35.24:80", "192.168.0.5:1000", Proto::Tcp, TAKEN),
        ("10.109.35.25:9", "192.168.0.5:1000", Proto::Udp, TAKEN),
        ("10.110.3.4:9", "192.168.0.5:1000", Proto::Sctp, TAKEN),
        ("[fd00:10::24]:53", "[fd00::5]:1000", Proto::Udp, TAKEN),
        ("[fd00:10::25]:9", "[fd00::5]:1000", Proto::Tcp, TAKEN),
        // Another port, another protocol, another address; a packet to a Service, which its client hears of itself.
        ("10.109.35.24:81", "192.168.0.5:1000", Proto::Tcp, PASSED),
        ("10.109.35.24:80", "192.168.0.5:1000", Proto::Udp, PASSED),
        ("10.109.35.23:80", "192.168.0.5:1000", Proto::Tcp, PASSED),
        ("192.168.0.5:1000", "10.109.35.24:80", Proto::Tcp, PASSED),
        ("[fd00::5]:1000", "[fd00:10::24]:53", Proto::Udp, PASSED),
    ];
    for (src, dst, proto, expected) in cases {
        assert_eq!(bench.outcome(&error(&tuple(proto, src, dst), Dress::default(), 8)), expected, "{proto} {src} -> {dst}");
    }
    // In every dress that has ports and not too many headers.
    for t in [tuple(Proto::Tcp, "10.109.35.24:80", "192.168.0.5:1"), tuple(Proto::Udp, "[fd00:10::24]:53", "[fd00::5]:1")] {
        let outcomes: Vec<_> = errors_about(&t, &DRESSES).iter().map(|frame| bench.outcome(frame)).collect();
        let many = if t.v6 { PASSED } else { TAKEN };
        assert_eq!(outcomes, [TAKEN, TAKEN, TAKEN, TAKEN, PASSED, many, TAKEN], "{t}");
    }
}

#[test]
fn what_is_no_error_or_quotes_too_little_is_passed() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    for (t, header) in
        [(tuple(Proto::Tcp, "10.109.35.24:80", "192.168.0.5:1"), 20), (tuple(Proto::Udp, "[fd00:10::24]:53", "[fd00::5]:1"), 40)]
    {
        let packet = frame(&t, Dress::default())[14..].to_vec();
        let spec = IcmpSpec { from: router(t.v6), to: t.src_addr(), kind: if t.v6 { 1 } else { 3 }, code: 0, rest: [0; 4] };
        for len in 0..header + 8 {
            assert_eq!(bench.outcome(&spec.frame(&packet[..len])), PASSED, "{len} bytes quoted");
        }
        assert_eq!(bench.outcome(&spec.frame(&packet[..header + 8])), TAKEN);
        let others = (0..=255).filter(|kind| bench.outcome(&IcmpSpec { kind: *kind, ..spec }.frame(&packet)) != PASSED);
        assert_eq!(others.collect::<Vec<_>>(), if t.v6 { vec![1, 2, 3, 4] } else { vec![3, 11, 12] });
        // For another than the quoted packet's sender.
        let elsewhere = IcmpSpec { to: ip(if t.v6 { "fd00:10::25" } else { "10.109.35.25" }), ..spec };
        assert_eq!(bench.outcome(&elsewhere.frame(&packet)), PASSED);
        // The other family's ICMP.
        let mut wrong = spec.frame(&packet);
        wrong[if t.v6 { 20 } else { 23 }] = if t.v6 { 1 } else { 58 };
        set_ipv4_checksum(&mut wrong, 14);
        assert_eq!(bench.outcome(&wrong), PASSED);
    }
    // Pieces of an error.
    let mut first = error(&tuple(Proto::Tcp, "10.109.35.24:80", "192.168.0.5:1"), Dress::default(), 8);
    first[20] = 0x20;
    set_ipv4_checksum(&mut first, 14);
    assert_eq!(bench.outcome(&first), PASSED);
}

/// The deny list is about who sends the error, not about what it quotes.
#[test]
fn errors_of_denied_sources_are_dropped() {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    let t = tuple(Proto::Tcp, "10.109.35.24:80", "192.168.0.5:1000");
    let deny = |text: &str| -> crate::Denied { [(text.parse().unwrap(), None)].into_iter().collect() };
    bench.denied.follow(&deny("192.168.0.0/16")).unwrap();
    assert_eq!(bench.outcome(&error(&t, Dress::default(), 8)), TAKEN);
    bench.denied.follow(&deny("198.51.100.0/24")).unwrap();
    assert_eq!(bench.outcome(&error(&t, Dress::default(), 8)), (DROP, "denied"));
    let own = tuple(Proto::Tcp, "10.9.9.9:80", "192.168.0.5:1000");
    assert_eq!(bench.outcome(&error(&own, Dress::default(), 8)), PASSED);
}

/// On loopback, since the kernel runs the program in this network namespace.
#[test]
fn errors_about_the_nodes_own_connections_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (own, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let mut bench = Bench::new(false);
    bench.maps.add(&FilterRules { services: [(own.ip(), own.port(), Proto::Tcp)].into(), ..FilterRules::default() }).unwrap();
    bench.maps.set_kernel_addresses(&[own.ip()].into_iter().collect()).unwrap();
    let about = |to: &str| error(&tuple(Proto::Tcp, &own.to_string(), to), Dress::default(), 8);
    assert_eq!(bench.outcome(&about(&far.to_string())), PASSED, "the node's socket has sent it");
    assert_eq!(bench.outcome(&about("192.0.2.1:1000")), TAKEN, "the Service on the node's address has");
}
