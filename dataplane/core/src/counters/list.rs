//! Every counter of a worker, of the packet path and of the edge around it, and every count that the edge reads from the kernel.
//!
//! One line is all that a counter needs besides the place that counts: the struct of counters, the struct of values, the status and
//! `/metrics` follow from it. The edge's counters stand here as well, since what shows them links no AF_XDP.

use super::kinds::{Count, Counter, CounterBy, CounterInfo, CounterKind, Labels, Series, Traffic};
use crate::conntrack::EvictionRank;
use crate::frame::BATCH_MAX;
use crate::icmp::ErrorClass;
use crate::reason::{DropReasons, KernelReasons};
use crate::reject::Class;

/// Defines structs of values; see [`counters`].
macro_rules! counts {
    ($( $(#[$doc:meta])* $counts:ident { $( $field:ident : $count:ty = $metric:literal, $help:literal; )* } )*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Default, Debug)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
        pub struct $counts { $( #[doc = $help] pub $field: $count, )* }

        impl $counts {
            /// Hands out every number with its name, in the order of the list.
            pub fn each(&self, mut f: impl FnMut(Series, u64)) {
                $({
                    static INFO: CounterInfo = CounterInfo { key: stringify!($field), metric: $metric, help: $help };
                    Count::each(&self.$field, &INFO, &mut f);
                })*
            }

            /// Adds what another worker counted.
            pub fn add(&mut self, other: &$counts) {
                $( Count::add(&mut self.$field, &other.$field); )*
            }
        }
    )*};
}

/// Defines structs of counters, and for each the struct of its values. A line gives field, status key and constructor (the field's name),
/// kind, metric and help. A metric of [`Traffic`] ends in `_frames_total` and its help begins with "Frames": the bytes' follow from them.
macro_rules! counters {
    ($( $(#[$doc:meta])* $counters:ident, $counts:ident { $( $field:ident : $kind:ty = $metric:literal, $help:literal; )* } )*) => {$(
        $(#[$doc])*
        #[derive(Default, Debug)]
        pub struct $counters { $( #[doc = $help] pub $field: $kind, )* }

        impl $counters {
            /// The values now.
            pub fn read(&self) -> $counts {
                $counts { $( $field: self.$field.read(), )* }
            }
        }

        counts! {
            $(#[$doc])*
            $counts { $( $field: <$kind as CounterKind>::Count = $metric, $help; )* }
        }
    )*};
}

counters! {
    /// What became of frames. `received = forwarded + kernel + dropped + (held - released)`; a frame that was held and is submitted again
    /// counts as released, not as received.
    FrameCounters, FrameCounts {
        received: Traffic = "nomagic_worker_received_frames_total", "Frames given to the packet path.";
        forwarded: Traffic = "nomagic_worker_forwarded_frames_total", "Frames forwarded.";
        kernel: Traffic = "nomagic_worker_kernel_frames_total", "Frames given back to the kernel.";
        dropped: Traffic = "nomagic_worker_dropped_frames_total", "Frames dropped.";
        held: Traffic = "nomagic_worker_held_frames_total", "Frames that had to wait for a neighbour or for another fragment.";
        released: Traffic = "nomagic_worker_released_frames_total", "Frames that waited for a neighbour or for another fragment and were submitted again or given up.";
        made: Traffic = "nomagic_worker_made_frames_total", "Frames made (rejects, ICMP errors, fragments).";
    }

    /// What the packet path did besides.
    PathCounters, PathCounts {
        rejects_made: CounterBy<Class> = "nomagic_rejects_made_total", "Rejects (ICMP errors, resets), by what they are about.";
        rejects_suppressed: CounterBy<Class> = "nomagic_rejects_suppressed_total", "Rejects that were not sent, by what they are about: over a limit, without a spare frame, or an answer to a broadcast, to a reset or to what may be fragmented.";
        icmp_errors: CounterBy<ErrorClass> = "nomagic_icmp_errors_forwarded_total", "ICMP errors about known connections that were translated and sent on, by what they are about: confirmed connections, UDP flows that were answered, unconfirmed ones.";
        fragmented: Counter = "nomagic_packets_fragmented_total", "Packets sent on in fragments, because they were larger than the MTU of the way on (fragment).";
        fragments_made: Counter = "nomagic_fragments_made_total", "Fragments that such packets became.";
        mss_lowered: Counter = "nomagic_mss_lowered_total", "SYNs whose maximum segment size was lowered (mss).";
        pings_answered: Counter = "nomagic_pings_answered_total", "Pings to addresses of Services that were answered (answerPing).";
        checksum_completed: Counter = "nomagic_checksums_completed_total", "Checksums computed in full because the sender left them to its NIC.";
    }

    /// What happened in the connection table.
    ConntrackCounters, ConntrackCounts {
        hit: Counter = "nomagic_flow_hits_total", "Frames of known connections.";
        created: Counter = "nomagic_flows_created_total", "Connections created.";
        mid_stream: Counter = "nomagic_flows_mid_stream_total", "Connections created by a packet of an established one that was not known; they count as created, too.";
        expired: Counter = "nomagic_flows_expired_total", "Connections that ended or were idle for too long.";
        replaced: Counter = "nomagic_flows_replaced_total", "Connections whose client opened a new one from the same port.";
        snat_searched: Counter = "nomagic_flows_snat_searched_total", "Connections whose first choice of a source port was taken, so that others were tried: a sign that the range fills up.";
        busy: Counter = "nomagic_flows_busy_total", "Creations given up because another worker was creating the same connection.";
        snat_reclaimed: CounterBy<EvictionRank> = "nomagic_flows_snat_reclaimed_total", "Connections with SNAT that ended because a new connection needed their source port, by rank as nomagic_flows_evicted_total.";
        client_uncounted: Counter = "nomagic_flows_client_uncounted_total", "Connections that do not count for the limit of their client, because there was no room for another counter.";
        revived: Counter = "nomagic_flows_revived_total", "Connections that continued after an RST, which was forged or late.";
        syn_repeated: Counter = "nomagic_flow_syns_repeated_total", "SYNs of known connections that changed nothing: sent again, or from a port that is used again too soon.";
        evicted: CounterBy<EvictionRank> = "nomagic_flows_evicted_total", "Connections evicted to make room, by rank: closed; unconfirmed (handshake not complete, UDP with at most one answer); doubtful (reset or closed by a segment whose sequence number did not fit); confirmed UDP that was idle.";
    }

    /// Why frames were not forwarded, by what became of them.
    ReasonCounters, ReasonCounts {
        kernel: CounterBy<KernelReasons> = "nomagic_frames_left_to_kernel_total", "Frames given back to the kernel, by reason.";
        drop: CounterBy<DropReasons> = "nomagic_frames_dropped_total", "Frames dropped or rejected, by reason; `nomagic status` has a sentence for each.";
        handed: CounterBy<DropReasons> = "nomagic_frames_lost_after_handover_total", "Frames that the worker they were handed over to could not send, by reason.";
    }

    /// A worker's own work around the packet path.
    IoCounters, IoCounts {
        rounds: Counter = "nomagic_worker_rounds_total", "Rounds of the worker's loop.";
        busy_ns: Counter = "nomagic_worker_busy_nanoseconds_total", "Time of rounds with frames to receive, take over or send: the load of a worker, also of one that never sleeps.";
        sleeps: Counter = "nomagic_worker_sleeps_total", "Times that the worker slept for want of frames.";
        batches: CounterBy<BatchSize> = "nomagic_worker_batches_total", "Batches of frames taken off a ring, by their size.";
        copied: Traffic = "nomagic_worker_copied_frames_total", "Frames copied between packet memories.";
        handed_over: Traffic = "nomagic_worker_handed_over_frames_total", "Frames handed over to the worker that owns the port they leave by.";
        handed_in: Traffic = "nomagic_worker_handed_in_frames_total", "Frames taken over from other workers.";
        handed_failed: Traffic = "nomagic_worker_handed_failed_frames_total", "Frames taken over from other workers that could not be sent.";
        made_failed: Counter = "nomagic_worker_made_failed_total", "Made frames (rejects, ICMP errors, fragments) that could not be sent.";
    }

    /// Calls of sendto() that make the kernel send.
    SendCounters, SendCounts {
        calls: Counter = "nomagic_worker_send_calls_total", "Calls of sendto().";
        again: Counter = "nomagic_worker_send_again_total", "Calls of sendto() that left frames for another call (EAGAIN).";
        errors: CounterBy<SendError> = "nomagic_worker_send_errors_total", "Calls of sendto() that failed; what is left is sent again.";
    }

    /// Questions to the control thread about neighbours.
    NeighbourCounters, NeighbourCounts {
        asked: Counter = "nomagic_worker_neighbours_asked_total", "Neighbours asked for.";
        suppressed: Counter = "nomagic_worker_neighbours_suppressed_total", "Questions about neighbours not asked: too many, or control does not keep up.";
    }
}

/// All counts of one worker, or of several together.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct WorkerCounts {
    /// What became of frames.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub frames: FrameCounts,
    /// What else the packet path did.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub path: PathCounts,
    /// What happened in the connection table.
    pub conntrack: ConntrackCounts,
    /// Why frames were not forwarded.
    pub reasons: ReasonCounts,
    /// The work around the packet path.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub io: IoCounts,
    /// Calls of sendto().
    pub sends: SendCounts,
    /// Questions about neighbours.
    pub neighbours: NeighbourCounts,
}

impl WorkerCounts {
    /// Adds what another worker counted.
    pub fn add(&mut self, other: &WorkerCounts) {
        self.frames.add(&other.frames);
        self.path.add(&other.path);
        self.conntrack.add(&other.conntrack);
        self.reasons.add(&other.reasons);
        self.io.add(&other.io);
        self.sends.add(&other.sends);
        self.neighbours.add(&other.neighbours);
    }

    /// Whether every frame that was not forwarded has one reason, and no frame is missing.
    pub fn closes(&self) -> bool {
        let f = &self.frames;
        let out = f.forwarded.packets + f.kernel.packets + f.dropped.packets + f.held.packets;
        let named = [self.reasons.kernel.total(), self.reasons.drop.total(), self.reasons.handed.total()];
        f.received.packets + f.released.packets == out && named == [f.kernel.packets, f.dropped.packets, self.io.handed_failed.packets]
    }
}

counts! {
    /// The kernel's counts of one AF_XDP socket.
    SocketCounts {
        rx_dropped: u64 = "nomagic_xsk_rx_dropped_total", "Received frames lost for other reasons than the following.";
        rx_ring_full: u64 = "nomagic_xsk_rx_ring_full_total", "Received frames lost because the receive ring was full.";
        rx_fill_ring_empty: u64 = "nomagic_xsk_rx_fill_ring_empty_total", "Times that the fill ring was found empty.";
        rx_invalid_descs: u64 = "nomagic_xsk_rx_invalid_descriptors_total", "Bad descriptors on the fill ring.";
        tx_invalid_descs: u64 = "nomagic_xsk_tx_invalid_descriptors_total", "Bad descriptors on the transmit ring.";
        tx_ring_empty: u64 = "nomagic_xsk_tx_ring_empty_total", "Times that the transmit ring was found empty.";
    }
}

/// Defines the XDP program's counts: a line is a field, what became of the frames, and a sentence.
macro_rules! outcomes {
    ($( $field:ident : $class:ident, $text:literal; )*) => {
        /// The XDP program's counts of one interface. Received frames are `passed() + taken + denied + dropped()`.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
        pub struct XdpCounts { $( #[doc = $text] pub $field: u64, )* }

        impl XdpCounts {
            /// What the program counts, in the order of its places: `enum stat` of bpf/maps.h, in lower case.
            pub const OUTCOMES: [&'static str; 16] = [ $( stringify!($field), )* ];

            /// Reads each place, in their order.
            pub fn read<E>(mut place: impl FnMut(u32) -> Result<u64, E>) -> Result<XdpCounts, E> {
                let mut places = 0..;
                let mut next = || place(places.next().unwrap_or_default());
                Ok(XdpCounts { $( $field: next()?, )* })
            }

            /// Every outcome with its count.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [ $( (stringify!($field), self.$field), )* ].into_iter()
            }

            /// Frames left to the kernel.
            pub fn passed(&self) -> u64 {
                self.sum(Outcome::Passed)
            }

            /// Frames dropped by the program because no worker takes them.
            pub fn dropped(&self) -> u64 {
                self.sum(Outcome::Dropped)
            }

            /// All frames seen.
            pub fn received(&self) -> u64 {
                self.iter().map(|(_, n)| n).sum()
            }

            fn sum(&self, class: Outcome) -> u64 {
                [ $( (Outcome::$class, self.$field), )* ].iter().filter(|(c, _)| *c == class).map(|(_, n)| n).sum()
            }
        }
    };
}

/// What became of frames that the XDP program saw.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Taken,
    /// Dropped on purpose: no sign of a fault, unlike `Dropped`.
    Denied,
    Dropped,
}

outcomes! {
    pass_not_ours: Passed, "To the kernel: no Service, no announced reply.";
    pass_other_mac: Passed, "To the kernel: addressed to another host's MAC address, to a group or to all.";
    pass_vlan: Passed, "To the kernel: with a VLAN tag that the configuration does not name, or with several.";
    pass_not_ip: Passed, "To the kernel: neither IPv4 nor IPv6.";
    pass_ipv4_checksum: Passed, "To the kernel: the checksum of the IPv4 header is wrong.";
    pass_fragment: Passed, "To the kernel: fragments.";
    pass_icmp: Passed, "To the kernel: ICMP.";
    pass_other_protocol: Passed, "To the kernel: transport protocols that are not taken.";
    pass_unreadable: Passed, "To the kernel: cut short or contradictory.";
    pass_never_started: Passed, "To the kernel: taken, but no worker has ever run.";
    failed_open: Passed, "To the kernel: taken, but the worker has been gone for longer than the grace period.";
    taken: Taken, "To the AF_XDP socket.";
    dropped_no_socket: Dropped, "Dropped: the worker's socket is closed.";
    dropped_stale: Dropped, "Dropped: the worker's heartbeat is stale, within the grace period.";
    failed_closed: Dropped, "Dropped: the worker has been gone for longer than the grace period.";
    denied: Denied, "Dropped: the source is in the deny list.";
}

impl Labels for EvictionRank {
    type LabelValue = EvictionRank;
    const NAME: &'static str = "rank";
    const ALL: &'static [EvictionRank] = &EvictionRank::ALL;

    fn index(rank: EvictionRank) -> usize {
        rank as usize
    }

    fn label(rank: EvictionRank) -> &'static str {
        match rank {
            EvictionRank::Closed => "closed",
            EvictionRank::Unconfirmed => "unconfirmed",
            EvictionRank::Doubtful => "doubtful",
            EvictionRank::IdleUdp => "idle_udp",
        }
    }
}

/// How many frames were in a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchSize {
    /// One.
    One,
    /// 2 to 7.
    Few,
    /// 8 to 31.
    Some,
    /// 32 to 63.
    Many,
    /// 64, the most: there may have been more.
    Full,
}

impl BatchSize {
    /// The class of a batch of so many frames.
    #[inline]
    pub fn of(frames: usize) -> BatchSize {
        match frames {
            0 | 1 => BatchSize::One,
            2..=7 => BatchSize::Few,
            8..=31 => BatchSize::Some,
            32..BATCH_MAX => BatchSize::Many,
            _ => BatchSize::Full,
        }
    }
}

impl Labels for BatchSize {
    type LabelValue = BatchSize;
    const NAME: &'static str = "frames";
    const ALL: &'static [BatchSize] = &[BatchSize::One, BatchSize::Few, BatchSize::Some, BatchSize::Many, BatchSize::Full];

    fn index(size: BatchSize) -> usize {
        size as usize
    }

    fn label(size: BatchSize) -> &'static str {
        match size {
            BatchSize::One => "1",
            BatchSize::Few => "2-7",
            BatchSize::Some => "8-31",
            BatchSize::Many => "32-63",
            BatchSize::Full => "64",
        }
    }
}

/// Why sendto() failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendError {
    /// EBUSY: the driver's queue is in use.
    Busy,
    /// ENOBUFS: no memory for packets.
    NoBuffers,
    /// The port is down or gone.
    Down,
    /// Anything else.
    Other,
}

impl Labels for SendError {
    type LabelValue = SendError;
    const NAME: &'static str = "error";
    const ALL: &'static [SendError] = &[SendError::Busy, SendError::NoBuffers, SendError::Down, SendError::Other];

    fn index(error: SendError) -> usize {
        error as usize
    }

    fn label(error: SendError) -> &'static str {
        match error {
            SendError::Busy => "busy",
            SendError::NoBuffers => "no_buffers",
            SendError::Down => "down",
            SendError::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Every series of every list, with its value.
    fn all(n: u64) -> Vec<(Series, u64)> {
        let mut all = Vec::new();
        let mut push = |series, value| all.push((series, value));
        let frames = FrameCounters::default();
        frames.held.add(n, 10 * n);
        frames.read().each(&mut push);
        let conntrack = ConntrackCounters::default();
        conntrack.evicted.of(EvictionRank::Unconfirmed).add(n);
        conntrack.read().each(&mut push);
        PathCounts::default().each(&mut push);
        ReasonCounts::default().each(&mut push);
        IoCounts::default().each(&mut push);
        SendCounts::default().each(&mut push);
        NeighbourCounts::default().each(&mut push);
        SocketCounts::default().each(&mut push);
        all
    }

    #[test]
    fn every_series_has_a_name_of_its_own_and_the_right_value() {
        let all = all(7);
        let mut seen = HashSet::new();
        for (series, _) in &all {
            assert!(seen.insert((series.metric.clone(), series.label)), "{series:?} twice");
            assert!(series.metric.starts_with("nomagic_") && series.metric.ends_with("_total"), "{series:?}");
            assert!(series.help.ends_with('.') && series.help.starts_with(char::is_uppercase), "{series:?}");
            assert!(series.label.is_none_or(|(name, value)| !name.is_empty() && !value.is_empty()), "{series:?}");
        }
        let nonzero: Vec<_> = all.iter().filter(|(_, n)| *n > 0).map(|(s, n)| (&*s.metric, s.info.key, s.label, *n)).collect();
        let expected = [
            ("nomagic_worker_held_frames_total", "held", None, 7),
            ("nomagic_worker_held_bytes_total", "held", None, 70),
            ("nomagic_flows_evicted_total", "evicted", Some(("rank", "unconfirmed")), 7),
        ];
        assert_eq!(nonzero, expected);
        let bytes = all.iter().find(|(s, _)| s.metric == "nomagic_worker_held_bytes_total").unwrap();
        assert_eq!(bytes.0.help, "Bytes of frames that had to wait for a neighbour or for another fragment.");
        assert!(all.iter().filter(|(s, _)| s.metric.ends_with("_bytes_total")).all(|(s, _)| s.help.starts_with("Bytes of frames ")));
    }

    #[test]
    fn counts_of_several_workers_add_up() {
        let (a, b) = (ConntrackCounters::default(), ConntrackCounters::default());
        a.hit.add(1);
        b.hit.add(2);
        b.evicted.of(EvictionRank::IdleUdp).add(3);
        let mut sum = a.read();
        sum.add(&b.read());
        assert_eq!((sum.hit, sum.evicted[EvictionRank::IdleUdp], sum.evicted.total()), (3, 3, 3));
    }

    #[test]
    fn the_programs_counts_add_up_to_what_it_received() {
        let counts = XdpCounts::read(|place| Ok::<_, ()>(1 << place)).unwrap();
        assert_eq!((counts.pass_not_ours, counts.failed_closed, counts.denied), (1, 1 << 14, 1 << 15));
        assert_eq!(counts.received(), (1 << XdpCounts::OUTCOMES.len()) - 1);
        assert_eq!((counts.passed(), counts.taken, counts.dropped()), (0x7ff, 0x800, 0x7000));
        assert!(counts.iter().map(|(name, _)| name).eq(XdpCounts::OUTCOMES.iter().copied()));
        assert_eq!(XdpCounts::read(|place| if place == 3 { Err("gone") } else { Ok(0) }), Err("gone"));
    }
}
