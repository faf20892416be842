//! Frames that no honest host sends: cut short at every byte, every bit flipped, random, and the fuzzers' corpus.

use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;
use proptest::prelude::*;

fn world() -> World {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(nomagic_core::reason::Reason::NoEndpoints));
    add_action(&mut s, "fd00:96::8", 80, Proto::Tcp, Action::Reject(nomagic_core::reason::Reason::NoEndpoints));
    World::new(s, 64)
}

#[test]
fn cut_short_at_every_byte() {
    for seed in honest_frames() {
        let mut w = world();
        for len in 0..=seed.len() {
            fuzz_input::run(&mut w, &fuzz_input::encode(&[(0, &seed[..len])]));
        }
    }
}

#[test]
fn every_bit_flipped() {
    for seed in honest_frames() {
        let mut w = world();
        for bit in 0..seed.len().min(120) * 8 {
            let mut frame = seed.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            fuzz_input::run(&mut w, &fuzz_input::encode(&[(0, &frame), (1, &frame), (2, &frame)]));
        }
    }
}

#[test]
fn every_value_of_every_header_byte() {
    for seed in honest_frames() {
        let mut w = world();
        for at in 12..seed.len().min(80) {
            for value in 0..=255 {
                let mut frame = seed.clone();
                frame[at] = value;
                fuzz_input::run(&mut w, &fuzz_input::encode(&[(0, &frame)]));
            }
        }
    }
}

#[test]
fn as_long_as_a_buffer() {
    let mut w = world();
    for len in [1500, 1514, 1515, 1700, 1792] {
        fuzz_input::run(
            &mut w,
            &fuzz_input::encode(&[(0, &Spec { payload: len, ..spec("udp", "10.0.0.2:1", "10.96.0.1:80", 0) }.frame())]),
        );
    }
}

#[test]
fn the_corpus_is_replayed() {
    let inputs = fuzz_input::corpus();
    inputs.iter().for_each(|input| fuzz_input::run(&mut world(), input));
    println!("{} inputs replayed", inputs.len());
    assert!(inputs.len() >= honest_frames().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(input in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_input::run(&mut world(), &input);
    }

    #[test]
    fn honest_frames_with_random_scars(picks in prop::collection::vec((0usize..11, prop::collection::vec((any::<u16>(), any::<u8>()), 0..6), 0u8..3), 1..20)) {
        let frames: Vec<(u8, Vec<u8>)> = picks.into_iter().map(|(seed, scars, port)| {
            let mut frame = honest_frames()[seed].clone();
            for (at, value) in scars {
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            (port, frame)
        }).collect();
        let borrowed: Vec<(u8, &[u8])> = frames.iter().map(|(p, f)| (*p, f.as_slice())).collect();
        fuzz_input::run(&mut world(), &fuzz_input::encode(&borrowed));
    }
}
