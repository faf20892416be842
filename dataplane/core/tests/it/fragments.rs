//! Fragments in any order, on several workers, honest and hostile. `Edge` is what the workers do with verdicts, without sockets.

use nomagic_core::conntrack::FRAGMENTS_AGE_MAX_S;
use nomagic_core::fragment_hold::{FragmentHold, Leave, WAIT_MAX_MS};
use nomagic_core::frame::{PortId, Verdict, Wait, Waiting};
use nomagic_core::pipeline::WorkerState;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

type HeldFrame = (PortId, Vec<u8>);

/// Workers with one table.
pub struct Edge {
    pub world: World,
    workers: Vec<(WorkerState, FragmentHold<HeldFrame>)>,
    /// The last verdict about each frame, in order, and the frame afterwards.
    pub done: Vec<(Verdict, Vec<u8>)>,
}

impl Edge {
    pub fn new(services: nomagic_core::services::Services, workers: u16, held_max: usize) -> Edge {
        let worker = |number| (WorkerState::new(number), FragmentHold::new(held_max));
        Edge { world: World::new(services, 256), workers: (0..workers).map(worker).collect(), done: Vec::new() }
    }

    pub fn run(&mut self, worker: usize, submitted: Submitted, (port, frame): HeldFrame) {
        std::mem::swap(&mut self.world.worker, &mut self.workers[worker].0);
        let done = self.world.run_as(submitted, port, &frame);
        std::mem::swap(&mut self.world.worker, &mut self.workers[worker].0);
        let Verdict::Hold(Wait::Fragments(waiting)) = done.verdict else { return self.done.push((done.verdict, done.bytes)) };
        assert_eq!(done.bytes, frame, "unchanged");
        let now_ms = self.world.now_ms;
        let mut evicted = Vec::new();
        self.workers[worker].1.keep((port, frame), 1, waiting, now_ms, |frame| evicted.push(frame));
        evicted.into_iter().for_each(|frame| self.run(worker, Submitted::Evicted, frame));
    }

    /// A worker receives a frame.
    pub fn receive(&mut self, worker: usize, port: PortId, frame: &[u8]) {
        self.run(worker, Submitted::New, (port, frame.to_vec()));
    }

    /// Each worker looks at the fragments that it holds.
    pub fn round(&mut self) {
        for worker in 0..self.workers.len() {
            let now_ms = self.world.now_ms;
            let mut leaving = Vec::new();
            let hold = &mut self.workers[worker].1;
            self.world.with(|ctx| {
                let is_settled = |waiting: &Waiting| ctx.table.fragments().is_settled(waiting, now_ms);
                hold.release(now_ms, 64, is_settled, |frame, why| leaving.push((frame, why)));
            });
            for (frame, why) in leaving {
                self.run(worker, if why == Leave::Settled { Submitted::Again } else { Submitted::Overdue }, frame);
            }
        }
    }

    pub fn held(&self) -> usize {
        self.workers.iter().map(|(_, hold)| hold.len()).sum()
    }

    /// The frames that were sent on since the last call, put together. Fails unless all frames were sent on.
    pub fn arrived(&mut self) -> Option<Vec<u8>> {
        let done = std::mem::take(&mut self.done);
        done.iter().for_each(|(verdict, _)| assert!(matches!(verdict, Verdict::Forward(..)), "{verdict:?}"));
        reassemble(&done.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>())
    }

    /// The only verdict since the last call, and how many frames it is about.
    pub fn verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.done).into_iter().map(|(verdict, _)| verdict).collect()
    }

    pub fn accounts_close(&self) {
        let frames = self.world.reconciled();
        let out = frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets;
        assert_eq!(frames.received.packets, out + frames.held.packets - frames.released.packets);
        assert_eq!(frames.held.packets - frames.released.packets, self.held() as u64);
    }
}

pub fn edge() -> Edge {
    Edge::new(services(), 2, 64)
}

/// Client, Service, whether with SNAT.
pub const WAYS: [(&str, &str, bool); 4] = [
    ("10.0.0.2:40000", "10.96.0.1:80", false),
    ("10.0.0.2:40000", "10.96.0.2:80", true),
    ("[fd00:a::2]:40000", "[fd00:96::1]:80", false),
    ("[fd00:a::2]:40000", "[fd00:96::2]:80", true),
];

/// All orders of `n` things.
pub fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(n - 1);
    shorter.iter().flat_map(|order| (0..n).map(move |at| [&order[..at], &[n - 1], &order[at..]].concat())).collect()
}

/// The later fragments are the second worker's; the first one is either worker's.
pub fn send(edge: &mut Edge, port: PortId, pieces: &[Vec<u8>], order: &[usize], first_worker: usize) {
    for &piece in order {
        edge.receive(if piece == 0 { first_worker } else { 1 }, port, &pieces[piece]);
        edge.round();
    }
    (0..2).for_each(|_| edge.round());
}

#[test]
fn in_any_order_on_any_worker_both_ways() {
    for (proto, payload) in [("udp", 4_000), ("tcp", 4_000)] {
        for (client, service, snat) in WAYS {
            let mut e = edge();
            let mut id = 0;
            for order in orders(3) {
                for first_worker in [0, 1] {
                    id += 1;
                    let request = Spec { payload, ..spec(proto, client, service, SYN) };
                    send(&mut e, CLIENTS, &fragments(&request.frame(), 1_400, id), &order, first_worker);
                    let seen = read(&e.arrived().expect("whole")).expect("sound");
                    assert_eq!((seen.payload.len(), seen.tuple.src_addr() != request.src.ip()), (payload, snat), "{order:?}");
                    let peer = (seen.tuple.src_addr(), seen.tuple.sport).into();
                    let answer = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: peer, flags: SYN_ACK, ..request };
                    send(&mut e, PODS, &fragments(&answer.frame(), 1_400, id), &order, first_worker);
                    let back = read(&e.arrived().expect("whole")).expect("sound");
                    assert_eq!((back.tuple, back.payload.len()), (request.tuple().reversed(), payload), "{order:?}");
                }
            }
            assert_eq!((e.held(), e.world.live()), (0, 1));
            e.accounts_close();
        }
    }
}

#[test]
fn an_identification_may_be_used_again_as_soon_as_its_datagram_is_whole() {
    for (client, service, _) in WAYS {
        let mut e = edge();
        for (client_port, order) in orders(3).iter().enumerate() {
            let mut request = Spec { payload: 3_000, ..spec("udp", client, service, 0) };
            request.src.set_port(40_000 + client_port as u16);
            send(&mut e, CLIENTS, &fragments(&request.frame(), 1_400, 5), order, client_port % 2);
            let whole = e.arrived().expect("whole");
            assert_eq!(read(&whole).unwrap().payload.len(), 3_000, "{order:?}");
        }
        assert_eq!(e.world.live(), 6, "a connection each");
    }
}

/// What is not for a Service: a port that no Service has, on an address of the node.
#[test]
fn what_is_not_ours_goes_to_the_kernel_whole() {
    for order in orders(3) {
        for first_worker in [0, 1] {
            let mut e = edge();
            let other = Spec { payload: 4_000, ..spec("udp", "10.0.0.2:40000", "10.0.0.1:53", 0) };
            let sent = fragments(&other.frame(), 1_400, 9);
            send(&mut e, CLIENTS, &sent, &order, first_worker);
            let mut got: Vec<Vec<u8>> = e.done.iter().map(|(_, bytes)| bytes[12..].to_vec()).collect();
            got.sort();
            let mut sent: Vec<Vec<u8>> = sent.iter().map(|piece| piece[12..].to_vec()).collect();
            sent.sort();
            assert_eq!(got, sent, "unchanged");
            assert_eq!(e.verdicts(), [Verdict::Kernel(Reason::NotOurs); 3]);
        }
    }
}

#[test]
fn later_fragments_share_the_reason_of_a_first_one_that_is_dropped() {
    let mut services = services();
    add_action(&mut services, "10.96.1.1", 80, Proto::Udp, nomagic_core::services::Action::Reject(Reason::NoEndpoints));
    for order in orders(3) {
        let mut e = Edge::new(services.clone(), 2, 64);
        let request = Spec { payload: 4_000, ..spec("udp", "10.0.0.2:40000", "10.96.1.1:80", 0) };
        send(&mut e, CLIENTS, &fragments(&request.frame(), 1_400, 1), &order, 0);
        assert_eq!(e.verdicts(), [Verdict::Drop(Reason::NoEndpoints); 3]);
    }
}

/// A frame for the node's own address, where no Service is, and one for a cluster IP: without a first fragment, and with one that comes too late.
#[test]
fn nothing_waits_for_longer_than_its_time() {
    for (to, verdict) in [
        ("10.0.0.1:53", Verdict::Kernel(Reason::FragmentTimeout)),
        ("10.96.0.1:80", Verdict::Drop(Reason::FragmentTimeout)),
        ("[fd00:a::1]:53", Verdict::Kernel(Reason::FragmentTimeout)),
        ("[fd00:96::1]:80", Verdict::Drop(Reason::FragmentTimeout)),
    ] {
        let mut e = edge();
        let client = if to.starts_with('[') { "[fd00:a::2]:40000" } else { "10.0.0.2:40000" };
        let sent = fragments(&Spec { payload: 4_000, ..spec("udp", client, to, 0) }.frame(), 1_400, 9);
        sent[1..].iter().for_each(|piece| e.receive(0, CLIENTS, piece));
        e.world.now_ms += WAIT_MAX_MS - 1;
        e.round();
        assert_eq!((e.held(), e.done.len()), (2, 0));
        e.world.now_ms += 1;
        e.round();
        assert_eq!((e.held(), e.verdicts()), (0, vec![verdict; 2]));
        e.accounts_close();
    }
}

#[test]
fn what_the_first_one_met_is_remembered_for_a_while() {
    let mut e = edge();
    let sent = fragments(&Spec { payload: 4_000, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) }.frame(), 1_400, 9);
    e.receive(0, CLIENTS, &sent[0]);
    e.world.now_ms += FRAGMENTS_AGE_MAX_S * 1_000;
    e.receive(0, CLIENTS, &sent[1]);
    assert!(matches!(e.verdicts()[..], [Verdict::Forward(..), Verdict::Forward(..)]));
    e.world.now_ms += 3_000;
    e.receive(0, CLIENTS, &sent[2]);
    assert_eq!((e.held(), e.done.len()), (1, 0), "by now it is forgotten");
    // Of another datagram.
    let other = fragments(&Spec { payload: 4_000, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) }.frame(), 1_400, 10);
    e.receive(0, CLIENTS, &other[1]);
    assert_eq!((e.held(), e.done.len()), (2, 0));
}

#[test]
fn fragments_do_not_outlive_their_connection() {
    let mut e = edge();
    let request = Spec { payload: 3_000, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) };
    let pieces = fragments(&request.frame(), 1_400, 5);
    e.receive(0, CLIENTS, &pieces[0]);
    e.world.with(|ctx| ctx.table.for_each(|hit, _| assert!(ctx.table.end(hit).is_some())));
    e.receive(0, CLIENTS, &pieces[1]);
    // The slot goes to another client's connection: still not that one's fragment.
    e.receive(0, CLIENTS, &spec("udp", "10.0.0.2:40001", "10.96.0.1:80", 0).frame());
    e.receive(0, CLIENTS, &pieces[2]);
    e.round();
    assert_eq!((e.held(), e.done.len()), (2, 2));
}

/// The next hop of the first fragment is not known yet: the others wait for it, not for ARP.
#[test]
fn later_fragments_wait_while_the_first_one_waits_for_its_next_hop() {
    let mut services = services();
    add_service(&mut services, "10.96.0.5", 80, Proto::Udp, &[backend("192.168.9.9", 8080)], false);
    let mut e = Edge::new(services, 2, 64);
    let request = Spec { payload: 3_000, ..spec("udp", "10.0.0.2:40000", "10.96.0.5:80", 0) };
    let pieces = fragments(&request.frame(), 1_400, 5);
    pieces.iter().for_each(|piece| e.receive(0, CLIENTS, piece));
    assert!(matches!(e.verdicts()[..], [Verdict::Hold(Wait::Neighbour(_))]));
    e.round();
    assert_eq!((e.held(), e.done.len()), (2, 0));
    e.run(0, Submitted::Overdue, (CLIENTS, pieces[0].clone()));
    e.round();
    assert_eq!(e.verdicts(), [Verdict::Drop(Reason::NeighbourTimeout); 3], "it does not answer");
}

/// RFC 5722: what overlaps is dropped with all that follows of the datagram.
#[test]
fn overlaps_spoil_the_datagram() {
    for (client, service, _) in WAYS {
        let whole = Spec { payload: 4_000, ..spec("udp", client, service, 0) }.frame();
        let cut = |range: std::ops::Range<usize>, more| fragment(&whole, range, more, 7);
        let overlap = Verdict::Drop(Reason::FragmentOverlap);
        let cases = [
            (
                "a later one in a later one",
                vec![cut(0..800, true), cut(800..1600, true), cut(1592..2400, true), cut(2400..4008, false)],
                [2, 0],
            ),
            ("a later one in the first one", vec![cut(0..800, true), cut(792..1600, true), cut(1600..4008, false)], [1, 1]),
            ("two ends", vec![cut(0..800, true), cut(3200..4008, false), cut(1600..3192, false)], [2, 0]),
            ("beyond the end", vec![cut(0..800, true), cut(1600..2400, false), cut(2400..3200, true)], [2, 0]),
            ("two first ones", vec![cut(0..800, true), cut(0..808, true), cut(1600..2400, true)], [1, 2]),
        ];
        for (what, frames, sound) in cases {
            // As listed, and with the first one last.
            for (rotated, sound) in sound.into_iter().enumerate() {
                let mut e = edge();
                let mut frames = frames.clone();
                frames.rotate_left(rotated);
                for frame in &frames {
                    e.receive(1, CLIENTS, frame);
                    e.round();
                }
                e.round();
                let verdicts = e.verdicts();
                assert_eq!((verdicts.len(), e.held()), (frames.len(), 0), "{what}");
                let forwarded = verdicts.iter().filter(|v| matches!(v, Verdict::Forward(..))).count();
                assert_eq!(verdicts.iter().filter(|v| **v == overlap).count(), frames.len() - forwarded, "{what}: {verdicts:?}");
                assert_eq!(forwarded, sound, "{what}: {verdicts:?}");
            }
        }
    }
}

/// A repeated fragment is dropped, and the others are carried.
#[test]
fn repeated_fragments_change_nothing() {
    for (client, service, _) in WAYS {
        for order in orders(3) {
            let mut e = edge();
            let pieces = fragments(&Spec { payload: 4_000, ..spec("udp", client, service, 0) }.frame(), 1_400, 7);
            for piece in order {
                e.receive(1, CLIENTS, &pieces[piece]);
                e.round();
                if e.held() > 0 || e.done.len() < 3 {
                    e.receive(1, CLIENTS, &pieces[piece]);
                }
            }
            e.round();
            let (sent, dropped): (Vec<_>, Vec<_>) = e.done.drain(..).partition(|(verdict, _)| matches!(verdict, Verdict::Forward(..)));
            assert!(dropped.iter().all(|(verdict, _)| *verdict == Verdict::Drop(Reason::FragmentOverlap)), "{dropped:?}");
            assert!(reassemble(&sent.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>()).is_some());
        }
    }
}

/// The held fragments of honest clients beside a flood from one address, and beside one from many.
#[test]
fn a_flood_of_later_fragments_starves_nobody() {
    let later = |src: &str, id: u16| {
        let frame = Spec { payload: 3_000, ..spec("udp", src, "10.96.0.1:80", 0) }.frame();
        fragments(&frame, 1_400, id)
    };
    for forged in [false, true] {
        let mut e = Edge::new(services(), 1, 512);
        let mut carried = 0;
        for i in 0..400u16 {
            let pieces = later("10.0.0.2:40000", i);
            e.receive(0, CLIENTS, &pieces[1]);
            e.receive(0, CLIENTS, &pieces[2]);
            // The first one is behind 400 of the others.
            for k in 0..400u16 {
                let host = if forged { format!("10.0.{}.{}:1", 1 + k / 250, k % 250) } else { "10.0.0.9:1".into() };
                e.receive(0, CLIENTS, &later(&host, i.wrapping_mul(400) + k)[1]);
            }
            assert!(e.verdicts().iter().all(|verdict| *verdict == Verdict::Drop(Reason::FragmentHoldFull)));
            e.receive(0, CLIENTS, &pieces[0]);
            e.round();
            carried += usize::from(e.arrived().is_some());
            assert!(e.held() <= 512);
            if i == 20 {
                break;
            }
        }
        assert_eq!(carried, 21, "forged: {forged}");
        e.accounts_close();
    }
}
