//! Counters: one writer each, read by anybody, never a locked instruction.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::conntrack::EvictionRank;
use crate::reason::Reason;

/// A counter with one writing thread. Readers on other threads see it a little late, never torn.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only ever called by the owning worker.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes back what was counted too early; only ever called by the owning worker.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Packets and bytes.
#[derive(Default, Debug)]
pub struct Traffic {
    /// Frames.
    pub packets: Counter,
    /// Bytes on the wire (link-layer header included, as interface counters have it).
    pub bytes: Counter,
}

impl Traffic {
    /// Counts one frame.
    #[inline]
    pub fn count(&self, bytes: usize) {
        self.add(1, bytes as u64);
    }

    /// Counts several.
    #[inline]
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }
}

impl Traffic {
    fn uncount(&self, bytes: usize) {
        self.packets.sub(1);
        self.bytes.sub(bytes as u64);
    }
}

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
}

/// One worker's counters. The accounts close: `received = forwarded + kernel + dropped + (held - released)`.
#[derive(Debug)]
pub struct Counters {
    /// Frames given to `process`; a frame that was held and is submitted again counts as released, not received.
    pub received: Traffic,
    /// Verdict forward.
    pub forwarded: Traffic,
    /// Verdict kernel, all reasons.
    pub kernel: Traffic,
    /// Verdict drop, all reasons.
    pub dropped: Traffic,
    /// Verdict hold; `held - released` frames are held now.
    pub held: Traffic,
    /// Held frames that were submitted again.
    pub released: Traffic,
    /// Frames made here (rejects, ICMP errors).
    pub made: Traffic,
    /// Rejects that could not be sent (rate limit or no spare frame); the client sees silence.
    pub made_suppressed: Counter,
    /// Checksums that had to be computed in full because the sender left them to its NIC.
    pub checksum_completed: Counter,
    /// Connection table: packets of known connections.
    pub conntrack_hit: Counter,
    /// Connection table: connections created.
    pub conntrack_created: Counter,
    /// Connection table: connections ended by the sweep.
    pub conntrack_expired: Counter,
    /// Connection table: connections replaced because their client opened a new one from the same port.
    pub conntrack_replaced: Counter,
    /// Connection table: connections met in their middle (of those created).
    pub conntrack_picked_up: Counter,
    /// Connection table: creations given up because another worker was creating the same connection.
    pub conntrack_busy: Counter,
    /// Connection table: connections that went on after an RST, which so was forged or late.
    pub conntrack_revived: Counter,
    /// Connection table: SYNs of known connections that changed nothing: sent again, or from a port that is used again too soon.
    pub conntrack_syn_repeated: Counter,
    /// Connection table: connections evicted to make room, by rank.
    conntrack_evicted: [Counter; EvictionRank::COUNT],
    /// Drops and passes by reason, see [`Reason::index`].
    reasons: [Counter; Reason::COUNT],
    /// By (Service port, backend).
    targets: Box<[TargetStats]>,
}

impl Counters {
    /// Counters with room for `targets_max` (Service port, backend) pairs; place 0 gathers those beyond.
    pub fn new(targets_max: usize) -> Counters {
        Counters {
            received: Traffic::default(),
            forwarded: Traffic::default(),
            kernel: Traffic::default(),
            dropped: Traffic::default(),
            held: Traffic::default(),
            released: Traffic::default(),
            made: Traffic::default(),
            made_suppressed: Counter::default(),
            checksum_completed: Counter::default(),
            conntrack_hit: Counter::default(),
            conntrack_created: Counter::default(),
            conntrack_expired: Counter::default(),
            conntrack_replaced: Counter::default(),
            conntrack_picked_up: Counter::default(),
            conntrack_busy: Counter::default(),
            conntrack_revived: Counter::default(),
            conntrack_syn_repeated: Counter::default(),
            conntrack_evicted: std::array::from_fn(|_| Counter::default()),
            reasons: std::array::from_fn(|_| Counter::default()),
            targets: (0..targets_max.max(1)).map(|_| TargetStats::default()).collect(),
        }
    }

    /// A frame with the verdict forward could not be sent after all (ring full, port gone): it counts as dropped.
    pub fn forward_failed(&self, reason: Reason, bytes: usize) {
        self.forwarded.uncount(bytes);
        self.drop_frame(reason, bytes);
    }

    /// A frame with the verdict kernel could not be handed over: it counts as dropped.
    pub fn kernel_failed(&self, reason: Reason, bytes: usize) {
        self.kernel.uncount(bytes);
        self.drop_frame(reason, bytes);
    }

    /// A held frame that is given up.
    pub fn held_failed(&self, reason: Reason, bytes: usize) {
        self.released.count(bytes);
        self.drop_frame(reason, bytes);
    }

    /// Counts a drop with its reason.
    pub fn drop_frame(&self, reason: Reason, bytes: usize) {
        self.dropped.count(bytes);
        self.reason(reason).add(1);
    }

    /// Connections of this rank evicted to make room for others.
    pub fn conntrack_evicted(&self, rank: EvictionRank) -> &Counter {
        &self.conntrack_evicted[rank as usize]
    }

    /// The counter of a reason.
    #[inline]
    pub fn reason(&self, reason: Reason) -> &Counter {
        &self.reasons[reason.index()]
    }

    /// The statistics of a pair; an unknown place is place 0.
    #[inline]
    pub fn target(&self, stats: u32) -> &TargetStats {
        self.targets.get(stats as usize).unwrap_or(&self.targets[0])
    }
}
