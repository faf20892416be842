//! Fuzz targets of everything that nomagic reads from others: nothing may panic, and what was read must make sense. A target is a function from
//! bytes to a panic or none; see [`nomagic_core_fuzz`].
#![forbid(unsafe_code)]

pub mod config;
pub mod manifests;
pub mod objects;
pub mod rules;
pub mod socket;

/// The flows that tables are asked about.
const FLOWS: [&str; 5] = [
    "tcp 10.0.0.2:40000 -> 10.96.0.1:80",
    "udp [fd00::2]:40000 -> [fd00:96::1]:53",
    "tcp 192.168.0.5:40000 -> 10.0.0.1:30080",
    "sctp 10.0.0.2:1 -> 203.0.113.7:80",
    "tcp 203.0.113.9:1 -> 198.51.100.1:80",
];

/// What `explain` says about some flows.
fn explain(index: &nomagic_table::index::Index, settings: &nomagic_table::settings::Settings, compiled: &nomagic_table::compile::Compiled) {
    let explainer = nomagic_table::explain::Explainer::new(index, settings, compiled);
    for flow in FLOWS {
        let tuple = nomagic_table::explain::parse_flow(flow).expect("a flow");
        assert!(!explainer.answer(flow, &tuple).steps.is_empty(), "an answer without words");
    }
}

/// Problems are shown in logs and on pages: short, and without anything that a terminal would obey.
fn assert_readable<'p>(problems: impl Iterator<Item = &'p nomagic_table::problem::Problem>) {
    for problem in problems {
        let text = problem.to_string();
        assert!(!text.is_empty() && text.len() < 4_000 && !text.contains(char::is_control), "{text:?}");
    }
}
