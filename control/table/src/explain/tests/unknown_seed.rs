//! Answers for a gateway whose seed is not known.

use super::*;

/// Explains a flow with and without knowledge of the seed.
fn both(endpoints: &[&str], flow: &str) -> [Answer; 2] {
    let (index, settings) = (index(&[(1, false, endpoints)]), settings());
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    let explainer = || Explainer::new(&index, &settings, &compiled);
    let tuple = parse_flow(flow).unwrap();
    [explainer().with_unknown_seed().answer(flow, &tuple), explainer().answer(flow, &tuple)]
}

#[test]
fn no_endpoint_is_promised() {
    let [unknown, known] = both(&HOPS, "tcp 203.0.113.1:1 -> 172.30.0.1:80");
    assert!(known.certain && !unknown.certain);
    assert_eq!(
        (&unknown.chosen, unknown.verdict, unknown.backends.len()),
        (&known.chosen, Verdict::Forward, 4),
        "explained with the seed 0"
    );
    let (text, promised) = (unknown.steps.join("\n"), "The same flow always gets the same slot");
    for words in
        ["a seed that only the running gateway knows", "any of the 4 candidates", "`nomagic explain --live`", "With the seed 0 it is"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains(promised) && known.steps.join("\n").contains(promised), "{text}");
}

#[test]
fn what_does_not_depend_on_the_seed_is_certain() {
    let [unknown, known] = both(&HOPS[..1], "tcp 203.0.113.1:1 -> 172.30.0.1:80");
    assert_eq!((unknown.certain, unknown.chosen.as_deref(), &unknown.chosen), (true, Some("10.1.0.1:8080"), &known.chosen));
    let text = unknown.steps.join("\n");
    assert!(text.contains("every slot of the Service's Maglev table is 10.1.0.1:8080's") && !text.contains("With the seed 0"), "{text}");
    for (endpoints, flow, verdict) in [
        (&[][..], "tcp 203.0.113.1:1 -> 172.30.0.1:80", Verdict::Reject),
        (&HOPS[..], "tcp 203.0.113.1:1 -> 172.30.0.1:81", Verdict::Reject),
        (&HOPS[..], "tcp 203.0.113.1:1 -> 8.8.8.8:80", Verdict::Pass),
    ] {
        let [unknown, known] = both(endpoints, flow);
        assert_eq!((unknown.certain, unknown.verdict, &unknown), (true, verdict, &known), "{flow}");
    }
}
