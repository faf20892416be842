//! Events come out as they went in, in order, and readers know what they have missed.

use proptest::prelude::*;

use super::*;
use crate::tuple::Proto;

fn event(number: u64) -> Event {
    let tuple = Tuple::new(Proto::Udp, [192, 0, 2, 1].into(), number as u16, [203, 0, 113, 7].into(), 53);
    Event { at_ms: number, kind: EventKind::Dropped(Reason::NoEndpoints), packet: tuple, rewritten: None, port: PortId(3), bytes: 60 }
}

fn read(ring: &EventRing, from: u64, events_max: usize) -> (Vec<u64>, Seen) {
    let mut numbers = Vec::new();
    let seen = ring.read(from, events_max, |event| numbers.push(event.at_ms));
    (numbers, seen)
}

#[test]
fn a_ring_keeps_the_last_events_and_counts_what_a_reader_has_missed() {
    let ring = EventRing::new(4);
    assert_eq!(read(&ring, 0, 9), (vec![], Seen { next: 0, missed: 0 }));
    (0..3).for_each(|n| ring.record(&event(n)));
    assert_eq!(read(&ring, 0, 9), (vec![0, 1, 2], Seen { next: 3, missed: 0 }));
    assert_eq!(read(&ring, 0, 2), (vec![0, 1], Seen { next: 2, missed: 0 }));
    assert_eq!(read(&ring, 2, 9), (vec![2], Seen { next: 3, missed: 0 }));
    (3..10).for_each(|n| ring.record(&event(n)));
    assert_eq!(read(&ring, 3, 9), (vec![6, 7, 8, 9], Seen { next: 10, missed: 3 }));
    assert_eq!(read(&ring, 10, 9), (vec![], Seen { next: 10, missed: 0 }));
    // The number is another ring's.
    assert_eq!(read(&ring, 11, 9), (vec![6, 7, 8, 9], Seen { next: 10, missed: 0 }));
    assert_eq!(read(&ring, u64::MAX, 1), (vec![6], Seen { next: 7, missed: 0 }));
}

#[test]
fn readers_see_whole_events_while_one_thread_writes() {
    let ring = EventRing::new(8);
    let last = 200_000;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..last).for_each(|n| ring.record(&event(n))));
        let (mut from, mut heard, mut missed) = (0, 0, 0);
        while from < last {
            let mut expected = None;
            let seen = ring.read(from, 5, |found| {
                assert_eq!(found, event(found.at_ms));
                assert!(expected.is_none_or(|least| found.at_ms >= least));
                expected = Some(found.at_ms + 1);
                heard += 1;
            });
            (from, missed) = (seen.next, missed + seen.missed);
        }
        assert_eq!(heard + missed, last);
    });
}

fn kinds() -> impl Strategy<Value = EventKind> {
    let reason = || (0..Reason::COUNT).prop_map(|at| Reason::ALL[at]);
    let phase = || (1..15_u8).prop_map(|number| PhaseKind::from_number(number).unwrap());
    prop_oneof![
        phase().prop_map(EventKind::New),
        phase().prop_map(EventKind::Changed),
        (0..EndCause::ALL.len(), phase()).prop_map(|(cause, phase)| EventKind::Ended(EndCause::ALL[cause], phase)),
        (reason(), prop_oneof![Just(Told::Icmp), Just(Told::Reset), Just(Told::Abort)], any::<bool>())
            .prop_map(|(reason, told, sent)| EventKind::Rejected { reason, told, sent }),
        reason().prop_map(EventKind::Dropped),
        prop_oneof![Just(HeldFor::Neighbour), Just(HeldFor::Fragments)].prop_map(EventKind::Held),
        reason().prop_map(EventKind::Kernel),
        Just(EventKind::IcmpError),
    ]
}

fn tuple(v6: bool, proto: Proto, words: [u64; 4], sport: u16, dport: u16) -> Tuple {
    let addr = |high: u64, low: u64| if v6 { [high, low] } else { [0, low & 0xffff_ffff] };
    Tuple { src: addr(words[0], words[1]), dst: addr(words[2], words[3]), sport, dport, proto, v6 }
}

proptest! {
    #[test]
    fn events_come_out_as_they_went_in(
        kind in kinds(),
        (v6, proto) in (any::<bool>(), prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)]),
        packet in proptest::option::of(any::<([u64; 4], u16, u16)>()),
        rewritten in proptest::option::of(any::<([u64; 4], u16, u16)>()),
        (at_ms, port, bytes) in any::<(u64, u16, u32)>(),
    ) {
        let of = |(words, sport, dport)| tuple(v6, proto, words, sport, dport);
        let event = Event { at_ms, kind, packet: packet.map(of), rewritten: rewritten.map(of), port: PortId(port), bytes };
        // What an earlier, longer event has left behind does not matter.
        let ring = EventRing::new(1);
        let long = Event { packet: Some(tuple(true, Proto::Tcp, [!0; 4], 9, 9)), ..event };
        ring.record(&Event { rewritten: long.packet, ..long });
        ring.record(&event);
        let mut found = Vec::new();
        ring.read(0, 9, |event| found.push(event));
        prop_assert_eq!(found, vec![event]);
    }

    #[test]
    fn any_words_are_an_event_or_none(words in any::<[u64; RECORD_WORDS]>()) {
        if let Some(event) = decode(&words) {
            let mut again = Words::default();
            encode(&event, &mut again);
            prop_assert_eq!(decode(&again), Some(event));
        }
    }
}
