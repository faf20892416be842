//! Answers about unused ports of load balancer and external IPs.

use super::*;

/// A load balancer IP, an external IP on the clients' link, and one of a Service that is not served.
fn gateway() -> OneWorkerGateway {
    let service = "{metadata: {name: web, namespace: n}, spec: {type: LoadBalancer, clusterIP: 172.30.0.1, externalIPs: [203.0.113.77], \
                   ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.10}]}}}";
    let service = Service::from_k8s(&serde_saphyr::from_str(service).unwrap(), &Origin::default()).unwrap();
    let mut gateway = OneWorkerGateway::new(Index::of([Object::Service(Arc::new(service))]), settings());
    let (ports, internal) = ([0, 1, 2].map(|last| Port { mac: [2, 0, 0, 0, 0, last], mtu: 1_500, up: true }), PortId(2));
    let leg = |gateway: Option<&str>| Leg {
        port: Some(PortId(0)),
        captured: false,
        gateway: gateway.map(|addr| addr.parse().unwrap()),
        weight: 1,
        mtu: None,
    };
    let route = |prefix: &str, leg| Route { prefix: prefix.parse().unwrap(), metric: 0, kind: RouteKind::Unicast(vec![leg]) };
    let routes = vec![
        route("0.0.0.0/0", leg(Some("203.0.113.1"))),
        route("203.0.113.0/24", leg(None)),
        route("10.1.0.0/16", Leg { port: Some(PortId(1)), ..leg(None) }),
    ];
    gateway.routes = Routes::build(2, ports.into(), Some(InternalPort { port: internal, kernel_mac: [9; 6] }), routes, &[]).0;
    gateway
}

#[test]
fn the_way_decides() {
    const UNUSED: &str = "tcp 192.0.2.7:1 -> 198.51.100.10:81";
    let mut g = gateway();
    let refused = g.explain(UNUSED);
    assert_eq!((refused.verdict, refused.reason.as_deref()), (Verdict::Reject, Some("unused_external_port")), "{refused:#?}");
    assert_eq!(refused.service.as_deref(), Some("n/web"));
    let text = refused.steps.join("\n");
    assert!(text.contains("is a load balancer or external IP of Service n/web, but 81/TCP is not one of its ports (80/TCP)"), "{text}");
    assert!(text.contains("leads to a router") && text.contains("by ICMP \"port unreachable\": connection refused"), "{text}");
    for flow in ["tcp 10.1.0.1:1 -> 198.51.100.10:81", "tcp 192.0.2.7:1 -> 203.0.113.77:81"] {
        let passed = g.explain(flow);
        assert_eq!((passed.verdict, passed.reason.as_deref()), (Verdict::Pass, Some("not_ours")), "{passed:#?}");
        assert!(passed.steps.iter().any(|step| step.contains("does not lead back")), "{passed:#?}");
    }
    for (choice, verdict, words) in [
        (UnusedPorts::Drop, Verdict::Drop, "The packet is dropped silently"),
        (UnusedPorts::Kernel, Verdict::Pass, "also if it sends them back (unusedPorts: kernel)"),
    ] {
        g.settings.unused_ports = choice;
        g.compiled = Compiler::new(TARGETS_MAX).compile(&g.index, &g.settings);
        let answer = g.explain(UNUSED);
        assert!(answer.verdict == verdict && answer.steps.iter().any(|step| step.contains(words)), "{answer:#?}");
    }
}

#[test]
fn without_routes_the_answer_says_on_what_it_depends() {
    let g = gateway();
    let explainer = Explainer::new(&g.index, &g.settings, &g.compiled);
    let flow = "udp 192.0.2.7:1 -> 198.51.100.10:80";
    let answer = explainer.answer(flow, &parse_flow(flow).unwrap());
    assert_eq!(answer.verdict, Verdict::Pass);
    assert!(answer.steps.iter().any(|step| step.contains("`explain --live` knows the routes")), "{answer:#?}");
}
