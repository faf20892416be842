//! Pods on this node: behind the kernel, captured by the XDP filter on their interfaces or not.

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

const LOCAL: &str = "172.31.0.7";
const LOCAL6: &str = "fd00:c::7";

/// Services on local pods (captured), on one that is not captured, and on this node itself.
fn world() -> World {
    let mut s = services();
    for (addr, pod, snat) in [
        ("10.96.2.1", LOCAL, false),
        ("10.96.2.2", LOCAL, true),
        ("10.96.2.3", "172.16.0.7", false),
        ("10.96.2.4", "172.16.0.7", true),
        ("10.96.2.5", "10.0.0.1", false),
        ("fd00:96::21", LOCAL6, false),
    ] {
        add_service(&mut s, addr, 80, Proto::Tcp, &[backend(pod, 8080)], snat);
    }
    add_action(&mut s, "10.96.2.9", 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
    World::new(s, 64)
}

fn forwarded(done: &Done) -> (PortId, Seen) {
    let Verdict::Forward(port, _) = done.verdict else { panic!("{:?}", done.verdict) };
    (port, read(&done.bytes).expect("a sound frame"))
}

/// The answer to what the backend saw.
fn answer(seen: &Seen) -> Spec {
    let t = &seen.tuple;
    Spec {
        src: (t.dst_addr(), t.dport).into(),
        dst: (t.src_addr(), t.sport).into(),
        flags: SYN_ACK,
        ..spec("tcp", "1.1.1.1:1", "1.1.1.1:1", 0)
    }
}

#[test]
fn a_captured_pod_sees_its_client_and_its_answers_are_announced() {
    for (client, service, pod) in [("10.0.0.2:40000", "10.96.2.1:80", LOCAL), ("[fd00:a::2]:40000", "[fd00:96::21]:80", LOCAL6)] {
        let mut w = world();
        let request = spec("tcp", client, service, SYN);
        let (port, seen) = forwarded(&w.run(CLIENTS, &request.frame()));
        assert_eq!((port, seen.dst_mac, seen.src_mac), (INTERNAL, KERNEL_MAC, PORT_MACS[2]));
        assert_eq!((seen.tuple.src_addr(), seen.tuple.dst_addr(), seen.tuple.dport), (request.src.ip(), ip(pod), 8080));
        assert_eq!(w.announced(), 1, "its interface's filter must know the answer");
        // Redirected from the pod's interface, it comes in by the internal port.
        let (port, seen) = forwarded(&w.run(INTERNAL, &answer(&seen).frame()));
        assert_eq!((port, seen.tuple), (CLIENTS, request.tuple().reversed()));
    }
}

#[test]
fn with_snat_a_captured_pod_answers_to_the_nodes_ports() {
    let mut w = world();
    let (_, seen) = forwarded(&w.run(CLIENTS, &spec("tcp", "10.0.0.2:40000", "10.96.2.2:80", SYN).frame()));
    assert_eq!((seen.tuple.src_addr(), w.announced()), (ip("10.0.0.1"), 1));
}

#[test]
fn a_pod_out_of_sight_answers_to_an_address_that_leads_here() {
    for service in ["10.96.2.3:80", "10.96.2.4:80", "10.96.2.5:80"] {
        let mut w = world();
        let request = spec("tcp", "10.0.0.2:40000", service, SYN);
        let (port, seen) = forwarded(&w.run(CLIENTS, &request.frame()));
        assert_eq!((port, seen.tuple.src_addr(), w.announced()), (INTERNAL, ip("169.254.78.78"), 1), "{service}");
        assert!((61_000..62_000).contains(&seen.tuple.sport));
        let (port, seen) = forwarded(&w.run(INTERNAL, &answer(&seen).frame()));
        assert_eq!((port, seen.tuple), (CLIENTS, request.tuple().reversed()), "{service}");
        let (_, seen) = forwarded(&w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame()));
        assert_eq!(seen.tuple.src_addr(), ip("169.254.78.78"), "the established connection");
        // In the middle of an unknown connection there is no port to choose.
        let lone = spec("tcp", "10.0.0.2:40001", service, ACK);
        assert_eq!(w.run(CLIENTS, &lone.frame()).verdict, Verdict::Drop(Reason::MidFlowSnat));
    }
    let mut w = world();
    w.services.snat.internal_v4 = None;
    let done = w.run(CLIENTS, &spec("tcp", "10.0.0.2:40000", "10.96.2.3:80", SYN).frame());
    assert_eq!(done.verdict, Verdict::Drop(Reason::NextHopKernel));
}

#[test]
fn a_pod_out_of_sight_sees_its_client_if_answers_are_captured_on_their_way_out() {
    // Without SNAT by the Service: a pod, and an address of this node.
    for (client, service) in [("10.0.0.2:40000", "10.96.2.3:80"), ("10.0.0.2:40000", "10.96.2.5:80"), ("172.31.0.9:40000", "10.96.2.3:80")]
    {
        let mut w = world();
        w.routes = w.routes.with_answers_seen([true; 3]);
        let from = if client.starts_with("10.") { CLIENTS } else { INTERNAL };
        let request = spec("tcp", client, service, SYN);
        let (port, seen) = forwarded(&w.run(from, &request.frame()));
        assert_eq!((port, seen.tuple.src_addr(), seen.tuple.sport), (INTERNAL, request.src.ip(), 40_000), "{service}");
        assert_eq!(w.announced(), 1, "its answer is recognised on its way out");
        let (port, seen) = forwarded(&w.run(INTERNAL, &answer(&seen).frame()));
        assert_eq!((port, seen.tuple), (from, request.tuple().reversed()), "{service}");
        // With another port: a connection whose beginning was not seen.
        let lone = spec("tcp", &client.replace("40000", "40001"), service, ACK);
        assert_eq!(forwarded(&w.run(from, &lone.frame())).1.tuple.src_addr(), request.src.ip());
    }
    // With SNAT by the Service, for the node itself, and for a client that is out of sight too, nothing else than the internal address leads back.
    for (client, service) in [("10.0.0.2:40000", "10.96.2.4:80"), ("10.0.0.1:40000", "10.96.2.3:80"), ("172.16.0.9:40000", "10.96.2.3:80")]
    {
        let mut w = world();
        w.routes = w.routes.with_answers_seen([true; 3]);
        let from = if service.ends_with("4:80") { CLIENTS } else { INTERNAL };
        let mut request = spec("tcp", client, service, SYN).frame();
        if from == INTERNAL {
            // As the node itself sends it.
            request[..6].copy_from_slice(&KERNEL_MAC);
        }
        let (_, seen) = forwarded(&w.run(from, &request));
        assert_eq!(seen.tuple.src_addr(), ip("169.254.78.78"), "{client} {service}");
    }
}

#[test]
fn a_connection_ends_here_when_its_answers_are_no_longer_captured() {
    let mut w = world();
    w.routes = w.routes.with_answers_seen([true; 3]);
    let request = spec("tcp", "10.0.0.2:40000", "10.96.2.3:80", SYN);
    forwarded(&w.run(CLIENTS, &request.frame()));
    w.routes = w.routes.with_answers_seen([false; 3]);
    w.routes.generation += 1;
    let again = w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame());
    assert_eq!(again.verdict, Verdict::Drop(Reason::NextHopKernel), "it would be answered by an address that the client did not ask");
}

#[test]
fn local_pods_are_clients_of_each_other_and_of_themselves() {
    let mut w = world();
    // Another pod of this node.
    let request = spec("tcp", "172.31.0.9:40000", "10.96.2.1:80", SYN);
    let (port, seen) = forwarded(&w.run(INTERNAL, &request.frame()));
    assert_eq!((port, seen.tuple.src_addr(), seen.tuple.dst_addr()), (INTERNAL, ip("172.31.0.9"), ip(LOCAL)));
    let (port, seen) = forwarded(&w.run(INTERNAL, &answer(&seen).frame()));
    assert_eq!((port, seen.tuple, seen.dst_mac), (INTERNAL, request.tuple().reversed(), KERNEL_MAC));
    // The pod itself: hairpin, with the node's address.
    let request = spec("tcp", &format!("{LOCAL}:40000"), "10.96.2.1:80", SYN);
    let (_, seen) = forwarded(&w.run(INTERNAL, &request.frame()));
    assert_eq!((seen.tuple.src_addr(), seen.tuple.dst_addr()), (ip("10.0.0.1"), ip(LOCAL)));
    let (_, seen) = forwarded(&w.run(INTERNAL, &answer(&seen).frame()));
    assert_eq!(seen.tuple, request.tuple().reversed());
}

#[test]
fn a_reject_reaches_a_local_pod_over_the_kernel() {
    let mut w = world();
    let done = w.run(INTERNAL, &spec("tcp", "172.31.0.9:40000", "10.96.2.9:80", SYN).frame());
    assert_eq!((done.verdict, done.made.len()), (Verdict::Drop(Reason::NoEndpoints), 1));
    assert_eq!((&done.made[0][..6], &done.made[0][6..12]), (&KERNEL_MAC[..], &PORT_MACS[2][..]));
}

#[test]
fn a_route_that_leads_out_of_sight_drops_rather_than_leaks() {
    let moved = |to_local: RouteKind, to_remote: RouteKind| {
        let route = |prefix: &str, kind| Route { prefix: prefix.parse().unwrap(), metric: 0, kind };
        let ports = PORT_MACS.map(|mac| Port { mac, mtu: 1500, up: true }).to_vec();
        let near = [(PODS, LOCAL), (PODS, "172.16.0.7"), (CLIENTS, "10.0.0.2")];
        let near = near.map(|(port, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) });
        let routes = vec![route("172.31.0.0/16", to_local), route("172.16.0.0/12", to_remote)];
        Routes::build(2, ports, Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC }), routes, &near).0
    };
    let mut w = world();
    let (captured, hidden) = (spec("tcp", "10.0.0.2:40000", "10.96.2.1:80", SYN), spec("tcp", "10.0.0.2:40000", "10.96.2.3:80", SYN));
    forwarded(&w.run(CLIENTS, &captured.frame()));
    forwarded(&w.run(CLIENTS, &hidden.frame()));
    let again = |w: &mut World, request: Spec| w.run(CLIENTS, &Spec { flags: ACK, ..request }.frame());
    // The captured pod's interface is no longer looked at; the hidden pod now lies behind a port.
    let by_port =
        RouteKind::Unicast(vec![nomagic_core::routes::Leg { port: Some(PODS), captured: false, gateway: None, weight: 1, mtu: None }]);
    w.routes = moved(local_pods(false), by_port);
    assert_eq!(again(&mut w, captured).verdict, Verdict::Drop(Reason::NextHopKernel), "its answer would pass us by");
    assert_eq!(again(&mut w, hidden).verdict, Verdict::Drop(Reason::NextHopKernel), "its answer would go to an address of this node alone");
    w.routes = moved(local_pods(true), local_pods(false));
    w.routes.generation = 3;
    forwarded(&again(&mut w, captured));
    forwarded(&again(&mut w, hidden));
}
