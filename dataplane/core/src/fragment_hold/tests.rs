use super::*;
use crate::conntrack::{Conntrack, Datagram};
use crate::sync::AtomicU64;
use crate::tuple::{Proto, Tuple};
use proptest::prelude::*;

fn datagram(id: u32) -> Datagram {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(1)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, 1, 1, [0, 0]).unwrap();
    let tuple = Tuple::new(Proto::Udp, [10, 0, 0, 1].into(), 0, [10, 0, 0, 2].into(), 0).unwrap();
    table.fragments().datagram(&tuple, id)
}

fn waiting(id: u32, sender: u64) -> Waiting {
    Waiting { datagram: datagram(id), sender, first: false }
}

/// Holds a frame of so many buffers, and returns those that make room.
fn keep(hold: &mut FragmentHold<usize>, frame: usize, buffers: usize, waiting: Waiting) -> Vec<usize> {
    let mut evicted = Vec::new();
    hold.keep(frame, buffers, waiting, 0, |frame| evicted.push(frame));
    evicted
}

#[test]
fn a_sender_has_a_share_and_the_oldest_makes_room() {
    let mut hold = FragmentHold::new(SENDER_SHARE + 2);
    assert_eq!(keep(&mut hold, 0, 1, waiting(0, 1)), []);
    for i in 1..=SENDER_SHARE {
        assert_eq!(keep(&mut hold, i, 1, waiting(1, 7)), []);
    }
    assert_eq!(keep(&mut hold, 200, 1, waiting(1, 7)), [1], "the same sender's oldest");
    assert_eq!(keep(&mut hold, 201, 1, waiting(2, 8)), []);
    assert_eq!(keep(&mut hold, 202, 1, waiting(3, 9)), [0], "the oldest of all");
    assert_eq!(keep(&mut hold, 203, 1, waiting(1, 7)), [2]);
    assert_eq!((hold.len(), hold.iter().count()), (SENDER_SHARE + 2, SENDER_SHARE + 2));
}

#[test]
fn there_is_room_for_one_at_least() {
    let mut hold = FragmentHold::new(0);
    assert_eq!(keep(&mut hold, 1, 1, waiting(1, 1)), []);
    assert_eq!(keep(&mut hold, 2, 1, waiting(2, 2)), [1]);
    assert_eq!((hold.pop(), hold.pop()), (Some(2), None));
}

#[test]
fn long_frames_take_the_room_of_several() {
    let mut hold = FragmentHold::new(8);
    (0..8).for_each(|i| assert_eq!(keep(&mut hold, i, 1, waiting(1, 1)), []));
    assert_eq!(keep(&mut hold, 8, 3, waiting(2, 2)), [0, 1, 2]);
    assert_eq!(keep(&mut hold, 9, 9, waiting(3, 3)), [9], "larger than the room");
    assert_eq!(keep(&mut hold, 10, 6, waiting(4, 4)), [3, 4, 5, 6, 7, 8]);
    let mut shared = FragmentHold::new(2 * SENDER_SHARE);
    assert_eq!(keep(&mut shared, 0, 1, waiting(1, 9)), []);
    (1..=8).for_each(|i| assert_eq!(keep(&mut shared, i, 16, waiting(1, 1)), []));
    assert_eq!(keep(&mut shared, 9, 17, waiting(1, 1)), [1, 2], "the same sender's");
}

#[test]
fn what_is_settled_or_overdue_leaves_in_order() {
    let mut hold = FragmentHold::new(8);
    for (i, id) in [1, 2, 1, 3, 1].into_iter().enumerate() {
        hold.keep(i, 1, waiting(id, 1), i as u64, |_| panic!("there is room"));
    }
    let left = |hold: &mut FragmentHold<usize>, now_ms, room, settled: u32| {
        let mut out = Vec::new();
        hold.release(now_ms, room, |waiting| waiting.datagram == datagram(settled), |frame, why| out.push((frame, why)));
        out
    };
    assert_eq!(left(&mut hold, 10, 8, 9), []);
    assert_eq!(left(&mut hold, 10, 2, 1), [(0, Leave::Settled), (2, Leave::Settled)]);
    assert_eq!(left(&mut hold, WAIT_MAX_MS + 1, 8, 1), [(1, Leave::Overdue), (4, Leave::Settled)]);
    assert_eq!((hold.pop(), hold.pop(), hold.is_empty()), (Some(3), None, true));
    assert_eq!(*hold.senders, [0; SENDERS]);
}

proptest! {
    /// Every frame leaves once, none before its time, and the shares are counted right.
    #[test]
    fn agrees_with_a_list(steps in proptest::collection::vec((0u32..4, 0u64..3, 0u64..900, any::<bool>()), 1..80)) {
        let mut hold = FragmentHold::new(10);
        let mut list: Vec<(usize, u32, u64, u64)> = Vec::new();
        let ids: Vec<Datagram> = (0..4).map(datagram).collect();
        let mut now_ms = 0;
        for (i, (id, sender, time, release)) in steps.into_iter().enumerate() {
            now_ms += time;
            if release {
                let mut out = Vec::new();
                hold.release(now_ms, 3, |waiting| waiting.datagram == ids[id as usize], |frame, _| out.push(frame));
                let leaves = |held: &&(usize, u32, u64, u64)| held.1 == id || now_ms - held.3 >= WAIT_MAX_MS;
                let expected: Vec<usize> = list.iter().filter(leaves).take(3).map(|held| held.0).collect();
                list.retain(|held| !expected.contains(&held.0));
                prop_assert_eq!(out, expected);
            } else {
                let oldest: Vec<usize> = (list.len() == 10).then(|| list.remove(0).0).into_iter().collect();
                let mut evicted = Vec::new();
                hold.keep(i, 1, Waiting { datagram: ids[id as usize], sender, first: false }, now_ms, |frame| evicted.push(frame));
                prop_assert_eq!(evicted, oldest);
                list.push((i, id, sender, now_ms));
            }
            prop_assert_eq!(hold.len(), list.len());
            for sender in 0..3 {
                prop_assert_eq!(usize::from(hold.senders[sender]), list.iter().filter(|held| held.2 == sender as u64).count());
            }
        }
    }
}
