//! Answers about packets whose source is in the deny list.

use super::*;

impl OneWorkerGateway {
    fn explain_with(&self, denied: &[&str], flow: &str) -> Answer {
        let denied: DenyList = denied.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let explainer = Explainer::new(&self.index, &self.settings, &self.compiled).with_denied(&denied);
        let live =
            LiveState { table: self.table(), routes: &self.routes, ports: &self.ports, timeouts: Timeouts::default(), now_ms: self.now_ms };
        explainer.with_state(live).answer(flow, &parse_flow(flow).unwrap())
    }
}

#[test]
fn the_filter_drops_what_it_takes_otherwise() {
    let mut gateway = OneWorkerGateway::new(index(&[(1, false, &HOPS[..1])]), settings());
    gateway.open("tcp 10.9.0.1:1 -> 172.30.0.1:80");
    let everything = &["0.0.0.0/0", "10.9.0.0/16"];
    let cases = [
        ("tcp 203.0.113.1:1 -> 172.30.0.1:80", "0.0.0.0/0"),
        ("tcp 10.9.0.2:1 -> 172.30.0.1:80", "10.9.0.0/16"),
        ("tcp 203.0.113.1:1 -> 172.30.0.1:81", "0.0.0.0/0"),
        ("tcp 203.0.113.1:1 -> 172.30.7.7:80", "0.0.0.0/0"),
        ("tcp 10.9.0.1:1 -> 172.30.0.1:80", "10.9.0.0/16"),
        // The endpoint's reply.
        ("tcp 10.1.0.1:8080 -> 10.9.0.1:1", "0.0.0.0/0"),
    ];
    for (flow, prefix) in cases {
        let answer = gateway.explain_with(everything, flow);
        assert_eq!((answer.verdict, answer.reason.as_deref(), answer.steps.len()), (Verdict::Drop, Some("denied"), 2), "{answer:#?}");
        let (words, known) = (format!("The deny list has {prefix}, and "), flow.contains("10.9.0.1:1"));
        assert!(answer.steps[1].starts_with(&words) && answer.steps[1].contains("that nomagic knows") == known, "{answer:#?}");
        assert_ne!(gateway.explain_with(&["198.51.100.0/24"], flow).reason.as_deref(), Some("denied"), "{flow}");
    }
}

#[test]
fn the_kernels_traffic_and_the_nodes_own_packets_are_not_denied() {
    let gateway = OneWorkerGateway::new(index(&[(1, false, &HOPS[..1])]), settings());
    for flow in ["tcp 203.0.113.1:1 -> 192.168.0.2:22", "udp 203.0.113.1:1 -> 8.8.8.8:53"] {
        let (answer, plain) = (gateway.explain_with(&["0.0.0.0/0"], flow), gateway.explain(flow));
        assert_eq!((answer.verdict, &answer.reason), (plain.verdict, &plain.reason));
        let (last, before) = answer.steps.split_last().unwrap();
        assert!(
            last.ends_with("the deny list applies only to packets that nomagic takes: the kernel gets this one.") && before == plain.steps,
            "{answer:#?}"
        );
    }
    let own = "tcp 192.168.0.2:1 -> 172.30.0.1:80";
    assert_eq!(gateway.explain_with(&["0.0.0.0/0"], own), gateway.explain(own), "it comes by the internal port");
}
