//! Replays the corpora: inputs that once failed, or once reached new code.

use nomagic_core_fuzz::{flows, frames, region, replay, replies};

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn a_corpus_of_frames() {
    replay(PACKAGE, "frames", frames::run);
}

#[test]
fn a_corpus_of_flows() {
    replay(PACKAGE, "flows", flows::run);
}

#[test]
fn a_corpus_of_replies() {
    replay(PACKAGE, "replies", replies::run);
}

#[test]
fn a_corpus_of_regions() {
    replay(PACKAGE, "region", region::run);
}
