//! Frames of any kind through the whole pipeline: `cargo +nightly fuzz run frames` in `dataplane/core`.
#![no_main]

use nomagic_core::{reason::Reason, services::Action, tuple::Proto};
use nomagic_core_fixtures::{World, add_action, fuzz_input, services};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(Reason::NoEndpoints));
    fuzz_input::run(&mut World::new(s, 64), data);
});
