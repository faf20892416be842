//! What is said of flows that the gateway knows: since when, and where a new one would go.

use nomagic_api::explain::{FlowFate, KnownFlow};
use nomagic_api::flows::FlowState;

use super::*;

fn known(g: &OneWorkerGateway, flow: &str) -> KnownFlow {
    let answer = g.explain(flow);
    *answer.known_flow.clone().unwrap_or_else(|| panic!("{answer:#?}"))
}

const FLOW: &str = "tcp 203.0.113.1:1000 -> 172.30.0.1:80";

#[test]
fn an_age_is_told_as_far_as_it_is_known() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), settings());
    g.open(FLOW);
    g.now_ms += 5_000;
    let flow = known(&g, FLOW);
    assert_eq!((flow.state, flow.fate, flow.idle_ms, flow.expires_in_ms), (FlowState::SynSent, FlowFate::Continues, 5_000, 115_000));
    // The machine runs for less than the modulus, so there is no other age.
    assert_eq!((flow.age_ms, flow.age_remainder_ms, flow.age_modulus_ms), (Some(5_000), 5_000, 256_000));
    assert!(g.steps(FLOW).contains("It was opened 5.0 s ago.\n"), "{}", g.steps(FLOW));

    let mut later = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), settings());
    later.now_ms = 1_000_000;
    later.open(FLOW);
    later.now_ms += 5_000;
    let flow = known(&later, FLOW);
    assert_eq!((flow.age_ms, flow.age_remainder_ms), (None, 5_000));
    assert!(later.steps(FLOW).contains("or that long and a multiple of 256 s before"), "{}", later.steps(FLOW));
    // A flow is not younger than its last packet: only one of the ages is left.
    g.confirm_all();
    g.now_ms += 300_000;
    let flow = known(&g, FLOW);
    assert_eq!((flow.state, flow.age_ms, flow.age_remainder_ms), (FlowState::Established, Some(305_000), 305_000 - 256_000));
}

#[test]
fn it_is_said_where_a_new_flow_would_go() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), settings());
    g.open(FLOW);
    let flow = known(&g, FLOW);
    assert_eq!((flow.new_one_goes_to.as_ref(), &flow.goes_elsewhere_because), (Some(&flow.backend), &None));
    // The reply's question has the same answer.
    let original = g.explain(FLOW);
    let reply = format!("tcp {} -> 203.0.113.1:1000", flow.backend);
    if original.snat.is_none() {
        assert_eq!(known(&g, &reply).new_one_goes_to, flow.new_one_goes_to);
    }

    let own = flow.backend.trim_end_matches(":8080").to_owned();
    let others: Vec<&str> = HOPS.into_iter().filter(|hop| *hop != own).collect();
    g.compile(index(&[(1, false, &others)]));
    let gone = known(&g, FLOW);
    assert!(gone.new_one_goes_to.as_ref().is_some_and(|to| *to != flow.backend), "{gone:?}");
    assert_eq!(gone.goes_elsewhere_because.as_deref(), Some("the endpoint is no longer one of the Service port's"));
    assert_eq!(g.explain(FLOW).chosen.as_ref(), Some(&flow.backend), "the flow stays");

    g.compile(index(&[(1, false, &[])]));
    let none = known(&g, FLOW);
    assert!(none.new_one_goes_to.is_none() && none.goes_elsewhere_because.is_some_and(|why| why.contains("the Service has no")));
    g.compile(index(&[]));
    let nobody = known(&g, FLOW);
    assert!(nobody.new_one_goes_to.is_none() && nobody.goes_elsewhere_because.is_some(), "{nobody:?}");
}

#[test]
fn a_changed_hash_table_and_affinity_are_named() {
    // Of all flows to two endpoints, some would go to a third one that has come.
    let mut g = OneWorkerGateway::new(index(&[(1, false, &HOPS[..2])]), settings());
    let flows: Vec<String> = (1_000..1_040).map(|port| format!("tcp 10.9.0.1:{port} -> 172.30.0.1:80")).collect();
    flows.iter().for_each(|flow| g.open(flow));
    g.compile(index(&[(1, false, &HOPS[..3])]));
    let moved: Vec<KnownFlow> = flows.iter().map(|flow| known(&g, flow)).filter(|flow| flow.goes_elsewhere_because.is_some()).collect();
    assert!(!moved.is_empty() && moved.len() < flows.len(), "{}", moved.len());
    for flow in &moved {
        assert!(flow.goes_elsewhere_because.as_ref().is_some_and(|why| why.contains("slot in the Maglev table is another's")), "{flow:?}");
    }

    assert!(moved.iter().any(|flow| flow.new_one_goes_to.as_deref() == Some("10.1.0.3:8080")), "{moved:?}");

    let mut g = OneWorkerGateway::new(index(&[(1, true, &HOPS)]), settings());
    g.open(FLOW);
    let text = g.steps(FLOW);
    assert!(text.contains("its session affinity names that endpoint"), "{text}");
}

#[test]
fn as_new_an_answer_leaves_the_known_flow_out() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &HOPS)]), settings());
    let fresh = g.explain(FLOW);
    g.open(FLOW);
    let explainer = Explainer::new(&g.index, &g.settings, &g.compiled);
    let live = LiveState { table: g.table(), routes: &g.routes, ports: &g.ports, timeouts: Timeouts::default(), now_ms: g.now_ms };
    let new = explainer.with_state(live).answer_as_new(FLOW, &parse_flow(FLOW).unwrap());
    assert!(new.known_flow.is_none() && g.explain(FLOW).known_flow.is_some());
    assert_eq!((new.verdict, &new.backends, &new.chosen, new.snat), (fresh.verdict, &fresh.backends, &fresh.chosen, fresh.snat));
}
