//! The edge on real interfaces, sockets and files. Needs root.

mod addressed;
mod child;
mod common;
mod life;
mod netns;
mod region;
mod segments;
mod workers;

#[test]
fn every_test_file_is_compiled() {
    nomagic_core_fixtures::every_test_file_is_compiled(env!("CARGO_MANIFEST_DIR"));
}
