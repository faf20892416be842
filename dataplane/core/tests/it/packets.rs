//! Packets in, packets out: every branch of the pipeline, with etherparse reading what comes out.

use nomagic_core::frame::{Verdict, Wait, Wanted};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;
use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

fn world() -> World {
    World::new(services(), 256)
}

fn forward_port(done: &Done) -> Option<u16> {
    match done.verdict {
        Verdict::Forward(port, _) => Some(port.0),
        _ => None,
    }
}

#[test]
fn dnat_there_and_back_for_both_families_and_protocols() {
    let cases = [
        ("tcp", "10.0.0.2:40000", "10.96.0.1:80"),
        ("udp", "10.0.0.2:40000", "10.96.0.1:80"),
        ("tcp", "[fd00:a::2]:40000", "[fd00:96::1]:80"),
        ("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80"),
    ];
    for (proto, client, service) in cases {
        let mut w = world();
        let request = spec(proto, client, service, SYN);
        let done = w.run(CLIENTS, &request.frame());
        assert_eq!(forward_port(&done), Some(PODS.0), "{request:?}");
        let seen = read(&done.bytes).unwrap();
        assert_eq!(seen.tuple.src_addr(), request.src.ip(), "the client's address stays");
        assert_eq!((seen.tuple.sport, seen.tuple.dport, seen.ttl, seen.payload.len()), (40000, 8080, 63, 32));
        assert_eq!((seen.src_mac, seen.dst_mac), (PORT_MACS[1], mac_of(&seen.tuple.dst_addr().to_string())));
        assert_eq!((w.live(), w.announced()), (1, 1), "the reply is announced before the request leaves");

        let reply = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: request.src, flags: SYN_ACK, ..request };
        let back = w.run(PODS, &reply.frame());
        assert_eq!(forward_port(&back), Some(CLIENTS.0));
        let seen = read(&back.bytes).unwrap();
        assert_eq!(seen.tuple, request.tuple().reversed(), "the client sees the Service answer");
        assert_eq!((seen.src_mac, seen.dst_mac), (PORT_MACS[0], mac_of(&request.src.ip().to_string())));
        assert_eq!((w.counters.conntrack.created.get(), w.counters.conntrack.hit.get()), (1, 2));
        assert_eq!((w.counters.target(1).forward.packets.get(), w.counters.target(1).reply.packets.get()), (1, 1));
    }
}

#[test]
fn snat_there_and_back() {
    for (proto, client, service, own) in
        [("tcp", "10.0.0.2:40000", "10.96.0.2:80", "10.0.0.1"), ("udp", "[fd00:a::2]:40000", "[fd00:96::2]:80", "fd00:a::1")]
    {
        let mut w = world();
        let request = spec(proto, client, service, SYN);
        let seen = read(&w.run(CLIENTS, &request.frame()).bytes).unwrap();
        assert_eq!(seen.tuple.src_addr(), ip(own));
        assert!((61_000..62_000).contains(&seen.tuple.sport));
        assert_eq!(w.announced(), 1);
        let reply = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: (ip(own), seen.tuple.sport).into(), flags: SYN_ACK, ..request };
        assert_eq!(read(&w.run(PODS, &reply.frame()).bytes).unwrap().tuple, request.tuple().reversed());
    }
}

#[test]
fn hairpin_a_pod_that_reaches_itself_sees_the_gateway() {
    let mut s = services();
    add_service(&mut s, "10.96.0.5", 80, Proto::Tcp, &[backend("192.168.1.1", 8080)], false);
    let mut w = World::new(s, 16);
    let seen = read(&w.run(PODS, &spec("tcp", "192.168.1.1:40000", "10.96.0.5:80", SYN).frame()).bytes).unwrap();
    assert_eq!((seen.tuple.src_addr(), seen.tuple.dst_addr()), (ip("10.0.0.1"), ip("192.168.1.1")));
}

#[test]
fn a_senders_partial_checksum_is_completed() {
    for (proto, client, service) in [
        ("tcp", "10.0.0.2:40000", "10.96.0.1:80"),
        ("udp", "10.0.0.2:40000", "10.96.0.1:80"),
        ("tcp", "[fd00:a::2]:40000", "[fd00:96::2]:80"),
    ] {
        for payload in [0, 1, 31, 1000] {
            let mut w = world();
            let request = Spec { payload, ..spec(proto, client, service, SYN) };
            let mut frame = request.frame();
            make_partial(&mut frame, &request);
            let done = w.run(CLIENTS, &frame);
            assert_eq!(read(&done.bytes).unwrap().payload.len(), payload, "{request:?}");
            assert_eq!(w.counters.path.checksum_completed.get(), 1);
        }
    }
}

#[test]
fn a_partial_checksum_is_completed_over_all_segments() {
    let request = Spec { payload: 1201, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) };
    let mut frame = request.frame();
    make_partial(&mut frame, &request);
    for cuts in [vec![400], vec![101, 500, 501]] {
        let head = &frame[..cuts[0]];
        let ends = cuts[1..].iter().copied().chain([frame.len()]);
        let tail: Vec<&[u8]> = cuts.iter().zip(ends).map(|(&from, to)| &frame[from..to]).collect();
        let done = world().run_segments(CLIENTS, head, &tail);
        let whole: Vec<u8> = done.bytes.iter().chain(tail.iter().copied().flatten()).copied().collect();
        assert_eq!(read(&whole).unwrap().payload.len(), 1201);
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut frame = spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0).frame();
    frame[40..42].fill(0);
    let done = world().run(CLIENTS, &frame);
    assert_eq!(done.bytes[40..42], [0, 0]);
    read(&done.bytes).unwrap();
}

#[test]
fn options_tags_and_extension_headers_are_stepped_over() {
    // IPv4 with 8 bytes of options.
    let plain = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN).frame();
    let mut options = plain.clone();
    options.splice(34..34, [1u8; 8]);
    options[14] = 0x47;
    let len = (options.len() - 14) as u16;
    options[16..18].copy_from_slice(&len.to_be_bytes());
    options[24..26].fill(0);
    let sum = nomagic_core::checksum::checksum(&options[14..42]);
    options[24..26].copy_from_slice(&sum.to_be_bytes());
    read(&world().run(CLIENTS, &options).bytes).unwrap();

    // 802.1Q and QinQ: the tags are gone where there is no tagged network behind the next hop.
    for tags in [vec![0x81, 0, 0, 5], vec![0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]] {
        let mut tagged = plain.clone();
        tagged.splice(12..12, tags);
        let done = world().run(CLIENTS, &tagged);
        assert_eq!(done.bytes.len(), plain.len());
        read(&done.bytes).unwrap();
    }

    // IPv6: hop-by-hop, destination options, an atomic fragment and a finished routing header.
    let mut v6 = spec("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80", 0).frame();
    let chain = [[60u8, 0, 1, 4, 0, 0, 0, 0], [44, 0, 1, 4, 0, 0, 0, 0], [43, 0, 0, 0, 0, 0, 0, 9], [17, 0, 0, 0, 0, 0, 0, 0]].concat();
    v6.splice(54..54, chain);
    v6[20] = 0;
    let len = (v6.len() - 54) as u16;
    v6[18..20].copy_from_slice(&len.to_be_bytes());
    read(&world().run(CLIENTS, &v6).bytes).unwrap();
}

/// As many as the kernel's NAT would carry, but for a limit that no honest host reaches.
#[test]
fn sixteen_extension_headers_are_stepped_over_and_more_are_the_kernels() {
    let plain = spec("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80", 0).frame();
    for count in [1, 8, 9, 16, 17, 100] {
        let mut frame = plain.clone();
        let mut chain = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(count);
        chain[8 * (count - 1)] = 17;
        frame.splice(54..54, chain);
        frame[20] = 60;
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        let done = world().run(CLIENTS, &frame);
        if count > 16 {
            assert_eq!(done.verdict, Verdict::Kernel(Reason::Ipv6ExtensionChain));
            continue;
        }
        assert!(matches!(done.verdict, Verdict::Forward(PODS, _)), "{count}: {:?}", done.verdict);
        // Without them, so that etherparse reads it as well.
        let mut bare = done.bytes;
        bare.drain(54..54 + 8 * count);
        (bare[18], bare[19], bare[20]) = (plain[18], plain[19], 17);
        let seen = read(&bare).expect("sound");
        assert_eq!((seen.tuple.dport, seen.payload.len()), (8080, 32));
    }
}

#[test]
fn a_reject_is_answered_and_quotes_the_packet() {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(Reason::NoEndpoints));
    add_action(&mut s, "fd00:96::8", 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
    let mut w = World::new(s, 16);
    let request = spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame();
    let mut tagged = request.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    for frame in [&request, &tagged] {
        let done = w.run(CLIENTS, frame);
        assert_eq!(done.verdict, Verdict::Drop(Reason::NoEndpoints));
        let answer = etherparse::PacketHeaders::from_ethernet_slice(&done.made[0]).unwrap();
        let icmp = answer.transport.unwrap().icmpv4().unwrap();
        assert_eq!(icmp.icmp_type.header_len(), 8);
        assert!(matches!(icmp.icmp_type, etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port)));
        let l3 = frame.len() - request.len() + 14;
        assert_eq!(&done.made[0][..6], &CLIENT_MAC, "back to the sender's MAC");
        assert!(done.made[0].ends_with(&request[14..]), "the whole packet is quoted");
        assert_eq!(nomagic_core::checksum::checksum(&done.made[0][l3..l3 + 20]), 0, "IPv4 header checksum");
        assert_eq!(nomagic_core::checksum::checksum(&done.made[0][l3 + 20..]), 0, "ICMP checksum");
        assert_eq!(&done.made[0][l3 + 12..l3 + 16], &[10, 96, 0, 8], "from the address that was asked");
    }
    let big = Spec { payload: 1300, ..spec("tcp", "[fd00:a::2]:40000", "[fd00:96::8]:80", SYN) };
    let done = w.run(CLIENTS, &big.frame());
    let answer = etherparse::PacketHeaders::from_ethernet_slice(&done.made[0]).unwrap();
    let icmp = answer.transport.unwrap().icmpv6().unwrap();
    assert!(matches!(icmp.icmp_type, etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port)));
    assert_eq!(done.made[0].len(), 14 + 1280, "not longer than the minimum MTU");
    let expected = icmp.icmp_type.calc_checksum(ip_octets("fd00:96::8"), ip_octets("fd00:a::2"), &done.made[0][62..]);
    assert_eq!(expected.unwrap(), icmp.checksum);
    assert_eq!((w.counters.frames.made.packets.get(), w.live()), (3, 0));
}

fn ip_octets(s: &str) -> [u8; 16] {
    s.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn no_answer_to_broadcasts_and_beyond_the_limits() {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(Reason::NoEndpoints));
    let mut w = World::new(s, 16);
    let mut frame = spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame();
    frame[0] = 0xff;
    assert!(w.run(CLIENTS, &frame).made.is_empty());
    frame[0] = 2;
    let answered = (0..1_000).filter(|_| !w.run(CLIENTS, &frame).made.is_empty()).count() as u64;
    assert_eq!(answered, Class::Unreachable.share().burst, "a sender's limit");
    assert_eq!(w.counters.path.rejects_suppressed.of(Class::Unreachable).get(), 1_001 - answered);
    assert_eq!(w.counters.reasons.drop.of(Reason::NoEndpoints).get(), 1_001, "dropped all the same");
}

#[test]
fn the_ttl_ends_here_and_the_sender_is_told() {
    for (client, service) in [("10.0.0.2:40000", "10.96.0.1:80"), ("[fd00:a::2]:40000", "[fd00:96::1]:80")] {
        for ttl in [0, 1] {
            let mut w = world();
            let done = w.run(CLIENTS, &Spec { ttl, ..spec("tcp", client, service, SYN) }.frame());
            assert_eq!(done.verdict, Verdict::Drop(Reason::TtlExceeded));
            assert_eq!((done.made.len(), w.live()), (1, 0), "told, and no connection opened");
        }
    }
}

#[test]
fn too_big_for_the_way_on() {
    let mut w = world();
    let frame = Spec { payload: 1473, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) }.frame();
    let done = w.run(CLIENTS, &frame);
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::TooBig), 1));
    assert_eq!(&done.made[0][34..42][..2], &[3, 4], "fragmentation needed");
    assert_eq!(&done.made[0][40..42], &1500u16.to_be_bytes(), "the MTU");
    let fits = Spec { payload: 1472, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) };
    assert_eq!(forward_port(&w.run(CLIENTS, &fits.frame())), Some(PODS.0));
}

#[test]
fn what_is_not_ours_goes_back_to_the_kernel_whole() {
    let mut w = world();
    let request = spec("tcp", "10.0.0.2:40000", "10.0.0.1:22", SYN);
    let mut frame = request.frame();
    make_partial(&mut frame, &request);
    frame.splice(12..12, [0x81, 0, 0, 5]);
    let done = w.run(CLIENTS, &frame);
    assert_eq!(done.verdict, Verdict::Kernel(Reason::NotOurs));
    let seen = read(&done.bytes).unwrap();
    assert_eq!((seen.tuple, seen.dst_mac, seen.src_mac, seen.ttl), (request.tuple(), KERNEL_MAC, CLIENT_MAC, 64));
    let from_kernel = |dst: &str| {
        let mut frame = Spec { dst: dst.parse().unwrap(), ..request }.frame();
        frame[..6].copy_from_slice(&KERNEL_MAC);
        frame
    };
    let done = w.run(INTERNAL, &from_kernel("203.0.113.7:22"));
    assert_eq!(
        (done.verdict, &done.bytes[..6]),
        (Verdict::Kernel(Reason::NotOurs), &KERNEL_MAC[..]),
        "the node's own goes on without nomagic"
    );
    let circling = w.run(INTERNAL, &from_kernel("169.254.78.78:61000")).verdict;
    assert_eq!(circling, Verdict::Drop(Reason::NotOurs), "what always leads here does not go in circles");
    let mut icmp = from_kernel("169.254.78.78:61000");
    icmp[23] = 1;
    assert_eq!(w.run(INTERNAL, &icmp).verdict, Verdict::Drop(Reason::Icmp));
    let done = w.run(INTERNAL, &request.frame());
    assert_eq!(done.verdict, Verdict::Kernel(Reason::NotOurs), "what was redirected from a pod's interface does go there");
    assert_eq!(done.bytes[..6], KERNEL_MAC);
    w.routes.internal = None;
    assert_eq!(w.run(CLIENTS, &request.frame()).verdict, Verdict::Drop(Reason::NoInternalPort));
}

#[test]
fn a_missing_neighbour_holds_the_frame_as_it_came() {
    let mut s = services();
    add_service(&mut s, "10.96.0.5", 80, Proto::Tcp, &[backend("192.168.9.9", 8080)], false);
    let mut w = World::new(s, 16);
    let frame = spec("tcp", "10.0.0.2:40000", "10.96.0.5:80", SYN).frame();
    let done = w.run(CLIENTS, &frame);
    assert_eq!(done.verdict, Verdict::Hold(Wait::Neighbour(Wanted { port: PODS, addr: ip("192.168.9.9") })));
    assert_eq!((done.bytes, w.live(), w.announced()), (frame, 0, 0));
}

#[test]
fn a_changed_route_moves_an_established_connection() {
    let mut w = world();
    let request = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN);
    let first = read(&w.run(CLIENTS, &request.frame()).bytes).unwrap();
    let again = read(&w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame()).bytes).unwrap();
    assert_eq!(first.dst_mac, again.dst_mac);
    let port = |mac| nomagic_core::routes::Port { mac, mtu: 1500, up: true };
    let leg = nomagic_core::routes::Leg { port: Some(CLIENTS), captured: false, gateway: Some(ip("10.0.0.254")), weight: 1, mtu: None };
    let route = nomagic_core::routes::Route {
        prefix: "0.0.0.0/0".parse().unwrap(),
        metric: 0,
        kind: nomagic_core::routes::RouteKind::Unicast(vec![leg]),
    };
    let gateway = nomagic_core::routes::Neighbour { port: CLIENTS, addr: ip("10.0.0.254"), mac: [8; 6] };
    w.routes = nomagic_core::routes::Routes::build(2, PORT_MACS.map(port).to_vec(), None, vec![route], &[gateway]).0;
    let done = w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame());
    assert_eq!((forward_port(&done), read(&done.bytes).unwrap().dst_mac), (Some(CLIENTS.0), [8; 6]));
}

#[test]
fn replies_behind_the_kernel_go_through_it() {
    let mut w = world();
    let request = spec("udp", "172.16.0.9:40000", "10.96.0.1:80", 0);
    let seen = read(&w.run(CLIENTS, &request.frame()).bytes).unwrap();
    let reply = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: request.src, ..request };
    let done = w.run(PODS, &reply.frame());
    assert_eq!(forward_port(&done), Some(INTERNAL.0));
    let seen = read(&done.bytes).unwrap();
    assert_eq!((seen.tuple, seen.dst_mac), (request.tuple().reversed(), KERNEL_MAC));
}

#[test]
fn a_service_that_changes_leaves_its_connections_alone() {
    let mut w = world();
    let request = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN);
    let before = read(&w.run(CLIENTS, &request.frame()).bytes).unwrap();
    w.services = nomagic_core::services::Services::empty(nomagic_core::tuple::HashSeed::new(1));
    let after = read(&w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame()).bytes).unwrap();
    assert_eq!(before.tuple, after.tuple);
    let other = spec("tcp", "10.0.0.2:40001", "10.96.0.1:80", SYN);
    assert_eq!(w.run(CLIENTS, &other.frame()).verdict, Verdict::Kernel(Reason::NotOurs));
}

#[test]
fn a_client_reuses_its_port_after_a_reset_but_not_before() {
    let mut w = world();
    let request = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN);
    w.run(CLIENTS, &request.frame());
    w.run(CLIENTS, &request.frame());
    assert_eq!(w.counters.conntrack.created.get(), 1, "a repeated SYN");
    w.run(CLIENTS, &Spec { flags: RST, ..request }.frame());
    w.run(CLIENTS, &request.frame());
    assert_eq!((w.counters.conntrack.created.get(), w.counters.conntrack.replaced.get(), w.live()), (2, 1, 1));
    assert_eq!(w.announced(), 1);
}

#[test]
fn time_ends_connections_and_withdraws_their_announcements() {
    let mut w = world();
    w.run(CLIENTS, &spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0).frame());
    w.run(CLIENTS, &spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN).frame());
    w.now_ms += 29_000;
    w.sweep_all();
    assert_eq!((w.live(), w.announced()), (2, 2));
    w.now_ms += 2_000;
    w.sweep_all();
    assert_eq!((w.live(), w.announced(), w.counters.conntrack.expired.get()), (1, 1, 1));
    w.now_ms += 120_000;
    w.run(CLIENTS, &spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN).frame());
    assert_eq!(
        (w.live(), w.counters.conntrack.expired.get(), w.counters.conntrack.created.get()),
        (1, 2, 3),
        "not believed before the sweep comes"
    );
}
