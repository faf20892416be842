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

#[test]
fn a_sender_has_a_share_and_the_oldest_makes_room() {
    let mut hold = FragmentHold::new(SENDER_SHARE + 2);
    assert_eq!(hold.keep(0, waiting(0, 1), 0), None);
    for i in 1..=SENDER_SHARE {
        assert_eq!(hold.keep(i, waiting(1, 7), 0), None);
    }
    assert_eq!(hold.keep(200, waiting(1, 7), 0), Some(1), "the same sender's oldest");
    assert_eq!(hold.keep(201, waiting(2, 8), 0), None);
    assert_eq!(hold.keep(202, waiting(3, 9), 0), Some(0), "the oldest of all");
    assert_eq!(hold.keep(203, waiting(1, 7), 0), Some(2));
    assert_eq!((hold.len(), hold.iter().count()), (SENDER_SHARE + 2, SENDER_SHARE + 2));
}

#[test]
fn there_is_room_for_one_at_least() {
    let mut hold = FragmentHold::new(0);
    assert_eq!((hold.keep(1, waiting(1, 1), 0), hold.keep(2, waiting(2, 2), 0), hold.pop(), hold.pop()), (None, Some(1), Some(2), None));
}

#[test]
fn what_is_settled_or_overdue_leaves_in_order() {
    let mut hold = FragmentHold::new(8);
    for (i, id) in [1, 2, 1, 3, 1].into_iter().enumerate() {
        hold.keep(i, waiting(id, 1), i as u64);
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
                let oldest = (list.len() == 10).then(|| list.remove(0).0);
                prop_assert_eq!(hold.keep(i, Waiting { datagram: ids[id as usize], sender, first: false }, now_ms), oldest);
                list.push((i, id, sender, now_ms));
            }
            prop_assert_eq!(hold.len(), list.len());
            for sender in 0..3 {
                prop_assert_eq!(usize::from(hold.senders[sender]), list.iter().filter(|held| held.2 == sender as u64).count());
            }
        }
    }
}
