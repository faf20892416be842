//! Configurations: nomagic's own and kube-proxy's, and flows as people type them.

use std::path::Path;

use nomagic::config::Config;
use nomagic::kubeproxy::DropIn;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::explain::parse_flow;
use nomagic_table::index::Index;

/// Runs one input. Its first byte chooses the reader of the rest.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let (text, file) = (String::from_utf8_lossy(rest), Path::new("config.yaml"));
    match kind % 3 {
        0 => match Config::parse(&text, file) {
            Ok(config) => used(&config),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        1 => match DropIn::parse(&text, file) {
            Ok(drop_in) => {
                let mut config = Config::default();
                drop_in.apply(&mut config, &["10.0.0.1".parse().expect("an address")]);
                used(&config);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        _ => text.lines().for_each(|line| {
            if let Ok(tuple) = parse_flow(line) {
                assert_eq!(parse_flow(&tuple.to_string()), Ok(tuple), "a flow is parsed as it is displayed");
            }
        }),
    }
}

/// A valid configuration gives a table.
fn used(config: &Config) {
    let index = Index::default();
    let settings = config.settings_for(&["10.0.0.1".parse().expect("an address")], &index);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    crate::explain(&index, &settings, &compiled);
}
