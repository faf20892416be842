//! Frames of any kind, in one batch: see [`nomagic_core_fixtures::fuzz_input`].

use nomagic_core::reason::Reason;
use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::{World, add_action, fuzz_input, services};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(Reason::NoEndpoints));
    fuzz_input::run(&mut World::new(s, 64), data);
}
