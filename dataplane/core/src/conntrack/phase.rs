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

/// A phase and who has sent a FIN, in one byte: the phase's number, and a bit for each side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Phase(u8);

const KIND: u8 = 0x0f;
const FIN_ORIGINAL: u8 = 0x40;
const FIN_REPLY: u8 = 0x80;
/// Phases that a packet without SYN, FIN and RST does not change: from either side, and from the client.
const SETTLED: [u16; 2] =
    [SETTLED_BOTH | 1 << PhaseKind::OneWay as u8 | 1 << PhaseKind::SynSent as u8 | 1 << PhaseKind::PickedUp as u8, SETTLED_BOTH];
const SETTLED_BOTH: u16 = 1 << PhaseKind::Established as u8 | 1 << PhaseKind::TwoWay as u8;

impl Phase {
    const fn new(kind: PhaseKind, fins: u8) -> Phase {
        Phase(kind as u8 | fins)
    }

    /// The phase itself.
    pub fn kind(self) -> PhaseKind {
        PhaseKind::ALL.get(usize::from(self.0 & KIND).wrapping_sub(1)).copied().unwrap_or(PhaseKind::Closed)
    }

    /// The phase after a connection's first packet.
    pub fn first(proto: Proto, tcp_flags: u8) -> Phase {
        let kind = match proto {
            Proto::Udp => PhaseKind::OneWay,
            _ if tcp_flags & tcp::RST != 0 => PhaseKind::Closed,
            _ if tcp_flags & tcp::SYN != 0 => PhaseKind::SynSent,
            _ => PhaseKind::PickedUp,
        };
        let fin = proto != Proto::Udp && tcp_flags & tcp::FIN != 0;
        Phase::new(kind, if fin { FIN_ORIGINAL } else { 0 })
    }

    /// The phase after one more packet.
    pub fn after(self, direction: Direction, tcp_flags: u8) -> Phase {
        use PhaseKind::*;
        let reply = direction == Direction::Reply;
        let kind = match self.kind() {
            OneWay if reply => return Phase::new(TwoWay, 0),
            OneWay | TwoWay | Closed => return self,
            _ if tcp_flags & tcp::RST != 0 => Closed,
            SynSent if reply => SynReceived,
            PickedUp if reply => Established,
            SynReceived if !reply && tcp_flags & tcp::ACK != 0 => Established,
            other => other,
        };
        let mut fins = self.0 & (FIN_ORIGINAL | FIN_REPLY);
        if tcp_flags & tcp::FIN == 0 || kind == Closed {
            return Phase::new(kind, fins);
        }
        fins |= if reply { FIN_REPLY } else { FIN_ORIGINAL };
        Phase::new(if fins == FIN_ORIGINAL | FIN_REPLY { Closing } else { FinWait }, fins)
    }

    /// Whether a SYN from the client may replace this connection by a new one (TCP port reuse).
    pub fn reusable(self) -> bool {
        matches!(self.kind(), PhaseKind::Closing | PhaseKind::Closed)
    }

    /// Whether it may be evicted when the table is full: nothing has been agreed on yet, or all is over.
    pub fn evictable(self) -> bool {
        use PhaseKind::*;
        matches!(self.kind(), SynSent | SynReceived | OneWay | Closing | Closed)
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    #[inline(always)]
    pub(super) fn from_bits(bits: u8) -> Phase {
        Phase(bits)
    }
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind())
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
    /// The idle times by phase, for [`IdleTimes::of`].
    pub fn table(&self) -> IdleTimes {
        // What the table cannot hold (see `Phase::kind`) counts as closed.
        let mut table = [self.closed_ms; 16];
        for kind in PhaseKind::ALL {
            table[kind as usize] = match kind {
                PhaseKind::SynSent => self.syn_sent_ms,
                PhaseKind::SynReceived => self.syn_received_ms,
                PhaseKind::Established => self.established_ms,
                PhaseKind::FinWait => self.fin_wait_ms,
                PhaseKind::Closing => self.closing_ms,
                PhaseKind::Closed => self.closed_ms,
                PhaseKind::PickedUp => self.picked_up_ms,
                PhaseKind::OneWay => self.udp_one_way_ms,
                PhaseKind::TwoWay => self.udp_two_way_ms,
            };
        }
        let settled = SETTLED.map(|kinds| std::array::from_fn(|kind| if (kinds >> kind) & 1 != 0 { table[kind] } else { 0 }));
        IdleTimes { all: table, settled }
    }
}

/// [`Timeouts`] by phase.
#[derive(Clone, Copy, Debug)]
pub struct IdleTimes {
    all: [u64; 16],
    settled: [[u64; 16]; 2],
}

impl IdleTimes {
    /// The idle time of a phase, milliseconds.
    #[inline(always)]
    pub fn of(&self, phase: Phase) -> u64 {
        self.all[usize::from(phase.0 & KIND)]
    }

    /// The idle time of a phase that a packet without SYN, FIN and RST from this side surely does not change, which is what nearly
    /// all are; else 0.
    #[inline(always)]
    pub fn settled(&self, phase: Phase, direction: Direction) -> u64 {
        self.settled[direction as usize][usize::from(phase.0 & KIND)]
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Original, Reply};
    use super::*;
    use tcp::*;

    fn walk(first: u8, steps: &[(Direction, u8)]) -> PhaseKind {
        steps.iter().fold(Phase::first(Proto::Tcp, first), |p, &(d, f)| p.after(d, f)).kind()
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
        assert_eq!(p.after(Original, 0).kind(), PhaseKind::OneWay);
        assert_eq!(p.after(Reply, 0).kind(), PhaseKind::TwoWay);
        for kind in PhaseKind::ALL {
            assert_eq!(Phase::from_bits(Phase::new(kind, FIN_REPLY).bits()).kind(), kind);
        }
        assert_eq!(Phase::from_bits(0).kind(), PhaseKind::Closed, "not a phase");
    }

    #[test]
    fn settled_means_that_nothing_changes() {
        let phases = PhaseKind::ALL.iter().flat_map(|&k| [0, FIN_ORIGINAL, FIN_REPLY].map(|fins| Phase::new(k, fins)));
        let (mut settled, idle) = (0, Timeouts::default().table());
        for phase in phases {
            for (direction, flags) in [Original, Reply].into_iter().flat_map(|d| (0..=255).map(move |f| (d, f))) {
                let ordinary = flags & (SYN | FIN | RST) == 0;
                if ordinary && idle.settled(phase, direction) > 0 {
                    settled += 1;
                    assert_eq!(phase.after(direction, flags), phase, "{direction:?} {flags:#x}");
                    assert_eq!(idle.settled(phase, direction), idle.of(phase));
                }
            }
        }
        assert!(settled > 0);
    }
}
