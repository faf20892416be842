//! The core as its callers see it.

mod affinity;
mod client_class;
mod direct;
mod foreign;
mod forged;
mod fragmenting;
mod fragments;
mod fragments_whole;
mod hostile;
mod icmp_errors;
mod icmp_floods;
mod icmp_refused;
mod icmp_scene;
mod lifetimes;
mod limits;
mod local;
mod maglev;
mod mss;
mod nat_model;
mod observe;
mod only_here;
mod packets;
mod pieces;
mod reasons;
mod recorded;
mod reject_limits;
mod reply_filter;
mod resets;
mod rss;
mod source_ports;
mod stride;
mod talk;
mod unreachable;

#[test]
fn every_test_file_is_compiled() {
    nomagic_core_fixtures::every_test_file_is_compiled(env!("CARGO_MANIFEST_DIR"));
}
