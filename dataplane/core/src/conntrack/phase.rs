//! The phase of a connection, which decides its lifetime.
//!
//! ```text
//! TCP  SynSent -> SynReceived -> Established -> FinWait -> CloseWait -> LastAck -> TimeWait
//!      SYN        SYN+ACK        ACK            FIN        its ACK      2nd FIN    its ACK
//!
//!      FinWait                 -> LastAck        the second FIN, before the first is acknowledged
//!      any           -> Closed         RST
//!      Closed        -> PickedUp       no RST, from the client, and so was the RST: forged, the connection goes on
//!      Closed        -> PickedUpReply  the same, the backend's
//!      PickedUp      -> PickedUpReply  the backend
//!      PickedUpReply -> Established    the client's acknowledgment of what the backend sent
//!      TimeWait, Closed -> a new connection: the client's SYN
//!
//! UDP  Unreplied -> Replied -> Confirmed -> Stream
//!      a question   answer     the client   a packet of either side, when the flow is more than 2 s old
//! ```
//!
//! **A client that forges its address gains nothing that lasts.** It never sees the backend's sequence number, so its acknowledgment does
//! not cover it, and without that a flow is neither established nor closing: it is evicted before others ([`EvictionRank::Unconfirmed`]).
//! See [`sequence`](super::sequence) for the numbers.
//!
//! The walk is that of Linux (net/netfilter/nf_conntrack_proto_tcp.c, `tcp_conntracks`), which watches the sequence numbers of every packet.
//! Here they are only compared where something depends on them, so it differs:
//!
//! * An RST whose number does not fit closes, too, but as a doubtful one: the flow keeps the life of an established one, and makes room when
//!   others need its place. A FIN that does not fit is doubtful until the backend acknowledges just that number. Linux ignores both;
//!   here the numbers known may be too old to be sure.
//! * A host that has sent an RST sends nothing else afterwards. If it does, the RST was forged, and the connection continues: as it was if the
//!   RST was doubtful, else as a mid-stream one. Packets of the other side may have been in flight, and prove nothing.
//! * The sender of each FIN is known. Linux takes any ACK after a FIN for its acknowledgement, and any FIN after that for the second one,
//!   even a retransmission of the first; here both must come from the other side. So the challenge ACK (RFC 5961) of a backend in LAST-ACK
//!   does not count as the last ACK.
//! * Simultaneous open (RFC 9293, 3.5): the second SYN counts as an answer. Linux has a separate state for that.
//! * A mid-stream connection is PickedUp until the backend sends and the client acknowledges that; in Linux it is established, with the
//!   same idle time. A client that continues after its SYN without an answer is PickedUp, too: a forged RST and a forged SYN have replaced
//!   its connection.
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
    /// Mid-stream, or continued after a reset: the backend was seen, and the client has not acknowledged that.
    PickedUpReply = 10,
    /// UDP: no answer was seen.
    Unreplied = 11,
    /// UDP: answered.
    Replied = 12,
    /// UDP: answered, and more than 2 s old when it last carried a packet.
    Stream = 13,
    /// UDP: answered, and the client has sent again.
    Confirmed = 14,
}

impl PhaseKind {
    /// The phase with this number.
    pub(crate) fn from_number(number: u8) -> Option<PhaseKind> {
        PhaseKind::ALL.get(usize::from(number).wrapping_sub(1)).copied()
    }

    const ALL: [PhaseKind; 14] = [
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
        PhaseKind::Confirmed,
    ];
}

/// Order of eviction from a full table, lowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EvictionRank {
    /// Closed, closing or timed out.
    Closed,
    /// The client has not proven that it receives what is sent to it: handshake not complete, UDP with at most one answer.
    Unconfirmed,
    /// Established, then reset or closed by a segment whose sequence number did not fit.
    Doubtful,
    /// Confirmed UDP, idle for some time.
    IdleUdp,
}

impl EvictionRank {
    /// All ranks.
    pub const ALL: [EvictionRank; EvictionRank::COUNT] =
        [EvictionRank::Closed, EvictionRank::Unconfirmed, EvictionRank::Doubtful, EvictionRank::IdleUdp];
    /// Number of ranks.
    pub const COUNT: usize = EvictionRank::IdleUdp as usize + 1;
}

/// Confirmed UDP is not evicted before it was idle for this long, milliseconds.
const CONFIRMED_IDLE_MIN_MS: u64 = 5_000;

/// Answered UDP with packets at this age is a stream, milliseconds (`stream_ts` in nf_conntrack_proto_udp.c).
pub(super) const STREAM_AGE_MS: u64 = 2_000;

/// A phase in one byte: its number, whether it is SCTP's, whether it is doubtful (see the module's documentation), and which side led to it:
/// the sender of the FIN in FinWait and CloseWait, of the second FIN in LastAck, of the RST in Closed (which may be both).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Phase(u8);

const KIND: u8 = 0x0f;
const SCTP: u8 = 0x10;
const DOUBTFUL: u8 = 0x20;
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
    pub(super) const PLACES: usize = 64;

    /// The phase itself.
    pub fn kind(self) -> PhaseKind {
        // A byte that is no phase counts as closed.
        PhaseKind::from_number(self.0 & KIND).unwrap_or(PhaseKind::Closed)
    }

    /// Whether it is an SCTP association's.
    pub fn is_sctp(self) -> bool {
        self.0 & SCTP != 0
    }

    /// Whether the RST or the FIN that led here did not fit the numbers seen.
    pub(super) fn is_doubtful(self) -> bool {
        self.0 & DOUBTFUL != 0
    }

    /// A number for the idle-time table: kind, protocol and doubt.
    #[inline(always)]
    pub(super) fn place(self) -> usize {
        usize::from(self.0 & (KIND | SCTP | DOUBTFUL))
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

    /// The phase after one more packet; see [`Phase::grown_old`] for the effect of time. `proven`: the packet's sequence numbers show that
    /// its sender is the one it claims to be. That is for a client's acknowledgment to cover what the backend has sent, for an RST or a FIN
    /// to fit what was sent before, and in a phase whose FIN is doubtful for a segment to acknowledge that FIN, or to end where it ended.
    pub fn after(self, direction: Direction, tcp_flags: u8, proven: bool) -> Phase {
        use PhaseKind::*;
        use Segment::*;
        let reply = direction == Direction::Reply;
        let sender = if reply { BY_BACKEND } else { BY_CLIENT };
        // This side's packet led to the phase.
        let own = self.0 & sender != 0;
        let (sctp, doubtful) = (self.is_sctp(), self.is_doubtful());
        let to = |kind: PhaseKind, by: u8| Phase(kind as u8 | self.0 & SCTP | by);
        let or_doubtful = |phase: Phase| if proven { phase } else { Phase(phase.0 | DOUBTFUL) };
        match (Segment::of(tcp_flags), self.kind()) {
            (_, Unreplied) if reply => to(Replied, 0),
            (_, Replied) if !reply => to(Confirmed, 0),
            (_, Unreplied | Replied | Confirmed | Stream) => self,
            (Rst, Closed) if proven => to(Closed, self.0 & BY | sender),
            (Rst, Closed) => Phase(self.0 | sender),
            (Rst, Established | FinWait | CloseWait) => or_doubtful(to(Closed, sender)),
            (Rst, _) if doubtful => or_doubtful(to(Closed, sender)),
            (Rst, _) => to(Closed, sender),
            (Syn, SynSent) | (SynAck, SynSent | PickedUp | PickedUpReply | LastAck) if reply => to(SynReceived, 0),
            (SynAck, Closed) if reply && (own || doubtful) => to(SynReceived, 0),
            (SynAck, SynReceived) if !reply && !sctp && proven => to(Established, 0),
            (Fin, SynReceived | PickedUpReply) if !reply && proven => to(FinWait, sender),
            (Fin, Established) => or_doubtful(to(FinWait, sender)),
            // The client's FIN was doubtful, and the backend's does not acknowledge it.
            (Fin, FinWait) if !own && doubtful && !proven => to(FinWait, sender),
            (Fin, FinWait | CloseWait) if !own => or_doubtful(to(LastAck, sender)),
            (Ack, SynSent) if !reply => to(PickedUp, 0),
            // TCP's client has the last word in the handshake, SCTP's backend.
            (Ack, SynReceived) if reply == sctp && proven => to(Established, 0),
            (Ack, FinWait) if !own && (proven || !doubtful) => to(CloseWait, self.0 & BY),
            (Ack, LastAck) if !own && (proven || !doubtful) => to(TimeWait, 0),
            (Ack | Fin, PickedUp) if reply => to(if sctp { Established } else { PickedUpReply }, 0),
            (Ack, PickedUpReply) if !reply && (proven || sctp) => to(Established, 0),
            // What this side sends disproves its RST; a client's FIN is disproved by what ends elsewhere.
            (Ack | Fin, Closed) if own && doubtful => to(Established, 0),
            (Ack, FinWait) if own && !reply && doubtful && !proven => to(Established, 0),
            (Ack, LastAck) if own && !reply && doubtful && !proven => to(CloseWait, BY_BACKEND),
            (Ack | Fin, Closed) if own => to(if reply { PickedUpReply } else { PickedUp }, 0),
            _ => self,
        }
    }

    /// The phase of a flow that is more than [`STREAM_AGE_MS`] old, before the next packet.
    pub(super) fn grown_old(self) -> Phase {
        match self.kind() {
            PhaseKind::Replied | PhaseKind::Confirmed => Phase(PhaseKind::Stream as u8),
            _ => self,
        }
    }

    /// Whether a packet without SYN, FIN and RST from this side surely changes nothing but, with time, see [`Phase::grown_old`].
    pub(super) fn settled(self, direction: Direction) -> bool {
        match self.kind() {
            PhaseKind::Established | PhaseKind::CloseWait | PhaseKind::Confirmed | PhaseKind::Stream => !self.is_doubtful(),
            PhaseKind::PickedUp | PhaseKind::Unreplied => direction == Direction::Original,
            PhaseKind::Replied => direction == Direction::Reply,
            _ => false,
        }
    }

    /// Whether a SYN from the client replaces this flow by a new one (TCP port reuse: RFC 9293, 3.6.1; RFC 6191).
    pub fn reusable(self) -> bool {
        matches!(self.kind(), PhaseKind::TimeWait | PhaseKind::Closed) && !self.is_doubtful()
    }

    /// Whether the backend has closed the flow, so that it no longer counts as one of its client's. A client's RST does not suffice: the
    /// backend may ignore it, and the client go on.
    pub fn is_over(self) -> bool {
        let closed = match self.kind() {
            PhaseKind::LastAck | PhaseKind::TimeWait => true,
            PhaseKind::Closed => self.0 & BY_BACKEND != 0,
            _ => false,
        };
        closed && !self.is_doubtful()
    }

    /// The eviction rank of a flow that was idle for so long; `None`: it is never evicted. The lowest rank goes first. Completed handshakes
    /// are kept; anybody can open a flow, even with a forged address.
    pub fn eviction_rank(self, idle_ms: u64) -> Option<EvictionRank> {
        use PhaseKind::*;
        match self.kind() {
            LastAck | TimeWait | Closed if self.is_doubtful() => Some(EvictionRank::Doubtful),
            LastAck | TimeWait | Closed => Some(EvictionRank::Closed),
            SynSent | SynReceived | PickedUp | PickedUpReply | Unreplied | Replied => Some(EvictionRank::Unconfirmed),
            Confirmed | Stream if idle_ms >= CONFIRMED_IDLE_MIN_MS => Some(EvictionRank::IdleUdp),
            Confirmed | Stream | Established | FinWait | CloseWait => None,
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
