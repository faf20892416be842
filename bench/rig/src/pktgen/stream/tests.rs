use std::collections::{HashMap, HashSet};

use super::*;
use crate::pktgen::profile::tests::profile;
use crate::pktgen::profile::{Choice, Size};

const MACS: Macs = Macs { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] };

fn steps(profile: &Profile, n: usize) -> Vec<Step> {
    profile.check().unwrap();
    let mut stream = Stream::new(profile, MACS, 0);
    (0..n).map(|_| stream.step()).collect()
}

#[test]
fn the_same_profile_gives_the_same_frames() {
    for choice in [Choice::RoundRobin, Choice::Uniform, Choice::Zipf(1.1)] {
        let mut p = profile();
        (p.choice, p.size) = (choice, Size::Imix);
        let frames = || {
            let mut stream = Stream::new(&p, MACS, 5);
            let mut frame = |n| {
                let mut out = vec![0; 1514];
                let len = stream.next(&mut out, n);
                out.truncate(len);
                out
            };
            (0..500).map(&mut frame).collect::<Vec<_>>()
        };
        assert_eq!(frames(), frames());
    }
}

#[test]
fn sequence_numbers_count_within_the_flow_and_sources_differ() {
    let mut p = profile();
    (p.flows, p.choice) = (300, Choice::Uniform);
    let stream = Stream::new(&p, MACS, 0);
    let mut next: HashMap<u32, u32> = HashMap::new();
    for step in steps(&p, 20_000) {
        let expected = next.entry(step.flow).or_default();
        assert_eq!(step.sequence, *expected);
        assert_eq!(step.first, *expected == 0);
        assert_eq!(step.tuple, u64::from(step.flow), "flows stay");
        *expected += 1;
    }
    assert_eq!(next.len(), 300);
    assert_eq!((0..p.tuples()).step_by(997).map(|t| stream.ends(t)).collect::<HashSet<_>>().len(), (p.tuples() as usize).div_ceil(997));
}

#[test]
fn new_flows_come_at_their_rate_and_from_new_sources() {
    let mut p = profile();
    p.new_flows = Some(NewFlows { new: 3, frames: 100 });
    let steps = steps(&p, 100_000);
    let tuples: HashSet<u64> = steps.iter().map(|s| s.tuple).collect();
    let opened = steps.iter().filter(|s| s.first).count();
    assert_eq!(opened, tuples.len(), "each source opens once");
    // 100 at the start, then 3 in 100 frames; those that fell on an unused place at the start are within it.
    assert!((3_000..=3_100).contains(&opened), "{opened}");
    let late = steps[50_000..60_000].iter().filter(|s| s.first).count();
    assert_eq!(late, 300);
}

#[test]
fn each_frame_of_a_syn_flood_is_a_new_flow() {
    let mut p = profile();
    p.protocol = Protocol::SynFlood;
    let steps = steps(&p, 10_000);
    assert!(steps.iter().all(|s| s.first));
    assert_eq!(steps.iter().map(|s| s.tuple).collect::<HashSet<_>>().len(), 10_000);
}

#[test]
fn sources_start_again_when_all_were_used() {
    let mut p = profile();
    p.protocol = Protocol::SynFlood;
    p.sources = "10.0.0.7".parse().unwrap();
    let n = p.tuples() as usize;
    let steps = steps(&p, n + 10);
    assert_eq!(steps[n - 1].tuple, n as u64 - 1);
    assert_eq!(steps[n].tuple, 0);
}

#[test]
fn targets_are_taken_in_turn() {
    let mut p = profile();
    p.targets = (1..=3).map(|n| SocketAddr::new([10, 0, 0, n].into(), 80)).collect();
    let stream = Stream::new(&p, MACS, 0);
    let mut seen: HashMap<SocketAddr, u32> = HashMap::new();
    (0..99).for_each(|t| *seen.entry(stream.ends(t).dst).or_default() += 1);
    assert!(seen.values().all(|n| *n == 33) && seen.len() == 3, "{seen:?}");
}
