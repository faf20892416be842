//! Frames that a worker cannot send: held when it ends, or for the kernel without an internal port. And those that it makes: fragments.

use std::net::Ipv4Addr;

use crossbeam::channel::bounded;
use nomagic_core::frame::{NextHopId, Wanted};
use nomagic_core::pipeline::process;
use nomagic_core::tuple::HashSeed;
use nomagic_core_fixtures::{Replies, Spec, allow_fragments, fragments, reassemble, spec};

use super::*;
use crate::lanes::{Peer, mesh};
use crate::pool::tests::pool;
use crate::published::Published;
use crate::topology::PortPlan;

fn reader<T>(table: T) -> Reader<T> {
    Published::new(Arc::new(table), 1).1.remove(0)
}

/// A worker without queues, peers and routes.
fn worker() -> Worker {
    worker_with(8, vec![None])
}

/// The same with so many frames, and with peers.
fn worker_with(frames: u32, peers: Vec<Option<Peer>>) -> Worker {
    let words: &'static [AtomicU64] = Vec::leak((0..Conntrack::words_needed(16)).map(|_| AtomicU64::new(0)).collect());
    Worker {
        io: WorkerIo::new(0, Arc::new(WorkerShared::new(1).unwrap()), vec![pool(0, frames)], peers),
        heartbeat: Box::leak(Box::new(AtomicU64::new(0))),
        commands: bounded(1).1,
        services: reader(Services::empty(HashSeed::new(1))),
        routes: reader(Routes::default()),
        topology: reader(Topology::default()),
        table: Conntrack::format(words, 16, 1, [0, 0]).unwrap(),
        sweep_flows: 16,
        filter: Box::leak(Box::new(Replies::new(1))).filter(),
        state: WorkerState::new(0),
        hold: Hold::new(4, 1_000_000),
        fragments: FragmentHold::new(4),
        fragments_seen_ns: 0,
        leaving: VecDeque::new(),
        fragment: Vec::new(),
        requester: NeighbourRequester::new(bounded(1).0),
        taps: WorkerTaps::of_worker(0),
        sampler: Sampler::default(),
        idle: Idle::Spin,
        path: process,
        busy_ns: 0,
        housekept_ns: 0,
        probed_ns: 0,
    }
}

/// Applies this verdict to a frame of 60 bytes.
fn apply(w: &mut Worker, verdict: Verdict) {
    w.io.shared.counters.judged(&verdict, false, 60);
    let token = w.io.pools[0].take().unwrap();
    let start = w.io.pools[0].data_start(&token);
    w.apply_verdict(OwnedFrame { token, start, len: 60, port: PortId(0), queue: 0, held_since_ns: None, given_up: None }, verdict);
}

#[test]
fn frames_held_when_the_worker_ends_are_dropped_with_a_reason() {
    let mut w = worker();
    for host in 1..=3 {
        apply(&mut w, Verdict::Hold(Wait::Neighbour(Wanted { port: PortId(0), addr: Ipv4Addr::new(10, 0, 0, host).into() })));
    }
    assert_eq!((w.hold.len(), w.io.pools[0].free()), (3, 5));
    w.finish();
    let (frames, reasons) = (w.io.shared.counters.frames.read(), w.io.shared.counters.reasons.read());
    assert_eq!((frames.held.packets, frames.released.packets, frames.dropped.packets), (3, 3, 3));
    assert_eq!((reasons.drop[Reason::Shutdown], reasons.drop.total(), w.io.pools[0].free()), (3, 3, 8));
}

#[test]
fn without_an_internal_port_a_kernel_frame_counts_only_as_dropped() {
    let mut w = worker();
    apply(&mut w, Verdict::Kernel(Reason::NotOurs));
    let (frames, reasons) = (w.io.shared.counters.frames.read(), w.io.shared.counters.reasons.read());
    assert_eq!((frames.kernel.packets, reasons.kernel.total()), (0, 0));
    assert_eq!((frames.dropped.packets, reasons.drop[Reason::NoInternalPort], w.io.pools[0].free()), (1, 1, 8));
}

/// A later fragment of a UDP datagram from 10.0.0.2 to an address that is no Service's, in a frame of a worker's pool.
fn fragment(w: &mut Worker, id: u16) -> OwnedFrame {
    let spec = spec("udp", "10.0.0.2:40000", "10.0.0.1:53", 0);
    let bytes = fragments(&Spec { payload: 64, ..spec }.frame(), 32, id).remove(1);
    let mut token = w.io.pools[0].take().unwrap();
    let start = w.io.pools[0].data_start(&token);
    w.io.pools[0].bytes(&mut token)[start..start + bytes.len()].copy_from_slice(&bytes);
    OwnedFrame { token, start, len: bytes.len(), port: PortId(0), queue: 0, held_since_ns: None, given_up: None }
}

fn receive(w: &mut Worker, id: u16) {
    let mut packets = ArrayVec::from_iter([fragment(w, id)]);
    w.process_batch(0, &mut packets);
    w.submit_leaving();
}

#[test]
fn fragments_are_held_until_a_worker_has_the_first_one_or_their_time_is_over() {
    let mut w = worker();
    (0..5).for_each(|id| receive(&mut w, id));
    assert_eq!((w.fragments.len(), w.io.pools[0].free(), w.fragments_of_pool(0)), (4, 4, 4), "there is room for four");
    w.release_fragments();
    assert_eq!(w.fragments.len(), 4);
    // Another worker has the first fragment of one of them.
    let t = spec("udp", "10.0.0.2:0", "10.0.0.1:0", 0).tuple();
    w.table.fragments().drop(w.table.fragments().datagram(&t, 2), Reason::NoEndpoints, 0);
    w.release_fragments();
    assert_eq!(w.fragments.len(), 3);
    w.io.now_ns = 4_000_000_000;
    w.release_fragments();
    assert_eq!((w.fragments.len(), w.io.pools[0].free()), (0, 8));
    receive(&mut w, 9);
    w.finish();
    let (frames, reasons) = (w.io.shared.counters.frames.read(), w.io.shared.counters.reasons.read());
    assert_eq!((frames.held.packets, frames.released.packets, frames.dropped.packets, w.io.pools[0].free()), (6, 6, 6, 8));
    // Without an internal port there is no way to the kernel.
    let counts = [Reason::NoEndpoints, Reason::NoInternalPort, Reason::Shutdown].map(|reason| reasons.drop[reason]);
    assert_eq!(counts, [1, 4, 1]);
}

#[test]
fn fragments_leave_in_a_row_and_all_of_them_or_none() {
    const MTU: u16 = 200;
    let lanes = mesh(2, 32, 32);
    let peer = |to: usize, from: usize| {
        let beat = Box::leak(Box::new(AtomicU64::new(0)));
        Peer::new(lanes[from][to].clone(), lanes[to][from].clone(), Arc::new(WorkerShared::new(1).unwrap()), beat, u64::MAX)
    };
    let (mut w, other) = (worker_with(64, vec![None, Some(peer(1, 0))]), peer(0, 1));
    // Its port belongs to the other worker, which gets what is sent.
    w.io.plan(&Topology { ports: vec![Some(PortPlan { pool: 0, owners: vec![1] })] });
    let mut bytes = Spec { payload: 1_472, ..spec("udp", "10.0.0.2:40000", "10.0.0.1:53", 0) }.frame();
    allow_fragments(&mut bytes);
    let fragment = |w: &mut Worker| {
        let verdict = Verdict::Fragment(PortId(0), NextHopId(1), MTU);
        w.io.shared.counters.judged(&verdict, false, bytes.len());
        let mut token = w.io.pools[0].take().unwrap();
        let start = w.io.pools[0].data_start(&token);
        w.io.pools[0].bytes(&mut token)[start..start + bytes.len()].copy_from_slice(&bytes);
        let packet = OwnedFrame { token, start, len: bytes.len(), port: PortId(0), queue: 0, held_since_ns: None, given_up: None };
        w.apply_verdict(packet, verdict);
        let sent = std::iter::from_fn(|| other.handed()).map(|mut handed| {
            let (start, len) = (w.io.pools[0].data_start(&handed.token), handed.token.head_len());
            let bytes = w.io.pools[0].bytes(&mut handed.token)[start..start + len].to_vec();
            w.io.pools[0].take_over(&handed.token);
            w.io.free(handed.token);
            bytes
        });
        let sent: Vec<Vec<u8>> = sent.collect();
        sent
    };
    let sent = fragment(&mut w);
    let offsets: Vec<usize> = sent.iter().map(|frame| 8 * (usize::from(frame[20] & 0x1f) << 8 | usize::from(frame[21]))).collect();
    assert_eq!(offsets, (0..9).map(|number| 176 * number).collect::<Vec<_>>(), "in order");
    assert_eq!(reassemble(&sent).expect("all of them")[34..], bytes[34..]);
    let counters = &w.io.shared.counters;
    assert_eq!((counters.path.fragments_made.get(), counters.frames.made.packets.get()), (9, 9));
    assert_eq!((counters.frames.forwarded.packets.get(), w.io.pools[0].free()), (1, 64));
    // Eight frames are free for nine fragments, and those for rejects.
    let used: Vec<Token> = (0..64 - 1 - 8 - OUTPUT_MAX).map(|_| w.io.pools[0].take().unwrap()).collect();
    assert!(fragment(&mut w).is_empty());
    let counters = &w.io.shared.counters;
    let (frames, reasons) = (counters.frames.read(), counters.reasons.read());
    assert_eq!((frames.forwarded.packets, frames.dropped.packets, reasons.drop[Reason::PoolEmpty]), (1, 1, 1));
    assert_eq!((frames.forwarded.bytes, counters.path.fragments_made.get()), (bytes.len() as u64, 9));
    used.into_iter().for_each(|token| w.io.free(token));
    assert_eq!(fragment(&mut w).len(), 9);
    assert_eq!(w.io.pools[0].free(), 64);
}

#[test]
fn the_time_of_rounds_with_work_is_counted() {
    let mut w = worker();
    w.busy_ns = 50;
    w.begin_round(100);
    w.idle(3);
    w.begin_round(170);
    w.idle(0);
    w.begin_round(1_000);
    w.idle(1);
    w.begin_round(1_005);
    let io = w.io.shared.io.read();
    assert_eq!((io.busy_ns, io.rounds), (75, 4));
}
