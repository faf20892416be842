//! Where a connection stands, as far as its lifetime depends on it.
//!
//! ```text
//! TCP   SynSent -> SynReceived -> Established -> FinWait -> Closing
//!          \____________\______________\____________\______-> Closed (RST)
//!       PickedUp -> Established (a connection met in its middle, until its reply is seen)
//! UDP   OneWay -> TwoWay
//! ```
//!
//! SCTP associations go through TCP's phases: INIT opens, SHUTDOWN closes, ABORT resets (see `parse`).

use super::flow::Direction;
use crate::parse::tcp;
use crate::tuple::Proto;

/// Phase of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PhaseKind {
    /// TCP: the client's SYN.
    SynSent = 1,
    /// TCP: the backend answered.
    SynReceived = 2,
    /// TCP: the client confirmed.
    Established = 3,
    /// TCP: one side is done.
    FinWait = 4,
    /// TCP: both sides are done.
    Closing = 5,
    /// TCP: reset.
    Closed = 6,
    /// TCP: met in its middle, nothing seen from the backend yet.
    PickedUp = 7,
    /// UDP: only the client has spoken.
    OneWay = 8,
    /// UDP: both have.
    TwoWay = 9,
}

impl PhaseKind {
    const ALL: [PhaseKind; 9] = [
        PhaseKind::SynSent,
        PhaseKind::SynReceived,
        PhaseKind::Established,
        PhaseKind::FinWait,
        PhaseKind::Closing,
        PhaseKind::Closed,
        PhaseKind::PickedUp,
        PhaseKind::OneWay,
        PhaseKind::TwoWay,
    ];
}

/// A phase and who has sent a FIN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Phase {
    /// The phase.
    pub kind: PhaseKind,
    fin_original: bool,
    fin_reply: bool,
}

impl Phase {
    /// The phase after a connection's first packet.
    pub fn first(proto: Proto, tcp_flags: u8) -> Phase {
        let kind = match proto {
            Proto::Udp => PhaseKind::OneWay,
            _ if tcp_flags & tcp::RST != 0 => PhaseKind::Closed,
            _ if tcp_flags & tcp::SYN != 0 => PhaseKind::SynSent,
            _ => PhaseKind::PickedUp,
        };
        let fin = proto != Proto::Udp && tcp_flags & tcp::FIN != 0;
        Phase { kind, fin_original: fin, fin_reply: false }
    }

    /// The phase after one more packet.
    #[inline]
    pub fn after(self, direction: Direction, tcp_flags: u8) -> Phase {
        use PhaseKind::*;
        // What nearly every packet is: nothing new.
        if matches!(self.kind, Established | TwoWay) && tcp_flags & (tcp::FIN | tcp::RST) == 0 {
            return self;
        }
        let mut next = self;
        let reply = direction == Direction::Reply;
        next.kind = match self.kind {
            OneWay if reply => TwoWay,
            OneWay | TwoWay | Closed => return self,
            _ if tcp_flags & tcp::RST != 0 => Closed,
            SynSent if reply => SynReceived,
            PickedUp if reply => Established,
            SynReceived if !reply && tcp_flags & tcp::ACK != 0 => Established,
            other => other,
        };
        if tcp_flags & tcp::FIN != 0 && next.kind != Closed {
            next.fin_original |= !reply;
            next.fin_reply |= reply;
            next.kind = if next.fin_original && next.fin_reply { Closing } else { FinWait };
        }
        next
    }

    /// Whether a SYN from the client may replace this connection by a new one (TCP port reuse).
    pub fn reusable(self) -> bool {
        matches!(self.kind, PhaseKind::Closing | PhaseKind::Closed)
    }

    /// Whether it may be evicted when the table is full: nothing has been agreed on yet, or all is over.
    pub fn evictable(self) -> bool {
        use PhaseKind::*;
        matches!(self.kind, SynSent | SynReceived | OneWay | Closing | Closed)
    }

    pub(super) fn bits(self) -> u8 {
        self.kind as u8 | (u8::from(self.fin_original) << 6) | (u8::from(self.fin_reply) << 7)
    }

    #[inline]
    pub(super) fn from_bits(bits: u8) -> Phase {
        let index = usize::from(bits & 0x3f).wrapping_sub(1);
        let kind = PhaseKind::ALL.get(index).copied().unwrap_or(PhaseKind::Closed);
        Phase { kind, fin_original: bits & 0x40 != 0, fin_reply: bits & 0x80 != 0 }
    }
}

/// Idle times after which a connection ends, in milliseconds. The defaults are the Linux kernel's
/// (nf_conntrack_tcp_timeout_*, nf_conntrack_udp_timeout*; kube-proxy sets established to 24 h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, after the SYN.
    pub syn_sent_ms: u64,
    /// TCP, after the SYN+ACK.
    pub syn_received_ms: u64,
    /// TCP, established.
    pub established_ms: u64,
    /// TCP, one side done.
    pub fin_wait_ms: u64,
    /// TCP, both sides done.
    pub closing_ms: u64,
    /// TCP, reset.
    pub closed_ms: u64,
    /// TCP, met in its middle and not answered yet.
    pub picked_up_ms: u64,
    /// UDP, unanswered.
    pub udp_one_way_ms: u64,
    /// UDP, answered.
    pub udp_two_way_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            syn_sent_ms: 120_000,
            syn_received_ms: 60_000,
            established_ms: 24 * 3_600_000,
            fin_wait_ms: 120_000,
            closing_ms: 120_000,
            closed_ms: 10_000,
            picked_up_ms: 300_000,
            udp_one_way_ms: 30_000,
            udp_two_way_ms: 120_000,
        }
    }
}

impl Timeouts {
    /// The idle time of a phase.
    pub fn of(&self, phase: Phase) -> u64 {
        match phase.kind {
            PhaseKind::SynSent => self.syn_sent_ms,
            PhaseKind::SynReceived => self.syn_received_ms,
            PhaseKind::Established => self.established_ms,
            PhaseKind::FinWait => self.fin_wait_ms,
            PhaseKind::Closing => self.closing_ms,
            PhaseKind::Closed => self.closed_ms,
            PhaseKind::PickedUp => self.picked_up_ms,
            PhaseKind::OneWay => self.udp_one_way_ms,
            PhaseKind::TwoWay => self.udp_two_way_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Original, Reply};
    use super::*;
    use tcp::*;

    fn walk(first: u8, steps: &[(Direction, u8)]) -> PhaseKind {
        steps.iter().fold(Phase::first(Proto::Tcp, first), |p, &(d, f)| p.after(d, f)).kind
    }

    #[test]
    fn the_life_of_a_tcp_connection() {
        let open = [(Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(walk(SYN, &[]), PhaseKind::SynSent);
        assert_eq!(walk(SYN, &[(Original, SYN)]), PhaseKind::SynSent);
        assert_eq!(walk(SYN, &open[..1]), PhaseKind::SynReceived);
        assert_eq!(walk(SYN, &open), PhaseKind::Established);
        assert_eq!(walk(SYN, &[open[0], open[1], (Original, FIN | ACK)]), PhaseKind::FinWait);
        assert_eq!(walk(SYN, &[open[0], open[1], (Original, FIN | ACK), (Original, FIN | ACK)]), PhaseKind::FinWait);
        assert_eq!(walk(SYN, &[open[0], open[1], (Original, FIN | ACK), (Reply, FIN | ACK)]), PhaseKind::Closing);
        assert_eq!(walk(SYN, &[open[0], open[1], (Reply, RST)]), PhaseKind::Closed);
        assert_eq!(walk(SYN, &[(Reply, RST | ACK), (Original, ACK)]), PhaseKind::Closed);
        assert_eq!(walk(ACK, &[]), PhaseKind::PickedUp);
        assert_eq!(walk(ACK, &[(Reply, ACK)]), PhaseKind::Established);
    }

    #[test]
    fn udp_and_bits() {
        let p = Phase::first(Proto::Udp, 0);
        assert_eq!(p.after(Original, 0).kind, PhaseKind::OneWay);
        assert_eq!(p.after(Reply, 0).kind, PhaseKind::TwoWay);
        for kind in PhaseKind::ALL {
            for (fin_original, fin_reply) in [(false, false), (true, false), (false, true), (true, true)] {
                let phase = Phase { kind, fin_original, fin_reply };
                assert_eq!(Phase::from_bits(phase.bits()), phase);
            }
        }
    }
}
