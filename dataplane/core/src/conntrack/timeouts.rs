//! Idle times of flows, by phase.

use super::SEEN_RESOLUTION_MS;
use super::direction::Direction;
use super::phase::{Phase, PhaseKind};

/// Idle times after which a connection ends, in milliseconds. The defaults are the Linux kernel's (nf_conntrack_*_timeout_*: the tables
/// `tcp_timeouts`, `udp_timeouts` and `sctp_timeouts`), with kube-proxy's for established (24 h) and half-closed TCP (1 h; Linux: 60 s).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, after the SYN.
    pub syn_sent_ms: u64,
    /// TCP, after the SYN+ACK.
    pub syn_received_ms: u64,
    /// TCP, established.
    pub established_ms: u64,
    /// TCP, one side has sent its FIN.
    pub fin_wait_ms: u64,
    /// TCP, that FIN is acknowledged: half-closed.
    pub close_wait_ms: u64,
    /// TCP, both sides have sent their FIN.
    pub last_ack_ms: u64,
    /// TCP, both FINs are acknowledged.
    pub time_wait_ms: u64,
    /// TCP, reset.
    pub closed_ms: u64,
    /// TCP, mid-stream, only one side was seen yet.
    pub picked_up_ms: u64,
    /// UDP, unanswered or answered (nf_conntrack_udp_timeout).
    pub udp_ms: u64,
    /// UDP, answered and still carrying packets after 2 s (nf_conntrack_udp_timeout_stream).
    pub udp_stream_ms: u64,
    /// SCTP, from the INIT ACK to the COOKIE ACK.
    pub sctp_cookie_ms: u64,
    /// SCTP, established.
    pub sctp_established_ms: u64,
    /// SCTP, from the first SHUTDOWN on.
    pub sctp_shutdown_ms: u64,
    /// SCTP, aborted or shut down; also after the INIT, as in Linux.
    pub sctp_closed_ms: u64,
    /// SCTP, mid-stream, only one side was seen yet.
    pub sctp_picked_up_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            syn_sent_ms: 120_000,
            syn_received_ms: 60_000,
            established_ms: 24 * 3_600_000,
            fin_wait_ms: 120_000,
            close_wait_ms: 3_600_000,
            last_ack_ms: 30_000,
            time_wait_ms: 120_000,
            closed_ms: 10_000,
            picked_up_ms: 300_000,
            udp_ms: 30_000,
            udp_stream_ms: 120_000,
            sctp_cookie_ms: 3_000,
            sctp_established_ms: 210_000,
            sctp_shutdown_ms: 3_000,
            sctp_closed_ms: 10_000,
            sctp_picked_up_ms: 30_000,
        }
    }
}

impl Timeouts {
    /// The idle time of a phase, milliseconds.
    fn of(&self, phase: Phase) -> u64 {
        use PhaseKind::*;
        match (phase.kind(), phase.is_sctp()) {
            // It lives on unless its end is proven.
            (FinWait | LastAck | Closed, false) if phase.is_doubtful() => self.established_ms,
            (FinWait | LastAck | Closed, true) if phase.is_doubtful() => self.sctp_established_ms,
            (SynSent, false) => self.syn_sent_ms,
            (SynReceived, false) => self.syn_received_ms,
            (Established, false) => self.established_ms,
            (FinWait, false) => self.fin_wait_ms,
            (CloseWait, false) => self.close_wait_ms,
            (LastAck, false) => self.last_ack_ms,
            (TimeWait, false) => self.time_wait_ms,
            (Closed, false) => self.closed_ms,
            (PickedUp | PickedUpReply, false) => self.picked_up_ms,
            (Unreplied | Replied | Confirmed, _) => self.udp_ms,
            (Stream, _) => self.udp_stream_ms,
            (SynReceived, true) => self.sctp_cookie_ms,
            (Established, true) => self.sctp_established_ms,
            (FinWait | CloseWait | LastAck | TimeWait, true) => self.sctp_shutdown_ms,
            (SynSent | Closed, true) => self.sctp_closed_ms,
            (PickedUp | PickedUpReply, true) => self.sctp_picked_up_ms,
        }
    }

    /// The idle times in a table, for [`IdleTimes::of`].
    pub fn table(&self) -> IdleTimes {
        let phase = |place: usize| Phase::from_bits(place as u8);
        let all = std::array::from_fn(|place| self.of(phase(place)));
        let unchanged =
            |place: usize| if phase(place).grown_old() == phase(place) { all[place] } else { all[place].min(SEEN_RESOLUTION_MS) };
        let settled = [Direction::Original, Direction::Reply]
            .map(|direction| std::array::from_fn(|place| if phase(place).settled(direction) { unchanged(place) } else { 0 }));
        IdleTimes { all, settled }
    }
}

/// [`Timeouts`] by phase.
#[derive(Clone, Copy, Debug)]
pub struct IdleTimes {
    all: [u64; Phase::PLACES],
    settled: [[u64; Phase::PLACES]; 2],
}

impl IdleTimes {
    /// The idle time of a phase, milliseconds.
    #[inline(always)]
    pub fn of(&self, phase: Phase) -> u64 {
        self.all[phase.place()]
    }

    /// Within this many milliseconds after the last packet, one from this side without SYN, FIN and RST (nearly all are) cannot change the
    /// phase.
    #[inline(always)]
    pub fn settled(&self, phase: Phase, direction: Direction) -> u64 {
        self.settled[direction as usize][phase.place()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::Proto;
    use crate::wire::tcp::{ACK, FIN, RST, SYN};

    /// The idle time of the phase that these packets lead to, seconds.
    fn idle_s(proto: Proto, packets: &[(Direction, u8)]) -> u64 {
        let first = Phase::first(proto, packets[0].1);
        let phase = packets[1..].iter().fold(first, |phase, (direction, flags)| phase.after(*direction, *flags, true));
        Timeouts::default().table().of(phase) / 1_000
    }

    #[test]
    fn idle_times_are_those_of_the_kernel_and_kube_proxy() {
        use Direction::{Original, Reply};
        let life = [
            (Original, SYN),
            (Reply, SYN | ACK),
            (Original, ACK),
            (Reply, ACK),
            (Original, FIN | ACK),
            (Reply, ACK),
            (Reply, FIN | ACK),
            (Original, ACK),
            (Original, RST),
            (Original, ACK),
        ];
        let of = |proto| -> Vec<u64> { (1..=life.len()).map(|n| idle_s(proto, &life[..n])).collect() };
        assert_eq!(of(Proto::Tcp), [120, 60, 86_400, 86_400, 120, 3_600, 30, 120, 10, 300]);
        assert_eq!(of(Proto::Sctp), [10, 3, 3, 210, 3, 3, 3, 3, 10, 30]);
        assert_eq!(of(Proto::Udp), [30; 10]);
        let replied = Phase::first(Proto::Udp, 0).after(Reply, 0, true);
        assert_eq!(Timeouts::default().table().of(replied.grown_old()), 120_000);
    }

    #[test]
    fn settled_means_that_nothing_changes() {
        let (mut settled, idle) = (0, Timeouts::default().table());
        for phase in (0..=255).map(Phase::from_bits) {
            let packets = [Direction::Original, Direction::Reply].into_iter().flat_map(|d| (0..=255).map(move |f| (d, f)));
            for ((direction, flags), proven) in packets.flat_map(|packet| [(packet, false), (packet, true)]) {
                let ordinary = flags & (SYN | FIN | RST) == 0;
                if ordinary && idle.settled(phase, direction) > 0 {
                    settled += 1;
                    assert_eq!(phase.after(direction, flags, proven).bits(), phase.bits(), "{phase:?} {direction:?} {flags:#x} {proven}");
                    let ages = matches!(phase.kind(), PhaseKind::Replied | PhaseKind::Confirmed);
                    let until = if ages { SEEN_RESOLUTION_MS } else { idle.of(phase) };
                    assert_eq!(idle.settled(phase, direction), until);
                }
            }
        }
        // Established, CloseWait, Confirmed and Stream from both sides, unless doubtful; PickedUp, Unreplied and Replied from one. With 32
        // flags, proven or not, for all values of the other bits.
        assert_eq!(settled, (4 * 2 * 8 + 3 * 16) * 32 * 2);
    }
}
