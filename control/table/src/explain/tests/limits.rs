//! Answers about limits of a Service's connections.

use super::*;

fn with_limits(per_second: u64, per_client: u64) -> Settings {
    let limits = DefaultLimits { per_second: ConnectionsPerSecond::new(per_second), per_client: ConnectionsPerClient::new(per_client) };
    Settings { limits, ..settings() }
}

const FROM_CONFIGURATION: [&str; 2] = [
    "All clients together may open 3 connections a second to this port (limits.connectionsPerSecond in the configuration)",
    "One client may have 2 connections to the Service at a time (limits.maxConnectionsPerClient in the configuration)",
];

#[test]
fn limits_are_named_with_their_origin() {
    let g = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), with_limits(3, 2));
    let text = g.steps("tcp 203.0.113.1:9 -> 172.30.0.1:80");
    assert!(FROM_CONFIGURATION.iter().all(|words| text.contains(words)), "{text}");
    assert!(text.contains("This client has 0 counted connections."), "{text}");
    let files = Explainer::new(&g.index, &g.settings, &g.compiled);
    let flow = "tcp 203.0.113.1:9 -> 172.30.0.1:80";
    let text = files.answer(flow, &parse_flow(flow).unwrap()).steps.join("\n");
    assert!(text.contains("Only the running gateway knows how many this one has."), "{text}");
    let without = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), settings()).steps(flow);
    assert!(!without.contains("at a time") && !without.contains("a second to this port"), "{without}");
}

#[test]
fn an_annotation_is_named() {
    let annotations = "{nomagic.io/connections-per-second: '7', nomagic.io/max-connections-per-client: '0'}";
    let service = format!(
        "{{metadata: {{name: s1, namespace: n, annotations: {annotations}}}, spec: {{clusterIP: 172.30.0.1, ports: [{{name: tcp, port: 80}}]}}}}"
    );
    let mut index = index(&[(1, false, &HOPS)]);
    let service = Service::from_k8s(&serde_saphyr::from_str(&service).unwrap(), &Origin::default()).unwrap();
    index.apply(Object::Service(Arc::new(service)));
    let text = OneWorkerGateway::new(index, with_limits(3, 2)).steps("tcp 203.0.113.1:9 -> 172.30.0.1:80");
    assert!(
        text.contains("may open 7 connections a second to this port (the Service's annotation nomagic.io/connections-per-second)"),
        "{text}"
    );
    assert!(!text.contains("at a time"), "0 is no limit: {text}");
}

#[test]
fn a_limit_that_is_reached_drops_and_asking_takes_nothing() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), with_limits(3, 2));
    let flow = |client: &str, port: u16| format!("tcp {client}:{port} -> 172.30.0.1:80");
    let outcome = |g: &OneWorkerGateway, flow: &str| {
        let answer = g.explain(flow);
        (answer.verdict, answer.reason.unwrap_or_default(), answer.steps.join("\n"))
    };
    for port in 1..=2 {
        (0..20).for_each(|_| assert_eq!(g.explain(&flow(CLIENTS[0], port)).verdict, Verdict::Forward));
        g.open(&flow(CLIENTS[0], port));
    }
    let (verdict, reason, text) = outcome(&g, &flow(CLIENTS[0], 3));
    assert_eq!((verdict, reason.as_str()), (Verdict::Drop, "client_connection_limit"));
    assert!(text.contains("This client has 2 counted connections.") && text.contains("dropped silently (the client has as many"), "{text}");
    assert_eq!(g.explain(&flow(CLIENTS[0], 1)).verdict, Verdict::Forward, "its flows go on");
    g.open(&flow(CLIENTS[1], 1));
    let (verdict, reason, text) = outcome(&g, &flow(CLIENTS[2], 1));
    assert_eq!((verdict, reason.as_str()), (Verdict::Drop, "service_rate_limited"));
    assert!(text.contains("dropped silently (the Service port has taken as many"), "{text}");
    let port = &g.compiled.services.frontend("172.30.0.1".parse().unwrap(), 80, Proto::Tcp).unwrap().port;
    assert_eq!((port.refused.dropped(), port.refused.rejected()), (0, 0), "asking is not counted");
    g.now_ms += 400;
    assert_eq!(g.explain(&flow(CLIENTS[2], 1)).verdict, Verdict::Forward, "a third of a second later there is one more");
}
