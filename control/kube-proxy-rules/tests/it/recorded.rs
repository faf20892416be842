//! Every recorded rule is read, and every flow ends as it did with the real kube-proxy.

use std::collections::BTreeMap;

use nomagic_kube_proxy_rules::{Difference, Ruleset, compare};

use crate::data::{Check, Dumps, Mode, large_checks, read, small_checks};

const MODES: [Mode; 2] = [Mode::Nftables, Mode::Iptables];

#[test]
fn nothing_in_the_recorded_rules_is_unknown() {
    let dumps = Dumps::load();
    let (mut steps, mut rules) = (0, 0);
    for step in dumps.steps() {
        steps += 1;
        for mode in MODES {
            let read = read(&dumps.texts(step, mode));
            assert!(read.unknown().is_empty(), "{step} {mode:?}: {:?}", read.unknown());
            assert!(read.has_kube_proxy(false) && read.has_kube_proxy(true), "{step} {mode:?}");
            assert_eq!(read.is_iptables(false), mode == Mode::Iptables);
            rules += read.rule_count();
        }
    }
    println!("{steps} steps, {} dumps, {rules} rules: none unknown", dumps.len());
    assert!(steps >= 119 && dumps.len() >= 357, "{steps} {}", dumps.len());
}

/// The rules of each step, read once.
#[derive(Default)]
struct Library(BTreeMap<(String, &'static str), Ruleset>);

impl Library {
    fn rules(&mut self, dumps: &Dumps, step: &str, mode: Mode) -> &Ruleset {
        self.0.entry((step.to_owned(), mode.label())).or_insert_with(|| read(&dumps.texts(step, mode)))
    }
}

/// What differs from the expectation. Flows do not say how long an affinity lasts.
fn differences(rules: &Ruleset, check: &Check, mode: Mode) -> Vec<String> {
    let decision = rules.follow(&check.packet, &check.node);
    let mut expected = check.expected[usize::from(mode == Mode::Iptables)].clone();
    expected.affinity_s = decision.affinity_s;
    let mut found = compare(&decision, &expected, check.packet.tuple.src_addr());
    found.retain(|difference| !matches!(difference, Difference::Lost(..)) || !check.sticky);
    let mut words: Vec<String> = found.iter().map(Difference::text).collect();
    if check.sticky && decision.affinity_s.is_none() {
        words.push("no affinity".into());
    }
    if !decision.certain || decision.steps.is_empty() {
        words.push(format!("not certain: {decision:?}"));
    }
    words
}

fn run(checks: &[Check]) -> (usize, Vec<String>) {
    let (dumps, mut library) = (Dumps::load(), Library::default());
    let (mut count, mut wrong) = (0, Vec::new());
    for check in checks {
        for mode in MODES {
            count += 1;
            let found = differences(library.rules(&dumps, &check.step, mode), check, mode);
            wrong.extend(found.into_iter().map(|what| format!("{} {}: {what}", check.name, mode.label())));
        }
    }
    (count, wrong)
}

#[test]
fn flows_of_the_behaviour_cases_end_as_recorded() {
    let (count, wrong) = run(&small_checks(&Dumps::load()));
    println!("behaviour cases: {count} checks in both modes, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 536, "{count}");
}

#[test]
fn flows_of_the_large_sets_end_as_recorded() {
    let (count, wrong) = run(&large_checks());
    println!("large sets: {count} checks in both modes, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 1_980, "{count}");
}
