//! Replays the corpora: inputs that once failed, or once reached new code.

use nomagic_core_fuzz::replay;
use nomagic_fuzz::{config, manifests, objects, rules, socket};

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn a_corpus_of_objects() {
    replay(PACKAGE, "objects", objects::run);
}

#[test]
fn a_corpus_of_manifests() {
    replay(PACKAGE, "manifests", manifests::run);
}

#[test]
fn a_corpus_of_configurations() {
    replay(PACKAGE, "config", config::run);
}

#[test]
fn a_corpus_of_lines_at_the_control_socket() {
    replay(PACKAGE, "socket", socket::run);
}

#[test]
fn a_corpus_of_rules() {
    replay(PACKAGE, "rules", rules::run);
}
