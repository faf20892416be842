//! Taps end by themselves and are limited.

use super::*;

const SECOND: u64 = NS_PER_S;

fn options() -> TapOptions {
    TapOptions { filter: PacketFilter::default(), snap_len: 64, packets_per_s: 3, lasts: Duration::from_secs(10) }
}

#[test]
fn a_second_has_so_many_packets_for_all_workers() {
    let shared = Shared::default();
    let taken = |now_ns| (0..5).filter(|_| shared.take(now_ns, 3)).count();
    assert_eq!((taken(7 * SECOND), taken(7 * SECOND + 9), taken(8 * SECOND)), (3, 0, 3));
    // Another worker's clock may be a moment behind.
    assert_eq!((taken(7 * SECOND), taken(9 * SECOND)), (0, 3));
    shared.give_back();
    assert_eq!((taken(9 * SECOND), taken(10 * SECOND)), (1, 3));
}

#[test]
fn a_tap_ends_with_its_time_or_its_reader() {
    let mut taps = WorkerTaps::of_worker(0);
    let (session, reader) = open(options(), SECOND);
    taps.add(session);
    taps.tend(10 * SECOND);
    assert!(!taps.is_empty());
    taps.tend(11 * SECOND);
    assert!(taps.is_empty());
    drop(reader);

    let (session, reader) = open(options(), SECOND);
    taps.add(session);
    drop(reader);
    taps.tend(SECOND);
    assert!(taps.is_empty());
}

#[test]
fn the_oldest_tap_makes_room() {
    let mut taps = WorkerTaps::of_worker(0);
    let readers: Vec<TapReader> = (0..=TAPS_MAX)
        .map(|n| {
            let (session, reader) = open(TapOptions { snap_len: n + 1, ..options() }, 0);
            taps.add(session);
            reader
        })
        .collect();
    let lengths: Vec<usize> = taps.sessions.iter().map(|session| session.options.snap_len).collect();
    assert_eq!((lengths, readers.len()), (vec![2, 3, 4, 5], TAPS_MAX + 1));
}

#[test]
fn packets_beyond_the_readers_queue_are_counted() {
    let mut taps = WorkerTaps::of_worker(5);
    let (session, reader) = open(TapOptions { snap_len: SNAP_LEN_MAX, ..options() }, 0);
    let room = WAITING_BYTES_MAX / (3 * SNAP_LEN_MAX);
    taps.add(session);
    taps.wanted = 1;
    let mut bytes = [7; 100];
    let frame = Frame::new(&mut bytes, 20, 60, PortId(1), 0);
    taps.received = Snap::of(&frame, 50);
    for _ in 0..room + 4 {
        taps.judged(&frame, &Verdict::Forward(PortId(2), NextHopId(1)), &Notes::default(), &[]);
    }
    assert_eq!(reader.counts().missed, 4);
    let packet = reader.next().unwrap();
    assert_eq!((packet.worker, packet.received.bytes.len(), packet.received.len), (5, 50, 60));
    assert_eq!(packet.sent, Some((PortId(2), Snap { bytes: vec![7; 60], len: 60 })));
    assert_eq!(std::iter::from_fn(|| reader.next()).count(), room - 1);
}
