//! Counters: one writer each, read by anybody, never a locked instruction.
//!
//! [`list`](self) of all of them: `counters/list.rs`. The accounts are kept here: each frame counts once, by what became of it in the end.

mod kinds;
mod list;

pub use kinds::{Count, CountBy, Counter, CounterBy, CounterInfo, CounterKind, Labels, Series, Traffic, Volume};
pub use list::{
    BatchSize, ConntrackCounters, ConntrackCounts, FrameCounters, FrameCounts, IoCounters, IoCounts, NeighbourCounters, NeighbourCounts,
    PathCounters, PathCounts, ReasonCounters, ReasonCounts, SendCounters, SendCounts, SendError, SocketCounts, WorkerCounts, XdpCounts,
};

use crate::frame::Verdict;
use crate::reason::Reason;

/// What one (Service port, backend) pair carried. Found by [`crate::services::Backend::stats`].
#[derive(Default, Debug)]
#[repr(align(64))]
pub struct TargetStats {
    /// Connections opened.
    pub flows: Counter,
    /// Client to backend.
    pub forward: Traffic,
    /// Backend to client.
    pub reply: Traffic,
    /// Connections refused because there was no source port for them.
    pub snat_refused: Counter,
    /// New connections refused by the limit of the Service port.
    pub rate_limited: Counter,
    /// New connections refused by the limit of the client.
    pub client_limited: Counter,
}

// One cache line.
const _: () = assert!(size_of::<TargetStats>() == 64);

/// One worker's counters of the packet path.
#[derive(Debug)]
pub struct Counters {
    /// What became of frames.
    pub frames: FrameCounters,
    /// What else the packet path did.
    pub path: PathCounters,
    /// What happened in the connection table.
    pub conntrack: ConntrackCounters,
    /// Why frames were not forwarded. The sums are those of `frames`: all of `drop` is `dropped`, all of `kernel` is `kernel`.
    pub reasons: ReasonCounters,
    /// By (Service port, backend).
    targets: Box<[TargetStats]>,
}

impl Counters {
    /// Counters with room for `targets_max` (Service port, backend) pairs; place 0 gathers those beyond.
    pub fn new(targets_max: usize) -> Counters {
        Counters {
            frames: FrameCounters::default(),
            path: PathCounters::default(),
            conntrack: ConntrackCounters::default(),
            reasons: ReasonCounters::default(),
            targets: (0..targets_max.max(1)).map(|_| TargetStats::default()).collect(),
        }
    }

    /// Counts a frame by its verdict. `resubmitted`: it was held before.
    pub fn judged(&self, verdict: &Verdict, resubmitted: bool, bytes: usize) {
        if resubmitted { &self.frames.released } else { &self.frames.received }.count(bytes);
        match *verdict {
            Verdict::Forward(..) | Verdict::Fragment(..) => self.frames.forwarded.count(bytes),
            Verdict::Kernel(reason) => {
                self.frames.kernel.count(bytes);
                self.reasons.kernel.of(reason).add(1);
            }
            Verdict::Drop(reason) => self.drop_frame(reason, bytes),
            Verdict::Hold(_) => self.frames.held.count(bytes),
        }
    }

    /// A frame with the verdict forward could not be sent after all (ring full, port gone): it counts as dropped.
    pub fn forward_failed(&self, reason: Reason, bytes: usize) {
        self.frames.forwarded.uncount(bytes);
        self.drop_frame(reason, bytes);
    }

    /// A frame with the verdict kernel, for the reason `judged`, could not be handed over: it counts as dropped, for another reason.
    pub fn kernel_failed(&self, judged: Reason, reason: Reason, bytes: usize) {
        self.frames.kernel.uncount(bytes);
        self.reasons.kernel.of(judged).sub(1);
        self.drop_frame(reason, bytes);
    }

    /// A held frame that is given up.
    pub fn held_failed(&self, reason: Reason, bytes: usize) {
        self.frames.released.count(bytes);
        self.drop_frame(reason, bytes);
    }

    fn drop_frame(&self, reason: Reason, bytes: usize) {
        self.frames.dropped.count(bytes);
        self.reasons.drop.of(reason).add(1);
    }

    /// The statistics of a pair; an unknown place is place 0.
    #[inline]
    pub fn target(&self, stats: u32) -> &TargetStats {
        self.targets.get(stats as usize).unwrap_or(&self.targets[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{NextHopId, PortId};

    /// What must hold whatever happens to frames after their verdict.
    fn accounts_close(c: &Counters) -> (u64, u64) {
        let (frames, reasons) = (c.frames.read(), c.reasons.read());
        assert_eq!(frames.kernel.packets, reasons.kernel.total(), "left to the kernel: {reasons:?}");
        assert_eq!(frames.dropped.packets, reasons.drop.total(), "dropped: {reasons:?}");
        let out = frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets;
        assert_eq!(frames.received.packets, out + frames.held.packets - frames.released.packets);
        (frames.kernel.packets, frames.dropped.packets)
    }

    #[test]
    fn a_frame_that_fails_after_its_verdict_counts_once_and_as_dropped() {
        let c = Counters::new(1);
        c.judged(&Verdict::Kernel(Reason::Icmp), false, 60);
        c.judged(&Verdict::Kernel(Reason::NotOurs), false, 70);
        assert_eq!(accounts_close(&c), (2, 0));
        c.kernel_failed(Reason::NotOurs, Reason::TxFull, 70);
        assert_eq!(accounts_close(&c), (1, 1));
        let reasons = c.reasons.read();
        assert_eq!((reasons.kernel[Reason::NotOurs], reasons.kernel[Reason::Icmp], reasons.drop[Reason::TxFull]), (0, 1, 1));
        assert_eq!(c.frames.kernel.read(), Volume { packets: 1, bytes: 60 });

        c.judged(&Verdict::Forward(PortId(1), NextHopId(1)), false, 80);
        c.forward_failed(Reason::PortDown, 80);
        assert_eq!((accounts_close(&c), c.frames.forwarded.read()), ((1, 2), Volume::default()));
        assert_eq!(c.frames.dropped.read(), Volume { packets: 2, bytes: 150 });
    }
}
