//! Frames that no honest host sends: cut short at every byte, every bit flipped, random, and the fuzzers' corpus.

mod common;

use std::path::PathBuf;

use common::*;
use nomagic_core::services::Action;
use nomagic_core::tuple::Proto;
use proptest::prelude::*;

fn world() -> World {
    let mut s = services();
    add_action(&mut s, "10.96.0.8", 80, Proto::Udp, Action::Reject(nomagic_core::reason::Reason::NoEndpoints));
    add_action(&mut s, "fd00:96::8", 80, Proto::Tcp, Action::Reject(nomagic_core::reason::Reason::NoEndpoints));
    World::new(s, 64)
}

/// Honest frames to start from: every kind of header that is parsed.
fn seeds() -> Vec<Vec<u8>> {
    let tcp = spec("tcp", "10.0.0.2:40000", "10.96.0.1:80", SYN).frame();
    let mut tagged = tcp.clone();
    tagged.splice(12..12, [0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]);
    let mut options = tcp.clone();
    options.splice(34..34, [1u8; 8]);
    options[14] = 0x47;
    options[17] += 8;
    let mut extensions = spec("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80", 0).frame();
    extensions.splice(54..54, [44u8, 0, 1, 4, 0, 0, 0, 0, 43, 0, 0, 0, 0, 0, 0, 9, 17, 0, 0, 0, 0, 0, 0, 0]);
    extensions[20] = 0;
    extensions[19] += 24;
    vec![
        tcp,
        tagged,
        options,
        extensions,
        spec("udp", "10.0.0.2:40000", "10.96.0.2:80", 0).frame(),
        spec("tcp", "[fd00:a::2]:40000", "[fd00:96::2]:80", SYN).frame(),
        spec("udp", "10.0.0.2:40000", "10.96.0.8:80", 0).frame(),
        spec("tcp", "[fd00:a::2]:40000", "[fd00:96::8]:80", SYN).frame(),
        spec("tcp", "10.0.0.2:40000", "10.0.0.1:22", SYN).frame(),
    ]
}

#[test]
fn cut_short_at_every_byte() {
    for seed in seeds() {
        let mut w = world();
        for len in 0..=seed.len() {
            harness::run(&mut w, &harness::encode(&[(0, &seed[..len])]));
        }
    }
}

#[test]
fn every_bit_flipped() {
    for seed in seeds() {
        let mut w = world();
        for bit in 0..seed.len().min(120) * 8 {
            let mut frame = seed.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            harness::run(&mut w, &harness::encode(&[(0, &frame), (1, &frame), (2, &frame)]));
        }
    }
}

#[test]
fn every_value_of_every_header_byte() {
    for seed in seeds() {
        let mut w = world();
        for at in 12..seed.len().min(80) {
            for value in 0..=255 {
                let mut frame = seed.clone();
                frame[at] = value;
                harness::run(&mut w, &harness::encode(&[(0, &frame)]));
            }
        }
    }
}

#[test]
fn as_long_as_a_buffer() {
    let mut w = world();
    for len in [1500, 1514, 1515, 1700, 1792] {
        harness::run(&mut w, &harness::encode(&[(0, &Spec { payload: len, ..spec("udp", "10.0.0.2:1", "10.96.0.1:80", 0) }.frame())]));
    }
}

#[test]
fn the_corpus_is_replayed() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frames");
    let mut inputs = 0;
    for entry in std::fs::read_dir(&dir).expect("the corpus is part of the project") {
        let input = std::fs::read(entry.expect("a directory entry").path()).expect("a corpus file");
        harness::run(&mut world(), &input);
        inputs += 1;
    }
    println!("{inputs} inputs replayed from {}", dir.display());
    assert!(inputs >= seeds().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(input in prop::collection::vec(any::<u8>(), 0..600)) {
        harness::run(&mut world(), &input);
    }

    #[test]
    fn honest_frames_with_random_scars(picks in prop::collection::vec((0usize..9, prop::collection::vec((any::<u16>(), any::<u8>()), 0..6), 0u8..3), 1..20)) {
        let frames: Vec<(u8, Vec<u8>)> = picks.into_iter().map(|(seed, scars, port)| {
            let mut frame = seeds()[seed].clone();
            for (at, value) in scars {
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            (port, frame)
        }).collect();
        let borrowed: Vec<(u8, &[u8])> = frames.iter().map(|(p, f)| (*p, f.as_slice())).collect();
        harness::run(&mut world(), &harness::encode(&borrowed));
    }
}
