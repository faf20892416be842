//! Frames that cannot be sent after their verdict: the reason is named, and each frame counts once.

use std::net::UdpSocket;
use std::sync::atomic::AtomicU64;

use nomagic_core::counters::SendError;
use nomagic_core::frame::{NextHopId, Verdict};
use xsk_rs::config::BindFlags;

use super::*;
use crate::bind::bind_socket;
use crate::lanes::mesh;
use crate::pool::tests::frames;
use crate::queue::QueueParts;

/// Port 1 belongs to worker 1 and sends from pool 0; port 2 belongs to worker 1 and sends from pool 1; port 0 is not bound.
fn io() -> WorkerIo {
    let shared = || Arc::new(WorkerShared::new(1).unwrap());
    let lanes = mesh(2, 1, 8);
    let beat: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(1_000)));
    let peer = Peer::new(lanes[0][1].clone(), lanes[1][0].clone(), shared(), beat, 100);
    let pools = vec![FramePool::of_worker(&frames(0, 1, 8), 0), FramePool::of_worker(&frames(1, 1, 1), 0)];
    let mut io = WorkerIo::new(0, shared(), pools, vec![None, Some(peer)]);
    io.exits = vec![Exit::Closed, Exit::Peers { pool: 0, workers: vec![1] }, Exit::Peers { pool: 1, workers: vec![1] }];
    io.now_ns = 1_000;
    io
}

/// Sends a frame with this origin and returns its drop reason, if it was dropped.
fn send(io: &mut WorkerIo, port: u16, len: usize, origin: Origin) -> Option<Reason> {
    let before = io.shared.counters.reasons.read();
    let verdict = match origin {
        Origin::Kernel(reason) => Verdict::Kernel(reason),
        _ => Verdict::Forward(PortId(port), NextHopId(1)),
    };
    io.shared.counters.judged(&verdict, false, len);
    let token = io.pools[0].take().unwrap();
    // The link-layer header has grown.
    let start = io.pools[0].data_start(&token) - 8;
    io.send(OwnedFrame { token, start, len, port: PortId(0), queue: 0, held_since_ns: None, given_up: None }, PortId(port), origin);

    let (frames, reasons) = (io.shared.counters.frames.read(), io.shared.counters.reasons.read());
    assert_eq!(frames.kernel.packets, reasons.kernel.total(), "left to the kernel");
    assert_eq!(frames.dropped.packets, reasons.drop.total(), "dropped");
    assert_eq!(frames.received.packets, frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets);
    let mut dropped = reasons.drop.iter().zip(before.drop.iter()).filter(|((_, now), (_, before))| now > before);
    dropped.next().map(|((reason, _), _)| reason)
}

#[test]
fn unsendable_frames_are_dropped_with_a_reason() {
    let mut io = io();
    assert_eq!(send(&mut io, 0, 60, Origin::Forward), Some(Reason::PortDown), "not bound");
    assert_eq!(send(&mut io, 7, 60, Origin::Forward), Some(Reason::PortDown), "no such port");
    assert_eq!(send(&mut io, 2, 1_793, Origin::Forward), Some(Reason::FrameTooLong), "too long for the other pool");
    assert_eq!(send(&mut io, 1, 1_793, Origin::Forward), Some(Reason::FrameTooLong), "too long for its own pool");
    assert_eq!(send(&mut io, 2, 60, Origin::Forward), None, "copied and handed over");
    assert_eq!(send(&mut io, 2, 60, Origin::Forward), Some(Reason::PoolEmpty), "that pool's only frame is in transit");
    assert_eq!(send(&mut io, 1, 60, Origin::Forward), Some(Reason::HandoverFull), "a lane of one");
    io.now_ns = 1_101;
    assert_eq!(send(&mut io, 1, 60, Origin::Forward), Some(Reason::WorkerGone), "no heartbeat");
    assert_eq!(io.shared.counters.frames.read().forwarded.packets, 1);
    assert_eq!((io.pools[0].free(), io.pools[1].free()), (8, 0), "all others are free again");

    // Frames on the dead worker's lane are taken back.
    io.reclaim_from_dead_peers();
    assert_eq!((io.shared.counters.frames.read().forwarded.packets, io.pools[1].free()), (0, 1));
    assert_eq!(io.shared.counters.reasons.drop.of(Reason::WorkerGone).get(), 2);
}

#[test]
fn a_frame_the_kernel_does_not_get_is_no_longer_counted_as_left_to_it() {
    let mut io = io();
    assert_eq!(send(&mut io, 0, 60, Origin::Kernel(Reason::NotOurs)), Some(Reason::PortDown));
    assert_eq!(send(&mut io, 1, 60, Origin::Kernel(Reason::Icmp)), None);
    let (frames, reasons) = (io.shared.counters.frames.read(), io.shared.counters.reasons.read());
    assert_eq!((frames.kernel.packets, frames.dropped.packets), (1, 1));
    assert_eq!((reasons.kernel[Reason::NotOurs], reasons.kernel[Reason::Icmp], reasons.drop[Reason::NotOurs]), (0, 1, 0));
    io.now_ns = 1_101;
    io.reclaim_from_dead_peers();
    let (frames, reasons) = (io.shared.counters.frames.read(), io.shared.counters.reasons.read());
    assert_eq!((frames.kernel.packets, reasons.kernel.total(), reasons.drop[Reason::WorkerGone]), (0, 0, 1));
}

#[test]
fn failures_of_handed_over_frames_are_counted_separately() {
    let io = io();
    io.failed(Origin::Handed, Reason::TxFull, 60);
    io.failed(Origin::Made, Reason::TxFull, 60);
    let (reasons, work) = (io.shared.counters.reasons.read(), io.shared.io.read());
    assert_eq!((reasons.handed[Reason::TxFull], reasons.drop.total()), (1, 0), "the other worker has counted it as forwarded");
    assert_eq!((work.handed_failed.packets, work.handed_failed.bytes, work.made_failed), (1, 60, 1));
}

#[test]
fn a_full_ring_drops_frames_with_a_reason() {
    const RING: usize = 64;
    let memory = frames(0, 1, 2 * RING as u32);
    let rings = bind_socket(&memory, "lo", 0, RING as u32, BindFlags::XDP_COPY).expect("needs root");
    let mut queue = Queue::new(QueueParts { port: PortId(0), index: 0, pool: 0, ring_id: 1, ring_size: RING as u32, rings });
    // This socket has no peer address, so every send fails and no frame leaves.
    queue.kick_instead(UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut io = WorkerIo::new(0, Arc::new(WorkerShared::new(1).unwrap()), vec![FramePool::of_worker(&memory, 0)], vec![None]);
    io.queues.push(queue);
    io.exits = vec![Exit::Own { pool: 0, queues: vec![0] }];
    for _ in 0..RING {
        assert_eq!(send(&mut io, 0, 60, Origin::Forward), None);
    }
    io.flush();
    assert_eq!(io.shared.counters.reasons.read().drop.total(), 0, "the ring has room for these");
    assert_eq!(send(&mut io, 0, 60, Origin::Forward), None, "waits for the end of the batch");
    assert_eq!(send(&mut io, 0, 60, Origin::Kernel(Reason::Icmp)), None);
    io.flush();
    let (frames, reasons) = (io.shared.counters.frames.read(), io.shared.counters.reasons.read());
    assert_eq!((reasons.drop[Reason::TxFull], reasons.drop.total(), reasons.kernel.total()), (2, 2, 0));
    assert_eq!((frames.forwarded.packets, frames.kernel.packets, frames.dropped.packets), (RING as u64, 0, 2));
    assert!(io.shared.sends.read().errors[SendError::Other] > 0);
    assert!(io.account(0).closes() && io.pools[0].free() == RING as u32, "{:?}", io.account(0));
}
