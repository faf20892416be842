//! Frames that a worker cannot send: held when it ends, or for the kernel without an internal port.

use std::net::Ipv4Addr;

use crossbeam::channel::bounded;
use nomagic_core::frame::Wanted;
use nomagic_core::pipeline::process;
use nomagic_core::tuple::HashSeed;
use nomagic_core_fixtures::{Replies, Spec, fragments, spec};

use super::*;
use crate::pool::tests::pool;
use crate::published::Published;

fn reader<T>(table: T) -> Reader<T> {
    Published::new(Arc::new(table), 1).1.remove(0)
}

/// A worker without queues, peers and routes.
fn worker() -> Worker {
    let words: &'static [AtomicU64] = Vec::leak((0..Conntrack::words_needed(16)).map(|_| AtomicU64::new(0)).collect());
    Worker {
        io: WorkerIo::new(0, Arc::new(WorkerShared::new(1).unwrap()), vec![pool(0, 8)], vec![None]),
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
        requester: NeighbourRequester::new(bounded(1).0),
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
