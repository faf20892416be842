//! Frames that a worker cannot send: held when it ends, or for the kernel without an internal port.

use std::net::Ipv4Addr;

use crossbeam::channel::bounded;
use nomagic_core::frame::Wanted;
use nomagic_core::pipeline::process;
use nomagic_core::tuple::HashSeed;
use nomagic_core_fixtures::Replies;

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
    w.apply_verdict(OwnedFrame { token, start, len: 60, port: PortId(0), queue: 0, held_since_ns: None }, verdict);
}

#[test]
fn frames_held_when_the_worker_ends_are_dropped_with_a_reason() {
    let mut w = worker();
    for host in 1..=3 {
        apply(&mut w, Verdict::Hold(Wanted { port: PortId(0), addr: Ipv4Addr::new(10, 0, 0, host).into() }));
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
