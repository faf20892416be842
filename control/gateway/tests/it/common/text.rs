// One fuzz input for all text that people write: configurations (nomagic's and kube-proxy's), manifests, flows for `explain`. Nothing may
// panic, and everything that is read without a problem must compile and be explained.
//
// The fuzz target includes this file, which therefore has no inner documentation.

use std::path::Path;

use nomagic::config::Config;
use nomagic::kubeproxy::DropIn;
use nomagic::manifests;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::explain::{Explainer, parse_flow};
use nomagic_table::index::Index;

/// Flows that are explained with every table.
const FLOWS: [&str; 4] = [
    "tcp 10.0.0.2:40000 -> 10.96.0.1:80",
    "udp [fd00::2]:40000 -> [fd00:96::1]:53",
    "tcp 192.168.0.5:40000 -> 10.0.0.1:30080",
    "sctp 10.0.0.2:1 -> 203.0.113.7:80",
];

/// The first byte selects how the rest is read. `file` is overwritten.
pub fn run(input: &[u8], file: &Path) {
    let Some((kind, rest)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match kind % 3 {
        0 => {
            if let Ok(config) = Config::parse(&text, file) {
                let settings = config.settings(&[]);
                Compiler::new(TARGETS_MAX).compile(&Index::default(), &settings);
            }
            if let Ok(drop_in) = DropIn::parse(&text, file) {
                drop_in.apply(&mut Config::default(), &[]);
            }
        }
        1 => manifest(rest, file),
        _ => text.lines().for_each(|line| {
            if let Ok(tuple) = parse_flow(line) {
                assert_eq!(parse_flow(&tuple.to_string()), Ok(tuple), "a flow is parsed as it is displayed");
            }
        }),
    }
}

fn manifest(text: &[u8], file: &Path) {
    std::fs::write(file, text).expect("a scratch file");
    let loaded = manifests::load(file, None).expect("the file is there");
    let index = Index::of(loaded.objects);
    let settings = Config::default().settings(&["10.0.0.1".parse().expect("an address")]);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    let explainer = Explainer::new(&index, &settings, &compiled);
    for flow in FLOWS {
        if let Ok(tuple) = parse_flow(flow) {
            let answer = explainer.answer(flow, &tuple);
            assert!(!answer.steps.is_empty(), "an answer without words");
        }
    }
}
