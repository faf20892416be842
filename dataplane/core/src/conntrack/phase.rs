//! The phase of a connection, which decides its lifetime.
//!
//! ```text
//! TCP  SynSent -> SynReceived -> Established -> FinWait -> CloseWait -> LastAck -> TimeWait
//!      SYN        SYN+ACK        ACK            FIN        its ACK      2nd FIN    its ACK
//!
//!      FinWait                 -> LastAck        the second FIN, before the first is acknowledged
//!      any                     -> Closed         RST
//!      Closed                  -> PickedUp       no RST, from the client, and so was the RST: forged, the connection goes on
//!      Closed                  -> PickedUpReply  the same, the backend's
//!      PickedUp, PickedUpReply -> Established    the other side
//!      TimeWait, Closed        -> a new connection: the client's SYN
//!
//! UDP  Unreplied -> Replied -> Stream
//!      a question   its answer  a packet of either side, when the flow is more than 2 s old
//! ```
//!
//! The walk is that of Linux (net/netfilter/nf_conntrack_proto_tcp.c, `tcp_conntracks`), which also watches sequence numbers. Nothing here
//! does, so it differs:
//!
//! * Any RST closes, a forged one too. But a host that has sent an RST sends nothing else afterwards. If it does, the RST was forged, and
//!   the connection continues as a mid-stream one. Packets of the other side may have been in flight, and prove nothing.
//! * The sender of each FIN is known. Linux takes any ACK after a FIN for its acknowledgement, and any FIN after that for the second one,
//!   even a retransmission of the first; here both must come from the other side. So the challenge ACK (RFC 5961) of a backend in LAST-ACK
//!   does not count as the last ACK.
//! * Simultaneous open (RFC 9293, 3.5): the second SYN counts as an answer. Linux has a separate state for that.
//! * A mid-stream connection is PickedUp until the backend sends; in Linux it is established, with the same idle time. A client that
//!   continues after its SYN without an answer is PickedUp, too: a forged RST and a forged SYN have replaced its connection.
//! * A SYN+ACK in PickedUp, Closed or LastAck answers a forwarded SYN: a handshake. Linux accepts one in any phase, after comparing
//!   sequence numbers; without these a forged one could turn an established connection into a half-open one.
//! * A backend's SYN opens nothing, not even after TimeWait: behind a Service clients open connections.
//!
//! Packets that Linux calls invalid change nothing. Nor does a client's SYN on a connection that is not closed: it is forwarded, the
//! backend answers with a challenge ACK, the client answers that with an RST, and its next SYN finds the connection closed.
//!
//! SCTP associations walk the same way, with idle times of their own, by the first chunk of each packet (see `parse::sctp_flags`): INIT
//! opens, INIT ACK answers, the backend's next packet, a COOKIE ACK, establishes, SHUTDOWN and SHUTDOWN ACK are the two FINs, ABORT and
//! SHUTDOWN COMPLETE reset. So CookieWait and CookieEchoed of Linux (nf_conntrack_proto_sctp.c) are one state, chunks further back in a
//! packet and verification tags are not looked at, and any chunk that says nothing of the above picks an association up, not only HEARTBEAT.
//!
//! UDP goes by nf_conntrack_proto_udp.c: a question with its answer is soon over, and only a flow that carries packets after that is a stream. The flow's
//! age is known to an eighth of a second and looked at when the time it was last seen is written, so a stream is known as one up to 0.4 s late.

use super::direction::Direction;
use crate::tuple::Proto;
use crate::wire::tcp;

/// Phase of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PhaseKind {
    /// The client has sent its SYN.
    SynSent = 1,
    /// The backend answered.
    SynReceived = 2,
    /// The client has confirmed.
    Established = 3,
    /// One side has sent its FIN.
    FinWait = 4,
    /// The other side has acknowledged it and may continue for long: half-closed.
    CloseWait = 5,
    /// The other side has sent its FIN as well.
    LastAck = 6,
    /// Both FINs are acknowledged.
    TimeWait = 7,
    /// Reset.
    Closed = 8,
    /// Mid-stream, only the client was seen yet.
    PickedUp = 9,
    /// Continued after a reset, only the backend was seen yet.
    PickedUpReply = 10,
    /// UDP: no answer was seen.
    Unreplied = 11,
    /// UDP: answered.
    Replied = 12,
    /// UDP: answered, and more than 2 s old when it last carried a packet.
    Stream = 13,
}

impl PhaseKind {
    const ALL: [PhaseKind; 13] = [
        PhaseKind::SynSent,
        PhaseKind::SynReceived,
        PhaseKind::Established,
        PhaseKind::FinWait,
        PhaseKind::CloseWait,
        PhaseKind::LastAck,
        PhaseKind::TimeWait,
        PhaseKind::Closed,
        PhaseKind::PickedUp,
        PhaseKind::PickedUpReply,
        PhaseKind::Unreplied,
        PhaseKind::Replied,
        PhaseKind::Stream,
    ];
}

/// Order of eviction from a full table, lowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EvictionRank {
    /// Closed, closing or timed out.
    Closed,
    /// Handshake not complete.
    HalfOpen,
    /// Answered UDP, idle for some time.
    IdleUdp,
}

impl EvictionRank {
    /// All ranks.
    pub const ALL: [EvictionRank; EvictionRank::COUNT] = [EvictionRank::Closed, EvictionRank::HalfOpen, EvictionRank::IdleUdp];
    /// Number of ranks.
    pub const COUNT: usize = EvictionRank::IdleUdp as usize + 1;
}

/// Answered UDP is not evicted before it was idle for this long, milliseconds: most answers are complete by then.
const ANSWERED_IDLE_MIN_MS: u64 = 5_000;

/// Answered UDP with packets at this age is a stream, milliseconds (`stream_ts` in nf_conntrack_proto_udp.c).
pub(super) const STREAM_AGE_MS: u64 = 2_000;

/// A phase in one byte: its number, whether it is SCTP's, and who brought it about: the sender of the FIN in FinWait and CloseWait, of
/// the second FIN in LastAck, of the RST in Closed (which may be both).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Phase(u8);

const KIND: u8 = 0x0f;
const SCTP: u8 = 0x10;
const BY_CLIENT: u8 = 0x40;
const BY_BACKEND: u8 = 0x80;
const BY: u8 = BY_CLIENT | BY_BACKEND;

/// What a packet means: the first of its flags in this order (nf_conntrack_proto_tcp.c, `get_conntrack_index`).
#[derive(Clone, Copy)]
enum Segment {
    Rst,
    SynAck,
    Syn,
    Fin,
    Ack,
    Nothing,
}

impl Segment {
    fn of(tcp_flags: u8) -> Segment {
        let has = |flags: u8| tcp_flags & flags == flags;
        match () {
            _ if has(tcp::RST) => Segment::Rst,
            _ if has(tcp::SYN | tcp::ACK) => Segment::SynAck,
            _ if has(tcp::SYN) => Segment::Syn,
            _ if has(tcp::FIN) => Segment::Fin,
            _ if has(tcp::ACK) => Segment::Ack,
            _ => Segment::Nothing,
        }
    }
}

impl Phase {
    /// Values of [`Phase::place`] are below this.
    pub(super) const PLACES: usize = 32;

    /// The phase itself.
    pub fn kind(self) -> PhaseKind {
        // A byte that is no phase counts as closed.
        PhaseKind::ALL.get(usize::from(self.0 & KIND).wrapping_sub(1)).copied().unwrap_or(PhaseKind::Closed)
    }

    /// Whether it is an SCTP association's.
    pub fn is_sctp(self) -> bool {
        self.0 & SCTP != 0
    }

    /// A number for the idle-time table: kind and protocol.
    #[inline(always)]
    pub(super) fn place(self) -> usize {
        usize::from(self.0 & (KIND | SCTP))
    }

    /// The phase after a flow's first packet: a SYN, or a mid-stream packet.
    pub fn first(proto: Proto, tcp_flags: u8) -> Phase {
        let kind = match proto {
            Proto::Udp => PhaseKind::Unreplied,
            _ if tcp_flags & tcp::SYN != 0 => PhaseKind::SynSent,
            _ => PhaseKind::PickedUp,
        };
        Phase(kind as u8 | if proto == Proto::Sctp { SCTP } else { 0 })
    }

    /// The phase after one more packet; see [`Phase::grown_old`] for what time does.
    pub fn after(self, direction: Direction, tcp_flags: u8) -> Phase {
        use PhaseKind::*;
        use Segment::*;
        let reply = direction == Direction::Reply;
        let sender = if reply { BY_BACKEND } else { BY_CLIENT };
        // This side's packet led to the phase.
        let own = self.0 & sender != 0;
        let to = |kind: PhaseKind, by: u8| Phase(kind as u8 | self.0 & SCTP | by);
        match (Segment::of(tcp_flags), self.kind()) {
            (_, Unreplied) if reply => to(Replied, 0),
            (_, Unreplied | Replied | Stream) => self,
            (Rst, Closed) => Phase(self.0 | sender),
            (Rst, _) => to(Closed, sender),
            (Syn, SynSent) | (SynAck, SynSent | PickedUp | LastAck) if reply => to(SynReceived, 0),
            (SynAck, Closed) if reply && own => to(SynReceived, 0),
            (SynAck, SynReceived) if !reply && !self.is_sctp() => to(Established, 0),
            (Fin, SynReceived | Established | PickedUp | PickedUpReply) => to(FinWait, sender),
            (Fin, FinWait | CloseWait) if !own => to(LastAck, sender),
            (Fin, Closed) if own => to(FinWait, sender),
            (Ack, SynSent) if !reply => to(PickedUp, 0),
            // TCP's client has the last word in the handshake, SCTP's backend.
            (Ack, SynReceived) if reply == self.is_sctp() => to(Established, 0),
            (Ack, FinWait) if !own => to(CloseWait, self.0 & BY),
            (Ack, LastAck) if !own => to(TimeWait, 0),
            (Ack, PickedUp) if reply => to(Established, 0),
            (Ack, PickedUpReply) if !reply => to(Established, 0),
            (Ack, Closed) if own => to(if reply { PickedUpReply } else { PickedUp }, 0),
            _ => self,
        }
    }

    /// The phase of a flow that is more than [`STREAM_AGE_MS`] old, before the next packet.
    pub(super) fn grown_old(self) -> Phase {
        if self.kind() == PhaseKind::Replied { Phase(PhaseKind::Stream as u8) } else { self }
    }

    /// Whether a packet without SYN, FIN and RST from this side surely changes nothing but, with time, see [`Phase::grown_old`].
    pub(super) fn settled(self, direction: Direction) -> bool {
        match self.kind() {
            PhaseKind::Established | PhaseKind::CloseWait | PhaseKind::Replied | PhaseKind::Stream => true,
            PhaseKind::PickedUp | PhaseKind::Unreplied => direction == Direction::Original,
            PhaseKind::PickedUpReply => direction == Direction::Reply,
            _ => false,
        }
    }

    /// Whether a SYN from the client replaces this flow by a new one (TCP port reuse: RFC 9293, 3.6.1; RFC 6191).
    pub fn reusable(self) -> bool {
        matches!(self.kind(), PhaseKind::TimeWait | PhaseKind::Closed)
    }

    /// The eviction rank of a flow that was idle for so long; `None`: it is never evicted. The lowest rank goes first. Completed handshakes
    /// are kept; half-open flows can be created by anybody, even with forged addresses.
    pub fn eviction_rank(self, idle_ms: u64) -> Option<EvictionRank> {
        use PhaseKind::*;
        match self.kind() {
            LastAck | TimeWait | Closed => Some(EvictionRank::Closed),
            SynSent | SynReceived | PickedUp | PickedUpReply | Unreplied => Some(EvictionRank::HalfOpen),
            Replied | Stream if idle_ms >= ANSWERED_IDLE_MIN_MS => Some(EvictionRank::IdleUdp),
            Replied | Stream | Established | FinWait | CloseWait => None,
        }
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

#[cfg(test)]
mod tests;
