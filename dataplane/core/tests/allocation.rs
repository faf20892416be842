//! The packet path asks for no memory: not for known connections, not for new ones, not for rejects.
#![allow(unsafe_code, reason = "an allocator is unsafe to make")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use arrayvec::ArrayVec;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{process, sweep};
use nomagic_core_fixtures::*;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what this thread asks for.
struct Counting;

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `process` asked for while it carried one frame, and its verdict.
fn asked(world: &mut World, port: PortId, frame: &[u8]) -> (u64, Verdict) {
    let (mut buffer, mut spare) = (vec![0; 2_048], vec![0; 2_048]);
    buffer[256..256 + frame.len()].copy_from_slice(frame);
    let mut frames = [Frame::new(&mut buffer, 256, frame.len(), port, 0)];
    let mut verdicts = ArrayVec::new();
    let mut out = Outputs::default();
    out.spare.push(Frame::new(&mut spare, 0, 0, PortId(0), 0));
    let asked = world.with(|ctx| {
        let before = ASKED.get();
        process(ctx, &mut frames, &mut verdicts, &mut out);
        sweep(ctx, 16, &mut Outputs::default());
        ASKED.get() - before
    });
    (asked, verdicts[0])
}

#[test]
fn nothing_is_allocated_for_packets() {
    let mut w = World::new(services(), 256);
    let mut verdicts = [0; 4];
    let mut carry = |w: &mut World, what: &str, port, frame: &[u8]| {
        let (asked, verdict) = asked(w, port, frame);
        assert_eq!(asked, 0, "{what}: {verdict:?}");
        verdicts[match verdict {
            Verdict::Forward(..) => 0,
            Verdict::Drop(_) => 1,
            Verdict::Kernel(_) | Verdict::Hold(_) => 2,
            Verdict::Fragment(..) => 3,
        }] += 1;
    };
    for (client, service, backend) in
        [("10.0.0.2:40000", "10.96.0.1:80", "192.168.1.1:8080"), ("[fd00:a::2]:40000", "[fd00:96::1]:80", "[fd00:b::1]:8080")]
    {
        for proto in ["tcp", "udp"] {
            for flags in [SYN, ACK, ACK, FIN_ACK, RST] {
                carry(&mut w, "a client's packet", CLIENTS, &spec(proto, client, service, flags).frame());
                carry(&mut w, "a backend's packet", PODS, &spec(proto, backend, client, flags).frame());
            }
        }
    }
    carry(&mut w, "SNAT", CLIENTS, &spec("tcp", "10.0.0.2:40001", "10.96.0.2:80", SYN).frame());
    carry(&mut w, "a reject", CLIENTS, &spec("udp", "10.0.0.2:40001", "10.96.0.1:81", 0).frame());
    carry(&mut w, "SCTP", CLIENTS, &sctp_frame("10.0.0.2:7", "10.96.0.1:80", 1, 40));
    let mut long = Spec { payload: 1_473, ..spec("udp", "10.0.0.2:40001", "10.96.0.1:80", 0) }.frame();
    allow_fragments(&mut long);
    carry(&mut w, "for fragments", CLIENTS, &long);
    carry(&mut w, "not IP", CLIENTS, &[0; 60]);
    carry(&mut w, "cut short", CLIENTS, &spec("udp", "10.0.0.2:40001", "10.96.0.1:81", 0).frame()[..30]);
    assert!(verdicts.iter().all(|&n| n > 0), "every kind of verdict was seen: {verdicts:?}");
}

#[test]
fn the_count_counts() {
    let before = ASKED.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ASKED.get() - before, 1);
}
