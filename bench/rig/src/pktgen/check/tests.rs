use proptest::prelude::*;

use super::*;
use crate::pktgen::profile::tests::profile;
use crate::pktgen::profile::{Choice, Protocol, Size};
use crate::pktgen::stream::{Source, Stream};
use crate::pktgen::template::Macs;

const MACS: Macs = Macs { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] };
const RUN: u16 = 77;

fn frames(protocol: Protocol, v4: bool, n: u64) -> Vec<Vec<u8>> {
    let mut p = profile();
    (p.flows, p.size, p.protocol, p.choice) = (4, Size::Imix, protocol, Choice::Uniform);
    if !v4 {
        (p.sources, p.targets) = ("fd00::/64".parse().unwrap(), vec!["[fd00:1::1]:53".parse().unwrap()]);
    }
    let mut stream = Stream::new(&p, MACS, RUN);
    let mut frame = |at| {
        let mut out = vec![0; 1514];
        let len = stream.next(&mut out, at);
        out.truncate(len);
        out
    };
    (0..n).map(&mut frame).collect()
}

#[test]
fn frames_in_order_are_in_order_and_their_latency_is_known() {
    for (protocol, v4) in [(Protocol::Udp, true), (Protocol::Udp, false), (Protocol::Tcp, true), (Protocol::SynFlood, false)] {
        let mut checker = Checker::new(RUN, 4);
        for (n, frame) in frames(protocol, v4, 1_000).iter().enumerate() {
            checker.observe(frame, n as u64 + 5_000);
        }
        let counts = checker.counts();
        assert_eq!((counts.received, counts.in_order), (1_000, 1_000), "{counts:?}");
        assert_eq!(checker.flows_seen(), 4);
        assert!(checker.latency_ns().min() >= 4_990 && checker.latency_ns().max() <= 5_010);
        assert_eq!(checker.latency_ns().len(), 1_000);
    }
}

#[test]
fn a_flow_s_sequence_numbers_by_name() {
    let name = |sequences: &[u32]| {
        let (mut seen, mut counts) = (Seen::default(), SinkCounts::default());
        for s in sequences {
            *seen.place(*s, &mut counts) += 1;
        }
        (counts.in_order, counts.reordered, counts.duplicated, counts.too_late)
    };
    for (sequences, wanted) in [
        (&[0, 1, 2][..], (3, 0, 0, 0)),
        (&[0, 2, 1], (2, 1, 0, 0)),
        (&[0, 1, 1, 0], (2, 0, 2, 0)),
        (&[5, 4, 4], (1, 1, 1, 0)),
        (&[0, 100], (2, 0, 0, 0)),
        (&[0, 63, 0], (2, 0, 1, 0)),
        (&[0, 64, 0], (2, 0, 0, 1)),
        (&[0, 64, 1], (2, 1, 0, 0)),
        (&[u32::MAX - 1, u32::MAX, 0, 1, u32::MAX], (4, 0, 1, 0)),
        (&[u32::MAX, 1, 0], (2, 1, 0, 0)),
    ] {
        assert_eq!(name(sequences), wanted, "{sequences:?}");
    }
}

#[test]
fn other_runs_and_flows_that_do_not_exist() {
    let frames = frames(Protocol::Udp, true, 100);
    let mut other = Checker::new(RUN + 1, 4);
    let mut fewer = Checker::new(RUN, 2);
    for frame in &frames {
        other.observe(frame, 0);
        fewer.observe(frame, 0);
    }
    assert_eq!((other.counts().foreign, other.latency_ns().len()), (100, 0));
    let counts = fewer.counts();
    assert!(counts.corrupt > 20 && counts.corrupt + counts.in_order == 100, "{counts:?}");
}

proptest! {
    #[test]
    fn one_changed_bit_behind_the_macs_is_corruption(n in 0usize..50, at: prop::sample::Index, bit in 0u8..8, v4: bool, tcp: bool) {
        let mut frame = frames(if tcp { Protocol::Tcp } else { Protocol::Udp }, v4, 50).swap_remove(n);
        let at = 12 + at.index(frame.len() - 12);
        // IPv6 has no checksum over traffic class, flow label and hop limit: routers change them.
        prop_assume!(v4 || !(14..18).contains(&at) && at != 21);
        frame[at] ^= 1 << bit;
        let mut checker = Checker::new(RUN, 4);
        checker.observe(&frame, 0);
        prop_assert_eq!(checker.counts().corrupt, 1);
    }

    #[test]
    fn hostile_frames_are_counted_and_never_panic(frame in prop::collection::vec(any::<u8>(), 0..120), cut in 0usize..100) {
        let mut checker = Checker::new(RUN, 4);
        checker.observe(&frame, u64::MAX);
        let good = &frames(Protocol::Tcp, true, 1)[0];
        checker.observe(&good[..cut.min(good.len() - 1)], 0);
        prop_assert_eq!(checker.counts().received, 2);
        prop_assert_eq!(checker.counts().in_order, 0);
    }

    #[test]
    fn every_frame_is_in_one_count(sequences in prop::collection::vec(0u32..200, 0..300)) {
        let (mut seen, mut counts) = (Seen::default(), SinkCounts::default());
        let mut model = std::collections::HashSet::new();
        let mut repeats = 0;
        for s in &sequences {
            repeats += u64::from(!model.insert(*s));
            *seen.place(*s, &mut counts) += 1;
        }
        prop_assert_eq!(counts.unique() + counts.duplicated, sequences.len() as u64);
        prop_assert!(counts.duplicated <= repeats && repeats <= counts.duplicated + counts.too_late);
        prop_assert!(counts.in_order + counts.reordered <= model.len() as u64);
    }
}
